"""Into a Linux guest under nexus-qemu: exec, files, snapshots, and guests without an agent."""

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.guest.speaking import Done, NoAgent, Talk, ask, connect, get, put, run
from tests.parts import LinuxImages
from tests.qemu.vmm import READY, Vmm, copy_all, write_config

pytestmark = [pytest.mark.qemu, pytest.mark.root]

VSOCK = {"guest_cid": 3, "uds_path": "v.sock"}
Start = Callable[..., Vmm]


@pytest.fixture(scope="module")
def start_module() -> Iterator[Start]:
    yield from starting()


@pytest.fixture
def start() -> Iterator[Start]:
    yield from starting()


def starting() -> Iterator[Start]:
    made: list[Vmm] = []

    def begin(folder: Path, *arguments: str) -> Vmm:
        made.append(Vmm(folder, "--api-sock", "api.sock", *arguments))
        return made[-1]

    yield begin
    for vmm in made:
        vmm.end()


@pytest.fixture(scope="module")
def guest(
    start_module: Start, linux_images: LinuxImages, tmp_path_factory: pytest.TempPathFactory
) -> Vmm:
    """One guest for all tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("guest")
    write_config(folder, linux_images, vsock=VSOCK)
    vmm = start_module(folder, "--config-file", "vmm.json")
    vmm.wait_console(READY)
    return vmm


@pytest.fixture
def talk(guest: Vmm) -> Callable[[], Talk]:
    return lambda: connect(guest.folder / "v.sock")


Connect = Callable[[], Talk]


def test_a_guest_that_says_it_is_ready_can_be_called(talk: Connect) -> None:
    said = dict(ask(talk(), "health"))
    assert (said["version"], said["hostname"], said["ready"]) == ("2", "guest", "1")
    assert int(said["uptime_s"]) > 0


def test_exit_codes_and_streams(talk: Connect) -> None:
    assert run(talk(), "true") == Done(0)
    assert run(talk(), "false") == Done(1)
    assert run(talk(), "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in") == Done(
        7, b"in", b"err\n"
    )
    where = run(talk(), "sh", "-c", "pwd; id -u; id -G", user="nobody", cwd="/var")
    assert where.out == b"/var\n65534\n65534\n"


def test_a_mebibyte_both_ways(talk: Connect) -> None:
    content = os.urandom(1 << 20)
    assert run(talk(), "cat", stdin=content) == Done(0, content)


def test_a_terminal_with_a_size(talk: Connect) -> None:
    with talk() as connection:
        size = (("rows", 20), ("cols", 70))
        connection.ask(("op", "exec"), ("arg", "sh"), ("tty", 1), ("env", "PS1=> "), *size)
        connection.until(b"O", b"> ")
        connection.send(b"I", b"stty size; tty\n")
        assert b"/dev/pts/" in connection.until(b"O", b"\r\n/dev/pts")
        connection.send(b"W", struct.pack(">HH", 41, 99))
        connection.send(b"I", b"stty size\n")
        connection.until(b"O", b"41 99")
        connection.send(b"I", b"exit 3\n")
        assert connection.finish().code == 3


def test_what_was_started_ends_with_the_connection(talk: Connect) -> None:
    with talk() as connection:
        connection.ask(("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", "echo $$; sleep 99"))
        pid = int(connection.until(b"O", b"\n"))
    waits = f"while [ -d /proc/{pid} ]; do usleep 10000; done"
    assert run(talk(), "sh", "-c", waits) == Done(0)


def test_twenty_streams_at_once(talk: Connect) -> None:
    def work(number: int) -> Done:
        return run(talk(), "sh", "-c", f"cat; exit {number}", stdin=bytes([number]) * 100_000)

    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(work, range(20)))
    assert done == [Done(n, bytes([n]) * 100_000) for n in range(20)]


def test_files_go_in_and_out(talk: Connect) -> None:
    content = os.urandom(5 << 20)
    put(talk(), "/root/file", [content[a : a + 65536] for a in range(0, len(content), 65536)])
    summed = run(talk(), "sha256sum", "/root/file").out.split()[0].decode()
    assert summed == hashlib.sha256(content).hexdigest()
    assert get(talk(), "/root/file")[1] == content
    assert run(talk(), "rm", "/root/file") == Done(0)


def test_a_snapshot_goes_on_where_it_is_loaded(
    start: Start, linux_images: LinuxImages, tmp_path: Path
) -> None:
    """With streams under way when it is made: those end, new ones begin."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_config(here, linux_images, vsock=VSOCK)
    vmm = start(here, "--config-file", "vmm.json")
    vmm.wait_console(READY)
    busy = [connect(here / "v.sock") for _ in range(3)]
    for connection in busy:
        connection.ask(("op", "exec"), ("arg", "cat"), ("arg", "/dev/zero"))
        assert connection.receive()[0] == b"O"
    vmm.must("PATCH", "/vm", {"state": "Paused"})
    vmm.must("PUT", "/snapshot/create", {"snapshot_path": "snap", "mem_file_path": "mem"})
    vmm.must("PATCH", "/vm", {"state": "Resumed"})
    assert run(connect(here / "v.sock"), "echo", "first") == Done(0, b"first\n")
    copy_all(here, there, "snap", "mem", "rootfs.ext4")

    clone = start(there)
    memory = {"backend_type": "File", "backend_path": "mem"}
    load = {"snapshot_path": "snap", "mem_backend": memory, "resume_vm": True}
    clone.must("PUT", "/snapshot/load", load)
    assert run(connect(there / "v.sock"), "echo", "clone") == Done(0, b"clone\n")
    still_there = "ps | grep -v grep | grep -q 'cat /dev/zero'"
    waits = f"while {still_there}; do usleep 10000; done"
    assert run(connect(there / "v.sock"), "sh", "-c", waits) == Done(0)
    for connection in busy:
        connection.sock.close()


