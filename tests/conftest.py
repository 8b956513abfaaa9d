"""Shared fixtures, and a private network namespace for every test process.

A test process leaves the machine's network before its first test: TAPs, bridges and nftables
tables that tests make exist only in a namespace that vanishes with the process.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.parts import (
    REPO,
    LinuxImages,
    cached_debian_root,
    cached_guest_agent,
    cached_linux_images,
    cached_tiny_kernel,
    find_binary,
)

if TYPE_CHECKING:
    from tests.guest_stack import Stack

CLONE_NEWNET = 0x40000000
HOST_NETWORK = os.open("/proc/self/ns/net", os.O_RDONLY)
"""The network the test process was started in: for set-up that must fetch packages."""


def pytest_configure(config: pytest.Config) -> None:
    # What a script starts in the background ignores Ctrl-C, and so would all that tests start.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_int = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)
    is_controller = not hasattr(config, "workerinput") and config.getoption("numprocesses", None)
    if is_controller or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no private network namespace for the tests")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def firecracker_binary() -> Path:
    """The real ``firecracker``; its absence is a failure."""
    return find_binary("FC_BINARY", "firecracker")


@pytest.fixture(scope="session")
def jailer_binary() -> Path:
    return find_binary("JAILER_BINARY", "jailer")


@pytest.fixture(scope="session")
def nexus_qemu() -> list[str]:
    """The command that starts ``nexus-qemu``."""
    return [sys.executable, "-m", "nexus.qemu"]


@pytest.fixture(scope="session")
def tiny_kernel() -> Path:
    """The tiny test guest as an ELF kernel."""
    return cached_tiny_kernel()


@pytest.fixture(scope="session")
def guest_agent() -> Path:
    """The program that runs in guests; it runs on this machine as well."""
    return cached_guest_agent()


@pytest.fixture(scope="session")
def linux_images() -> LinuxImages:
    """Debian's kernel, its initrd and the busybox root, built once for all test runs."""
    return cached_linux_images()


@pytest.fixture(scope="module")
def guest_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    """Manager, agent's routes and a guest's double over real sockets."""
    # Imported here: most tests need nothing of a manager.
    from tests.guest_stack import serving

    with serving(tmp_path_factory.mktemp("g")) as stack:
        yield stack


@pytest.fixture(scope="session")
def debian_root() -> Path:
    """A Debian root file system, built once for all test runs by ``scripts/test-parts``."""
    return cached_debian_root()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def on_host_network() -> list[str]:
    """A command prefix that runs a program in the machine's own network."""
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{HOST_NETWORK}", "--"]
