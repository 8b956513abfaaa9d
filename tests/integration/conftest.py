"""Installations that tests share, one for each engine and test process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.installation import Installation
from tests.parts import LinuxImages

_PORTS = {"firecracker": 18181, "qemu": 18182}


def _installation(
    engine: str, factory: pytest.TempPathFactory, images: LinuxImages, tiny: Path
) -> Iterator[Installation]:
    # Each test process has a network namespace of its own, so fixed ports never collide.
    data = factory.mktemp(engine) / "d"
    with Installation(data, _PORTS[engine], engine) as installation:
        if engine == "firecracker":
            installation.register("kernel", "tiny", tiny)
        yield installation


@pytest.fixture(scope="session")
def firecracker_installation(
    tmp_path_factory: pytest.TempPathFactory,
    linux_images: LinuxImages,
    tiny_kernel: Path,
    firecracker_binary: Path,
) -> Iterator[Installation]:
    yield from _installation("firecracker", tmp_path_factory, linux_images, tiny_kernel)


@pytest.fixture(scope="session")
def qemu_installation(
    tmp_path_factory: pytest.TempPathFactory, linux_images: LinuxImages, tiny_kernel: Path
) -> Iterator[Installation]:
    yield from _installation("qemu", tmp_path_factory, linux_images, tiny_kernel)


@pytest.fixture(params=["firecracker", "qemu"])
def installation(request: pytest.FixtureRequest) -> Installation:
    """An installation on each engine in turn."""
    found = request.getfixturevalue(f"{request.param}_installation")
    assert isinstance(found, Installation)
    return found


@pytest.fixture
def guest(installation: Installation) -> dict[str, object]:
    """What to create so that the engine of the installation runs a guest."""
    if installation.engine == "firecracker":
        return {"kernel": "tiny", "mem_mib": 32}
    return {"rootfs": "busybox", "mem_mib": 128}
