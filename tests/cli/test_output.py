"""Tables that fit."""

from nexus.cli.output import GAP, fit, size


def test_columns_shrink_but_ids_do_not() -> None:
    widths = fit(("NAME", "SOURCE", "ID"), (10, 80, 36), 80)
    assert widths == [10, 80 - 10 - 36 - 2 * len(GAP), 36]


def test_a_terminal_too_narrow_for_ids_shows_them_whole() -> None:
    assert fit(("NAME", "SOURCE", "ID"), (10, 80, 36), 20) == [10, 6, 36]


def test_sizes_have_units() -> None:
    assert [size(count) for count in (5, 1536, 64 << 20)] == ["5 B", "1.5 KiB", "64 MiB"]
