"""Which images go when there is no room for another."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.agent.eviction import evict
from nexus.images.store import HeldBlob

HELD = st.lists(
    st.builds(
        HeldBlob,
        sha256=st.text("abc", min_size=1, max_size=3),
        size_bytes=st.just(50),
        disk_bytes=st.integers(0, 50),
        used_at=st.floats(0, 100),
    ),
    max_size=8,
    unique_by=lambda blob: blob.sha256,
)


@given(
    HELD, st.sets(st.text("abc", min_size=1, max_size=3)), st.integers(0, 99), st.integers(-9, 99)
)
def test_the_least_recently_used_go_and_none_that_is_needed(
    held: list[HeldBlob], keep: set[str], wanted: int, free: int
) -> None:
    going = evict(held, keep, wanted, free)
    spare = [blob for blob in held if blob.sha256 not in keep]
    if going is None:
        assert free + sum(blob.disk_bytes for blob in spare) < wanted
        return
    assert not {blob.sha256 for blob in going} & keep
    assert free + sum(blob.disk_bytes for blob in going) >= wanted
    if going:
        assert free + sum(blob.disk_bytes for blob in going[:-1]) < wanted
    stays = [blob for blob in spare if blob not in going and blob.disk_bytes]
    assert all(gone.used_at <= blob.used_at for gone in going for blob in stays)
