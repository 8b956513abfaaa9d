"""The tables in the kernel: what they should hold, and one writer at a time.

A VM's ports are added by themselves, so a create costs the same on an empty and on a full host.
Everything else replaces the tables as wholes, and so does whatever does not fit.
"""

from collections.abc import Sequence

import anyio
import anyio.to_thread
import structlog

from nexus.agent import nft
from nexus.agent.errors import NetworkFailed
from nexus.agent.rules import Port, Rules, Segment, change_of, text_of
from nexus.api.networks import HostForward

log = structlog.get_logger("firewall")


class Firewall:
    """The rules of one host. Its methods are called from the event loop only."""

    def __init__(self, table: str, segments: Sequence[Segment]) -> None:
        self._table = table
        self._segments = tuple(segments)
        self._forwards: tuple[HostForward, ...] = ()
        self._ports: dict[str, tuple[Port, ...]] = {}
        self._added: list[Port] = []
        """Ports that the kernel has not been told of yet."""
        self._all = False
        """Whether the tables have to be written as wholes."""
        self._turn = anyio.Lock()

    @property
    def rules(self) -> Rules:
        """What the kernel should have."""
        return Rules(self._table, self._segments, dict(self._ports), self._forwards)

    def know(self, vm_id: str, ports: Sequence[Port]) -> None:
        """Notes the ports of a VM that was there before this process; nothing is written yet."""
        self._ports[vm_id] = tuple(ports)

    async def admit(self, vm_id: str, ports: Sequence[Port]) -> None:
        """Lets these ports speak with their own addresses; returns when the kernel knows them.

        Raises NetworkFailed.
        """
        before = self._ports.get(vm_id)
        if before == tuple(ports):
            return
        self._ports[vm_id] = tuple(ports)
        if before is None:
            self._added += ports
        else:
            self._all = True
        try:
            await self._write()
        except NetworkFailed:
            self._ports.pop(vm_id, None)
            raise

    async def forget(self, vm_id: str) -> None:
        """Takes a VM's ports out again; its TAPs are gone. Raises NetworkFailed."""
        ports = self._ports.pop(vm_id, None)
        if ports is None:
            return
        async with self._turn:
            if self._all or self._added:
                await self._write_all()
                return
            try:
                await self._apply(change_of("delete", self.rules, ports))
            except NetworkFailed as error:
                log.warning("writing the rules anew", because=error.message)
                await self._write_all()

    async def replace(self, segments: Sequence[Segment], forwards: Sequence[HostForward]) -> None:
        """Sets networks and forwards; returns when the kernel has them. Raises NetworkFailed."""
        self._segments, self._forwards = tuple(segments), tuple(forwards)
        self._all = True
        await self._write()

    async def _write(self) -> None:
        """Writes what is outstanding, with whatever others have added meanwhile."""
        async with self._turn:
            if self._all:
                await self._write_all()
                return
            ports, self._added = self._added, []
            if not ports:
                return
            try:
                await self._apply(change_of("add", self.rules, ports))
            except NetworkFailed as error:
                log.warning("writing the rules anew", because=error.message)
                await self._write_all()

    async def _write_all(self) -> None:
        self._added.clear()
        self._all = False
        try:
            await self._apply(text_of(self.rules))
        except BaseException:
            self._all = True
            raise

    async def _apply(self, text: str) -> None:
        await anyio.to_thread.run_sync(nft.apply, text)
