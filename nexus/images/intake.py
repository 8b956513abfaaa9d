"""Taking a file from outside into the store: raw, compressed or qcow2 in; raw, sparse, checked out.

What is checked is our own copy, so that nobody can change it between the check and the use. All of
this blocks: call it in a worker thread.
"""

import fcntl
import json
import os
import stat
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nexus.images import confined, ext, formats, kernels, room, sparse, workplace
from nexus.images.errors import BadImage, ImageTooLarge, StoreError
from nexus.images.formats import Format
from nexus.images.store import Store, StoredBlob

Kind = Literal["kernel", "initrd", "rootfs"]

BLOCK_BYTES = 64 << 10
"""Runs of zeros are left out of the copy in units of this size."""
_ZEROS = bytes(BLOCK_BYTES)
_PIPE_BYTES = 1 << 20
DECOMPRESS: dict[Format, tuple[str, ...]] = {
    "gzip": ("gzip", "-dc"),
    "xz": ("xz", "-dcq", "--memlimit-decompress=512MiB"),
    "zstd": ("zstd", "-dcq", "--memory=512MB"),
}
"""The programs that decompress standard input to standard output."""
_QCOW2_BACKING_AT = 8
_QCOW2_SIZE_AT = 24
_QCOW2_CRYPT_AT = 32
_QCOW2_INCOMPATIBLE_AT = 72
_QCOW2_HEAD_BYTES = 104
_CORRUPT = 2
_EXTERNAL_DATA = 4


@dataclass(frozen=True)
class Intake:
    """What is taken: for which kind, at most how large, and in which format if that was said."""

    kind: Kind
    limit_bytes: int
    declared: Format | None = None


def take(store: Store, source: int, wanted: Intake) -> StoredBlob:
    """Makes an image of an open file and keeps it in ``store``; the source stays as it is.

    A root file system or kernel that is compressed (gzip, xz, zstd) is decompressed, a root as
    qcow2 made raw; an initrd is taken as it is. Raises BadImage for what cannot be an image of its
    kind, ImageTooLarge, StoreError if the source changes meanwhile or the disk is full, and
    ToolMissing.
    """
    before = os.fstat(source)
    if not stat.S_ISREG(before.st_mode):
        raise StoreError("the source is not a regular file", "give the path of an image file")

    def fill(made: int, path: Path) -> None:
        _unpack(source, made, path, wanted)
        _check(made, path, wanted.kind)
        after = os.fstat(source)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StoreError(
                "the source was written to while it was read", "give it when it is at rest"
            )

    return store.receive(fill)


def _unpack(source: int, made: int, path: Path, wanted: Intake) -> None:
    form = _format(source, wanted)
    if form == "raw":
        _bound(os.fstat(source).st_size, wanted.limit_bytes)
        _copy(source, made)
        return
    if form == "qcow2":
        with workplace.file(path.parent) as (copy, copied):
            _copy(source, copy)
            _from_qcow2(copy, copied, path, wanted.limit_bytes)
        room.leave(made, 0)
        return
    _decompress(form, source, made, wanted.limit_bytes)
    inner = formats.sniff(os.pread(made, formats.HEAD_BYTES, 0))
    if inner == "qcow2" and wanted.kind == "rootfs":
        with workplace.file(path.parent) as (copy, copied):
            sparse.clone(made, copy)
            os.ftruncate(made, 0)
            _from_qcow2(copy, copied, path, wanted.limit_bytes)
        room.leave(made, 0)
    elif inner != "raw":
        raise BadImage(f"the file is {inner} within {form}", "unpack the outer one first")


def _copy(source: int, made: int) -> None:
    try:
        sparse.share(made, source)
    except OSError as failed:
        if failed.errno not in sparse.CANNOT_SHARE:
            raise
        room.leave(made, os.fstat(source).st_blocks * sparse.BLOCK)
        sparse.copy(source, made)


def _format(source: int, wanted: Intake) -> Format:
    found = formats.sniff(os.pread(source, formats.HEAD_BYTES, 0))
    if wanted.declared not in (None, found):
        raise BadImage(
            f"the file is {found}, not {wanted.declared}", f"leave the format out, or say {found}"
        )
    # The kernel decompresses an initrd by itself.
    if wanted.kind == "initrd":
        return "raw"
    if found == "qcow2" and wanted.kind != "rootfs":
        raise BadImage("the file is a qcow2 disk, not a kernel", "give it the kind rootfs")
    return found


