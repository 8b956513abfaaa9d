"""What the DHCP and name server of one network is told: a pure function of network and VMs."""

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOMAIN = "nexus"
"""VMs are called ``NAME.NETWORK.nexus``."""
LEASE_TIME = "1h"
"""How soon a client hears of changed options. Its address stays the same anyway."""


@dataclass(frozen=True)
class Service:
    """One network that is served, on one bridge."""

    network_id: str
    name: str
    bridge: str
    subnet: ipaddress.IPv4Network
    leads_out: bool
    """Whether the host is the clients' gateway."""
    home: bool = False
    """The host's own network, which NICs that name none are on."""
    index: int = 0
    """The bridge's: one that was made anew under the same name has another."""
    asks: tuple[str, ...] | None = None
    """Where other names are asked for; None is where the host asks."""

    @property
    def address(self) -> ipaddress.IPv4Address:
        """The server's own."""
        return self.subnet.network_address + 1

    @property
    def domain(self) -> str:
        return f"{self.name}.{DOMAIN}"


@dataclass(frozen=True)
class ServicePaths:
    """The files of one network's server."""

    dir: Path

    @property
    def leases(self) -> Path:
        """A file for each VM: which address belongs to which MAC."""
        return self.dir / "leases"

    @property
    def names(self) -> Path:
        """A file for each VM: what its addresses are called."""
        return self.dir / "names"

    @property
    def run(self) -> Path:
        """The only folder that the server may write to."""
        return self.dir / "run"

    @property
    def pid(self) -> Path:
        """Written by the server once its sockets are open."""
        return self.run / "pid"

    @property
    def complaints(self) -> Path:
        """What it said when it could not start."""
        return self.dir / "stderr"

    def config(self, text: str) -> Path:
        """Named by its content: a process shows by its arguments what it was told."""
        return self.dir / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.conf"


def config_of(service: Service, paths: ServicePaths) -> str:
    """The server's configuration. VMs are not in it: they come and go in files of their own."""
    subnet = service.subnet
    return "\n".join(
        [
            f"# the interface with the index {service.index}",
            f"interface={service.bridge}",
            "except-interface=lo",
            f"listen-address={service.address}",
            "bind-interfaces",
            f"pid-file={paths.pid}",
            "no-hosts",
            f"hostsdir={paths.names}",
            f"dhcp-hostsdir={paths.leases}",
            # Only who is named there gets an address, and always the same: no file of leases.
            f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE_TIME}",
            "dhcp-ignore=tag:!known",
            f"dhcp-lease-max={subnet.num_addresses}",
            "leasefile-ro",
            "dhcp-authoritative",
            "no-ping",
            # A guest is known by its MAC, which the rules check, and by nothing that it says.
            "dhcp-ignore-clid",
            "dhcp-ignore-names",
            f"domain={service.domain}",
            f"local=/{DOMAIN}/",
            "domain-needed",
            "bogus-priv",
            "quiet-dhcp",
            f"dhcp-option=option:router,{service.address}"
            if service.leads_out
            else "dhcp-option=option:router",
            f"dhcp-option=option:dns-server,{service.address}",
            f"dhcp-option=option:domain-search,{service.domain}",
            *_upstream(service),
            "",
        ]
    )


def _upstream(service: Service) -> list[str]:
    if service.asks is not None:
        return ["no-resolv", *(f"server={address}" for address in service.asks)]
    # Names are a way out, too.
    return [] if service.leads_out else ["no-resolv"]


@dataclass(frozen=True)
class Client:
    """A VM's NIC, as far as a server has to know it."""

    network_id: str | None
    """None is the host's own network."""
    mac: str
    ip: str


@dataclass(frozen=True)
class Entry:
    """What the server's files say of one VM."""

    leases: str
    names: str


@dataclass
class Book:
    """All VMs of a host by name. Those of several projects may share one on the host's own network;
    there it belongs to the oldest."""

    _clients: dict[str, tuple[str, Sequence[Client]]] = field(default_factory=dict)
    _called: dict[str, set[str]] = field(default_factory=dict)

    def put(self, vm_id: str, name: str, clients: Sequence[Client]) -> set[str]:
        """Notes a VM; returns those whose entries may be others now."""
        if self._clients.get(vm_id) == (name, clients):
            return set()
        affected = self.drop(vm_id)
        self._clients[vm_id] = (name, clients)
        self._called.setdefault(name, set()).add(vm_id)
        return affected | self._called[name]

    def drop(self, vm_id: str) -> set[str]:
        """Forgets a VM; returns those whose entries may be others now."""
        name, _ = self._clients.pop(vm_id, ("", ()))
        called = self._called.get(name, set())
        affected = set(called)
        called.discard(vm_id)
        if not called:
            self._called.pop(name, None)
        return affected

    def __contains__(self, vm_id: str) -> bool:
        return vm_id in self._clients

    def vms(self) -> list[str]:
        return [*self._clients]

    def entry(self, service: Service, vm_id: str) -> Entry | None:
        """What a network's server is told of a VM; None when it is not on the network."""
        clients = self._on(service, vm_id)
        if not clients:
            return None
        name, _ = self._clients[vm_id]
        owner = min(other for other in self._called[name] if self._on(service, other))
        leases = [f"{client.mac},{client.ip}" for client in clients]
        if owner != vm_id:
            return Entry("".join(f"{line}\n" for line in leases), "")
        leases[0] += f",{name}"
        names = [f"{client.ip} {name}.{service.domain} {name}" for client in clients]
        return Entry("".join(f"{line}\n" for line in leases), "".join(f"{n}\n" for n in names))

    def _on(self, service: Service, vm_id: str) -> list[Client]:
        _, clients = self._clients.get(vm_id, ("", ()))
        return [
            client
            for client in clients
            if client.network_id == service.network_id
            or (client.network_id is None and service.home)
        ]
