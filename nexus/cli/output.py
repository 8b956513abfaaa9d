"""Printing: tables for people, JSON for programs, names for shells."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel

GAP = "  "
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]")


class Form:
    """How structured answers are written in this process; ``-o yaml`` changes it."""

    yaml = False


def print_json(value: object) -> None:
    """A structured answer: JSON, or YAML when that was asked for."""
    if Form.yaml:
        import yaml

        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)
        print(text, end="")
        return
    print(json.dumps(value, indent=2, ensure_ascii=False))


def as_json(value: BaseModel) -> object:
    return value.model_dump(mode="json")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as needed; on a terminal, the widest are cut, never ids, and those that find
    no room are left out."""
    widths = [
        max(cells_of(cells[column]) for cells in (headings, *rows))
        for column in range(len(headings))
    ]
    shown = list(range(len(headings)))
    if sys.stdout.isatty():
        shown, widths = squeezed(headings, widths, shutil.get_terminal_size().columns)
    for cells in (headings, *rows):
        line = (cut(cells[at], width) for at, width in zip(shown, widths, strict=True))
        print(GAP.join(line).rstrip())


def squeezed(
    headings: Sequence[str], widths: Sequence[int], columns: int
) -> tuple[list[int], list[int]]:
    """Which columns a terminal has room for, and how wide each of them is.

    The id goes first, which ``show`` tells as well, then the last ones. What is left of the first
    column is cut.
    """
    shown = list(range(len(headings)))
    while True:
        names = [headings[at] for at in shown]
        fitted = fit(names, [widths[at] for at in shown], columns)
        if sum(fitted) + len(GAP) * (len(fitted) - 1) <= columns:
            return shown, fitted
        if len(shown) == 1:
            return shown, [max(1, columns)]
        shown.pop(names.index("ID") if "ID" in names and "NAME" in names else -1)


def fit(headings: Sequence[str], widths: Sequence[int], columns: int) -> list[int]:
    """Takes from the widest columns until a line fits; ids and names stay whole."""
    fitted = list(widths)
    spare = [index for index, heading in enumerate(headings) if heading not in ("ID", "NAME")]
    while sum(fitted) + len(GAP) * (len(fitted) - 1) > columns:
        wide = [index for index in spare if fitted[index] > max(4, len(headings[index]))]
        if not wide:
            break
        fitted[max(wide, key=lambda index: fitted[index])] -= 1
    return fitted


def cells_of(text: str) -> int:
    """How many columns of a terminal a text takes: some characters take two, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(cell: str, width: int) -> str:
    """A text of exactly so many columns; what is cut off shows as an ellipsis."""
    taken = cells_of(cell)
    if taken <= width:
        return cell + " " * (width - taken)
    if cell.isascii():
        return f"{cell[: width - 1]}…"
    from rich.cells import set_cell_size

    return set_cell_size(cell, width - 1) + "…"


def show_bytes(data: bytes) -> None:
    """Writes a guest's words: as they are to a file, without control sequences to a terminal."""
    if sys.stdout.isatty():
        text = data.decode(errors="replace")
        data = _CONTROL.sub("", _SEQUENCE.sub("", text)).encode()
    # Behind what was printed before, which text mode may still hold.
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def print_done(names: Sequence[str]) -> None:
    """The JSON of a command on several things: those it succeeded on."""
    print_json({"items": [{"name": name, "ok": True} for name in names]})


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
