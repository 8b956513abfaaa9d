"""What the commands do that write snapshots into files, and read them from there."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nexus.cli.exits import UsageFault
from nexus.cli.output import print_json
from nexus.cli.session import Session
from nexus.cli.snapshots import print_snapshot

PIECE = 1 << 20
Advance = Callable[[int], None]
"""Called with how many bytes more have come."""


def export(session: Session, name: str, target: str | None) -> None:
    place = Path(target or f"{name}.nexus-snapshot.tar")
    with (
        session.client() as client,
        client.snapshots.export(name) as file,
        _bar(session, name, file.size_bytes) as advance,
        _stdout() if target == "-" else _whole(place) as out,
    ):
        for piece in file:
            out.write(piece)
            advance(len(piece))
    if target == "-":
        return
    if session.output == "json":
        print_json({"file": str(place), "size_bytes": place.stat().st_size})
    else:
        print(place)


def take_in(session: Session, file: Path, name: str | None, host: str | None) -> None:
    with (
        _source(file) as (source, size),
        session.client() as client,
        _bar(session, str(file), size) as advance,
    ):
        pieces = _pieces(source, advance)
        made = client.snapshots.import_archive(pieces, name=name, host=host, size_bytes=size)
    print_snapshot(session, made)


@contextmanager
def _stdout() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def _whole(place: Path) -> Iterator[BinaryIO]:
    """A file that is there when all of it is, readable by nobody else. Raises UsageFault."""
    try:
        descriptor, fresh = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    except OSError as error:
        raise UsageFault(f"{place} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(descriptor)
        Path(fresh).replace(place)
    except OSError as error:
        raise UsageFault(f"{place} cannot be written: {error.strerror}") from error
    finally:
        Path(fresh).unlink(missing_ok=True)


@contextmanager
def _source(file: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """Raises UsageFault."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        source = file.open("rb")
    except OSError as error:
        raise UsageFault(f"cannot read {file}: {error.strerror}") from error
    with source:
        yield source, os.fstat(source.fileno()).st_size


def _pieces(source: BinaryIO, advance: Advance) -> Iterator[bytes]:
    while piece := source.read(PIECE):
        yield piece
        advance(len(piece))


@contextmanager
def _bar(session: Session, what: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn())
    quiet = session.output is not None or not console.is_terminal
    with Progress(*columns, TransferSpeedColumn(), console=console, disable=quiet) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.update(task, advance=count)
