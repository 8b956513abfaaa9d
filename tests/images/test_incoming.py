"""Contents on their way into a store."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.images import incoming
from nexus.images.errors import BadImage, StoreError
from nexus.images.incoming import Incoming
from nexus.images.store import Store

MIB = 1 << 20
DATA = os.urandom(MIB)
WHOLE = DATA + bytes(6 * MIB) + DATA[::-1] + bytes(3 * MIB)
SHA = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def begin(store: Store, sha256: str = SHA) -> Incoming:
    return Incoming(store, sha256, len(WHOLE))


def test_it_is_gone_on_with_and_sparse(store: Store) -> None:
    first = begin(store)
    first.write(WHOLE[: MIB // 2])
    with pytest.raises(StoreError):
        begin(store)
    first.close()
    second = begin(store)
    assert second.offset == MIB // 2
    second.write(WHOLE[MIB // 2 : 2 * MIB])
    second.skip(7 * MIB)
    second.close()
    third = begin(store)
    assert third.offset == 7 * MIB
    third.write(WHOLE[7 * MIB : 8 * MIB])
    assert not store.has(SHA)
    third.finish()
    third.close()
    kept = store.path(SHA)
    assert (kept.read_bytes() == WHOLE, kept.stat().st_mode & 0o777) == (True, 0o444)
    assert kept.stat().st_blocks * 512 < 3 * MIB
    assert not incoming.file_of(store, SHA).exists()


def test_what_is_something_else_is_not_kept(store: Store) -> None:
    wrong = begin(store)
    wrong.write(DATA)
    with pytest.raises(BadImage):
        wrong.finish()
    wrong.close()
    assert not store.has(SHA)
    assert begin(store).offset == 0


def test_what_nobody_wants_any_more_is_cleared(store: Store) -> None:
    for sha256 in ("a" * 64, "b" * 64):
        left = begin(store, sha256)
        left.write(b"x")
        left.close()
    incoming.clear(store, {"a" * 64})
    assert [file.name for file in (store.root / "incoming").iterdir()] == ["a" * 64]
    with pytest.raises(ValueError, match="not a sha256"):
        begin(store, "../../etc/passwd")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 300_000), max_size=8), st.integers(0, 8))
def test_any_cuts_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], again_at: int
) -> None:
    store = Store(tmp_path_factory.mktemp("cuts"))
    whole = b"".join(DATA[:cut] if number % 2 else bytes(cut) for number, cut in enumerate(cuts))
    sha256 = hashlib.sha256(whole).hexdigest()
    made = Incoming(store, sha256, len(whole))
    for number, cut in enumerate(cuts):
        if number == again_at:
            made.close()
            made = Incoming(store, sha256, len(whole))
        if number % 2:
            made.write(DATA[:cut])
        else:
            made.skip(made.offset + cut)
    made.finish()
    made.close()
    assert store.path(sha256).read_bytes() == whole
