"""What the commands on networks and forwards do."""

import re
from collections.abc import Sequence
from typing import Any

from nexus.api.networks import (
    Network,
    NetworkChange,
    NetworkCreate,
    PortForward,
    PortForwardCreate,
    Protocol,
)
from nexus.cli.actions import each
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import ago, as_json, fields, print_json, table
from nexus.cli.session import Session
from nexus.client import NexusApiError, NotFoundError

HEADINGS = ("NAME", "KIND", "STATE", "CIDR", "BRIDGE", "VMS", "AGE", "ID")


def _row(network: Network) -> tuple[str, ...]:
    return (
        network.name,
        network.kind,
        network.state,
        network.cidr,
        network.bridge,
        str(network.vms),
        ago(network.created_at),
        network.id,
    )


def ls(session: Session) -> None:
    with session.client() as client:
        found = list(client.networks.list())
    if session.output == "json":
        print_json({"items": [as_json(network) for network in found], "next_cursor": None})
    elif session.output == "name":
        for network in found:
            print(network.name)
    else:
        table(HEADINGS, [_row(network) for network in found])


def create(session: Session, given: dict[str, Any]) -> None:
    known = {name: value for name, value in given.items() if value is not None}
    try:
        spec = NetworkCreate.model_validate(known)
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        network = client.networks.create(spec)
    _tell(session, network)


def change(session: Session, name: str, given: dict[str, Any]) -> None:
    known = {key: value for key, value in given.items() if value is not None}
    try:
        wish = NetworkChange.model_validate(known)
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        network = client.networks.change(name, wish)
    _tell(session, network)


def listed(given: Sequence[str] | None) -> list[str] | None:
    """What an option was given again and again; ``none`` is an empty list."""
    return [] if given and list(given) == ["none"] else list(given) if given else None


def _tell(session: Session, network: Network) -> None:
    if session.output == "json":
        print_json({"id": network.id, "item": as_json(network)})
    elif session.output == "name":
        print(network.name)
    else:
        table(HEADINGS, [_row(network)])
    if network.error is not None:
        raise NexusApiError(
            409,
            "invalid_state",
            f"the host cannot have the network {network.name}: {network.error.message}",
            suggestion=network.error.suggestion,
        )


def show(session: Session, name: str) -> None:
    with session.client() as client:
        network = client.networks.get(name)
        members = client.networks.members(name)
    if session.output == "json":
        print_json({"item": as_json(network), "vms": [as_json(member) for member in members]})
        return
    if session.output == "name":
        print(network.name)
        return
    fields(
        [
            ("name", network.name),
            ("id", network.id),
            ("kind", network.kind),
            ("state", network.state),
            ("because", network.error.message if network.error else None),
            ("try", network.error.suggestion if network.error else None),
            ("cidr", network.cidr),
            ("gateway", network.gateway),
            ("uplink", network.uplink),
            ("bridge", network.bridge),
            ("VMs apart", "yes" if network.isolate_vms else "no"),
            ("dns", ", ".join(network.dns)),
            ("dhcp", "yes" if network.dhcp else "no"),
            ("reserved", ", ".join(network.reserved)),
            ("guests may reach", ", ".join(network.allow)),
            ("created", network.created_at.isoformat(timespec="seconds")),
        ]
    )
    if members:
        print()
        table(
            ("VM", "NIC", "ADDRESS", "MAC", "ID"),
            [(m.vm_name, m.iface, m.ip, m.mac, m.vm_id) for m in members],
        )


def remove(session: Session, names: list[str]) -> None:
    each(session, names, lambda client, name: client.networks.delete(name))


def forward(session: Session, name: str, ports: list[str]) -> None:
    wishes = [_forward(text) for text in ports]
    with session.client() as client:
        made = [client.forwards.create(name, wish) for wish in wishes]
    _show_forwards(session, made)


def _forward(text: str) -> PortForwardCreate:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})(?:/(tcp|udp))?", text)
    if match is None:
        raise UsageFault(f"{text!r}: write HOST_PORT:GUEST_PORT, for example 8080:80 or 53:53/udp")
    protocol: Protocol = "udp" if match[3] == "udp" else "tcp"
    try:
        return PortForwardCreate(
            host_port=int(match[1]), guest_port=int(match[2]), protocol=protocol
        )
    except ValueError as error:
        raise UsageFault(problems(error)) from error


def list_forwards(session: Session, name: str) -> None:
    with session.client() as client:
        found = client.forwards.list(name)
    _show_forwards(session, found)


def _show_forwards(session: Session, found: Sequence[PortForward]) -> None:
    if session.output == "json":
        print_json({"items": [as_json(each) for each in found], "next_cursor": None})
        return
    if session.output == "name":
        for one in found:
            print(f"{one.host_port}/{one.protocol}")
        return
    rows = [
        (f"{one.host_port}/{one.protocol}", f"{one.ip}:{one.guest_port}", one.iface, one.id)
        for one in found
    ]
    table(("HOST PORT", "LEADS TO", "NIC", "ID"), rows)


def remove_forwards(session: Session, name: str, ports: list[str]) -> None:
    wanted: list[tuple[int, Protocol]] = []
    for text in ports:
        match = re.fullmatch(r"(\d{1,5})(?:/(tcp|udp))?", text)
        if match is None:
            raise UsageFault(f"{text!r}: write HOST_PORT, for example 8080 or 53/udp")
        wanted.append((int(match[1]), "udp" if match[2] == "udp" else "tcp"))
    with session.client() as client:
        known = {(one.host_port, one.protocol): one.id for one in client.forwards.list(name)}
        for port, protocol in wanted:
            if (port, protocol) not in known:
                raise NotFoundError(
                    404,
                    "not_found",
                    f"no {protocol} port {port} leads to {name}",
                    suggestion=f"nexus forward ls {name}",
                )
        for key in wanted:
            client.forwards.delete(name, known[key])
            if session.output != "json":
                print(f"{key[0]}/{key[1]}")
    if session.output == "json":
        print_json({"items": [{"port": port, "protocol": what} for port, what in wanted]})
