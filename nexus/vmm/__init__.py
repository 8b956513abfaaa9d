"""Speaking Firecracker: its API's types and client, finding its binaries, and the engine probe."""
