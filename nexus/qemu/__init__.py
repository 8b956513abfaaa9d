"""``nexus-qemu``: a stand-alone VMM that serves Firecracker's API on QEMU's microvm machine."""

# The version of Firecracker whose API is spoken.
FIRECRACKER_VERSION = "1.12.1"
