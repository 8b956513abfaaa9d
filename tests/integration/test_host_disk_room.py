"""What ``nexus host init`` measures where there is little room."""

from pathlib import Path

import pytest

from nexus.up import disk, reflink


@pytest.mark.parametrize(("shares", "measured"), [(True, 0.3), (False, None)])
def test_a_clone_that_takes_no_room_is_measured_in_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool, measured: float | None
) -> None:
    monkeypatch.setattr(disk, "_free", lambda _: int(2.5 * (1 << 30)))
    monkeypatch.setattr(reflink, "can_share", lambda _: shares)
    monkeypatch.setattr(reflink, "clone_ms", lambda *_: 0.3)
    assert disk._measured(tmp_path, 1024) == measured
