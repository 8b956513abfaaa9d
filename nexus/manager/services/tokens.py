"""Tokens: finding them for the gate, and those made at the first start."""

import os
import secrets
from pathlib import Path

from anyio import to_thread
from sqlalchemy import Select, select

from nexus.ids import new_id
from nexus.manager.db.session import Database
from nexus.manager.db.tables import RoleName, TokenRow
from nexus.manager.turns import turn
from nexus.manager.uow import SYSTEM, change
from nexus.manager.verify import (
    Lookup,
    StoredToken,
    hash_secret,
    make_token,
    parse,
    secret_matches,
)

ADMIN: RoleName = "admin"
HOSTS: RoleName = "agent"


def lookup_in(db: Database) -> Lookup:
    """How the verifier finds a token's row."""

    async def find(lookup_id: str) -> StoredToken | None:
        async with db.read() as session:
            row = await session.scalar(select(TokenRow).where(TokenRow.lookup_id == lookup_id))
        return None if row is None else _stored(row)

    return find


async def ensure_admin_token(db: Database, path: Path) -> None:
    """After this the token in ``path`` (mode 0600) is the one valid admin token."""
    await _ensure(db, path, ADMIN)


async def ensure_host_token(db: Database, path: Path) -> None:
    """The same for the token by which hosts fetch images, and which may do nothing else."""
    await _ensure(db, path, HOSTS)


async def _ensure(db: Database, path: Path, role: RoleName) -> None:
    """After this the token in ``path`` is the one valid token with this role as its name.

    The file is written before its hash: cut off in between, the next start takes the file's token
    as it is. A missing or broken file is replaced by a new token, and the old one is revoked.
    """
    async with turn(path.parent):
        token = await to_thread.run_sync(_read, path)
        if token is not None:
            known = await _row_of(db, token)
            if known is not None and await _is_valid(known, token, role):
                await _revoke_others(db, known.lookup_id, role)
                return
            if known is not None:
                token = None
        if token is None:
            token = make_token()
            await to_thread.run_sync(_write, path, token)
        await _register(db, token, role)


async def _row_of(db: Database, token: str) -> StoredToken | None:
    parts = parse(token)
    return await lookup_in(db)(parts[0]) if parts else None


async def _is_valid(row: StoredToken, token: str, role: RoleName) -> bool:
    parts = parse(token)
    if parts is None or row.role != role or row.revoked_at or row.expires_at:
        return False
    return await to_thread.run_sync(secret_matches, parts[1], row.secret_hash)


async def _register(db: Database, token: str, role: RoleName) -> None:
    parts = parse(token)
    if parts is None:
        raise ValueError("not a token")
    lookup_id, secret = parts
    secret_hash = await to_thread.run_sync(hash_secret, secret)
    async with change(db, SYSTEM, "token.bootstrap") as unit:
        for row in await unit.session.scalars(_others(lookup_id, role)):
            row.revoked_at = unit.at
        made = TokenRow(
            id=new_id(),
            project=SYSTEM.project,
            name=role,
            lookup_id=lookup_id,
            secret_hash=secret_hash,
            role=role,
            created_at=unit.at,
        )
        unit.session.add(made)
        unit.target = made.id
        unit.after = {"name": made.name, "role": made.role, "lookup_id": lookup_id}


async def _revoke_others(db: Database, lookup_id: str, role: RoleName) -> None:
    async with db.read() as session:
        others = (await session.scalars(_others(lookup_id, role))).all()
    if not others:
        return
    async with change(db, SYSTEM, "token.revoke") as unit:
        for row in await unit.session.scalars(_others(lookup_id, role)):
            row.revoked_at = unit.at


def _others(lookup_id: str, role: RoleName) -> Select[TokenRow]:
    """The valid tokens of earlier starts."""
    return select(TokenRow).where(
        TokenRow.name == role,
        TokenRow.role == role,
        TokenRow.revoked_at.is_(None),
        TokenRow.lookup_id != lookup_id,
    )


def _stored(row: TokenRow) -> StoredToken:
    return StoredToken(
        id=row.id,
        lookup_id=row.lookup_id,
        secret_hash=row.secret_hash,
        name=row.name,
        project=row.project,
        role=row.role,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _read(path: Path) -> str | None:
    """The file's token, with its mode put right; None when there is no well-formed one."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, encoding="ascii", errors="replace") as file:
        os.fchmod(handle, 0o600)
        text = file.read(4096).strip()
    return text if parse(text) else None


def _write(path: Path, token: str) -> None:
    """Replaces the file as a whole, durably."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(handle)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
