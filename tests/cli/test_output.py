"""Tables that fit."""

import pytest

from nexus.cli.output import GAP, cells_of, cut, fit, size, squeezed


def test_columns_shrink_but_ids_do_not() -> None:
    widths = fit(("NAME", "SOURCE", "ID"), (10, 80, 36), 80)
    assert widths == [10, 80 - 10 - 36 - 2 * len(GAP), 36]


def test_a_terminal_too_narrow_for_ids_shows_them_whole() -> None:
    assert fit(("NAME", "SOURCE", "ID"), (10, 80, 36), 20) == [10, 6, 36]


def test_what_finds_no_room_is_left_out() -> None:
    headings, widths = ("NAME", "STATE", "SOURCE", "ID"), (10, 7, 80, 36)
    assert squeezed(headings, widths, 140) == ([0, 1, 2, 3], [10, 7, 80, 36])
    assert squeezed(headings, widths, 60) == ([0, 1, 2], [10, 7, 39])
    assert squeezed(headings, widths, 22) == ([0, 1], [10, 7])
    assert squeezed(headings, widths, 8) == ([0], [8])
    assert squeezed(("ID", "SOURCE"), (36, 50), 40) == ([0], [36])


def test_sizes_have_units() -> None:
    assert [size(count) for count in (5, 1536, 64 << 20)] == ["5 B", "1.5 KiB", "64 MiB"]


@pytest.mark.parametrize("text", ["plain text", "日本語テスト", "e\u0301te\u0301", "a🚀b🚀c"])
@pytest.mark.parametrize("width", [4, 5, 9, 30])
def test_cells_are_as_wide_as_they_look(text: str, width: int) -> None:
    assert cells_of(cut(text, width)) == width
