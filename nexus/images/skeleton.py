"""The guest's own files, which go into the initial RAM disk and the busybox root alike."""

from dataclasses import dataclass
from pathlib import Path

GUEST = Path(__file__).resolve().parent.parent / "guest"

LINKS = {
    "etc/resolv.conf": "/run/resolv.conf",
    "sbin/init": "/bin/busybox",
    "sbin/poweroff": "/etc/nexus/power",
    "sbin/reboot": "/etc/nexus/power",
    "sbin/halt": "/etc/nexus/power",
}
"""Symbolic links of every guest: name to target."""


@dataclass(frozen=True)
class Item:
    """A file or folder of the guest; ``name`` is relative to the guest's root."""

    name: str
    is_folder: bool
    data: bytes
    permissions: int


def files(*parts: str) -> list[Item]:
    """The files of the named parts of ``nexus/guest``, folders before what is in them.

    Scripts are executable by what they hold, whatever an installation did to their modes.
    """
    items: dict[str, Item] = {}
    for part in parts:
        root = GUEST / part
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                items[name] = Item(name, is_folder=True, data=b"", permissions=0o755)
            else:
                data = path.read_bytes()
                permissions = 0o755 if data.startswith(b"#!") else 0o644
                items[name] = Item(name, is_folder=False, data=data, permissions=permissions)
    return list(items.values())
