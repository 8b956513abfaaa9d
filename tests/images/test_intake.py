"""What is taken from outside, in which formats, and what is refused with which words."""

import gzip
import lzma
import os
import random
import subprocess
from pathlib import Path

import pytest

from nexus.images.errors import BadImage, ImageTooLarge, StoreError
from nexus.images.formats import Format, sniff
from nexus.images.intake import Intake, Kind, take, write_sparse
from nexus.images.store import Store, StoredBlob
from tests.images import kernels
from tests.parts import LinuxImages

MIB = 1 << 20
LIMIT = 64 * MIB


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def intake(
    store: Store,
    path: Path,
    kind: Kind = "rootfs",
    *,
    limit: int = LIMIT,
    declared: Format | None = None,
) -> StoredBlob:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return take(store, descriptor, Intake(kind, limit, declared))
    finally:
        os.close(descriptor)


def refused(store: Store, path: Path, kind: Kind = "rootfs", **options: object) -> BadImage:
    with pytest.raises(BadImage) as caught:
        intake(store, path, kind, **options)  # type: ignore[arg-type]
    assert caught.value.suggestion
    assert list(store.path("0" * 64).parent.iterdir()) == []
    return caught.value


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An ext4 disk of 16 MiB that holds very little."""
    path = tmp_path / "disk"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("hello" * 1000)
    run("mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "tree"), str(path), "16M")
    return path


def run(*arguments: str) -> None:
    search = os.environ["PATH"] + ":/usr/sbin:/sbin"
    subprocess.run(arguments, check=True, capture_output=True, env=os.environ | {"PATH": search})


def packed(path: Path, form: str) -> Path:
    """The file at ``path`` in another format, beside it."""
    out = path.with_name(f"{path.name}.{form}")
    if form == "gzip":
        out.write_bytes(gzip.compress(path.read_bytes()))
    elif form == "xz":
        out.write_bytes(lzma.compress(path.read_bytes(), preset=0))
    elif form == "zstd":
        run("zstd", "-q", "-f", "-o", str(out), str(path))
    elif form == "qcow2":
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(path), str(out))
    return out


@pytest.mark.parametrize("form", ["gzip", "xz", "zstd", "qcow2"])
@pytest.mark.parametrize("said", [True, False])
def test_a_packed_disk_becomes_the_same_raw_image(
    store: Store, disk: Path, form: Format, said: bool
) -> None:
    raw = intake(store, disk)
    store.remove(raw.sha256)
    source = packed(disk, form)
    assert sniff(source.read_bytes()[:16]) == form
    assert intake(store, source, declared=form if said else None) == raw
    kept = store.path(raw.sha256)
    assert kept.read_bytes() == disk.read_bytes()
    assert kept.stat().st_blocks * 512 < 4 * MIB, "holes stay holes"


def test_a_compressed_qcow2_is_unpacked_twice(store: Store, disk: Path) -> None:
    assert intake(store, packed(packed(disk, "qcow2"), "gzip")) == intake(store, disk)


def test_twice_compressed_is_refused(store: Store, disk: Path) -> None:
    error = refused(store, packed(packed(disk, "gzip"), "zstd"))
    assert "gzip within zstd" in str(error)


def test_another_format_than_was_said_is_refused(store: Store, disk: Path) -> None:
    assert "not qcow2" in str(refused(store, disk, declared="qcow2"))
    assert "not raw" in str(refused(store, packed(disk, "gzip"), declared="raw"))


def test_an_initrd_stays_compressed(store: Store, disk: Path) -> None:
    source = packed(disk, "gzip")
    kept = intake(store, source, "initrd")
    assert store.path(kept.sha256).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("form", ["gzip", "xz", "zstd"])
def test_a_bomb_ends_at_the_limit(store: Store, tmp_path: Path, form: str) -> None:
    bomb = tmp_path / "bomb"
    with bomb.open("wb") as file:
        file.truncate(LIMIT + MIB)
    source = packed(bomb, form)
    assert source.stat().st_size < MIB
    with pytest.raises(ImageTooLarge, match="64 MiB") as caught:
        intake(store, source)
    assert "MANAGER_IMAGE_MAX_MIB" in caught.value.suggestion


def test_large_disks_end_at_the_limit_whatever_their_format(store: Store, tmp_path: Path) -> None:
    with (tmp_path / "raw").open("wb") as file:
        file.truncate(LIMIT + 1)
    run("qemu-img", "create", "-f", "qcow2", str(tmp_path / "huge"), "1P")
    for name in ("raw", "huge"):
        with pytest.raises(ImageTooLarge):
            intake(store, tmp_path / name)


@pytest.mark.parametrize("form", ["gzip", "xz", "zstd"])
def test_damaged_data_is_refused_with_the_test_to_run(
    store: Store, disk: Path, form: Format
) -> None:
    source = packed(disk, form)
    content = bytearray(source.read_bytes())
    for at in range(len(content) // 2, len(content) // 2 + 64):
        content[at] ^= 0xFF
    source.write_bytes(content)
    assert f"{form} -t FILE" in refused(store, source).suggestion
    source.write_bytes(packed(disk, form).read_bytes()[:-200])
    assert f"{form} -t FILE" in refused(store, source).suggestion


def test_qcow2_with_a_backing_file_reads_no_other_file(
    store: Store, disk: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay"
    run("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", str(overlay), "1M")
    assert "backing file" in str(refused(store, overlay))
    data = tmp_path / "data"
    external = tmp_path / "external"
    options = f"data_file={data},data_file_raw=on"
    run("qemu-img", "create", "-f", "qcow2", "-o", options, str(external), "1M")
    assert "another file" in str(refused(store, external))


@pytest.mark.parametrize(
    ("at", "value", "word"),
    [
        (4, (9).to_bytes(4, "big"), "version 9"),
        (32, (1).to_bytes(4, "big"), "encrypted"),
        (72, (2).to_bytes(8, "big"), "corrupt"),
        (20, (63).to_bytes(4, "big"), "cannot be read"),
        (36, (0xFFFFFFFF).to_bytes(4, "big"), "cannot be read"),
    ],
)
def test_qcow2_with_a_bad_header_is_refused(
    store: Store, disk: Path, at: int, value: bytes, word: str
) -> None:
    source = packed(disk, "qcow2")
    content = bytearray(source.read_bytes())
    content[at : at + len(value)] = value
    source.write_bytes(content)
    assert word in str(refused(store, source))


def test_random_headers_of_qcow2_never_fail_otherwise(store: Store, disk: Path) -> None:
    dice = random.Random(7)  # noqa: S311 # a reproducible corpus, no secret
    source = packed(disk, "qcow2")
    good = source.read_bytes()
    for _ in range(20):
        content = bytearray(good)
        for _ in range(6):
            content[dice.randrange(4, 112)] = dice.randrange(256)
        source.write_bytes(content)
        try:
            blob = intake(store, source)
        except (BadImage, ImageTooLarge):
            continue
        store.remove(blob.sha256)


def test_a_damaged_file_system_is_refused_with_the_repair(store: Store, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(4096)  # the group descriptors
        file.write(b"\xff" * 64)
    error = refused(store, disk)
    assert "damaged" in str(error)
    assert "e2fsck -fy" in error.suggestion


def test_a_cut_off_file_system_is_told_apart(store: Store, disk: Path) -> None:
    os.truncate(disk, 8 * MIB)
    assert "cut off" in str(refused(store, disk))


def test_other_disks_are_taken_unread(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"\xeb\x3c\x90 not ext" + bytes(4096))
    assert intake(store, tmp_path / "other").size_bytes == 4096 + 11


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x7fELF\x02\x01", "ELF"),
        (b"KDMV", "VMDK"),
        (b"BZh9", "bzip2"),
        (b"vhdxfile", "VHDX"),
        (bytes(257) + b"ustar", "tar"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_what_is_no_disk_is_named(store: Store, tmp_path: Path, head: bytes, word: str) -> None:
    (tmp_path / "file").write_bytes(head + bytes(4096))
    assert word in str(refused(store, tmp_path / "file"))


def test_an_empty_image_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    (tmp_path / "empty").write_bytes(gzip.compress(b""))
    assert "empty" in str(refused(store, tmp_path / "empty"))
    assert "empty" in str(refused(store, tmp_path / "none"))


def test_kernels_that_boot_are_taken(
    store: Store, tmp_path: Path, linux_images: LinuxImages, tiny_kernel: Path
) -> None:
    for number, content in enumerate((kernels.elf(), kernels.bzimage(), kernels.elf(kind=3))):
        file = tmp_path / f"kernel{number}"
        file.write_bytes(content)
        intake(store, file, "kernel")
    for path in (linux_images.kernel, linux_images.kernel.with_name("bzImage"), tiny_kernel):
        kept = intake(store, path, "kernel", limit=256 * MIB)
        assert intake(store, path, "kernel", limit=256 * MIB) == kept
    assert intake(store, packed(tiny_kernel_copy(tiny_kernel, tmp_path), "zstd"), "kernel")


def tiny_kernel_copy(kernel: Path, folder: Path) -> Path:
    copy = folder / "tiny"
    copy.write_bytes(kernel.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"x", "neither"),
        (bytes(4096), "neither"),
        (kernels.elf(machine=183), "aarch64"),
        (kernels.elf(machine=40), "32-bit ARM"),
        (kernels.elf(machine=3, bits=1), "32-bit x86"),
        (kernels.elf(machine=4242), "4242"),
        (kernels.elf(bits=1), "64-bit"),
        (kernels.elf(kind=1), "object"),
        (kernels.elf(entry=0x10), "entry point"),
        (kernels.elf(entry=0), "entry point"),
        (kernels.elf(segments=0), "segments"),
        (kernels.elf(segments=999), "segments"),
        (kernels.elf()[:-1], "cut off"),
        (kernels.elf()[:70], "cut off"),
        (kernels.elf()[:20], "header"),
        (kernels.bzimage(loadflags=0), "zImage"),
        (kernels.bzimage(xloadflags=0), "32-bit"),
        (kernels.bzimage(version=0x204), "32-bit"),
        (kernels.bzimage(boot_flag=b"\0\0"), "damaged"),
        (kernels.bzimage()[:0x210], "damaged"),
        (bytes(0x38) + b"ARM\x64" + bytes(600), "aarch64"),
        (b"MZ\0\0zimg" + bytes(600), "zboot"),
        (b"QFI\xfb" + bytes(600), "qcow2"),
    ],
)
def test_kernels_that_do_not_boot_are_refused_by_name(
    store: Store, tmp_path: Path, content: bytes, word: str
) -> None:
    (tmp_path / "kernel").write_bytes(content)
    assert word in str(refused(store, tmp_path / "kernel", "kernel"))


def test_a_source_that_changes_meanwhile_is_refused(
    store: Store, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexus.images import intake as module

    real = module._check

    def changed(made: int, path: Path, kind: Kind) -> None:
        real(made, path, kind)
        os.truncate(disk, 1)

    monkeypatch.setattr(module, "_check", changed)
    with pytest.raises(StoreError, match="written to"):
        intake(store, disk)


def test_zeros_are_not_written(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    parts = [b"a" * 100, bytes(4 * MIB), b"b" * 70_000, bytes(MIB)]
    at = 0
    for part in parts:
        write_sparse(file, part, at)
        at += len(part)
    os.close(file)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert (tmp_path / "file").stat().st_blocks * 512 < MIB
