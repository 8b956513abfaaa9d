"""The admin's token: made once, healed after a crash, never two and never lost."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from nexus.api.errors import Unauthenticated
from nexus.manager.db.session import Database
from nexus.manager.db.tables import TokenRow
from nexus.manager.services import tokens
from nexus.manager.services.tokens import ensure_admin_token, lookup_in
from nexus.manager.verify import Verifier, make_token

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'nexus.db'}")
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "private" / "admin.token"


async def valid_admins(db: Database) -> int:
    async with db.read() as session:
        rows = await session.scalars(select(TokenRow).where(TokenRow.revoked_at.is_(None)))
        return len(rows.all())


async def assert_admits(db: Database, file: Path) -> str:
    token = file.read_text().strip()
    owner = await Verifier(lookup_in(db)).verify(token)
    assert (owner.name, owner.role, owner.project) == ("admin", "admin", "default")
    assert await valid_admins(db) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    return token


async def test_the_first_start_makes_it_and_the_next_keep_it(db: Database, file: Path) -> None:
    await ensure_admin_token(db, file)
    token = await assert_admits(db, file)
    await ensure_admin_token(db, file)
    assert await assert_admits(db, file) == token


async def test_only_a_hash_is_stored(db: Database, file: Path) -> None:
    await ensure_admin_token(db, file)
    async with db.read() as session:
        row = (await session.scalars(select(TokenRow))).one()
    secret = file.read_text().strip().rpartition("_")[2]
    assert row.secret_hash.startswith("$argon2id$")
    assert all(secret not in str(value) for value in vars(row).values())


async def test_a_crash_after_the_file_keeps_the_files_token(
    db: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_register", crash)
        with pytest.raises(RuntimeError):
            await ensure_admin_token(db, file)
    token = file.read_text().strip()
    await ensure_admin_token(db, file)
    assert await assert_admits(db, file) == token


@pytest.mark.parametrize("content", [None, "", "nonsense\n", b"\xff\xfe", "x" * 10000])
async def test_a_lost_or_broken_file_is_replaced_and_the_old_token_revoked(
    db: Database, file: Path, content: str | bytes | None
) -> None:
    await ensure_admin_token(db, file)
    old = file.read_text().strip()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    await ensure_admin_token(db, file)
    assert await assert_admits(db, file) != old
    with pytest.raises(Unauthenticated, match="revoked"):
        await Verifier(lookup_in(db)).verify(old)


async def test_a_file_with_a_wrong_secret_is_replaced(db: Database, file: Path) -> None:
    await ensure_admin_token(db, file)
    head = file.read_text().strip().rpartition("_")[0]
    file.write_text(f"{head}_{'0' * 64}\n")
    await ensure_admin_token(db, file)
    await assert_admits(db, file)


async def test_a_lost_database_takes_the_files_token(db: Database, file: Path) -> None:
    token = make_token()
    file.parent.mkdir()
    file.write_text(token)
    file.chmod(0o644)
    await ensure_admin_token(db, file)
    assert await assert_admits(db, file) == token


async def test_a_link_is_replaced_not_followed(db: Database, file: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    file.parent.mkdir()
    file.symlink_to(victim)
    await ensure_admin_token(db, file)
    await assert_admits(db, file)
    assert victim.read_text() == "precious"
