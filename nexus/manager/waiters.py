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
    def listen(self, *vm_ids: str) -> Iterator[anyio.Event]:
        """An event set by the next ``notify`` of any of these VMs. Enter before reading their rows,
        so that none is missed."""
        event = anyio.Event()
        for vm_id in vm_ids:
            self._events[vm_id].add(event)
        try:
            yield event
        finally:
            for vm_id in vm_ids:
                self._events[vm_id].discard(event)
                if not self._events[vm_id]:
                    del self._events[vm_id]
