"""Snapshots as archives: sent and taken in whole, and hostile ones refused without a trace."""

import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.agent import snapshot_archive
from nexus.agent.layout import Layout
from nexus.agent.snapshots import Shelf
from nexus.api.archives import END, META, ArchiveReader, BadArchive, entry, header
from nexus.api.errors import Conflict
from nexus.api.machines import Blob, Machine
from nexus.api.snapshots import HostSnapshot, SnapshotFile
from nexus.ids import new_id
from tests.agent.harness import a_wish

pytestmark = pytest.mark.anyio

MIB = 1 << 20
BLOB = Blob(sha256="a" * 64, size_bytes=1)


def shelf_in(folder: Path) -> Shelf:
    layout = Layout(folder)
    layout.snapshots_dir.mkdir(parents=True)
    return Shelf(layout)


def machine() -> Machine:
    return a_wish(name="web", kernel=BLOB, rootfs=BLOB)


CONTENT = {
    "mem": b"memory" + bytes(16 * MIB - 12) + b"ending",
    "state": b"state" * 100,
    "rootfs.ext4": bytes(3 * MIB) + b"x" * 1000,
}


SHA256 = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}


def meta_of(**changes: Any) -> HostSnapshot:
    files = [
        SnapshotFile(
            name=name,
            size_bytes=len(data),
            disk_bytes=0,
            sha256=SHA256[name],
        )
        for name, data in CONTENT.items()
    ]
    whole = HostSnapshot(
        id=new_id(),
        vm_id=new_id(),
        kind="full",
        parent_id=None,
        engine="firecracker",
        vmm_version="1.12.1",
        cpu_template=None,
        cpu="a processor",
        vcpu=1,
        mem_mib=16,
        files=files,
        size_bytes=1,
        disk_bytes=1,
        pause_ms=1.0,
        taken_at=datetime.now(UTC),
        machine=machine(),
    )
    return whole.model_copy(update=changes)


def archive(meta: HostSnapshot, *entries: bytes) -> bytes:
    made = entries or tuple(entry(name, data) for name, data in CONTENT.items())
    return entry(META, meta.model_dump_json().encode()) + b"".join(made) + END


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def test_there_and_back(tmp_path: Path) -> None:
    here, there = shelf_in(tmp_path / "a"), shelf_in(tmp_path / "b")
    first = await snapshot_archive.incoming(here, new_id(), pieces(archive(meta_of())))
    going = await snapshot_archive.outgoing(here, first.id)
    # Deleted while it is sent: its files are open.
    await here.delete(first.id)
    sent = b"".join([piece async for piece in going.content])
    await going.close()
    assert len(sent) == going.size_bytes
    with tarfile.open(fileobj=io.BytesIO(sent)) as tar:
        assert tar.getnames() == [META, *CONTENT]

    snapshot_id = new_id()
    kept = await snapshot_archive.incoming(there, snapshot_id, pieces(sent, 1000))
    assert (kept.id, kept.vm_id, kept.kind) == (snapshot_id, first.vm_id, "full")
    folder = there.paths(snapshot_id).dir
    for file in kept.files:
        place = folder / file.name
        assert place.read_bytes() == CONTENT[file.name]
        assert place.stat().st_mode & 0o777 == 0o444
    assert (folder / "mem").stat().st_blocks * 512 < MIB, "zeros are holes"
    with pytest.raises(Conflict):
        await snapshot_archive.incoming(there, snapshot_id, pieces(sent))
    again = Shelf(Layout(tmp_path / "b"))
    again.take_up()
    assert again.all() == [kept]


def files_but(name: str, **changes: Any) -> list[SnapshotFile]:
    return [
        file.model_copy(update=changes) if file.name == name else file for file in meta_of().files
    ]


def link(kind: bytes) -> bytes:
    info = tarfile.TarInfo("mem")
    info.type, info.linkname = kind, "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT)


def good(*skipped: str) -> list[bytes]:
    return [entry(name, data) for name, data in CONTENT.items() if name not in skipped]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "noise": lambda: os.urandom(4096),
    "zeros": lambda: bytes(1 << 16),
    "no meta": lambda: entry("mem", CONTENT["mem"]),
    "a meta of nonsense": lambda: entry(META, b"{}") + END,
    "a huge meta": lambda: header(META, 1 << 40),
    "cut off": lambda: archive(meta_of())[: 8 * MIB],
    "without its end": lambda: archive(meta_of())[:-1024],
    "more behind it": lambda: archive(meta_of()) + b"more",
    "one file too many": lambda: archive(meta_of(), *good(), entry("extra", b"x")),
    "one too few": lambda: archive(meta_of(), *good("state")),
    "a path": lambda: archive(meta_of(), entry("../mem", CONTENT["mem"]), *good("mem")),
    "an absolute path": lambda: archive(meta_of(), entry("/etc/x", b"x"), *good()),
    "a symbolic link": lambda: archive(meta_of(), link(tarfile.SYMTYPE), *good("mem")),
    "a hard link": lambda: archive(meta_of(), link(tarfile.LNKTYPE), *good("mem")),
    "a device": lambda: archive(meta_of(), link(tarfile.CHRTYPE), *good("mem")),
    "another size": lambda: archive(meta_of(files=files_but("state", size_bytes=7))),
    "another content": lambda: archive(meta_of(files=files_but("state", sha256="0" * 64))),
    "small memory": lambda: archive(meta_of(files=files_but("mem", size_bytes=MIB))),
    "a disk larger than the host's": lambda: archive(
        meta_of(files=files_but("rootfs.ext4", size_bytes=1 << 60))
    ),
    "no memory": lambda: archive(meta_of(files=meta_of().files[1:])),
    "memory twice": lambda: archive(meta_of(files=[*meta_of().files, meta_of().files[0]])),
    "a diff": lambda: archive(meta_of(kind="diff", parent_id=new_id(), needs_parent=True)),
    "another machine": lambda: archive(meta_of(vcpu=2)),
    "no root disk": lambda: archive(meta_of(machine=machine().model_copy(update={"rootfs": None}))),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_archives(tmp_path: Path, name: str) -> None:
    shelf, snapshot_id = shelf_in(tmp_path), new_id()
    with pytest.raises(BadArchive) as refused:
        await snapshot_archive.incoming(shelf, snapshot_id, pieces(HOSTILE[name]()))
    assert refused.value.suggestion
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert shelf.all() == []


@given(data=st.binary(max_size=2000), cuts=st.integers(1, 700))
async def test_no_noise_does_harm(data: bytes, cuts: int) -> None:
    with pytest.raises(BadArchive):
        await ArchiveReader(pieces(data, cuts)).text(META)
