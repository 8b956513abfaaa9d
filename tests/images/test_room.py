"""What stays free of the disk that images lie on."""

import gzip
from pathlib import Path

import pytest

from nexus.images import room
from nexus.images.errors import StoreError
from nexus.images.intake import Intake, take
from nexus.images.store import Store

MIB = 1 << 20
LIMIT = 1 << 40


@pytest.mark.parametrize("packed", [False, True])
def test_the_last_room_of_a_disk_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    store = Store(tmp_path / "store")
    source = tmp_path / "source"
    source.write_bytes(b"initrd" * MIB if not packed else gzip.compress(b"\x7fELF" * MIB))
    monkeypatch.setattr(room, "SPARE_BYTES", 1 << 60)  # more than the disk has
    with source.open("rb") as file, pytest.raises(StoreError, match="No space left"):
        take(store, file.fileno(), Intake("kernel" if packed else "initrd", LIMIT))
    assert store.held() == []
