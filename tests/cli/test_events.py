"""Times as people write them."""

from datetime import UTC, datetime, timedelta

import pytest

from nexus.cli.events import moment
from nexus.cli.exits import UsageFault

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("2026-07-01T11:00:00Z", timedelta(hours=1)),
        ("2026-07-01T14:00:00+02:00", timedelta()),
    ],
)
def test_since(text: str, ago: timedelta) -> None:
    assert NOW - moment(text, NOW) == ago


def test_a_time_without_a_zone_is_local() -> None:
    assert moment("2026-07-01T12:00:00", NOW).tzinfo is not None


@pytest.mark.parametrize("text", ["", "10", "m", "10w", "-1h", "yesterday", "999999999d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageFault, match="write 10m"):
        moment(text, NOW)
