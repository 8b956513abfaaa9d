"""The two engines of the conformance suite, and VMMs of them in the states that tests need."""

from collections.abc import Iterator

import pytest

from tests.vmm.lab import Lab
from tests.vmm.vmm_process import Engine, Guest, VmmProcess

ENGINES = [
    pytest.param("firecracker", marks=pytest.mark.firecracker),
    pytest.param("nexus-qemu", marks=pytest.mark.qemu),
]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each test that asks for it runs with either VMM."""
    if request.param == "firecracker":
        tiny = Guest(
            kernel=request.getfixturevalue("tiny_kernel"),
            initrd=None,
            rootfs=None,
            boot_args="console=ttyS0",
            banner="nexus-tiny ready",
            set_key="cc",
            set_answer=r"count=\d+",
            get_key="c",
            get_answer=r"count=\d+",
        )
        return Engine("firecracker", [str(request.getfixturevalue("firecracker_binary"))], tiny)
    images = request.getfixturevalue("linux_images")
    linux = Guest(
        kernel=images.kernel,
        initrd=images.initrd,
        rootfs=images.rootfs,
        boot_args="console=ttyS0 reboot=k panic=1 quiet",
        banner="nexus-guest ready",
        set_key="count=41; echo count=$count\n",
        set_answer=r"\ncount=41",
        get_key="echo after=$((count+1))\n",
        get_answer=r"\nafter=42",
    )
    return Engine("nexus-qemu", request.getfixturevalue("nexus_qemu"), linux)


@pytest.fixture
def lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(engine, tmp_path_factory)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(engine, tmp_path_factory)
    yield made
    made.close()


@pytest.fixture(scope="module")
def configured(shared_lab: Lab) -> VmmProcess:
    return shared_lab.configured()


@pytest.fixture(scope="module")
def running(shared_lab: Lab) -> VmmProcess:
    """Tests leave it running."""
    return shared_lab.running()
