"""Networks as resources, port forwards, and what an agent is told of both."""

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from nexus.api.common import Timestamp, Uuid, Wire

NetworkKind = Literal["nat", "isolated", "bridged"]
"""``nat`` reaches the outside behind the host's address, ``isolated`` nothing but itself,
``bridged`` is part of the network behind one of the host's own interfaces."""

NetworkState = Literal["pending", "ready", "error"]

NetworkWait = Literal["ready"]
"""What ``?wait=`` of a network can wait for."""

NetworkName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", max_length=32)
]
"""A label of a DNS name: VMs are called ``NAME.NETWORK.nexus``."""

NetworkRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,35}$")]
"""A network's id or its name."""

MOST_NETWORKS = 1000
"""So many a host is told of, its own among them."""
MOST_FORWARDS = 4000
"""So many ports of a host lead to VMs: the longest list of both fits into one body."""

DEFAULT_NETWORK = "default"
"""The network of VMs that name none: the host's own NAT network."""


def _subnet(text: str) -> str:
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"{error}; write for example 10.77.0.0/24") from error
    if not 8 <= subnet.prefixlen <= 29:
        raise ValueError("the prefix must be from /8 to /29")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_reserved:
        raise ValueError(f"{subnet} is not for hosts; write for example 10.77.0.0/24")
    return str(subnet)


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise ValueError(f"{error}; write for example 10.77.0.5") from error


Cidr = Annotated[str, StringConstraints(pattern=r"^[0-9./]{9,18}$"), AfterValidator(_subnet)]
Address = Annotated[str, StringConstraints(pattern=r"^[0-9.]{7,15}$"), AfterValidator(_address)]
LinkName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,15}$")]
"""An interface of the host."""
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]


def _range(text: str) -> str:
    first, dash, last = text.partition("-")
    ends = (_address(first), _address(last or first))
    if ipaddress.IPv4Address(ends[0]) > ipaddress.IPv4Address(ends[1]):
        raise ValueError(f"{text}: write the lower address first")
    return f"{ends[0]}-{ends[1]}" if dash else ends[0]


AddressRange = Annotated[
    str, StringConstraints(pattern=r"^[0-9.]{7,15}(-[0-9.]{7,15})?$"), AfterValidator(_range)
]
"""One address, or the first and the last of several: ``10.0.0.10-10.0.0.20``."""
Reserved = Annotated[list[AddressRange], Field(max_length=64)]
"""Addresses that no VM gets unless it asks for one of them."""


def _opening(text: str) -> str:
    protocol, _, port = text.partition("/")
    if protocol not in ("metadata", "tcp", "udp") or bool(port) == (protocol == "metadata"):
        raise ValueError(f"{text}: write tcp/PORT, udp/PORT or metadata")
    if port and not 1 <= int(port) <= 65535:
        raise ValueError(f"{text}: a port is from 1 to 65535")
    return f"{protocol}/{int(port)}" if port else protocol


Opening = Annotated[
    str, StringConstraints(pattern=r"^[a-z]{3,8}(/[0-9]{1,5})?$"), AfterValidator(_opening)
]
"""What guests may reach of their host: ``tcp/5000``, ``udp/123``, or ``metadata``, which is what a
cloud tells it at 169.254.0.0/16."""
Openings = Annotated[list[Opening], Field(max_length=32)]


def ends_of(text: AddressRange) -> tuple[int, int]:
    """The first and the last address of a range, as numbers."""
    first, _, last = text.partition("-")
    return int(ipaddress.IPv4Address(first)), int(ipaddress.IPv4Address(last or first))


Protocol = Literal["tcp", "udp"]


