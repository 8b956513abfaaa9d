"""Names and tags of VMs."""

from typing import Annotated

import typer

from nexus.cli.options import Name, Output, session

commands = typer.Typer()


@commands.command()
def rename(
    context: typer.Context,
    name: Name,
    new: Annotated[str, typer.Argument(help="The name it is to have.")],
    output: Output = None,
) -> None:
    """Rename a VM. Its guest has the new host name from its next start.

    Example: nexus rename web web-old
    """
    from nexus.cli import labels

    labels.rename(session(context, output), name, new)


@commands.command()
def tag(
    context: typer.Context,
    name: Name,
    changes: Annotated[list[str], typer.Argument(help="key=value sets a tag, key- takes it away.")],
    output: Output = None,
) -> None:
    """Set and remove tags of a VM.

    Example: nexus tag web team=blue old-
    """
    from nexus.cli import labels

    labels.tag(session(context, output), name, changes)
