"""Every network of this host, and the TAPs of its VMs in them."""

import ipaddress
import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from nexus.agent import bridges, nft
from nexus.agent.atomic import write_atomically, write_often
from nexus.agent.bridges import Survey
from nexus.agent.dhcp import Client, Service
from nexus.agent.errors import NetworkFailed, disk_failure
from nexus.agent.firewall import Firewall
from nexus.agent.home import HomeNetwork
from nexus.agent.installation import Installation
from nexus.agent.layout import MAX_NICS, Layout, nic_links, shaper_of, tap_name
from nexus.agent.links import Link, Links, is_stray_tap, looks_like_our_tap
from nexus.agent.name_service import NameService
from nexus.agent.rules import Port, Rules, Segment
from nexus.api.hosts import HostNetwork
from nexus.api.machines import Machine, MachineNic
from nexus.api.networks import (
    HostForward,
    HostNetworks,
    HostNetworkSpec,
    HostNetworksStatus,
    HostNetworkStatus,
    NetworkError,
)

log = structlog.get_logger("networks")

NOTHING = HostNetworks(networks=[], forwards=[])


@dataclass(frozen=True)
class NicView:
    """A NIC and its network, as far as this host knows it."""

    nic: MachineNic
    tap: str
    network_id: str
    spec: HostNetworkSpec | None
    segment: Segment | None
    error: NetworkError | None


