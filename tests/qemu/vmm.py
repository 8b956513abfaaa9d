"""Starting ``nexus-qemu`` with Linux in a directory, and waiting for what it does."""

import http.client
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.parts import LinuxImages

READY = b"nexus-guest ready"
BOOT_S = 60.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class Vmm:
    """One ``nexus-qemu`` in ``folder``; its API at ``api.sock`` there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        (folder / "vmm.log").touch()
        argv = [sys.executable, "-m", "nexus.qemu", "--log-path", "vmm.log", *arguments]
        self.process = subprocess.Popen(
            argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.console = b""

    def wait_console(self, text: bytes, timeout_s: float = BOOT_S) -> None:
        """Reads the console until ``text`` was printed."""
        out = self.process.stdout
        assert out is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while text not in self.console:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                data = os.read(out.fileno(), 1 << 16) if ready else b""
                assert data, f"{text!r} not seen in {self.console!r}\n{self.log()}"
                self.console += data

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of a request, retried while the socket does not accept yet."""
        deadline = time.monotonic() + 20
        while True:
            connection = _Unix(self.folder / "api.sock")
            try:
                text = None if body is None else json.dumps(body)
                connection.request(method, path, text)
                answer = connection.getresponse()
                data = answer.read()
                return answer.status, json.loads(data) if data else None
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, self.log()
                assert self.process.poll() is None, self.log()
                os.sched_yield()
            finally:
                connection.close()

    def must(self, method: str, path: str, body: object = None) -> Any:
        status, answer = self.call(method, path, body)
        assert status in (200, 204), answer
        return answer

    def qemu_pid(self) -> int:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(int(c) for c in children if "qemu" in Path(f"/proc/{c}/comm").read_text())

    def log(self) -> str:
        return (self.folder / "vmm.log").read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def write_config(
    folder: Path, images: LinuxImages, *, tap: str | None = None, address: str = "", **more: object
) -> None:
    """``vmm.json`` and a root disk for a guest of 128 MiB."""
    subprocess.run(
        ["cp", "--sparse=always", str(images.rootfs), str(folder / "rootfs.ext4")], check=True
    )
    arguments = "console=ttyS0 reboot=k panic=1 quiet nexus.hostname=guest"
    nics = []
    if tap is not None:
        arguments += f" nexus.ip=eth0,06:00:00:00:00:01,{address}/24,"
        nics = [{"iface_id": "eth0", "guest_mac": "06:00:00:00:00:01", "host_dev_name": tap}]
    config = {
        "boot-source": {
            "kernel_image_path": str(images.kernel),
            "initrd_path": str(images.initrd),
            "boot_args": arguments,
        },
        "drives": [
            {
                "drive_id": "rootfs",
                "path_on_host": "rootfs.ext4",
                "is_root_device": True,
                "is_read_only": False,
            }
        ],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "network-interfaces": nics,
    }
    (folder / "vmm.json").write_text(json.dumps(config | more))


def fetch(address: str, path: str = "/") -> str:
    """What the guest answers over HTTP, retried while its server comes up."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except OSError:
            if time.monotonic() > deadline:
                raise


def ended(pid: int, timeout_s: float = 10.0) -> bool:
    """Whether a process that is not our child ends in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        gone = bool(selector.select(timeout_s))
    os.close(pidfd)
    return gone


def copy_all(source: Path, target: Path, *names: str) -> None:
    for name in names:
        shutil.copy(source / name, target / name)