def test_a_guest_that_lives_in_memory_has_the_agent_too(
    start: Start, linux_images: LinuxImages, tmp_path: Path
) -> None:
    write_config(tmp_path, linux_images, vsock=VSOCK, drives=[])
    vmm = start(tmp_path, "--config-file", "vmm.json")
    vmm.wait_console(READY)
    assert run(connect(tmp_path / "v.sock"), "stat", "-c", "%s", "/", tty=1).code == 0


def test_a_guest_without_the_agent_is_said_to_have_none(
    start: Start, linux_images: LinuxImages, tmp_path: Path
) -> None:
    boot = {
        "kernel_image_path": str(linux_images.kernel),
        "initrd_path": str(linux_images.initrd),
        "boot_args": "console=ttyS0 reboot=k panic=1 quiet init=/bin/sh",
    }
    write_config(tmp_path, linux_images, vsock=VSOCK, **{"boot-source": boot})
    vmm = start(tmp_path, "--config-file", "vmm.json")
    vmm.wait_console(b"# ")
    with pytest.raises(NoAgent):
        connect(tmp_path / "v.sock")
    vmm.type("/usr/sbin/nexus-guest-agent; echo star''ted")
    vmm.wait_console(b"started")
    assert run(connect(tmp_path / "v.sock"), "true") == Done(0)


def test_a_killed_vmm_leaves_the_socket(
    start: Start, linux_images: LinuxImages, tmp_path: Path
) -> None:
    write_config(tmp_path, linux_images, vsock=VSOCK)
    vmm = start(tmp_path, "--config-file", "vmm.json")
    while vmm.must("GET", "/")["state"] != "Running":
        pass
    vmm.process.kill()
    vmm.process.wait()
    assert (tmp_path / "v.sock").is_socket()
    with pytest.raises(NoAgent):
        connect(tmp_path / "v.sock")
