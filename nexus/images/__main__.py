"""``python -m nexus.images build debian-cloud|busybox|debian|oci --out DIR [--refresh]``.

``debian`` also takes ``--package NAME`` (repeated), ``oci`` needs ``--source``; both take
``--size-mib N``. ``--name`` is what a root file system is called.

Standard output is JSON lines: ``{"progress": 0.4, "step": "…"}`` while it works, and at the end
``{"artifacts": [{"kind", "name", "path"}]}`` or ``{"error", "suggestion"}`` with exit status 1.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexus.images import busybox, debian, debian_root, oci
from nexus.images.debs import Packages
from nexus.images.errors import ImageError

Artifact = dict[str, str]


@dataclass(frozen=True)
class Order:
    """What is to be built, where and from what."""

    out: Path
    packages: Packages
    name: str | None
    extra: tuple[str, ...]
    size_mib: int | None
    source: str


def build_debian_cloud(order: Order) -> list[Artifact]:
    """Debian's cloud kernel and its initial RAM disk."""
    made = debian.build(order.out, packages=order.packages, progress=say_progress)
    return [
        {"kind": "kernel", "name": "debian-cloud", "path": str(made.vmlinux)},
        {"kind": "initrd", "name": "debian-cloud", "path": str(made.initrd)},
    ]


def build_busybox(order: Order) -> list[Artifact]:
    """The busybox root file system."""
    made = busybox.build(order.out, packages=order.packages, progress=say_progress)
    return [_rootfs(order, "busybox", made)]


def build_debian(order: Order) -> list[Artifact]:
    """A Debian root file system with packages of one's choice."""
    made = debian_root.build(
        order.out,
        packages=order.extra,
        size_mib=order.size_mib or debian_root.SIZE_MIB,
        progress=say_progress,
    )
    return [_rootfs(order, "debian", made)]


def build_oci(order: Order) -> list[Artifact]:
    """A root file system from a container's image."""
    made = oci.build(
        order.out,
        order.source,
        packages=order.packages,
        size_mib=order.size_mib,
        progress=say_progress,
    )
    return [_rootfs(order, "oci", made)]


def _rootfs(order: Order, name: str, path: Path) -> Artifact:
    return {"kind": "rootfs", "name": order.name or name, "path": str(path)}


RECIPES: dict[str, Callable[[Order], list[Artifact]]] = {
    "debian-cloud": build_debian_cloud,
    "busybox": build_busybox,
    "debian": build_debian,
    "oci": build_oci,
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
    build.add_argument("--name", help="what the root file system is called")
    build.add_argument("--package", action="append", default=[], help="a Debian package to install")
    build.add_argument("--size-mib", type=int, help="the disk's size")
    build.add_argument("--source", default="", help="the image, as skopeo names it")
    chosen = parser.parse_args(arguments)
    try:
        packages = Packages(refresh=chosen.refresh)
        order = Order(
            out=chosen.out.absolute(),
            packages=packages,
            name=chosen.name,
            extra=tuple(chosen.package),
            size_mib=chosen.size_mib,
            source=chosen.source,
        )
        artifacts = RECIPES[chosen.recipe](order)
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
