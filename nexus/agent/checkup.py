"""Gathering what ``doctor`` judges: one look at devices, rules, servers and the guest."""

from collections.abc import Sequence
from dataclasses import replace

import anyio
import anyio.to_thread
import structlog

from nexus.agent import arp, guest, nft, ruleset
from nexus.agent.doctor import Facts, NicFacts, findings
from nexus.agent.errors import NetworkFailed
from nexus.agent.machine import MachineLife
from nexus.agent.networks import Networks, NicView
from nexus.agent.rules import text_of
from nexus.agent.ruleset import Ruleset
from nexus.api.doctor import Diagnosis
from nexus.api.errors import NexusError
from nexus.api.guest import GuestAddress
from nexus.api.networks import HostForward, NetworkError

ARP_TIMEOUT_S = 1.0
GUEST_TIMEOUT_S = 2.0

log = structlog.get_logger("checkup")


async def examine(network: Networks, machine: MachineLife) -> Diagnosis:
    """What stands between a VM and its networks. Changes nothing; takes some seconds at most."""
    look = _Look(network, machine)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look.at_rules)
        tasks.start_soon(look.at_guest)
        for view in look.views:
            tasks.start_soon(look.at_nic, view)
    facts = look.facts()
    return Diagnosis(checks=findings(facts), forwards=[*facts.forwards])


class _Look:
    """One look; its parts are taken side by side."""

    def __init__(self, network: Networks, machine: MachineLife) -> None:
        self.views = network.views(machine.desired)
        self._network = network
        self._machine = machine
        self._state = machine.status().state
        self._nics: dict[str, NicFacts] = {}
        self._held: Ruleset | None = None
        self._differences: list[str] | None = None
        self._unreadable: NetworkError | None = None
        self._addresses: list[GuestAddress] | None = None
        self._guest_missing: str | None = None

    async def at_rules(self) -> None:
        rules = self._network.rules

        def read() -> tuple[Ruleset, list[str]]:
            held = ruleset.held(rules.table)
            wanted = ruleset.as_held(text_of(rules), rules.table)
            return held, ruleset.differences(wanted, held)

        try:
            self._held, self._differences = await anyio.to_thread.run_sync(read)
        except NetworkFailed as error:
            self._unreadable = _words(error)

    async def at_guest(self) -> None:
        if self._state != "running":
            self._guest_missing = f"the VM is {self._state}"
            return
        try:
            with anyio.fail_after(GUEST_TIMEOUT_S):
                self._addresses = (await guest.health(self._machine.paths.vsock)).addresses
        except TimeoutError:
            self._guest_missing = "its agent does not answer in time"
        except NexusError as error:
            self._guest_missing = error.message

    async def at_nic(self, view: NicView) -> None:
        self._nics[view.nic.iface] = await anyio.to_thread.run_sync(self._nic, view)

    def _nic(self, view: NicView) -> NicFacts:
        links, segment = self._network.links, view.segment
        bridge = links.find(segment.bridge) if segment else None
        uplink = view.spec.uplink if view.spec else None
        server = self._network.names.state(view.network_id) if segment and segment.dhcp else None
        facts = NicFacts(
            nic=view.nic,
            tap=view.tap,
            wanted_owner=self._machine.record.uid,
            network=view.spec.name if view.spec else None,
            error=_words(server.error) if server and server.error else view.error,
            segment=segment,
            uplink=uplink,
            bridge_link=bridge,
            bridge_addresses=links.addresses(bridge.index) if bridge else (),
            tap_link=links.find(view.tap),
            uplink_link=links.find(uplink) if uplink else None,
            server_pid=server.pid if server else None,
            leased=self._network.names.knows(view.network_id, self._machine.id),
        )
        if self._state != "running" or bridge is None:
            return facts
        return _asked(facts, bridge.name)

    def facts(self) -> Facts:
        """All that was seen, once every part was looked at."""
        own = {nic.ip for nic in self._nics.values()}
        forwards = [each for each in self._network.forwards if each.ip in own]
        return Facts(
            name=self._machine.desired.name,
            state=self._state,
            nics=[self._admission(self._nics[view.nic.iface]) for view in self.views],
            forwarding=nft.forwarding(),
            differences=self._differences,
            unreadable=self._unreadable,
            guest=self._addresses,
            guest_missing=self._guest_missing,
            forwards=forwards,
            held_forwards=_held(forwards, self._held) if self._held else None,
        )

    def _admission(self, nic: NicFacts) -> NicFacts:
        if self._held is None:
            return nic
        known = self._held.holds("bridge set addresses", nic.tap, nic.nic.mac, nic.ip)
        return replace(nic, admitted=known)


def _words(error: NetworkFailed) -> NetworkError:
    return NetworkError(message=error.message, suggestion=error.suggestion)


def _asked(facts: NicFacts, bridge: str) -> NicFacts:
    try:
        answered = arp.ask(bridge, facts.ip, ARP_TIMEOUT_S)
    except OSError as error:
        log.warning("nobody could be asked", bridge=bridge, error=str(error))
        return facts
    return replace(facts, answered=answered, asked=True)


def _held(forwards: Sequence[HostForward], held: Ruleset) -> frozenset[HostForward]:
    return frozenset(
        each
        for each in forwards
        if held.leads(
            "inet map forwards", (each.protocol, each.host_port), (each.ip, each.guest_port)
        )
    )
