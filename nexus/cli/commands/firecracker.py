"""The VMM's own API."""

from typing import Annotated, Literal

import typer

from nexus.cli.options import Name, session

commands = typer.Typer()


@commands.command()
def firecracker(
    context: typer.Context,
    name: Name,
    method: Annotated[Literal["GET", "PUT", "PATCH"], typer.Argument(case_sensitive=False)],
    path: Annotated[str, typer.Argument(help="An endpoint of Firecracker's API.")],
    body: Annotated[str | None, typer.Argument(help="JSON.")] = None,
) -> None:
    """Speak to a VM's own API; prints the JSON it answers.

    Example: nexus firecracker web GET /vm/config
    """
    from nexus.cli.firecracker import ask

    ask(session(context), name, method, path, body)
