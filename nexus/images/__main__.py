"""``python -m nexus.images build debian-cloud|busybox --out DIR [--refresh]``.

Standard output is JSON lines: ``{"progress": 0.4, "step": "…"}`` while it works, and at the end
``{"artifacts": [{"kind", "name", "path"}]}`` or ``{"error", "suggestion"}`` with exit status 1.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from nexus.images import busybox, debian
from nexus.images.debs import Packages
from nexus.images.errors import ImageError

Artifact = dict[str, str]


def build_debian_cloud(out: Path, packages: Packages) -> list[Artifact]:
    """Debian's cloud kernel and its initial RAM disk."""
    made = debian.build(out, packages=packages, progress=say_progress)
    return [
        {"kind": "kernel", "name": "debian-cloud", "path": str(made.vmlinux)},
        {"kind": "initrd", "name": "debian-cloud", "path": str(made.initrd)},
    ]


def build_busybox(out: Path, packages: Packages) -> list[Artifact]:
    """The busybox root file system."""
    made = busybox.build(out, packages=packages, progress=say_progress)
    return [{"kind": "rootfs", "name": "busybox", "path": str(made)}]


RECIPES: dict[str, Callable[[Path, Packages], list[Artifact]]] = {
    "debian-cloud": build_debian_cloud,
    "busybox": build_busybox,
}


def say(**fields: object) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


def say_progress(share: float, step: str) -> None:
    """One line of progress."""
    say(progress=round(share, 3), step=step)


def main(arguments: list[str] | None = None) -> int:
    """Runs one build; the exit status is 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m nexus.images")
    build = parser.add_subparsers(dest="verb", required=True).add_parser("build")
    build.add_argument("recipe", choices=sorted(RECIPES))
    build.add_argument("--out", type=Path, required=True, help="folder for what is built")
    build.add_argument("--refresh", action="store_true", help="fetch newer packages if there are")
    chosen = parser.parse_args(arguments)
    try:
        packages = Packages(refresh=chosen.refresh)
        artifacts = RECIPES[chosen.recipe](chosen.out.absolute(), packages)
    except ImageError as failed:
        say(error=str(failed), suggestion=failed.suggestion)
        return 1
    except OSError as failed:
        say(error=str(failed), suggestion="check the folder's permissions and the free space")
        return 1
    say(artifacts=artifacts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
