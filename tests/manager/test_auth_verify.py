"""Checking tokens: one Argon2 run a token, and revocation that takes effect."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from nexus.api.errors import Unauthenticated
from nexus.manager import verify
from nexus.manager.verify import StoredToken, TooManyAttempts, Verifier, make_token, parse

pytestmark = pytest.mark.anyio


def stored(token: str) -> StoredToken:
    parts = parse(token)
    assert parts is not None
    lookup_id, secret = parts
    return StoredToken(
        id="id",
        lookup_id=lookup_id,
        secret_hash=verify.hash_secret(secret),
        name="admin",
        project="default",
        role="admin",
        expires_at=None,
        revoked_at=None,
    )


class Shelf:
    """Rows by lookup id, and how often they were read."""

    def __init__(self, *rows: StoredToken) -> None:
        self.rows = {row.lookup_id: row for row in rows}
        self.reads = 0

    async def find(self, lookup_id: str) -> StoredToken | None:
        self.reads += 1
        return self.rows.get(lookup_id)


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def argon_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    runs: list[str] = []
    real = verify.secret_matches

    def counted(secret: str, secret_hash: str) -> bool:
        runs.append(secret)
        return real(secret, secret_hash)

    monkeypatch.setattr(verify, "secret_matches", counted)
    return runs


async def test_a_token_costs_one_argon2_run_however_many_ask_at_once(argon_runs: list[str]) -> None:
    token = make_token()
    shelf = Shelf(stored(token))
    verifier = Verifier(shelf.find, clock=Clock())
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(verifier.verify, token)
    assert len(argon_runs) == 1
    assert shelf.reads == 1


async def test_a_known_token_costs_less_than_a_tenth_of_a_millisecond() -> None:
    token = make_token()
    verifier = Verifier(Shelf(stored(token)).find, fresh_s=600)
    await verifier.verify(token)
    rounds = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            await verifier.verify(token)
        rounds.append((time.perf_counter() - begun) / 100)
    assert min(rounds) < 0.0001


async def test_a_stale_row_is_read_again_without_argon2(argon_runs: list[str]) -> None:
    token = make_token()
    shelf, clock = Shelf(stored(token)), Clock()
    verifier = Verifier(shelf.find, clock=clock)
    await verifier.verify(token)
    clock.at += verify.FRESH_S
    await verifier.verify(token)
    assert (shelf.reads, len(argon_runs)) == (2, 1)


async def test_revocation_takes_effect_when_the_row_is_read_again() -> None:
    token = make_token()
    row = stored(token)
    shelf, clock = Shelf(row), Clock()
    verifier = Verifier(shelf.find, clock=clock)
    await verifier.verify(token)
    shelf.rows[row.lookup_id] = replace(row, revoked_at=datetime.now(UTC))
    clock.at += verify.FRESH_S
    with pytest.raises(Unauthenticated, match="revoked"):
        await verifier.verify(token)


async def test_revocation_here_takes_effect_at_once() -> None:
    token = make_token()
    row = stored(token)
    shelf = Shelf(row)
    verifier = Verifier(shelf.find, clock=Clock())
    await verifier.verify(token)
    del shelf.rows[row.lookup_id]
    verifier.forget()
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


async def test_a_token_expires_even_while_its_row_is_believed() -> None:
    token = make_token()
    now = datetime(2030, 1, 1, tzinfo=UTC)
    row = replace(stored(token), expires_at=now + timedelta(seconds=1))
    moments = [now, now + timedelta(seconds=1)]
    verifier = Verifier(Shelf(row).find, clock=Clock(), now=lambda: moments.pop(0))
    await verifier.verify(token)
    with pytest.raises(Unauthenticated, match="expired"):
        await verifier.verify(token)


async def test_a_changed_hash_is_checked_anew(argon_runs: list[str]) -> None:
    token = make_token()
    row = stored(token)
    shelf, clock = Shelf(row), Clock()
    verifier = Verifier(shelf.find, clock=clock)
    await verifier.verify(token)
    shelf.rows[row.lookup_id] = replace(row, secret_hash=verify.hash_secret("other"))
    clock.at += verify.FRESH_S
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)
    assert len(argon_runs) == 2


async def test_the_same_wrong_secret_burns_argon2_once(argon_runs: list[str]) -> None:
    row = stored(make_token())
    wrong = f"nxs_{row.lookup_id}_{'0' * 64}"
    clock = Clock()
    verifier = Verifier(Shelf(row).find, clock=clock)
    for _ in range(5):
        clock.at += verify.FRESH_S
        with pytest.raises(Unauthenticated):
            await verifier.verify(wrong)
    assert len(argon_runs) == 1


async def test_a_flood_of_wrong_secrets_is_bounded() -> None:
    row = stored(make_token())
    verifier = Verifier(Shelf(row).find, clock=Clock())
    outcomes: list[type[Exception]] = []

    async def attempt(number: int) -> None:
        try:
            await verifier.verify(f"nxs_{row.lookup_id}_{number:064x}")
        except (Unauthenticated, TooManyAttempts) as error:
            outcomes.append(type(error))

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(attempt, number)
    assert outcomes.count(TooManyAttempts) == 100 - 64
    assert outcomes.count(Unauthenticated) == 64
    with pytest.raises(Unauthenticated):
        await verifier.verify(make_token())


NOUGHTS = "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nxs_",
        "nxs__",
        "admin",
        f"nxs_{NOUGHTS[:16]}_{NOUGHTS[:63]}",
        f"NXS_{NOUGHTS[:16]}_{NOUGHTS}",
        f"nxs_{NOUGHTS[:16]}_{NOUGHTS}\n",
        f"nxs_{'٠' * 16}_{NOUGHTS}",
    ],
)
async def test_what_is_no_token_never_reaches_the_database(text: str) -> None:
    shelf = Shelf()
    with pytest.raises(Unauthenticated):
        await Verifier(shelf.find).verify(text)
    assert shelf.reads == 0
