"""Recognising what QEMU's microvm can boot."""

from nexus.qemu.faults import Fault, os_error

_ELF = b"\x7fELF"
_SETUP_MAGIC_AT = 0x202


def check_kernel(path: str, refused: str) -> None:
    """Raises Fault unless this is an ELF kernel or a bzImage."""
    words = "Cannot load kernel due to invalid memory configuration or invalid kernel image: "
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not imported otherwise
            head = file.read(_SETUP_MAGIC_AT + 4)
    except OSError as error:
        raise Fault(f"{refused}{words}{os_error(error)}") from error
    if not head.startswith(_ELF) and head[_SETUP_MAGIC_AT:] != b"HdrS":
        raise Fault(
            f"{refused}{words}Kernel Loader: failed to load ELF kernel image: Invalid ELF magic "
            "number"
        )
