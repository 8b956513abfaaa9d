"""``nexus host …``"""

import typer

from nexus.cli.options import Output, session

commands = typer.Typer(help="Machines with an agent.", no_args_is_help=True)


@commands.command("ls")
def list_hosts(context: typer.Context, output: Output = None) -> None:
    """List hosts.

    Example: nexus host ls
    """
    from nexus.cli import registry

    registry.hosts(session(context, output))