class NetworkCreate(Wire):
    """A request for a network."""

    name: NetworkName
    kind: NetworkKind = "nat"
    cidr: Cidr | None = None
    """When absent, one that overlaps with no network of the host; a bridged network must name the
    subnet that it is part of."""
    gateway: Address | None = None
    """Of a bridged network: the router there. Others have the subnet's first address."""
    uplink: LinkName | None = None
    """Of a bridged network: the host's interface without an address, or a bridge it has."""
    isolate_vms: Annotated[bool, Field(strict=True)] = False
    """VMs of the network do not reach each other."""
    dns: Annotated[list[Address], Field(max_length=3)] | None = None
    """Name servers given to guests; the host's own when absent. With ``dhcp`` the network's own
    name server asks them."""
    dhcp: Annotated[bool, Field(strict=True)] = False
    """The host serves DHCP and DNS there: VMs are called ``NAME.NETWORK.nexus``."""
    reserved: Reserved = Field(default_factory=list)
    allow: Openings = Field(default_factory=list)
    """Nothing of the host is open to guests but what is named here."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind == "bridged":
            if self.dhcp:
                raise ValueError("a bridged network has the DHCP of what is behind its uplink")
            if self.uplink is None or self.cidr is None:
                raise ValueError("a bridged network needs an uplink and the cidr behind it")
        elif self.uplink is not None or self.gateway is not None:
            raise ValueError("only a bridged network has an uplink and a gateway")
        if self.gateway is not None and self.cidr is not None:
            inside = ipaddress.IPv4Address(self.gateway) in ipaddress.IPv4Network(self.cidr)
            if not inside:
                raise ValueError(f"the gateway {self.gateway} is not in {self.cidr}")
        if self.reserved and self.cidr is None:
            raise ValueError("name the cidr that the reserved addresses are of")
        return self


class NetworkChange(Wire):
    """What to change of a network. What is left out stays; so does what a null stands for, but
    for ``dns``, where null is the host's own name servers."""

    isolate_vms: Annotated[bool, Field(strict=True)] | None = None
    dns: Annotated[list[Address], Field(max_length=3)] | None = None
    dhcp: Annotated[bool, Field(strict=True)] | None = None
    reserved: Reserved | None = None
    """All of them; an empty list gives every one back."""
    allow: Openings | None = None
    """All of them; an empty list closes every one."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing is to be changed")
        return self


class NetworkError(Wire):
    """Why a host does not have a network."""

    message: str
    suggestion: str | None = None


class Network(Wire):
    """A network as users see it."""

    id: Uuid
    name: str
    project: str
    kind: NetworkKind
    state: NetworkState
    error: NetworkError | None
    cidr: str
    gateway: str | None
    uplink: str | None
    isolate_vms: bool
    dns: list[str]
    dhcp: bool = False
    reserved: list[str] = Field(default_factory=list)
    allow: list[str] = Field(default_factory=list)
    bridge: str
    """The bridge on the host."""
    vms: int
    """How many VMs are on it."""
    created_at: Timestamp


class NetworkMember(Wire):
    """A VM's NIC on a network."""

    vm_id: Uuid
    vm_name: str
    iface: str
    ip: str
    mac: str


class PortForwardCreate(Wire):
    """Connections to a port of the host go to a port of a VM."""

    host_port: Port
    guest_port: Port
    protocol: Protocol = "tcp"
    iface: Annotated[str, StringConstraints(pattern=r"^eth[0-9]$")] = "eth0"


class PortForward(Wire):
    id: Uuid
    vm_id: Uuid
    host_id: Uuid
    protocol: Protocol
    host_port: int
    guest_port: int
    iface: str
    ip: str
    """The guest's address."""
    created_at: Timestamp


class HostNetworkSpec(Wire):
    """A network as an agent ensures it."""

    id: Uuid
    name: NetworkName
    kind: NetworkKind
    home: bool = False
    """The host's own network, which its agent made by itself: only its options are told."""
    cidr: Cidr
    gateway: Address | None
    uplink: LinkName | None
    isolate_vms: bool
    dns: list[Address] | None
    """None for the host's own name servers."""
    dhcp: bool = False
    allow: Openings = Field(default_factory=list)


class HostForward(Wire):
    protocol: Protocol
    host_port: Port
    ip: Address
    guest_port: Port


class HostNetworks(Wire):
    """All that a host has beside its VMs: the whole of it, each time."""

    networks: Annotated[list[HostNetworkSpec], Field(max_length=MOST_NETWORKS)]
    forwards: Annotated[list[HostForward], Field(max_length=65535)]


class HostNetworkStatus(Wire):
    id: Uuid
    bridge: str
    error: NetworkError | None


class HostNetworksStatus(Wire):
    """One status for each network that was asked for."""

    networks: list[HostNetworkStatus]
