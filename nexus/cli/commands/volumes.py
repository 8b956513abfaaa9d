"""``nexus volume …``"""

from typing import Annotated

import typer

from nexus.cli.options import Output, session

commands = typer.Typer(help="Disks that outlive their VMs.", no_args_is_help=True)


@commands.command("ls")
def list_volumes(context: typer.Context, output: Output = None) -> None:
    """List volumes, and which VMs have them.

    Example: nexus volume ls
    """
    from nexus.cli import volumes

    volumes.ls(session(context, output))


@commands.command("create")
def create_volume(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The volume's name.")],
    size: Annotated[str, typer.Option("--size", help="512M, 10G.")],
    output: Output = None,
) -> None:
    """Create an empty volume. A VM gets it when it is made.

    Example: nexus volume create data --size 10G && nexus run --drive data,volume=data
    """
    from nexus.cli import volumes

    volumes.create(session(context, output), name, size)


@commands.command("show")
def show_volume(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A volume's name or id.")],
    output: Output = None,
) -> None:
    """Show a volume.

    Example: nexus volume show data
    """
    from nexus.cli import volumes

    volumes.show(session(context, output), name)


@commands.command("rm")
def remove_volumes(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names or ids.")],
    output: Output = None,
) -> None:
    """Delete volumes that no VM has, with what is on them.

    Example: nexus volume rm data
    """
    from nexus.cli import volumes

    volumes.remove(session(context, output), names)
