"""``/v1/events`` and ``/v1/vms/{ref}/events``: pages of JSON, or a stream of server-sent events."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, Field, StringConstraints
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Receive, Scope, Send

from nexus.api.common import Page, VmName
from nexus.api.errors import Unauthenticated
from nexus.api.events import EventGap
from nexus.api.vms import VmEvent, VmState
from nexus.manager.feed import Pulse, Told
from nexus.manager.routes.parts import Limit, Project, VmRef
from nexus.manager.runtime import Nexus, Runtime
from nexus.manager.security import Principal, bearer, require, visible
from nexus.manager.services import events
from nexus.manager.services.events import EventFilter

log = structlog.get_logger("events")
router = APIRouter(tags=["events"])

Reader = Annotated[Principal, require("vms:read")]
EVENT_STREAM = "text/event-stream"
RETRY_MS = 1000
"""How long a browser waits before it connects again."""
FAR = 2**53
"""Ids are less: they survive JavaScript."""

Reason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Id = Annotated[int, Field(ge=0, le=FAR)]
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}
}


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The conditions that a request sets."""

    states: list[VmState]
    reasons: list[str]
    since: datetime | None


async def narrowing(
    state: Annotated[list[VmState], Query(max_length=16, description="Any of these.")] = [],  # noqa: B006 - nothing changes it
    reason: Annotated[list[Reason], Query(max_length=16, description="Any of these.")] = [],  # noqa: B006
    since: Annotated[
        AwareDatetime | None,
        Query(
            ge=datetime(1970, 1, 1, tzinfo=UTC),
            le=datetime(9000, 1, 1, tzinfo=UTC),
            description="Events that happened at that time or later.",
        ),
    ] = None,
) -> Narrowing:
    """A dependency: the conditions on events."""
    return Narrowing(state, reason, since)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request wants to read on, and how."""

    after: int | None
    limit: int
    streams: bool


async def place(
    request: Request,
    cursor: Annotated[Id | None, Query(description="``next_cursor`` of the page before.")] = None,
    after: Annotated[
        Id | None, Query(description="Events behind this id; 0: from the oldest one kept.")
    ] = None,
    limit: Limit = 100,
    follow: Annotated[bool, Query(description="Stream, whatever ``Accept`` says.")] = False,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=FAR, description="Goes before ``after``.")
    ] = None,
) -> Place:
    """A dependency: the position. What a reconnecting browser says of it wins."""
    chosen = next((each for each in (last_event_id, cursor, after) if each is not None), None)
    accepted = request.headers.get("accept", "")
    return Place(chosen, limit, follow or EVENT_STREAM in accepted.lower())


Narrowed = Annotated[Narrowing, Depends(narrowing)]
Placed = Annotated[Place, Depends(place)]


@router.get("/v1/events", response_model=Page[VmEvent], responses=ANSWERS)
async def list_events(
    request: Request,
    nexus: Nexus,
    principal: Reader,
    narrowed: Narrowed,
    at: Placed,
    vm: Annotated[VmName | None, Query(description="A VM's id, or its name.")] = None,
    project: Project = None,
) -> Page[VmEvent] | Response:
    """What happened to all VMs of the project, in one order that never changes.

    A page, the oldest first; with ``Accept: text/event-stream`` or ``follow=1`` a stream that goes
    on where ``Last-Event-ID`` or ``after`` says, else with what happens from now on.
    """
    wanted = await _filter(nexus, visible(principal, project), vm, narrowed)
    if at.streams:
        told = await nexus.feed.follow(wanted, at.after)
        return EventStream(nexus, request, principal, told)
    found, following = await events.page(nexus.db, wanted, at.after or 0, at.limit)
    return Page(items=found, next_cursor=None if following is None else str(following))


@router.get("/v1/vms/{ref}/events", response_model=Page[VmEvent], responses=ANSWERS)
async def list_vm_events(
    ref: VmRef,
    request: Request,
    nexus: Nexus,
    principal: Reader,
    narrowed: Narrowed,
    at: Placed,
) -> Page[VmEvent] | Response:
    """What happened to one VM, oldest first; a page or a stream, as ``/v1/events``.

    A VM that is gone is found by its id or its last name as long as its events are kept.
    """
    wanted = await _filter(nexus, principal.project, ref, narrowed)
    if at.streams:
        told = await nexus.feed.follow(wanted, at.after)
        return EventStream(nexus, request, principal, told)
    found, following = await events.page_of_vm(nexus.db, wanted, at.after or 0, at.limit)
    return Page(items=found, next_cursor=None if following is None else str(following))


async def _filter(
    nexus: Runtime, project: str, ref: str | None, narrowed: Narrowing
) -> EventFilter:
    vm_id = None
    if ref is not None:
        async with nexus.db.read() as session:
            vm_id = await events.vm_id_of(session, project, ref)
    return EventFilter(project, vm_id, narrowed.states, narrowed.reasons, narrowed.since)


class EventStream(StreamingResponse):
    """Server-sent events until the reader leaves, or its token is no longer good."""

    def __init__(
        self, nexus: Runtime, request: Request, principal: Principal, told: AsyncIterator[Told]
    ) -> None:
        self._nexus = nexus
        self._token = bearer(request.scope)
        self._token_id = principal.token_id
        super().__init__(
            self._frames(told),
            media_type=EVENT_STREAM,
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._nexus.feed.admit(self._token_id):
            await super().__call__(scope, receive, send)

    async def _frames(self, told: AsyncIterator[Told]) -> AsyncIterator[bytes]:
        yield b"retry: %d\n\n" % RETRY_MS
        try:
            async for each in told:
                # A stream outlives the check at its beginning: a revoked token ends it.
                await self._nexus.verifier.verify(self._token)
                yield frame(each)
        except Unauthenticated:
            log.info("a stream of events ended: its token is no longer good")
        except (SQLAlchemyError, OSError) as error:
            # The reader connects again with its position; nothing is lost.
            log.warning("a stream of events broke off", error=str(error))


def frame(told: Told) -> bytes:
    """Server-sent events, as the HTML standard writes them."""
    if isinstance(told, Pulse):
        # A comment keeps the connection alive; the id alone moves the reader's position.
        return b": still here\nid: %d\n\n" % told.to
    if isinstance(told, EventGap):
        return _message("gap", told.to, told.model_dump_json())
    return b"".join(_message("vm", event.id, event.model_dump_json()) for event in told)


def _message(kind: str, event_id: int, data: str) -> bytes:
    return f"id: {event_id}\nevent: {kind}\ndata: {data}\n\n".encode()
