"""``nexus rollout …``"""

from typing import Annotated

import typer

from nexus.cli.complete import template_names
from nexus.cli.options import Output, session

commands = typer.Typer(help="Templates on their way over their VMs.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="A rollout's id.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until it ends or halts.")]


@commands.command("ls")
def list_rollouts(
    context: typer.Context,
    template: Annotated[
        str | None,
        typer.Option("--template", help="Only of this one.", autocompletion=template_names),
    ] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only in this state.")] = None,
    output: Output = None,
) -> None:
    """List rollouts.

    Example: nexus rollout ls --state halted
    """
    from nexus.cli import rollouts

    rollouts.ls(session(context, output), template, state)


@commands.command("show")
def show_rollout(context: typer.Context, rollout: Id, output: Output = None) -> None:
    """Show a rollout, and what became of each VM.

    Example: nexus rollout show 0193c5e4-0000-7000-8000-000000000000
    """
    from nexus.cli import rollouts

    rollouts.show(session(context, output), rollout)


@commands.command("halt")
def halt(context: typer.Context, rollout: Id, wait: Wait = True, output: Output = None) -> None:
    """Begin no further batch until it is resumed.

    Example: nexus rollout halt 0193c5e4-0000-7000-8000-000000000000
    """
    from nexus.cli import rollouts

    rollouts.act(session(context, output), rollout, "halt", wait=wait)


@commands.command("resume")
def resume(context: typer.Context, rollout: Id, wait: Wait = True, output: Output = None) -> None:
    """Go on with a rollout that halted; VMs that failed are tried again.

    Example: nexus rollout resume 0193c5e4-0000-7000-8000-000000000000
    """
    from nexus.cli import rollouts

    rollouts.act(session(context, output), rollout, "resume", wait=wait)


@commands.command("cancel")
def cancel(context: typer.Context, rollout: Id, wait: Wait = True, output: Output = None) -> None:
    """End a rollout where it is.

    Example: nexus rollout cancel 0193c5e4-0000-7000-8000-000000000000
    """
    from nexus.cli import rollouts

    rollouts.act(session(context, output), rollout, "cancel", wait=wait)


@commands.command("rollback")
def rollback(context: typer.Context, rollout: Id, wait: Wait = True, output: Output = None) -> None:
    """Bring every VM that it changed back to what it was.

    Example: nexus rollout rollback 0193c5e4-0000-7000-8000-000000000000
    """
    from nexus.cli import rollouts

    rollouts.act(session(context, output), rollout, "rollback", wait=wait)
