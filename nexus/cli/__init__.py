"""The command line. It knows the SDK and nothing below it."""
