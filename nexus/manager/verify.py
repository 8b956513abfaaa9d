"""Checking bearer tokens: their format, their hashes, and a memory of what was checked.

A token is ``nxs_<lookup id>_<secret>``. Only an Argon2id hash of the secret is stored, found by the
lookup id. Argon2 runs once per token and process, in a worker thread; after that a request costs a
SHA-256 and a dictionary look-up, and every ``FRESH_S`` seconds one read of the token's row, so that
a revocation takes effect within that time in every manager.
"""

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import anyio
from anyio import CapacityLimiter, to_thread
from pwdlib.hashers.argon2 import Argon2Hasher

from nexus.api.errors import NexusError, Unauthenticated

LOGIN_HINT = "send the header 'Authorization: Bearer nxs_…'; nexus up prints where the token lies"
FRESH_S = 2.0
"""How long a token's row is believed before it is read again."""

_TOKEN = re.compile(r"nxs_([0-9a-f]{16})_([0-9a-f]{64})", re.ASCII)
_REMEMBERED = 4096
_MAX_CHECKS = 2
_MAX_WAITING = 64

# OWASP's Argon2id parameters for 19 MiB. The secrets are 256 random bits, so the cost need not
# slow down guessing; it must not let failed attempts use up the machine.
_hasher = Argon2Hasher(time_cost=2, memory_cost=19456, parallelism=1)


class TooManyAttempts(NexusError):
    """More tokens wait to be checked than can be checked soon."""

    code = "too_many_requests"
    status = 429


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token's row: everything but its secret."""

    id: str
    lookup_id: str
    secret_hash: str
    name: str
    project: str
    role: Literal["viewer", "operator", "admin", "agent"]
    expires_at: datetime | None
    revoked_at: datetime | None


Lookup = Callable[[str], Awaitable[StoredToken | None]]
"""Finds a token's row by its lookup id."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is known of one presented token: whether it matches the hash its row had."""

    secret_hash: str
    matches: bool
    row: StoredToken
    fresh_until: float


def make_token() -> str:
    """A new token: 64 random bits to find it by and 256 as the secret."""
    return f"nxs_{secrets.token_hex(8)}_{secrets.token_hex(32)}"


def parse(token: str) -> tuple[str, str] | None:
    """Lookup id and secret, or None when the text is not a token."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else None


def hash_secret(secret: str) -> str:
    """The Argon2id hash that is stored. Takes some 25 ms: not for the event loop."""
    return _hasher.hash(secret)


def secret_matches(secret: str, secret_hash: str) -> bool:
    """Compares in constant time. Takes some 25 ms: not for the event loop."""
    return _hasher.verify(secret, secret_hash)


class Verifier:
    """Says whose a token is; one for a server."""

    def __init__(
        self,
        lookup: Lookup,
        *,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lookup = lookup
        self._fresh_s = fresh_s
        self._clock = clock
        self._now = now
        self._memory: OrderedDict[bytes, _Checked] = OrderedDict()
        self._running: dict[bytes, anyio.Lock] = {}
        self._threads = CapacityLimiter(_MAX_CHECKS)

    async def verify(self, token: str) -> StoredToken:
        """The row of a valid token.

        Raises Unauthenticated when it is none, and TooManyAttempts when too many wait.
        """
        digest = hashlib.sha256(token.encode()).digest()
        checked = self._memory.get(digest)
        if checked is None or checked.fresh_until <= self._clock():
            checked = await self._check(token, digest)
        return self._judge(checked)

    def forget(self) -> None:
        """Makes the next request of every token read its row: after a revocation here."""
        self._memory.clear()

    def _judge(self, checked: _Checked) -> StoredToken:
        row = checked.row
        if not checked.matches:
            raise _unknown()
        if row.revoked_at is not None:
            raise Unauthenticated("the token was revoked", suggestion="ask for a new token")
        if row.expires_at is not None and row.expires_at <= self._now():
            raise Unauthenticated("the token has expired", suggestion="ask for a new token")
        return row

    async def _check(self, token: str, digest: bytes) -> _Checked:
        parts = parse(token)
        if parts is None:
            raise _unknown()
        if len(self._running) >= _MAX_WAITING and digest not in self._running:
            raise TooManyAttempts(
                "too many tokens are being checked", suggestion="try again in a second"
            )
        lock = self._running.setdefault(digest, anyio.Lock())
        try:
            async with lock:
                known = self._memory.get(digest)
                if known is not None and known.fresh_until > self._clock():
                    return known
                return await self._read(digest, *parts, known)
        finally:
            if not lock.locked() and lock.statistics().tasks_waiting == 0:
                self._running.pop(digest, None)

    async def _read(
        self, digest: bytes, lookup_id: str, secret: str, known: _Checked | None
    ) -> _Checked:
        row = await self._lookup(lookup_id)
        if row is None:
            self._memory.pop(digest, None)
            raise _unknown()
        if known is not None and known.secret_hash == row.secret_hash:
            matches = known.matches
        else:
            matches = await to_thread.run_sync(
                secret_matches, secret, row.secret_hash, limiter=self._threads
            )
        checked = _Checked(row.secret_hash, matches, row, self._clock() + self._fresh_s)
        self._memory[digest] = checked
        self._memory.move_to_end(digest)
        while len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return checked


def _unknown() -> Unauthenticated:
    return Unauthenticated("the token is not valid here", suggestion=LOGIN_HINT)
