"""``Idempotency-Key``: a POST that is sent again is answered again, not done again.

One middleware for every POST route there is. It finds the answer of the first request, or lets the
request through with a ``Claim``, which ``uow.change`` writes in the transaction of the change
itself. See docs/api.md.
"""

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import anyio
import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from nexus import httpd
from nexus.api.common import Ok
from nexus.api.errors import ErrorBody, NexusError, ValidationFailed
from nexus.httpd import App, Message, Receive, Scope, Send
from nexus.manager import keys
from nexus.manager.db.journal_tables import IdempotencyRow
from nexus.manager.db.session import Database
from nexus.manager.keys import Asked, Claim
from nexus.manager.security import Principal

log = structlog.get_logger("idempotency")

HOLD_S = 60.0
"""How long a request waits for the first one with its key, before it is told to come again."""
LOOK_S = 0.2
"""How often to look for the end of a request that another manager serves."""
ALIVE_S = 60.0
"""How long another manager's request without an answer is taken for one that is going on."""
PRUNE_S = 600.0

_KEY = re.compile(rb"[ -~]{1,255}")
_MOST_BYTES = 4 << 20
"""Longer answers are passed on and not stored."""


@dataclass(slots=True)
class _Turn:
    """Requests with one key in this process: one at a time."""

    asked: Asked
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0


class Idempotency:
    """ASGI middleware, behind the gate: honours ``Idempotency-Key`` on every POST."""

    def __init__(self, app: App, *, db: Database, instance: str) -> None:
        self.app = app
        self.db = db
        self.instance = instance
        self._turns: dict[tuple[str, str, str], _Turn] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = _keys_in(scope)
        principal = scope.get("state", {}).get("principal")
        if not given or not isinstance(principal, Principal):
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            return
        try:
            asked = _asked(scope, principal, given, body)
            deadline = anyio.current_time() + HOLD_S
            while True:
                async with self._turn(asked, deadline):
                    if await self._round(asked, scope, _replay(body, receive), send):
                        return
                if anyio.current_time() >= deadline:
                    raise keys.busy(asked)
                await anyio.sleep(LOOK_S)
        except NexusError as error:
            await httpd.answer(scope["state"]["request_id"], error)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _turn(self, asked: Asked, deadline: float) -> AsyncIterator[None]:
        """Waits for requests with the same key in this process. Raises KeyConflict, KeyBusy."""
        turn = self._turns.setdefault(asked.name, _Turn(asked))
        if turn.asked.fingerprint != asked.fingerprint:
            raise keys.conflict(turn.asked)
        turn.users += 1
        try:
            with anyio.move_on_at(deadline) as waiting:
                await turn.lock.acquire()
            if waiting.cancelled_caught:
                raise keys.busy(asked)
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[asked.name]

    async def _round(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answers from the row or by serving the request; False when it is to be tried again."""
        row, expired = await self._find(asked)
        if row is not None:
            if row.fingerprint != asked.fingerprint:
                raise keys.conflict(row)
            if row.status is not None and (row.is_final or not _waits(scope)):
                await _stored(row, scope)(scope, receive, send)
                return True
            if row.status is None and self._is_alive(row):
                return False
        inner: Scope = {**scope, "state": {**scope["state"]}}
        claim = Claim(
            asked,
            self.instance,
            status=lambda: _status_of(inner),
            answers_ok=lambda: _answers_ok(inner),
            waits=_waits(scope),
            earlier=row,
            expired=expired,
        )
        inner["state"]["claim"] = claim
        answer = _Answer(send)
        await self.app(inner, receive, answer.take)
        if "route" in inner:
            scope["route"] = inner["route"]  # for those outside who ask where it went
        return await self._settle(claim, answer, scope, receive, send)

    async def _settle(
        self, claim: Claim, answer: "_Answer", scope: Scope, receive: Receive, send: Send
    ) -> bool:
        """Gives the answer and keeps it; False when another request turned out to be the first."""
        if answer.passed_on:
            return True
        if claim.lost:
            return False
        if claim.done and claim.earlier is not None and answer.says_done:
            await _stored(claim.earlier, scope)(scope, receive, send)
            return True
        untouched = not claim.written and claim.earlier is None
        if untouched and answer.status >= 400:
            # Perhaps another manager has done it meanwhile, and that is why it was refused here.
            row, _ = await self._find(claim.asked)
            if row is not None:
                return False
        await answer.give(replayed=claim.earlier is not None)
        if answer.status < (300 if untouched else 500):
            await self._keep(claim, answer)
        return True

    async def _keep(self, claim: Claim, answer: "_Answer") -> None:
        """Stores the answer, after it was given: cut off here, the one of the change stands."""
        body = answer.body.decode()
        if claim.written and not claim.waits and claim.body == body:
            return
        if len(body) > _MOST_BYTES:
            return
        try:
            await keys.finish(self.db, claim, answer.status, body)
        except (SQLAlchemyError, OSError):
            log.exception("an answer was not stored under its Idempotency-Key")

    async def _find(self, asked: Asked) -> tuple[IdempotencyRow | None, bool]:
        """The row of the first request; and whether there is one that is too old to count."""
        row = await keys.find(self.db, asked)
        expired = row is not None and row.expires_at <= asked.at
        return (None if expired else row), expired

    def _is_alive(self, row: IdempotencyRow) -> bool:
        """Whether the first request may still be going on, in another manager."""
        if self.db.is_sqlite or row.instance == self.instance:
            return False
        return row.created_at > datetime.now(UTC) - timedelta(seconds=ALIVE_S)


class _Answer:
    """The route's answer, held back until it is known to count. Streams are passed on."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self.status = 0
        self.body = b""
        self.passed_on = False

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start, self.status = message, message["status"]
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self.passed_on = kind.partition(b";")[0].strip() != b"application/json"
        elif not self.passed_on:
            self.body += message.get("body", b"")
            return
        if self.passed_on:
            await self._send(message)

    @property
    def says_done(self) -> bool:
        """Whether it is ``keys.Done``, which nobody turned into something better."""
        return self.status == keys.Done.status and keys.Done.code.encode() in self.body

    async def give(self, *, replayed: bool) -> None:
        """Sends what was held back."""
        if replayed:
            self._start["headers"] = [*self._start["headers"], (b"idempotency-replayed", b"true")]
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self.body})