class Networks:
    """The host's own network, those the manager asked for, and the rules of all."""

    def __init__(
        self, home: HomeNetwork, links: Links, layout: Layout, *, own_port: int | None = None
    ) -> None:
        self._home = home
        self._own_port = own_port
        """The agent's TCP port: nobody could ask it any more to take a forward of it back."""
        self._links = links
        self._file = layout.networks_file
        self._wanted = NOTHING
        """What the manager asked for last; also in the file."""
        self._errors: dict[str, NetworkError] = {}
        """Why some of it is not so."""
        self._names = NameService(layout.dhcp_dir)
        self._is_up = False
        """Whether this agent has brought the host's own network up."""
        self._segments: dict[str, Segment] = {}
        """Those whose bridges are there or about to be, by id: the rules follow them."""
        self._standing: set[str] = set()
        """Those of them that cannot be (any more): VMs that are there stay, and none starts."""
        self._bridges: set[str] = set()
        """Every bridge that a TAP of ours may be in, also of a network that is not wanted now."""
        self._home_id: str | None = None
        self._firewall = Firewall(home.installation.table, [home.segment()])
        self._turn = anyio.Lock()

    @property
    def installation(self) -> Installation:
        return self._home.installation

    @property
    def wire(self) -> HostNetwork:
        """What the manager is told of the host's own network."""
        return self._home.wire

    async def in_use(self) -> list[str]:
        """The subnets this machine has without Nexus' networks."""
        return await anyio.to_thread.run_sync(self._in_use)

    def _in_use(self) -> list[str]:
        ours = [
            link.index
            for link in self._links.all()
            if bridges.is_ours(self.installation, link) or self.installation.owns(link)
        ]
        return sorted({str(net) for net in self._links.networks_in_use(but=ours)})

    # -- what the manager asks -------------------------------------------------------------------

    async def restore(self, machines: Iterable[Machine], tasks: anyio.abc.TaskGroup) -> None:
        """Takes up, after a start, what was asked for before, with the VMs that are there.

        Name servers are watched in ``tasks``, and live on when it ends.
        """
        self._names.open(tasks)
        wanted = await anyio.to_thread.run_sync(load_networks, self._file)
        async with self._turn:
            # Segments first, so that the ports' bridges are known when the rules are written.
            surveys, standing, errors = await anyio.to_thread.run_sync(self._survey, wanted)
            self._adopt(wanted, surveys, standing)
            for machine in machines:
                self._firewall.know(machine.id, self._ports(machine, lenient=True))
                self._names.admit(machine.id, machine.name, _clients(machine))
            await self._make(wanted, surveys, errors)
            errors = {**await self._names.serve(self._services(wanted)), **errors}
        self._note(wanted, errors)
        for network_id, why in errors.items():
            log.warning("a network is not there", network=network_id, error=why.message)

    async def apply(self, wanted: HostNetworks) -> HostNetworksStatus:
        """Makes these the host's networks and forwards, and no others. Run twice, it does nothing
        more. A network that cannot be made is not half made; its status says why."""
        async with self._turn:
            await anyio.to_thread.run_sync(
                write_atomically, self._file, wanted.model_dump_json().encode()
            )
            surveys, standing, errors = await anyio.to_thread.run_sync(self._survey, wanted)
            self._adopt(wanted, surveys, standing)
            await self._names.end(but={each.network_id for each in self._services(wanted)})
            await self._make(wanted, surveys, errors)
            errors = {**await self._names.serve(self._services(wanted)), **errors}
            self._note(wanted, errors)
            return HostNetworksStatus(
                networks=[
                    HostNetworkStatus(
                        id=spec.id, bridge=self._bridge_of(spec.id), error=self._errors.get(spec.id)
                    )
                    for spec in wanted.networks
                ]
            )

    def _note(self, wanted: HostNetworks, errors: Mapping[str, NetworkFailed]) -> None:
        self._wanted = wanted
        self._errors = {
            network_id: NetworkError(message=error.message, suggestion=error.suggestion)
            for network_id, error in errors.items()
        }

    def _survey(
        self, wanted: HostNetworks
    ) -> tuple[dict[str, Survey], dict[str, Segment], dict[str, NetworkFailed]]:
        """How networks would be, the bridges of those that cannot be, and why not."""
        surveys: dict[str, Survey] = {}
        standing: dict[str, Segment] = {}
        owners: dict[str, Survey] = {}
        errors: dict[str, NetworkFailed] = {}
        for spec in wanted.networks:
            if spec.home:
                continue
            shared: Segment | None = None
            try:
                found = bridges.survey(spec, self.installation, self._links)
                owner = owners.setdefault(found.way_out, found)
                if owner is found:
                    surveys[spec.id] = found
                    continue
                if not owner.segment.ours:
                    # VMs that are there share the bridge, and so the rules that it has.
                    shared = owner.segment
                raise NetworkFailed(
                    f"{found.way_out} is the uplink of the network {owner.spec.name} already",
                    suggestion="put VMs on that network, or name another uplink (ip -br link)",
                )
            except NetworkFailed as error:
                errors[spec.id] = error
                segment = shared or bridges.standing(spec, self.installation, self._links)
                if segment is not None:
                    standing[spec.id] = segment
        return surveys, standing, errors

    def _adopt(
        self, wanted: HostNetworks, surveys: dict[str, Survey], standing: dict[str, Segment]
    ) -> None:
        self._segments = {network_id: found.segment for network_id, found in surveys.items()}
        self._segments |= standing
        self._standing = {*standing}
        self._bridges |= {bridges.bridge_name(spec.id) for spec in wanted.networks}
        self._bridges |= {segment.bridge for segment in self._segments.values()}
        self._home_id = None
        for spec in wanted.networks:
            if spec.home:
                self._home_id = spec.id
                self._segments[spec.id] = self._home.segment(spec)

    async def _make(
        self, wanted: HostNetworks, surveys: dict[str, Survey], errors: dict[str, NetworkFailed]
    ) -> None:
        """Rules before bridges: there is no moment in which a bridge is up without them."""
        try:
            # Before the rules: a connection that they lead astray meanwhile waits for a second.
            self._route_loopback(wanted.forwards)
            await self._firewall.replace(self._all_segments(), self._possible(wanted.forwards))
        except NetworkFailed as refused:
            log.error("the rules are not written", error=refused.message)
            errors.update({spec.id: refused for spec in wanted.networks})
            return
        if not self._is_up:
            await anyio.to_thread.run_sync(self._home.bring_up)
            self._is_up = True
        failed = await anyio.to_thread.run_sync(self._make_bridges, wanted, surveys)
        errors.update(failed)
        for network_id in failed:
            if _index_or_none(self._segments[network_id].bridge) is None:
                self._segments.pop(network_id)
            else:
                self._standing.add(network_id)

    def _make_bridges(
        self, wanted: HostNetworks, surveys: dict[str, Survey]
    ) -> dict[str, NetworkFailed]:
        failed: dict[str, NetworkFailed] = {}
        kept = {bridges.bridge_name(spec.id) for spec in wanted.networks}
        everything = self._links.all()
        bridges.remove_others(kept, everything, self.installation, self._links)
        for network_id, found in surveys.items():
            try:
                bridges.ensure(found, self.installation, self._links)
            except NetworkFailed as error:
                failed[network_id] = error
        self._take_back(everything)
        self._route_loopback(wanted.forwards)
        return failed

    def _take_back(self, everything: Iterable[Link]) -> None:
        """Puts the TAPs of VMs back whose bridge somebody deleted, once it was made anew."""
        ports = {port.tap: port.bridge for vm in self.rules.ports.values() for port in vm}
        for link in filter(is_stray_tap, everything):
            name = ports.get(link.name)
            bridge = _index_or_none(name) if name else None
            if bridge is None:
                continue
            try:
                self._links.set(link.index, master=bridge)
            except NetworkFailed as error:
                # It went meanwhile: its VM has ended.
                log.info("a TAP is not back in its bridge", tap=link.name, error=error.message)
            else:
                log.warning("a TAP is back in its bridge", tap=link.name, bridge=name)

    def _route_loopback(self, forwards: Sequence[HostForward]) -> None:
        """A connection to a forwarded port of 127.0.0.1 is routed into bridges that are there."""
        for segment in self._all_segments() if forwards else ():
            if segment.ours and segment.kind == "nat" and _index_or_none(segment.bridge):
                nft.route_loopback(segment.bridge)

    def _possible(self, forwards: Sequence[HostForward]) -> list[HostForward]:
        possible = []
        for each in forwards:
            if (each.protocol, each.host_port) == ("tcp", self._own_port):
                log.warning("the agent's own port is not forwarded", port=each.host_port)
            else:
                possible.append(each)
        return possible

    def _services(self, wanted: HostNetworks) -> list[Service]:
        """The networks that are to be served, among those that this host has."""
        services = []
        for spec in wanted.networks:
            segment = self._segments.get(spec.id)
            if segment is None or not segment.dhcp:
                continue
            services.append(
                Service(
                    network_id=spec.id,
                    name=spec.name,
                    bridge=segment.bridge,
                    subnet=segment.subnet,
                    leads_out=segment.kind == "nat",
                    home=spec.home,
                    index=_index_or_none(segment.bridge) or 0,
                    asks=tuple(spec.dns) if spec.dns is not None else None,
                )
            )
        return services

    def _all_segments(self) -> list[Segment]:
        by_bridge = {segment.bridge: segment for segment in self._segments.values()}
        if self._home_id is None:
            return [self._home.segment(), *by_bridge.values()]
        return [*by_bridge.values()]

    def _bridge_of(self, network_id: str) -> str:
        segment = self._segments.get(network_id)
        return segment.bridge if segment else bridges.bridge_name(network_id)

    # -- what is looked at when something is wrong ------------------------------------------------

    @property
    def rules(self) -> Rules:
        """What the kernel should have."""
        return self._firewall.rules

    @property
    def forwards(self) -> list[HostForward]:
        """All that the manager asked for."""
        return self._wanted.forwards

    @property
    def links(self) -> Links:
        return self._links

    @property
    def names(self) -> NameService:
        return self._names

    def views(self, machine: Machine) -> list[NicView]:
        """The networks of a VM's NICs."""
        specs = {spec.id: spec for spec in self._wanted.networks}
        views = []
        for index, nic in enumerate(machine.nics):
            network_id = nic.network or self._home_id or ""
            views.append(
                NicView(
                    nic,
                    tap_name(machine.id, index),
                    network_id,
                    specs.get(network_id),
                    self._segment_of(nic),
                    self._errors.get(network_id),
                )
            )
        return views

    # -- the TAPs of VMs -------------------------------------------------------------------------

    async def ensure_taps(self, machine: Machine, owner: int | None, note: Path) -> None:
        """The TAPs of a VM's NICs, each in its network's bridge and up; ``note`` says which.

        The rules know them before they are in a bridge. Raises NetworkFailed, OSError, and
        StageFailed("disk") when there is no space for the note.
        """
        ports = self._ports(machine)
        await self._firewall.admit(machine.id, ports)
        self._names.admit(machine.id, machine.name, _clients(machine))
        nics = {nic.iface: asdict(port) for nic, port in zip(machine.nics, ports, strict=True)}
        words = json.dumps({"vm": machine.id, "nics": nics}, indent=2).encode()

        def ensure() -> None:
            try:
                write_often(note, words)
            except OSError as error:
                raise disk_failure(error, note.parent) from error
            for port in ports:
                self._links.ensure_tap(port.tap, _index_of(port.bridge), owner)

        await anyio.to_thread.run_sync(ensure)

    async def remove_taps(self, vm_id: str) -> None:
        """Every TAP this VM can have, and what shapes it; absent ones are no error."""

        def remove() -> None:
            ours = self._bridge_indices()
            for index in range(MAX_NICS):
                # A VM that was refused for its TAP's name does not take the other's away.
                if not self._firewall.is_of_another(tap_name(vm_id, index), vm_id):
                    for name in nic_links(vm_id, index):
                        self._links.delete_of_vm(name, ours)

        await anyio.to_thread.run_sync(remove)
        self._names.forget(vm_id)
        await self._firewall.forget(vm_id)

    def rename(self, machine: Machine) -> None:
        """Has name servers know a VM that is there by its new name. Raises NetworkFailed."""
        self._names.rename(machine.id, machine.name, _clients(machine))

    async def remove_orphans(self, vm_ids: list[str]) -> list[str]:
        """Deletes the TAPs in our bridges that belong to none of these VMs, and what shapes them;
        returns the TAPs' names."""
        return await anyio.to_thread.run_sync(self._remove_orphans, vm_ids)

    def _remove_orphans(self, vm_ids: list[str]) -> list[str]:
        known = {tap_name(vm_id, index) for vm_id in vm_ids for index in range(MAX_NICS)}
        ours = self._bridge_indices()
        orphans = [
            link.name
            for link in self._links.all()
            if link.master in ours and looks_like_our_tap(link) and link.name not in known
        ]
        for name in orphans:
            self._links.delete(name)
            self._links.delete(shaper_of(name))
        return orphans

    def _bridge_indices(self) -> set[int]:
        found = set()
        for name in {self._home.bridge.name, *self._bridges}:
            index = _index_or_none(name)
            if index is not None:
                found.add(index)
        return found

    def _ports(self, machine: Machine, *, lenient: bool = False) -> list[Port]:
        """A VM's ports; ``lenient`` for one that runs, whose networks need not be (any more): its
        TAPs are there all the same. Raises NetworkFailed."""
        ports = []
        for index, nic in enumerate(machine.nics):
            segment = self._segment_of(nic)
            if segment is None and not lenient:
                raise NetworkFailed(
                    f"the host does not have the network of {nic.iface}",
                    suggestion="nexus network ls tells why; then start the VM again",
                )
            address = str(ipaddress.IPv4Interface(nic.ip).ip)
            bridge = segment.bridge if segment else self._bridge_of(nic.network or "")
            ports.append(Port(tap_name(machine.id, index), bridge, nic.mac, address))
        return ports

    def _segment_of(self, nic: MachineNic) -> Segment | None:
        """Where a NIC belongs; None when the host cannot have its network."""
        if nic.network is None:
            return self._segments.get(self._home_id or "", self._home.segment())
        return None if nic.network in self._standing else self._segments.get(nic.network)


def _clients(machine: Machine) -> tuple[Client, ...]:
    return tuple(
        Client(nic.network, nic.mac, str(ipaddress.IPv4Interface(nic.ip).ip))
        for nic in machine.nics
    )


def _index_of(bridge: str) -> int:
    index = _index_or_none(bridge)
    if index is None:
        raise NetworkFailed(f"the bridge {bridge} is gone", suggestion="start the agent again")
    return index


def _index_or_none(bridge: str) -> int | None:
    try:
        return socket.if_nametoindex(bridge)
    except OSError:
        return None


def load_networks(file: Path) -> HostNetworks:
    """What the manager asked for last; nothing when there is no such file."""
    try:
        return HostNetworks.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return NOTHING
    except ValueError as error:
        # The manager tells it again as soon as it is there.
        log.warning("the file of networks is damaged", file=str(file), error=str(error))
        return NOTHING
