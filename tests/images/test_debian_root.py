"""The Debian root: a guest with systemd that does what the busybox one does."""

import subprocess
from pathlib import Path

import pytest

from nexus.images import configdrive, ext, sources
from nexus.images.debian_root import LINKS, PACKAGES, build, check, lay_over, refuse_overfull
from nexus.images.errors import BuildError
from tests.images.test_boot import DEADLINE_S, MAC, disk, new_key, qemu, ssh, tap
from tests.parts import LinuxImages


@pytest.mark.qemu
@pytest.mark.root
def test_a_debian_guest_lives_a_whole_life(
    linux_images: LinuxImages, debian_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    subprocess.run(["cp", "--sparse=always", debian_root, root], check=True)
    configdrive.write(
        tmp_path / "config.iso",
        instance_id="i-1",
        hostname="deb",
        ssh_keys=['command="ls \\"/\\"" ssh-ed25519 AAAA', new_key(tmp_path)],
        vendor_data="#!/bin/sh\necho vendor data ran\n",
        user_data="#!/bin/sh\necho user data ran as $(id -u) in $(systemctl is-system-running)\n",
    )
    address = f"nexus.hostname=other nexus.ip=net0,{MAC},10.213.0.2/24,10.213.0.1 nexus.dns=9.9.9.9"
    with (
        tap("images1", "10.213.0.1/24") as host_end,
        qemu(
            linux_images,
            tmp_path,
            f"root=/dev/vda rw {address}",
            *disk("root", "root"),
            *disk("config", "config.iso", read_only=True),
            *("-netdev", f"tap,id=net,ifname={host_end},script=no,downscript=no"),
            *("-device", f"virtio-net-device,netdev=net,mac={MAC}"),
            mem_mib=256,
        ) as guest,
    ):
        guest.wait_for(b"nexus-guest ready hostname=deb ip=10.213.0.2")
        guest.wait_for(b"vendor data ran")
        guest.wait_for(b"user data ran as 0 in starting")
        guest.wait_for(b"root@deb:~#")
        guest.type("cat /root/.ssh/authorized_keys /etc/resolv.conf; echo $((6 * 7))")
        guest.wait_for(b'command="ls \\"/\\"" ssh-ed25519 AAAA')
        guest.wait_for(b"nameserver 9.9.9.9")
        guest.wait_for(b"42")
        assert ssh(tmp_path, "hostname; ls /etc/ssh/*_key") == "deb\n/etc/ssh/ssh_host_ed25519_key"
        assert ssh(tmp_path, "systemctl --failed --quiet --no-legend") == ""
        assert ssh(tmp_path, "dpkg --audit; apt-config dump APT::Install-Recommends")
        guest.press_power_button()
        assert guest.process.wait(DEADLINE_S) == 0
    with root.open("rb") as file:
        ext.check(file.fileno(), root)


@pytest.mark.parametrize("name", ["-y", "a b", "a;b", "../x", "A", "x", "", "a=1", "a/bookworm"])
def test_only_names_of_packages_reach_apt(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match="no package's name"):
        build(tmp_path, packages=[name])
    assert list(tmp_path.iterdir()) == []


def test_sizes_and_numbers_are_bounded() -> None:
    check(["g++", "libc6", "python3.11-minimal"], 1024)
    for packages, size_mib in ((["curl"] * 201, 1024), ([], 100), ([], 1 << 21)):
        with pytest.raises(BuildError) as caught:
            check(packages, size_mib)
        assert caught.value.suggestion


def test_files_that_do_not_fit_are_said_beforehand(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * (8 << 20))
    refuse_overfull(tmp_path / "tree", 16)
    with pytest.raises(BuildError, match="the disk has 4") as caught:
        refuse_overfull(tmp_path / "tree", 4)
    assert "size of" in caught.value.suggestion


def test_nothing_of_the_building_machine_is_left(tmp_path: Path) -> None:
    for name in ("etc/ssh/ssh_host_rsa_key", "etc/hostname", "etc/machine-id", "var/log/dpkg.log"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of this machine")
    (tmp_path / "usr/lib/systemd/system-shutdown").mkdir(parents=True)
    lay_over(tmp_path)
    assert (tmp_path / "etc/machine-id").read_text() == ""
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in left if "of this machine" in path.read_text()]
    assert {str(path.relative_to(tmp_path)) for path in left} >= {"etc/nexus/guest-init"}
    for name, target in LINKS.items():
        assert str((tmp_path / name).readlink()) == target
        if "nexus" in target:
            assert (tmp_path / target[1:]).is_file(), "the unit is there"


def test_sources_are_debians_own_of_this_release() -> None:
    said = "\n".join(
        [
            "Debian|http://deb.example/debian/|bookworm|main|$(SIGNED_BY)",
            "Debian|http://deb.example/debian/|bookworm|main|$(SIGNED_BY)",
            "Debian|http://deb.example/debian/|bookworm-updates|main|/usr/share/keyrings/k.gpg",
            "Debian|http://deb.example/security/|bookworm-security|main|",
            "Debian|http://deb.example/debian/|trixie|main|",
            "Other|http://apt.example/|bookworm|main|",
            "|http://deb.debian.org/debian/|bookworm|contrib|",
            "|http://evil-debian.org.example/|bookworm|main|",
        ]
    )
    assert sources.chosen(said, "bookworm") == [
        "deb http://deb.example/debian/ bookworm main",
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://deb.example/debian/ "
        "bookworm-updates main",
        "deb http://deb.example/security/ bookworm-security main",
        "deb http://deb.debian.org/debian/ bookworm contrib",
    ]
    assert "systemd-sysv" in PACKAGES