async def prune_for_ever(db: Database) -> None:
    """Removes keys that are older than a day, until cancelled."""
    while True:
        try:
            while await keys.prune(db, datetime.now(UTC)) >= keys.MOST_PRUNED:
                pass
        except (SQLAlchemyError, OSError):
            log.exception("old keys were not removed; trying again")
        await anyio.sleep(PRUNE_S)


def _keys_in(scope: Scope) -> list[bytes]:
    if scope["type"] != "http" or scope["method"] != "POST":
        return []
    return [value for name, value in scope["headers"] if name == b"idempotency-key"]


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when the client has gone."""
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body which was read, then goes on."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _asked(scope: Scope, principal: Principal, given: list[bytes], body: bytes) -> Asked:
    if len(given) != 1 or not _KEY.fullmatch(given[0]):
        raise ValidationFailed(
            "Idempotency-Key is not one value of 1 to 255 printable ASCII characters",
            suggestion="send a UUID",
        )
    path: str = scope["path"]
    content = b"\0".join([b"POST", path.encode(), scope["query_string"], body])
    return Asked(
        project=principal.project,
        token_id=principal.token_id,
        key=given[0].decode("ascii"),
        fingerprint=hashlib.sha256(content).hexdigest(),
        summary=f"POST {path[:200]}",
        request_id=scope["state"]["request_id"],
    )


def _waits(scope: Scope) -> bool:
    return any(name == "wait" for name, _ in parse_qsl(scope["query_string"].decode("latin-1")))


def _status_of(scope: Scope) -> int:
    return getattr(scope.get("route"), "status_code", None) or 200


def _answers_ok(scope: Scope) -> bool:
    return getattr(scope.get("route"), "response_model", None) is Ok


def _stored(row: IdempotencyRow, scope: Scope) -> Response:
    """The first request's answer; a refusal names the request that it answers now."""
    body, status = row.body or "", row.status or 200
    if status >= 400:
        given = {"request_id": scope["state"]["request_id"]}
        refusal = ErrorBody.model_validate_json(body).model_copy(update=given)
        body = refusal.model_dump_json(exclude_none=True)
    headers = {"idempotency-replayed": "true"}
    return Response(body, status, media_type="application/json", headers=headers)
