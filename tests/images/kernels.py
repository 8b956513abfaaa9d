"""The smallest files that pass for kernels, and what can be wrong with them."""

import struct

ENTRY = 0x1000000


def elf(
    *, machine: int = 62, bits: int = 2, kind: int = 2, entry: int = ENTRY, segments: int = 1
) -> bytes:
    """An ELF kernel of 16 bytes, loaded where Linux is."""
    ident = b"\x7fELF" + bytes((bits, 1, 1)) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, kind, machine, 1, entry, 64, 0, 0, 64, 56, segments, 0, 0, 0
    )
    high = 0xFFFFFFFF80000000 + ENTRY
    load = struct.pack("<IIQQQQQQ", 1, 5, 64 + 56 * segments, high, ENTRY, 16, 16, 4096)
    return header + load * segments + b"\xf4" * 16


def bzimage(
    *, version: int = 0x20F, loadflags: int = 1, xloadflags: int = 1, boot_flag: bytes = b"\x55\xaa"
) -> bytes:
    """A bzImage's header and nothing to boot."""
    image = bytearray(4096)
    image[0x1FE:0x200] = boot_flag
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = version.to_bytes(2, "little")
    image[0x211] = loadflags
    image[0x236] = xloadflags
    return bytes(image)
