"""Limiting NICs."""

from typing import Annotated

import typer

from nexus.cli.options import Name, Output, Timeout, session

commands = typer.Typer(help="Network interfaces of VMs.", no_args_is_help=True)


@commands.callback()
def group() -> None:
    """Network interfaces of VMs."""


@commands.command("limit")
def limit_nic(
    context: typer.Context,
    name: Name,
    iface: Annotated[str, typer.Argument(help="eth0, eth1 …")],
    rx: Annotated[str | None, typer.Option("--rx", help="Mbit/s it receives, or none.")] = None,
    tx: Annotated[str | None, typer.Option("--tx", help="Mbit/s it sends, or none.")] = None,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Limit a NIC, also of a VM that runs. What is left out stays.

    Example: nexus nic limit web eth0 --rx 100 --tx 50
    """
    from nexus.cli import devices

    given = {"rx": rx, "tx": tx}
    devices.limit_nic(session(context, output), name, iface, given, timeout)
