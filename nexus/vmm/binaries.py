"""Finding ``firecracker``, ``jailer`` and ``nexus-qemu``, and asking them their version.

Where we look: an explicit path, else the environment (``FC_BINARY``, ``JAILER_BINARY``), else
PATH.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nexus.vmm.errors import BinaryBroken, BinaryMissing

VERSION_TIMEOUT_S = 20
_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)(?:-[\w.]+)?\b")
_INSTALL_FIRECRACKER = (
    "install a Firecracker release (1.12 or newer) on PATH, or set {variable} to the binary"
)


class Version(NamedTuple):
    """A release; compares as a tuple: ``version >= (1, 14, 0)``."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def find_firecracker(explicit: Path | None = None) -> Path:
    """Absolute path of ``firecracker``; BinaryMissing says how to get it."""
    return _find("firecracker", "FC_BINARY", explicit)


def find_jailer(explicit: Path | None = None) -> Path:
    """Absolute path of ``jailer``; BinaryMissing says how to get it."""
    return _find("jailer", "JAILER_BINARY", explicit)


def find_qemu(explicit: Path | None = None) -> Path:
    """Absolute path of ``qemu-system-x86_64``, which ``nexus-qemu`` runs."""
    found = explicit or _on_path("qemu-system-x86_64")
    if found is None or not _runnable(found):
        raise BinaryMissing(
            f"{found or 'qemu-system-x86_64'} is not an executable we can find",
            suggestion="apt-get install qemu-system-x86",
        )
    return found.absolute()


def nexus_qemu_command() -> list[str]:
    """The command that starts ``nexus-qemu`` with the Python that runs us."""
    return [sys.executable, "-m", "nexus.qemu"]


def version_of(command: Sequence[str]) -> Version:
    """What ``command --version`` says; BinaryBroken when it says nothing of the kind.

    Blocks for the run of the program: milliseconds for firecracker and jailer.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [*command, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BinaryBroken(
            f"{name} does not run: {error}",
            suggestion=f"check that {command[0]} is built for this machine",
        ) from error
    said = done.stdout.decode("utf-8", "replace")
    found = _VERSION.search(said)
    if done.returncode != 0 or found is None:
        raise BinaryBroken(
            f"{name} --version ended with {done.returncode} and says {said[:200]!r}",
            suggestion=f"check that {command[0]} is the program it is named for",
        )
    return Version(*(int(part) for part in found.groups()))


def _find(name: str, variable: str, explicit: Path | None) -> Path:
    cure = _INSTALL_FIRECRACKER.format(variable=variable)
    from_environment = os.environ.get(variable)
    found = explicit or (Path(from_environment) if from_environment else _on_path(name))
    if found is None:
        raise BinaryMissing(f"{name} is not on PATH", suggestion=cure)
    if not _runnable(found):
        raise BinaryMissing(f"{found} is not an executable file", suggestion=cure)
    return found.absolute()


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
