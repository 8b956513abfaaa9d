"""What happened."""

from typing import Annotated

import typer

from nexus.cli.complete import vm_names
from nexus.cli.options import Output, session

commands = typer.Typer()


@commands.command()
def events(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A VM's name or id; all VMs when absent.", autocompletion=vm_names),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as they happen.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="10m, 2h, 3d ago, or a time as in RFC 3339.")
    ] = None,
    after: Annotated[
        int | None, typer.Option("--after", min=0, help="Behind the event with this id.")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Into this state; repeatable.")
    ] = None,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", help="For this reason; repeatable.")
    ] = None,
    output: Output = None,
) -> None:
    """Tell what happened to VMs: of one VM everything, of all VMs the last 24 hours.

    With -f it goes on, through restarts of the manager, until Ctrl-C; json is then one event a
    line, yaml one document an event.

    Examples: nexus events web; nexus events -f -o json; nexus events --since 2h --state error
    """
    from nexus.cli.events import EventOptions
    from nexus.cli.events import events as tell

    options = EventOptions(name, follow, since, after, state or [], reason or [])
    tell(session(context, output), options)
