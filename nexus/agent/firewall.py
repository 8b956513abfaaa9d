"""The tables in the kernel: what they should hold, and one writer at a time.

A VM's ports are added by themselves, so a create costs the same on an empty and on a full host.
Everything else replaces the tables as wholes, and so does whatever does not fit.
"""

from collections.abc import Sequence
from ipaddress import IPv4Network

import anyio
import anyio.to_thread
import structlog

from nexus.agent import nft
from nexus.agent.errors import NetworkFailed
from nexus.agent.rules import Port, Rules, Segment, change_of, text_of
from nexus.api.networks import HostForward

log = structlog.get_logger("firewall")


def check_host() -> None:
    """Whether this host can have rules such as ours at all. Blocks; raises NetworkFailed."""
    subnet = IPv4Network("192.0.2.0/24")
    segment = Segment("nexus-check", "nat", subnet, dhcp=True)
    forward = HostForward(protocol="tcp", host_port=1, ip="192.0.2.2", guest_port=1)
    nft.check(text_of(Rules("nexus_check", [segment], forwards=[forward])))


class Firewall:
    """The rules of one host. Its methods are called from the event loop only."""

    def __init__(self, table: str, segments: Sequence[Segment]) -> None:
        self._table = table
        self._segments = tuple(segments)
        self._forwards: tuple[HostForward, ...] = ()
        self._ports: dict[str, tuple[Port, ...]] = {}
        self._owners: dict[tuple[str, ...], set[str]] = {}
        """Which VM has which TAP's name, and which MAC on a bridge: one, but at first, when those
        of a VM that was refused for it are not forgotten yet."""
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
        self._own(vm_id, ports)

    async def admit(self, vm_id: str, ports: Sequence[Port]) -> None:
        """Lets these ports speak with their own addresses; returns when the kernel knows them.

        Raises NetworkFailed.
        """
        before = self._ports.get(vm_id)
        if before == tuple(ports):
            return
        self._claim(vm_id, ports)
        self._ports[vm_id] = tuple(ports)
        if before is None:
            self._added += ports
        else:
            self._all = True
        try:
            await self._write()
        except NetworkFailed:
            self._disown(vm_id, self._ports.pop(vm_id, ()))
            raise

    def _claim(self, vm_id: str, ports: Sequence[Port]) -> None:
        """Names of TAPs and MACs are hashes of ids: two may be the same. Raises NetworkFailed."""
        for claim in _claims(ports):
            for owner in self._owners.get(claim, set()) - {vm_id}:
                raise NetworkFailed(
                    f"the {' on '.join(claim)} is that of VM {owner} already",
                    suggestion="delete the VM and make it again: with its id, this changes too",
                )
        self._disown(vm_id, self._ports.get(vm_id, ()))
        self._own(vm_id, ports)

    def _own(self, vm_id: str, ports: Sequence[Port]) -> None:
        for claim in _claims(ports):
            self._owners.setdefault(claim, set()).add(vm_id)

    def _disown(self, vm_id: str, ports: Sequence[Port]) -> None:
        for claim in _claims(ports):
            owners = self._owners.get(claim, set())
            owners.discard(vm_id)
            if not owners:
                self._owners.pop(claim, None)

    def is_of_another(self, tap: str, vm_id: str) -> bool:
        """Whether a TAP of this name belongs to another VM as well."""
        return bool(self._owners.get(_name(tap), set()) - {vm_id})

    async def forget(self, vm_id: str) -> None:
        """Takes a VM's ports out again; its TAPs are gone. Raises NetworkFailed."""
        ports = self._ports.pop(vm_id, None)
        if ports is None:
            return
        self._disown(vm_id, ports)
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


def _claims(ports: Sequence[Port]) -> list[tuple[str, ...]]:
    """What no other VM may have."""
    return [
        claim for port in ports for claim in (_name(port.tap), (f"MAC {port.mac}", port.bridge))
    ]


def _name(tap: str) -> tuple[str, ...]:
    return (f"name {tap}",)
