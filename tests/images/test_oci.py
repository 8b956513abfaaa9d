"""Guests made of container images: from a registry, an archive, a layout; and what is refused."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.images import oci
from nexus.images.debs import Packages
from nexus.images.errors import BuildError
from tests.images import oci_images
from tests.images.test_boot import DEADLINE_S, disk, qemu
from tests.parts import CACHE, LinuxImages

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oci_images.app(tmp_path_factory.mktemp("app") / "layout")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with oci_images.registry(tmp_path) as address:
        yield address


def build(source: str, out: Path, **options: int) -> Path:
    return oci.build(out, source, packages=Packages(CACHE / "packages"), **options)


def names(image: Path, folder: str) -> set[str]:
    """What a folder of a file system holds."""
    listed = subprocess.run(
        ["/usr/sbin/debugfs", "-R", f"ls -p {folder}", str(image)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {line.split("/")[5] for line in listed.splitlines() if line.count("/") > 5}
    return found - {".", ".."}


def content(image: Path, name: str) -> bytes:
    return subprocess.run(
        ["/usr/sbin/debugfs", "-R", f"cat {name}", str(image)], check=True, capture_output=True
    ).stdout


@pytest.mark.qemu
def test_an_image_from_a_registry_becomes_the_guests_service(
    registry: str,
    app: Path,
    linux_images: LinuxImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs as its user, in its folder and environment, and the guest ends with it."""
    oci_images.copy(f"oci:{app}:latest", f"docker://{registry}/team/app:1.0")
    source = f"docker://{registry}/team/app:1.0"
    with pytest.raises(BuildError, match="skopeo"):
        build(source, tmp_path / "no")
    monkeypatch.setenv(oci.INSECURE, f"other:1, {registry}")
    root = build(source, tmp_path / "out")
    assert "old" not in names(root, "/")
    arguments = "root=/dev/vda rw nexus.hostname=app"
    with qemu(linux_images, root.parent, arguments, *disk("root", root.name)) as guest:
        guest.wait_for(b"nexus-guest ready hostname=app")
        guest.wait_for(
            b"service 1234:2345 in /srv/work says hello  'world' it's \"quoted\" $HOME \r\n"
        )
        guest.wait_for(b"could write")
        guest.wait_for(b"the service ended with status 7")
        assert guest.process.wait(DEADLINE_S) == 0


def test_archives_and_layouts_give_the_same_files(app: Path, tmp_path: Path) -> None:
    oci_images.copy(f"oci:{app}:latest", f"oci-archive:{tmp_path / 'oci.tar'}:app")
    oci_images.copy(f"oci:{app}:latest", f"docker-archive:{tmp_path / 'docker.tar'}:app:1")
    sources = (
        f"oci:{app}:latest",
        f"oci-archive:{tmp_path / 'oci.tar'}",
        f"docker-archive:{tmp_path / 'docker.tar'}",
    )
    seen = set()
    for number, source in enumerate(sources):
        root = build(source, tmp_path / str(number), size_mib=96)
        assert root.stat().st_size == 96 << 20
        seen.add((frozenset(names(root, "/")), content(root, "/.nexus/service.conf")))
        assert content(root, "/usr/sbin/init") == content(root, "/.nexus/bin/busybox")
        assert b"of the image" not in content(root, "/etc/inittab")
    ((found, service),) = seen
    assert found >= {"bin", "sbin", "usr", "proc", "sys", "dev", "run", "tmp", ".nexus"}
    head = b'1234\x002345\x00\x00/srv/work\x005\x00tell\x00it\'s\x00"quoted"\x00$HOME\x00\x00'
    assert service.startswith(head)
    assert b"GREETING=hello  'world'\0" in service


def test_a_damaged_layer_is_refused(app: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", app, broken], check=True)
    largest = max((broken / "blobs" / "sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    with pytest.raises(BuildError, match="skopeo") as caught:
        build(f"oci:{broken}:latest", tmp_path / "out")
    assert "igest" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_links_of_an_image_never_lead_out(tmp_path: Path) -> None:
    """Whatever its links say, neither its files nor ours are written outside of its own tree."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "inittab").write_text("of the host")
    image = oci_images.Image(tmp_path / "layout")
    image.layer(
        {"etc": f"->{outside}", "sbin": f"->{outside}", ".nexus": f"->{outside}", "tmp": "->/"}
    )
    image.layer({"run": f"->{outside}"})
    layout = image.write(Cmd=["/x"])
    with pytest.raises(BuildError, match="/run of the image is no folder"):
        build(f"oci:{layout}:latest", tmp_path / "out")
    assert [path.name for path in outside.iterdir()] == ["inittab"]
    assert (outside / "inittab").read_text() == "of the host"


def test_names_of_files_are_never_commands(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    name = f'x" ctime 0\nlcd {tmp_path}\ndump /etc/inittab {marker}\n"'
    layout = oci_images.Image(tmp_path / "layout").layer({name: "x"}).write(Cmd=["/x"])
    build(f"oci:{layout}:latest", tmp_path / "out")
    assert not marker.exists()


def test_layers_that_do_not_fit_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    image = oci_images.Image(tmp_path / "layout")
    layout = image.layer({"zeros": bytes(32 << 20)}).layer({"more": bytes(32 << 20)}).write()
    assert sum(path.stat().st_size for path in layout.rglob("*")) < 1 << 20
    oci.refuse_bomb(layout, 65 << 20)
    with pytest.raises(BuildError, match="more than 40 MiB"):
        oci.refuse_bomb(layout, 40 << 20)
    assert 0 < oci.room(tmp_path) <= oci.MOST_BYTES


def test_a_shell_is_left_to_the_console(tmp_path: Path) -> None:
    layout = oci_images.Image(tmp_path / "layout").layer({"etc/": ""}).write(Cmd=["/bin/bash"])
    root = build(f"oci:{layout}:latest", tmp_path / "out")
    assert "service.conf" not in names(root, "/.nexus")
    assert root.stat().st_size == oci.MIN_SIZE_MIB << 20


def test_other_machines_and_sizes_are_refused(app: Path, tmp_path: Path) -> None:
    image = oci_images.Image(tmp_path / "arm").layer({"etc/": ""})
    layout = image.write(architecture="arm64", Cmd=["/x"])
    with pytest.raises(BuildError, match=r"arm64|amd64"):
        build(f"oci:{layout}:latest", tmp_path / "out")
    with pytest.raises(BuildError, match="the disk has 16"):
        build(f"oci:{app}:latest", tmp_path / "out", size_mib=16)
    with pytest.raises(BuildError, match="skopeo"):
        build(f"oci:{app}:none", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("docker://reg.example:5000/app:1", True),
        ("docker://reg.example/app", False),
        ("docker://reg.example:5000.evil/app", False),
        ("oci:reg.example:5000/app", False),
    ],
)
def test_only_named_registries_go_without_tls(source: str, expected: bool) -> None:
    assert oci.is_insecure(source, "a, reg.example:5000") is expected
    assert not oci.is_insecure(source, "")
