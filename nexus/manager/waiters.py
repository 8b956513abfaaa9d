"""Waking those who wait for a VM; a hint only, the database says what is true."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator

import anyio


class Waiters:
    """Who waits for which VM in this process."""

    def __init__(self) -> None:
        self._events: dict[str, set[anyio.Event]] = defaultdict(set)

    def notify(self, vm_id: str) -> None:
        """Wakes everybody who waits for this VM."""
        for event in self._events.get(vm_id, ()):
            event.set()

    @contextlib.contextmanager
    def listen(self, vm_id: str) -> Iterator[anyio.Event]:
        """An event set by the next ``notify``. Enter before reading the row, so none is missed."""
        event = anyio.Event()
        self._events[vm_id].add(event)
        try:
            yield event
        finally:
            self._events[vm_id].discard(event)
            if not self._events[vm_id]:
                del self._events[vm_id]