def _check(made: int, path: Path, kind: Kind) -> None:
    length = os.fstat(made).st_size
    if length == 0:
        raise BadImage("the image is empty", "give a file that holds something")
    if kind == "kernel":
        kernels.check(made)
    elif kind == "rootfs":
        found = formats.not_a_disk(os.pread(made, formats.HEAD_BYTES, 0))
        if found is not None:
            what, cure = found
            raise BadImage(f"the file is {what}, not a raw disk", cure)
        ext.check(made, path)


def write_sparse(descriptor: int, data: bytes, at: int) -> None:
    """Writes ``data`` at a place of a file that ends there, leaving blocks of zeros as holes.

    Raises OSError, also when it would take of the disk's last room.
    """
    room.leave(descriptor, len(data))
    for start in range(0, len(data), BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        if block != _ZEROS[: len(block)]:
            view = memoryview(block)
            done = 0
            while done < len(block):
                done += os.pwrite(descriptor, view[done:], at + start + done)
    os.ftruncate(descriptor, at + len(data))


def _decompress(form: Format, source: int, made: int, limit_bytes: int) -> None:
    os.lseek(source, 0, os.SEEK_SET)
    process = subprocess.Popen(
        confined.command(*DECOMPRESS[form]),
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watch = threading.Timer(confined.TIMEOUT_S, process.kill)
    watch.start()
    try:
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("a pipe was asked for")
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        at = 0
        while data := process.stdout.read(_PIPE_BYTES):
            _bound(at + len(data), limit_bytes)
            write_sparse(made, data, at)
            at += len(data)
        said = process.stderr.read(4096).decode(errors="replace").strip()
        if process.wait() != 0:
            raise BadImage(
                f"the {form} data is damaged: {said or 'it took too long'}",
                "copy the file again, and test it: " + f"{DECOMPRESS[form][0]} -t FILE",
            )
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


def _from_qcow2(copy: int, copied: Path, path: Path, limit_bytes: int) -> None:
    """Makes a private copy of a qcow2 file raw; no other file is ever opened on its behalf."""
    _bound(_qcow2_size(copy), limit_bytes)
    disk = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(copied)},
        "backing": None,
    }
    try:
        done = subprocess.run(
            confined.command(
                *("qemu-img", "convert", "-q", "-O", "raw"),
                f"json:{json.dumps(disk)}",
                str(path),
                file_bytes=limit_bytes,
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=confined.TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadImage(
            f"making the disk raw took longer than {confined.TIMEOUT_S:.0f} s",
            "convert it yourself: qemu-img convert -O raw FILE disk.raw",
        ) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").replace(str(copied), "the file").strip()
        raise BadImage(
            f"the qcow2 disk cannot be read: {said[-500:]}", "check it: qemu-img check FILE"
        )


def _qcow2_size(copy: int) -> int:
    """The size of the disk; refuses what needs another file or a password.

    Source: QEMU's docs/interop/qcow2.txt.
    """
    head = os.pread(copy, _QCOW2_HEAD_BYTES, 0).ljust(_QCOW2_HEAD_BYTES, b"\0")
    version = int.from_bytes(head[4:8], "big")
    if version not in (2, 3):
        raise BadImage(f"qcow2 version {version} is not known", "convert it to version 3")
    if any(head[_QCOW2_BACKING_AT : _QCOW2_BACKING_AT + 8]):
        raise BadImage(
            "the qcow2 disk is only the difference to a backing file",
            "make it whole: qemu-img convert -O qcow2 FILE whole.qcow2",
        )
    if any(head[_QCOW2_CRYPT_AT : _QCOW2_CRYPT_AT + 4]):
        raise BadImage("the qcow2 disk is encrypted", "decrypt it with qemu-img convert")
    features = int.from_bytes(head[_QCOW2_INCOMPATIBLE_AT : _QCOW2_INCOMPATIBLE_AT + 8], "big")
    if version == 3 and features & _EXTERNAL_DATA:
        raise BadImage(
            "the qcow2 disk keeps its data in another file",
            "make it whole: qemu-img convert -O qcow2 FILE whole.qcow2",
        )
    if version == 3 and features & _CORRUPT:
        raise BadImage("the qcow2 disk is marked corrupt", "repair it: qemu-img check -r all FILE")
    return int.from_bytes(head[_QCOW2_SIZE_AT : _QCOW2_SIZE_AT + 8], "big")


def _bound(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise ImageTooLarge(
            f"the image would be larger than {limit_bytes >> 20} MiB",
            "shrink it, or let the manager take larger ones: MANAGER_IMAGE_MAX_MIB",
        )
