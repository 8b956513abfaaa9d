"""Taking memory back from guests."""

from typing import Annotated

import typer

from nexus.cli.options import Name, Output, Timeout, session

commands = typer.Typer()


@commands.command()
def balloon(
    context: typer.Context,
    name: Name,
    size: Annotated[str, typer.Argument(help="What the guest is to give back: 64M; 0 is nothing.")],
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Ask a guest to give back memory. Its VM was made with --balloon.

    Example: nexus balloon web 64M
    """
    from nexus.cli import devices

    devices.set_balloon(session(context, output), name, size, timeout)
