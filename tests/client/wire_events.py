"""Events on the wire of tests: pages, and a stream that ends after each event."""

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from nexus.api.common import Page
from nexus.api.vms import VmEvent
from tests.client.things import NOW

if TYPE_CHECKING:
    from tests.client.wire import Wire


def add_event_routes(app: FastAPI, wire: "Wire", check: Callable[[Request], None]) -> None:
    def event(number: int) -> VmEvent:
        vm = wire.vms[0]
        return VmEvent(
            id=number,
            vm_id=vm.id,
            vm_name=vm.name,
            at=NOW,
            state="running",
            reason=f"r{number}",
            message="it runs",
            actor="admin",
            request_id=None,
        )

    @app.get("/v1/events", response_model=None)
    async def events(
        request: Request,
        vm: str | None = None,
        after: int | None = None,
        cursor: int | None = None,
        follow: bool = False,
    ) -> Page[VmEvent] | StreamingResponse:
        check(request)
        if vm is not None:
            wire.vm(vm)
        at = cursor or after or 0
        if not follow:
            following = str(at + 1) if at + 1 < wire.events else None
            return Page(items=[event(at + 1)], next_cursor=following)

        async def stream() -> AsyncIterator[bytes]:
            """One event, then the connection ends: readers have to come again."""
            begin = wire.events - 1 if after is None else after
            yield b"retry: 1000\n\n: still here\nid: %d\n\n" % begin
            if 0 < begin < wire.pruned_to:
                gap = f'{{"after": {begin}, "to": {wire.pruned_to}, "reason": "pruned"}}'
                yield f"id: {wire.pruned_to}\nevent: gap\ndata: {gap}\n\n".encode()
            elif begin < wire.events:
                told = event(begin + 1)
                text = f"id: {told.id}\nevent: vm\ndata: {told.model_dump_json()}\n\n".encode()
                yield text[:20]
                yield text[20:]

        return StreamingResponse(stream(), media_type="text/event-stream")
