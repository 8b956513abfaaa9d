"""Wire types: every request, answer, state and error. No I/O."""
