"""One real Linux guest on QEMU, from the images as built."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexus.images import configdrive
from tests.parts import LinuxImages

pytestmark = [pytest.mark.qemu, pytest.mark.root]
DEADLINE_S = 120
MAC = "06:00:00:00:00:02"


def tsc_khz() -> int:
    found = re.search(r"cpu MHz\s*:\s*([0-9.]+)", Path("/proc/cpuinfo").read_text())
    assert found
    return int(float(found[1]) * 1000)


@contextmanager
def tap(name: str, address: str) -> Iterator[str]:
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    subprocess.run(["ip", "address", "add", address, "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


class Guest:
    def __init__(self, process: "subprocess.Popen[bytes]", qmp: Path) -> None:
        self.process = process
        self.qmp = qmp
        self.seen = b""
        self.more = threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        while data := self.process.stdout.read1(65536):  # type: ignore[attr-defined]
            with self.more:
                self.seen += data
                self.more.notify_all()

    def wait_for(self, text: bytes) -> None:
        with self.more:
            assert self.more.wait_for(lambda: text in self.seen, DEADLINE_S), self.seen.decode()

    def type(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.settimeout(DEADLINE_S)
            qmp.connect(str(self.qmp))
            for command in ("qmp_capabilities", "system_powerdown"):
                qmp.sendall(json.dumps({"execute": command}).encode())
                answer = b""
                while b'"return"' not in answer:
                    answer += qmp.recv(4096)


@contextmanager
def qemu(
    images: LinuxImages, folder: Path, arguments: str, *devices: str, mem_mib: int = 128
) -> Iterator[Guest]:
    process = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-M", "microvm,accel=tcg,pit=off,pic=off,rtc=on"),
            *("-cpu", "max", "-m", str(mem_mib), "-nodefaults", "-no-user-config", "-nographic"),
            *("-no-reboot", "-serial", "stdio", "-qmp", "unix:qmp,server=on,wait=off"),
            *("-kernel", str(images.kernel), "-initrd", str(images.initrd)),
            "-append",
            f"console=ttyS0 reboot=k panic=1 quiet tsc_early_khz={tsc_khz()} {arguments}",
            *devices,
        ],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    guest = Guest(process, folder / "qmp")
    try:
        yield guest
    finally:
        process.kill()
        process.wait()
        guest.reader.join()


def disk(name: str, path: str, *, read_only: bool = False) -> list[str]:
    mode = "on" if read_only else "off"
    return [
        *("-drive", f"id={name},if=none,format=raw,file={path},readonly={mode}"),
        *("-device", f"virtio-blk-device,drive={name}"),
    ]


def get(path: str) -> str:
    with urllib.request.urlopen(f"http://10.213.0.2{path}", timeout=DEADLINE_S) as answer:
        return str(answer.read().decode()).strip()


def new_key(folder: Path) -> str:
    """Makes a key pair for ssh and returns its public half."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], cwd=folder, check=True
    )
    return (folder / "key.pub").read_text().strip()


def ssh(folder: Path, command: str) -> str:
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentityFile=key"]
    done = subprocess.run(
        ["ssh", "-F", "none", *(f"-o{option}" for option in options), "root@10.213.0.2", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_linux_guest_lives_a_whole_life(linux_images: LinuxImages, tmp_path: Path) -> None:
    subprocess.run(["cp", "--sparse=always", linux_images.rootfs, tmp_path / "root"], check=True)
    key = new_key(tmp_path)
    configdrive.write(
        tmp_path / "config.iso",
        instance_id="i-1",
        hostname="web",
        ssh_keys=['command="ls" ssh-ed25519 AAAA', key],
        vendor_data="#!/bin/sh\necho vendor >/run/vendor\n",
        user_data="#!/bin/sh\necho user data ran as $(id -u) after $(cat /run/vendor)\n",
    )
    address = f"nexus.hostname=other nexus.ip=net0,{MAC},10.213.0.2/24,10.213.0.1 nexus.dns=9.9.9.9"
    with (
        tap("images0", "10.213.0.1/24") as host_end,
        qemu(
            linux_images,
            tmp_path,
            f"root=/dev/vda rw {address}",
            *disk("root", "root"),
            *disk("config", "config.iso", read_only=True),
            *("-netdev", f"tap,id=net,ifname={host_end},script=no,downscript=no"),
            *("-device", f"virtio-net-device,netdev=net,mac={MAC}"),
        ) as guest,
    ):
        guest.wait_for(b"nexus-guest ready hostname=web ip=10.213.0.2")
        assert get("/") == "web"
        first = int(get("/count"))
        deadline = time.monotonic() + DEADLINE_S
        while int(get("/count")) <= first:
            assert time.monotonic() < deadline
        guest.wait_for(b"user data ran as 0 after vendor")
        guest.type("cat /root/.ssh/authorized_keys /etc/resolv.conf; echo $((6 * 7))")
        guest.wait_for(b'command="ls" ssh-ed25519 AAAA')
        guest.wait_for(b"nameserver 9.9.9.9")
        guest.wait_for(b"42")
        assert ssh(tmp_path, "hostname") == "web"
        guest.press_power_button()
        assert guest.process.wait(DEADLINE_S) == 0
    fsck = shutil.which("e2fsck") or "/usr/sbin/e2fsck"
    checked = subprocess.run([fsck, "-fn", "root"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_a_guest_without_a_root_disk_lives_in_memory(
    linux_images: LinuxImages, tmp_path: Path
) -> None:
    with qemu(linux_images, tmp_path, "nexus.hostname=memory") as guest:
        guest.wait_for(b"nexus-guest ready hostname=memory ip=")
        guest.type("poweroff")
        assert guest.process.wait(DEADLINE_S) == 0


def test_a_missing_root_disk_is_said_and_ends_the_guest(
    linux_images: LinuxImages, tmp_path: Path
) -> None:
    with qemu(linux_images, tmp_path, "root=/dev/vdq rw") as guest:
        guest.wait_for(b"the root device /dev/vdq did not appear")
        guest.process.wait(DEADLINE_S)
