"""Hosts: machines with an agent."""

from typing import Literal

from nexus.api.common import Engine, Timestamp, Uuid, Wire
from nexus.api.usage import HostUse

HostState = Literal["healthy", "unreachable"]


class HostNetwork(Wire):
    """The NAT network of a host."""

    bridge: str
    cidr: str
    """``10.77.0.0/20``"""
    gateway: str
    dns: list[str]


class Capacity(Wire):
    vcpus: int
    mem_mib: int
    mem_available_mib: int
    disk_mib: int
    disk_available_mib: int
    vms: int


class Inventory(Wire):
    """What an agent says of its machine."""

    host_id: Uuid
    hostname: str
    engine: Engine
    """The engine used for new VMs."""
    engine_reason: str
    engine_version: str
    network: HostNetwork
    networks_in_use: list[str]
    """Every network that the host has an address in or a route to, but the default route."""
    run_dir: str
    agent_version: str


class Host(Wire):
    id: Uuid
    name: str
    state: HostState
    engine: Engine
    engine_reason: str
    engine_version: str
    network: HostNetwork
    capacity: Capacity
    run_dir: str
    agent_version: str
    last_seen_at: Timestamp
    created_at: Timestamp
    use: HostUse | None = None
    """What things take on it; null in lists."""
