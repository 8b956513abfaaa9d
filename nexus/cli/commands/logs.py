"""What a VM says: its logs and its console."""

from typing import Annotated

import typer

from nexus.cli.options import Name, Output, Source, session

commands = typer.Typer()


@commands.command()
def logs(
    context: typer.Context,
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    source: Source = "console",
    tail: Annotated[int, typer.Option("--tail", min=1, max=10000)] = 100,
    output: Output = None,
) -> None:
    """Print a VM's console or VMM log.

    Example: nexus logs -f web
    """
    from nexus.cli.logs import logs as print_logs

    print_logs(session(context, output), name, source, follow=follow, tail=tail)


@commands.command()
def console(context: typer.Context, name: Name) -> None:
    """Attach to a VM's serial console. Ctrl-] leaves.

    Example: nexus console web
    """
    from nexus.cli import terminal

    terminal.attach(session(context), name)
