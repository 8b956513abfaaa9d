"""Limiting and growing drives."""

from typing import Annotated

import typer

from nexus.cli.options import Name, Output, Timeout, session

commands = typer.Typer(help="Drives of VMs.", no_args_is_help=True)

Drive = Annotated[str, typer.Argument(help="The drive's name; rootfs is the root disk.")]


@commands.command("limit")
def limit_drive(
    context: typer.Context,
    name: Name,
    drive: Drive,
    bandwidth: Annotated[str | None, typer.Option("--bw", help="MiB/s, or none.")] = None,
    bandwidth_burst: Annotated[
        str | None, typer.Option("--bw-burst", help="MiB that may pass at once, or none.")
    ] = None,
    iops: Annotated[str | None, typer.Option("--iops", help="Per second, or none.")] = None,
    iops_burst: Annotated[
        str | None, typer.Option("--iops-burst", help="Operations that may pass at once, or none.")
    ] = None,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Limit a drive, also of a VM that runs. What is left out stays.

    Example: nexus drive limit web rootfs --bw 50 --iops none
    """
    from nexus.cli import devices

    given = {
        "bw": bandwidth,
        "bw-burst": bandwidth_burst,
        "iops": iops,
        "iops-burst": iops_burst,
    }
    devices.limit_drive(session(context, output), name, drive, given, timeout)


@commands.command("grow")
def grow_drive(
    context: typer.Context,
    name: Name,
    drive: Drive,
    size: Annotated[str, typer.Argument(help="The new size: 20G, 512M.")],
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Make a drive larger, also of a VM that runs.

    Example: nexus drive grow web data 20G
    """
    from nexus.cli import devices

    devices.grow_drive(session(context, output), name, drive, size, timeout)
