"""``nexus network …`` and ``nexus forward …``"""

from typing import Annotated, Literal

import typer

from nexus.cli.options import Name, Output, session

commands = typer.Typer(help="Networks of VMs.", no_args_is_help=True)
forwards = typer.Typer(help="Ports of hosts that lead to VMs.", no_args_is_help=True)

Network = Annotated[str, typer.Argument(help="A network's name or id.")]
Dns = Annotated[
    list[str] | None, typer.Option("--dns", help="A name server for guests; repeatable.")
]
Reserve = Annotated[
    list[str] | None,
    typer.Option(
        "--reserve", help="Addresses for those who ask for them: A or A-B; repeatable, or none."
    ),
]

Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        help="What guests reach of the host: tcp/PORT, udp/PORT, metadata; repeatable, or none.",
    ),
]


@commands.command("ls")
def list_networks(context: typer.Context, output: Output = None) -> None:
    """List networks.

    Example: nexus network ls
    """
    from nexus.cli import networks

    networks.ls(session(context, output))


@commands.command("create")
def create_network(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The network's name.")],
    kind: Annotated[
        Literal["nat", "isolated", "bridged"],
        typer.Option("--kind", help="What it reaches: the outside, itself, or the uplink's."),
    ] = "nat",
    cidr: Annotated[
        str | None, typer.Option("--cidr", help="Its subnet; a free one when left away.")
    ] = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", help="Of a bridged network: the router there.")
    ] = None,
    uplink: Annotated[
        str | None, typer.Option("--uplink", help="Of a bridged network: the host's interface.")
    ] = None,
    isolate_vms: Annotated[
        bool, typer.Option("--isolate-vms", help="Its VMs do not reach each other.")
    ] = False,
    dns: Dns = None,
    dhcp: Annotated[
        bool, typer.Option("--dhcp", help="Serve DHCP, and DNS names NAME.NETWORK.nexus.")
    ] = False,
    reserve: Reserve = None,
    allow: Allow = None,
    output: Output = None,
) -> None:
    """Create a network and wait until the host has it.

    Example: nexus network create lab --kind isolated --cidr 192.168.50.0/24
    """
    from nexus.cli import networks

    networks.create(
        session(context, output),
        {
            "name": name,
            "kind": kind,
            "cidr": cidr,
            "gateway": gateway,
            "uplink": uplink,
            "isolate_vms": isolate_vms,
            "dns": dns,
            "dhcp": dhcp or None,
            "reserved": networks.listed(reserve),
            "allow": networks.listed(allow),
        },
    )


@commands.command("show")
def show_network(context: typer.Context, name: Network, output: Output = None) -> None:
    """Show a network, and which VMs are on it.

    Example: nexus network show default
    """
    from nexus.cli import networks

    networks.show(session(context, output), name)


@commands.command("set")
def set_network(
    context: typer.Context,
    name: Network,
    isolate_vms: Annotated[
        bool | None, typer.Option("--isolate-vms/--no-isolate-vms", help="Keep its VMs apart.")
    ] = None,
    dns: Dns = None,
    dhcp: Annotated[
        bool | None, typer.Option("--dhcp/--no-dhcp", help="Serve DHCP and DNS there.")
    ] = None,
    reserve: Reserve = None,
    allow: Allow = None,
    output: Output = None,
) -> None:
    """Change options of a network; its VMs go on meanwhile.

    Example: nexus network set lab --isolate-vms
    """
    from nexus.cli import networks

    change = {
        "isolate_vms": isolate_vms,
        "dns": dns,
        "dhcp": dhcp,
        "reserved": networks.listed(reserve),
        "allow": networks.listed(allow),
    }
    networks.change(session(context, output), name, change)


@commands.command("doctor")
def network_doctor(context: typer.Context, name: Name, output: Output = None) -> None:
    """Tell what stands between a VM and its networks, and what to do about it.

    Example: nexus network doctor web
    """
    from nexus.cli import doctor

    raise typer.Exit(doctor.doctor(session(context, output), name))


@commands.command("rm")
def remove_networks(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names or ids.")],
    output: Output = None,
) -> None:
    """Remove networks that no VM is on.

    Example: nexus network rm lab
    """
    from nexus.cli import networks

    networks.remove(session(context, output), names)


@forwards.command("add")
def add_forward(
    context: typer.Context,
    name: Name,
    ports: Annotated[
        list[str], typer.Argument(help="HOST_PORT:GUEST_PORT, with /udp behind it for UDP.")
    ],
    output: Output = None,
) -> None:
    """Have ports of the VM's host lead to the VM.

    Example: nexus forward add web 8080:80 5353:53/udp
    """
    from nexus.cli import networks

    networks.forward(session(context, output), name, ports)


@forwards.command("ls")
def list_forwards(context: typer.Context, name: Name, output: Output = None) -> None:
    """List the ports that lead to a VM.

    Example: nexus forward ls web
    """
    from nexus.cli import networks

    networks.list_forwards(session(context, output), name)


@forwards.command("rm")
def remove_forwards(
    context: typer.Context,
    name: Name,
    ports: Annotated[list[str], typer.Argument(help="HOST_PORT, with /udp behind it for UDP.")],
    output: Output = None,
) -> None:
    """Give ports of the host back.

    Example: nexus forward rm web 8080
    """
    from nexus.cli import networks

    networks.remove_forwards(session(context, output), name, ports)
