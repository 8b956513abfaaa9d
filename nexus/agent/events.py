"""The stream of changes: every machine once, then whatever changes."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import anyio

from nexus.api.machines import AgentEvent, MachineStatus

PING_S = 10.0


class Subscriber:
    """What one reader has not read yet: at most the latest event of each machine, so a slow
    reader costs no more than that."""

    def __init__(self) -> None:
        self._pending: dict[str, AgentEvent] = {}
        self._wake = anyio.Event()

    def put(self, vm_id: str, event: AgentEvent) -> None:
        self._pending.pop(vm_id, None)
        self._pending[vm_id] = event
        self._wake.set()

    async def next(self, timeout_s: float) -> list[AgentEvent]:
        """What is new, in order; empty when nothing came in time."""
        if not self._pending:
            self._wake = anyio.Event()
            with anyio.move_on_after(timeout_s):
                await self._wake.wait()
        events, self._pending = list(self._pending.values()), {}
        return events

    def close(self) -> None:
        self._wake.set()


class Feed:
    """Hands every change to every reader."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self.closed = False

    def status(self, status: MachineStatus) -> None:
        for subscriber in self._subscribers:
            subscriber.put(status.id, AgentEvent(type="status", status=status, vm_id=status.id))

    def gone(self, vm_id: str) -> None:
        for subscriber in self._subscribers:
            subscriber.put(vm_id, AgentEvent(type="gone", vm_id=vm_id))

    def close(self) -> None:
        """Ends all streams: the agent stops."""
        self.closed = True
        for subscriber in self._subscribers:
            subscriber.close()

    @contextmanager
    def subscribe(self) -> Iterator[Subscriber]:
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)


async def lines(
    feed: Feed, statuses: Callable[[], list[MachineStatus]], *, ping_s: float = PING_S
) -> AsyncIterator[bytes]:
    """The stream for one reader, one JSON object a line."""
    with feed.subscribe() as subscriber:
        now = [AgentEvent(type="status", status=s, vm_id=s.id) for s in statuses()]
        yield b"".join(_line(event) for event in [*now, AgentEvent(type="synced")])
        while not feed.closed:
            events = await subscriber.next(ping_s)
            if not events and not feed.closed:
                events = [AgentEvent(type="ping")]
            if events:
                yield b"".join(_line(event) for event in events)


def _line(event: AgentEvent) -> bytes:
    return event.model_dump_json().encode() + b"\n"
