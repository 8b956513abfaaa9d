"""What a file's first bytes say it is: raw, compressed, a virtual disk, or something else."""

from typing import Literal

Format = Literal["raw", "gzip", "xz", "zstd", "qcow2"]
"""How the bytes of a source stand for an image."""

HEAD_BYTES = 4096
"""How much of a file these rules look at."""

_MAGIC: dict[bytes, Format] = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"QFI\xfb": "qcow2",
}

_NOT_A_DISK = {
    b"BZh": ("bzip2", "decompress it: bunzip2 FILE"),
    b"\x04\x22\x4d\x18": ("lz4", "decompress it: unlz4 FILE"),
    b"PK\x03\x04": ("a zip archive", "unpack it and give the disk in it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it and give the disk in it"),
    b"KDMV": ("VMDK", "convert it: qemu-img convert -O raw FILE disk.raw"),
    b"conectix": ("a VHD disk", "convert it: qemu-img convert -O raw FILE disk.raw"),
    b"vhdxfile": ("a VHDX disk", "convert it: qemu-img convert -O raw FILE disk.raw"),
    b"QED\x00": ("a QED disk", "convert it: qemu-img convert -O raw FILE disk.raw"),
    b"\x7fELF": ("an ELF program", "register a kernel with the kind kernel"),
    b"!<arch>\n": ("a Debian package or archive", "give a disk image"),
}
_TAR_MAGIC_AT = 257


def sniff(head: bytes) -> Format:
    """The format of a source by its first bytes; what is unknown is raw."""
    return next((form for magic, form in _MAGIC.items() if head.startswith(magic)), "raw")


def not_a_disk(head: bytes) -> tuple[str, str] | None:
    """What a raw file is when it is certainly no disk, and what to do about it."""
    for magic, found in _NOT_A_DISK.items():
        if head.startswith(magic):
            return found
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive", "make a disk of it: mke2fs -t ext4 -d FOLDER disk.ext4 SIZE"
    return None
