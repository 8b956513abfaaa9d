"""Finding and building, once, the real parts that tests use."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
_HOST_NETWORK = os.open("/proc/self/ns/net", os.O_RDONLY)
"""Tests leave the machine's network (conftest.py); a build that fetches packages needs it."""
CACHE = Path(os.environ.get("NEXUS_TEST_CACHE", REPO / ".cache"))


@dataclass(frozen=True)
class LinuxImages:
    kernel: Path
    initrd: Path
    rootfs: Path


def find_binary(variable: str, name: str) -> Path:
    """The binary named by an environment variable, in the test cache, or on PATH.

    Raises FileNotFoundError with the command that fetches it.
    """
    candidates = [os.environ.get(variable), str(CACHE / "bin" / name), shutil.which(name)]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise FileNotFoundError(f"{name} is missing; `scripts/test-parts` fetches it")


@contextmanager
def _locked(name: str) -> Iterator[Path]:
    """One process at a time builds; the others wait and find it done."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE / name


def cached_tiny_kernel() -> Path:
    """Builds the tiny guest if its sources changed since the last build."""
    from nexus.images import tinyguest

    sources = sorted((REPO / "nexus" / "guest" / "tiny").iterdir())
    newest = max(source.stat().st_mtime for source in sources)
    with _locked("tiny") as folder:
        kernel = folder / "tiny.elf"
        if not kernel.exists() or kernel.stat().st_mtime < newest:
            folder.mkdir(exist_ok=True)
            tinyguest.build(kernel)
        return kernel


def cached_guest_agent() -> Path:
    """Builds the guest's agent if its sources changed since the last build."""
    from nexus.images import guestagent

    newest = max(source.stat().st_mtime for source in guestagent.SOURCES.iterdir())
    with _locked("guest-agent") as folder:
        agent = folder / "nexus-guest-agent"
        if not agent.exists() or agent.stat().st_mtime < newest:
            folder.mkdir(exist_ok=True)
            guestagent.build(agent)
        return agent


def cached_linux_images() -> LinuxImages:
    """Builds kernel, initrd and root with ``python -m nexus.images`` when guest files changed."""
    sources = [p for p in (REPO / "nexus" / "guest").rglob("*") if p.is_file()]
    sources += list((REPO / "nexus" / "images").glob("*.py"))
    newest = max(source.stat().st_mtime for source in sources)
    with _locked("linux") as folder:
        manifest = folder / "manifest.json"
        if not manifest.exists() or manifest.stat().st_mtime < newest:
            folder.mkdir(exist_ok=True)
            found: dict[str, str] = {}
            for recipe in ("debian-cloud", "busybox"):
                found |= _build(recipe, folder / recipe)
            manifest.write_text(json.dumps(found))
        paths = json.loads(manifest.read_text())
    return LinuxImages(**{kind: Path(path) for kind, path in paths.items()})


def cached_debian_root() -> Path:
    """Builds the Debian root with ``python -m nexus.images`` when what goes into it changed.

    It takes a minute and the network, so what it is made of is compared, not when it was written.
    """
    here = REPO / "nexus"
    sources = sorted(p for p in (here / "guest" / "debian").rglob("*") if p.is_file())
    sources += [here / "images" / f"{name}.py" for name in ("debian_root", "sources")]
    wanted = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    with _locked("debian-root") as folder:
        made, stamp = folder / "rootfs.ext4", folder / "made-of"
        if not made.exists() or not stamp.exists() or stamp.read_text() != wanted:
            folder.mkdir(exist_ok=True)
            _build("debian", folder, on_host_network())
            stamp.write_text(wanted)
        return made


def on_host_network() -> list[str]:
    """A command prefix that runs a program in the network this process was started in."""
    if os.geteuid() != 0:
        return []
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_HOST_NETWORK}", "--"]


def _build(recipe: str, out: Path, prefix: Sequence[str] = ()) -> dict[str, str]:
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "nexus.images", "build", recipe, "--out", str(out)],
        cwd=REPO,
        env={**os.environ, "NEXUS_CACHE_DIR": str(CACHE / "packages")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    return {artifact["kind"]: artifact["path"] for artifact in last["artifacts"]}


if __name__ == "__main__":
    cached_tiny_kernel()
    cached_linux_images()
    cached_debian_root()


def tree(folder: Path) -> list[str]:
    """The paths of everything below a folder, from there. What goes meanwhile is no error."""
    found = []
    for place, folders, files in os.walk(folder):
        within = Path(place).relative_to(folder)
        found += [str(within / name) for name in (*folders, *files)]
    return sorted(found)
