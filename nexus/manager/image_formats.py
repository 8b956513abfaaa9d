"""What a file's first bytes say about it: enough to refuse what can never work."""

import os

from nexus.api.errors import ValidationFailed
from nexus.api.images import ImageKind

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_EM_X86_64 = 62
_NOT_A_DISK = {
    b"\x1f\x8b": ("gzip", "gunzip it first"),
    b"\xfd7zXZ\x00": ("xz", "unxz it first"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd it first"),
    b"BZh": ("bzip2", "bunzip2 it first"),
    b"QFI\xfb": ("qcow2", "make it raw: qemu-img convert -O raw IN OUT"),
    b"KDMV": ("VMDK", "make it raw: qemu-img convert -O raw IN OUT"),
    b"\x7fELF": ("an ELF program", "register a kernel with the kind kernel"),
}


def check_format(kind: ImageKind, descriptor: int) -> None:
    """Raises ValidationFailed when the file cannot be an image of this kind.

    Kernels are ELF64 for x86-64 or bzImage (Linux boot protocol: ``HdrS`` at 0x202). Root file
    systems are raw disks of any file system; compressed and virtual-disk formats are refused.
    """
    head = os.pread(descriptor, 0x210, 0)
    if kind == "kernel":
        if not (_is_elf(head) or head[0x202:0x206] == b"HdrS"):
            raise ValidationFailed(
                "the file is neither an ELF64 kernel for x86-64 (vmlinux) nor a bzImage",
                suggestion="give vmlinux or bzImage of a kernel build, or build one: "
                "nexus image build debian-cloud",
            )
    elif kind == "rootfs":
        for magic, (name, cure) in _NOT_A_DISK.items():
            if head.startswith(magic):
                raise ValidationFailed(f"the file is {name}, not a raw disk", suggestion=cure)


def _is_elf(head: bytes) -> bool:
    return head.startswith(_ELF64_LITTLE) and head[18:20] == _EM_X86_64.to_bytes(2, "little")
