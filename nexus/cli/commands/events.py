"""What happened."""

import typer

from nexus.cli.options import Name, Output, session

commands = typer.Typer()


@commands.command()
def events(context: typer.Context, name: Name, output: Output = None) -> None:
    """List what happened to a VM.

    Example: nexus events web
    """
    from nexus.cli.events import events as print_events

    print_events(session(context, output), name)
