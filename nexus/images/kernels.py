"""Whether a file is a kernel that microVMs on x86-64 can boot.

Sources: the ELF specification for ``vmlinux``; the kernel's Documentation/arch/x86/boot.rst for
bzImage; Documentation/arch/arm64/booting.rst for what is refused by name.
"""

import os
import struct

from nexus.images.errors import BadImage

_CURE = (
    "give vmlinux or bzImage of a kernel built for x86-64, or build one: "
    "nexus image build debian-cloud"
)

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_EM_X86_64 = 62
_EXECUTABLE = (2, 3)
_PT_LOAD = 1
_MAX_SEGMENTS = 128
_MACHINES = {
    3: "32-bit x86",
    8: "MIPS",
    20: "32-bit PowerPC",
    21: "PowerPC",
    22: "s390",
    40: "32-bit ARM",
    183: "aarch64",
    243: "RISC-V",
    258: "LoongArch",
}

_BOOT_FLAG_AT = 0x1FE
_HEADER_AT = 0x202
_VERSION_AT = 0x206
_LOADFLAGS_AT = 0x211
_XLOADFLAGS_AT = 0x236
_SETUP_END = 0x268
_FIRST_64_BIT_VERSION = 0x20C
_LOADED_HIGH = 1
_XLF_KERNEL_64 = 1

_ARM64_MAGIC_AT = 0x38
_ZIMG_AT = 4


def check(descriptor: int) -> None:
    """Raises BadImage with the reason unless the file is such a kernel."""
    head = os.pread(descriptor, _SETUP_END, 0)
    if head.startswith(b"\x7fELF"):
        _check_elf(descriptor, head)
    elif head[_HEADER_AT : _HEADER_AT + 4] == b"HdrS":
        _check_bzimage(head)
    elif head[_ARM64_MAGIC_AT : _ARM64_MAGIC_AT + 4] == b"ARM\x64":
        raise _wrong_machine("aarch64")
    elif head.startswith(b"MZ") and head[_ZIMG_AT : _ZIMG_AT + 4] == b"zimg":
        raise _bad("an EFI zboot kernel, which is not for x86-64")
    else:
        raise _bad("neither an ELF64 (vmlinux) nor a bzImage")


def _check_elf(descriptor: int, head: bytes) -> None:
    if len(head) < _ELF_HEADER.size:
        raise _bad("an ELF file that ends within its header")
    bits, order = head[4], head[5]
    machine = int.from_bytes(head[18:20], "big" if order == 2 else "little")
    if machine != _EM_X86_64:
        raise _wrong_machine(_MACHINES.get(machine, f"ELF machine {machine}"))
    if (bits, order) != (2, 1):
        raise _bad("an ELF file that is not 64-bit little-endian")
    _, kind, _, _, entry, table_at, _, _, _, size, count, *_ = _ELF_HEADER.unpack_from(head)
    if kind not in _EXECUTABLE:
        raise _bad("an ELF file that cannot be executed, like an object or a core file")
    if size != _SEGMENT.size or not 0 < count <= _MAX_SEGMENTS:
        raise _bad("an ELF file without a sensible table of segments")
    table = os.pread(descriptor, size * count, table_at) if table_at < 1 << 62 else b""
    if len(table) != size * count:
        raise _bad("an ELF file that ends before its table of segments: it is cut off")
    length = os.fstat(descriptor).st_size
    holds_entry = False
    for at in range(0, len(table), size):
        what, _, offset, virtual, physical, in_file, in_memory, _ = _SEGMENT.unpack_from(table, at)
        if what != _PT_LOAD:
            continue
        if offset + in_file > length:
            raise _bad("an ELF file that ends within a segment: it is cut off")
        # vmlinux names its entry by the physical address; others by the virtual one.
        holds_entry |= any(start <= entry < start + in_memory for start in (virtual, physical))
    if not holds_entry:
        raise _bad("an ELF file whose entry point lies in none of its segments")


def _check_bzimage(head: bytes) -> None:
    if len(head) < _SETUP_END or head[_BOOT_FLAG_AT : _BOOT_FLAG_AT + 2] != b"\x55\xaa":
        raise _bad("a damaged bzImage: its header is cut off or has no boot flag")
    version = int.from_bytes(head[_VERSION_AT : _VERSION_AT + 2], "little")
    if not head[_LOADFLAGS_AT] & _LOADED_HIGH:
        raise _bad("a zImage, which is loaded low; microVMs need a bzImage")
    if version < _FIRST_64_BIT_VERSION or not head[_XLOADFLAGS_AT] & _XLF_KERNEL_64:
        raise _bad("a bzImage of a 32-bit kernel, or of one older than Linux 3.8")


def _wrong_machine(name: str) -> BadImage:
    return BadImage(f"the kernel is for {name}; VMs here are x86-64", _CURE)


def _bad(what: str) -> BadImage:
    return BadImage(f"the file is no kernel that boots: it is {what}", _CURE)
