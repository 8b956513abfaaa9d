"""Printing: tables for people, JSON for programs, names for shells."""

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel

GAP = "  "


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def as_json(value: BaseModel) -> object:
    return value.model_dump(mode="json")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as needed; on a terminal, the last columns are cut rather than wrapped."""
    widths = [
        max(len(cells[column]) for cells in (headings, *rows)) for column in range(len(headings))
    ]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for cells in (headings, *rows):
        line = GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip()[:limit])


def fields(pairs: Sequence[tuple[str, str | None]]) -> None:
    """Names and values, one a line; what has no value is left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        print(f"{name.ljust(width)}{GAP}{value}")


def ago(at: datetime | None) -> str:
    """How long ago, in one word: ``42s``, ``5m``, ``3h``, ``8d``."""
    if at is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def size(count: int) -> str:
    """Bytes in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
