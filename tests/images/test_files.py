"""The small formats: cpio archives, config drives, module order, kernel payloads."""

import io
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pycdlib
import pytest
import yaml

from nexus.images import configdrive, cpio, debian, tools
from nexus.images.debs import Packages
from nexus.images.errors import BuildError, ToolMissing


def test_a_cpio_archive_unpacks_to_what_was_put_in(tmp_path: Path) -> None:
    entries = [
        cpio.directory("a"),
        cpio.file("a/script", b"#!/bin/sh\n", 0o755),
        cpio.file("a/odd length", b"12345"),
        cpio.link("a/link", "script"),
        cpio.pipe("a/pipe"),
    ]
    data = cpio.archive(entries)
    subprocess.run(
        ["busybox", "cpio", "-idm"], input=data, cwd=tmp_path, check=True, capture_output=True
    )
    assert (tmp_path / "a/script").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "a/script").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/odd length").read_bytes() == b"12345"
    assert (tmp_path / "a/link").readlink() == Path("script")
    assert stat.S_ISFIFO((tmp_path / "a/pipe").stat().st_mode)
    assert data == cpio.archive(entries)
    assert len(data) % 4 == 0


def test_a_cpio_header_holds_device_numbers() -> None:
    header = cpio.archive([cpio.character_device("dev/console", 5, 1)])[:110]
    fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
    assert fields[1] == stat.S_IFCHR | 0o600
    assert fields[9:11] == [5, 1]


def read_drive(path: Path, name: str) -> str:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, rr_path=f"/{name}")
        joliet = io.BytesIO()
        iso.get_file_from_iso_fp(joliet, joliet_path=f"/{name}")
        assert joliet.getvalue() == out.getvalue()
        assert iso.pvd.volume_identifier.rstrip() == b"cidata"
        return out.getvalue().decode()
    finally:
        iso.close()


def test_a_config_drive_can_be_read(tmp_path: Path) -> None:
    drive = tmp_path / "config.iso"
    for user_data in ("#!/bin/sh\necho ü\n", "#!/bin/sh\n" + "x" * 100_000):
        configdrive.write(
            drive,
            instance_id="i-1",
            hostname="web",
            ssh_keys=['command="ls" ssh-ed25519 AAAA me@here'],
            user_data=user_data,
        )
        assert read_drive(drive, "user-data") == user_data
    assert read_drive(drive, "meta-data") == (
        'instance-id: "i-1"\nlocal-hostname: "web"\npublic-keys:\n'
        '  - "command=\\"ls\\" ssh-ed25519 AAAA me@here"\n'
    )
    assert [read_drive(drive, name) for name in ("vendor-data", "network-config")] == [
        "",
        "version: 2\nethernets: {}\n",
    ]
    assert drive.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [drive]


def test_a_config_drive_tells_of_the_network(tmp_path: Path) -> None:
    """As cloud-init's documentation of network configuration, version 2, has it."""
    drive = tmp_path / "config.iso"
    first = configdrive.Nic(
        "eth0", "06:00:0a:4d:00:05", "10.77.0.5/20", "10.77.0.1", ["9.9.9.9", "1.1.1.1"]
    )
    second = configdrive.Nic("eth1", "06:00:0a:09:00:02", "10.9.0.2/24", None)
    configdrive.write(
        drive,
        instance_id="i-1",
        hostname="1e3",
        ssh_keys=["ssh-ed25519 AAAA: #me"],
        vendor_data="#cloud-config\n",
        nics=[first, second],
    )
    assert yaml.safe_load(read_drive(drive, "network-config")) == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": "06:00:0a:4d:00:05"},
                "set-name": "eth0",
                "dhcp4": False,
                "addresses": ["10.77.0.5/20"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.77.0.1"}],
                "nameservers": {"addresses": ["9.9.9.9", "1.1.1.1"]},
            },
            "eth1": {
                "match": {"macaddress": "06:00:0a:09:00:02"},
                "set-name": "eth1",
                "dhcp4": False,
                "addresses": ["10.9.0.2/24"],
            },
        },
    }
    assert yaml.safe_load(read_drive(drive, "meta-data")) == {
        "instance-id": "i-1",
        "local-hostname": "1e3",
        "public-keys": ["ssh-ed25519 AAAA: #me"],
    }
    assert read_drive(drive, "vendor-data") == "#cloud-config\n"


def test_a_config_drive_takes_no_line_breaks_in_names_and_keys(tmp_path: Path) -> None:
    with pytest.raises(configdrive.ConfigDriveError) as caught:
        configdrive.write(
            tmp_path / "c.iso", instance_id="i", hostname="a\nuser: root", ssh_keys=[]
        )
    assert "one line" in caught.value.suggestion
    assert not (tmp_path / "c.iso").exists()


def module(folder: Path, name: str, depends: str) -> Path:
    path = folder / f"{name}.ko"
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0intree=Y\0")
    return path


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    found = {
        "virtio_net": module(tmp_path, "virtio_net", "virtio,net-failover"),
        "net_failover": module(tmp_path, "net_failover", "failover"),
        "failover": module(tmp_path, "failover", ""),
        "virtio": module(tmp_path, "virtio", ""),
    }
    order = debian.load_order(["virtio_net"], found)
    assert order == ["virtio", "failover", "net_failover", "virtio_net"]
    with pytest.raises(BuildError, match="no module vsock"):
        debian.load_order(["vsock"], found)


def bzimage(payload: bytes) -> bytes:
    image = bytearray(1024)
    image[debian.SETUP_SECTS] = 1
    image[debian.BOOT_MAGIC : debian.BOOT_MAGIC + 4] = b"HdrS"
    struct.pack_into("<II", image, debian.PAYLOAD_OFFSET, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"trailing"


def test_the_kernel_comes_out_of_a_bzimage(tmp_path: Path) -> None:
    kernel = b"\x7fELF" + bytes(range(256)) * 5000
    packed = tools.run(["lz4", "-l", "-c"], stdin=kernel) + struct.pack("<I", len(kernel))
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(packed))
    debian.extract_vmlinux(image, tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == kernel


@pytest.mark.parametrize("content", [b"", b"x" * 2000, bzimage(b"\x1f\x8b gzip")])
def test_what_is_no_lz4_bzimage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(content)
    with pytest.raises(BuildError) as caught:
        debian.extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")
    assert caught.value.suggestion


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_more: None)
    with pytest.raises(ToolMissing) as caught:
        tools.run(["mke2fs", "-V"])
    assert caught.value.suggestion == "apt-get install e2fsprogs"


def test_package_names_cannot_be_options(tmp_path: Path) -> None:
    for name in ("--print-uris", "../x", "a b", ""):
        with pytest.raises(ValueError, match="package name"):
            Packages(tmp_path).fetch(name)
