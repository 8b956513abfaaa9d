"""Starting, halting and stopping VMs."""

from typing import Annotated

import typer

from nexus.cli.options import Names, Output, Timeout, session

commands = typer.Typer()


@commands.command()
def start(
    context: typer.Context, names: Names, timeout: Timeout = 60.0, output: Output = None
) -> None:
    """Start VMs and wait until they run.

    Example: nexus start web
    """
    from nexus.cli import actions

    actions.act(session(context, output), "start", names, timeout)


@commands.command()
def stop(
    context: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Kill at once.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds the guest has to power off.", min=0, max=600)
    ] = 10.0,
    output: Output = None,
) -> None:
    """Stop VMs: ask the guest first, force it after the time-out.

    Example: nexus stop web --timeout 30
    """
    from nexus.cli import actions

    actions.stop(session(context, output), names, force=force, grace_s=timeout)


@commands.command()
def pause(
    context: typer.Context, names: Names, timeout: Timeout = 60.0, output: Output = None
) -> None:
    """Pause VMs; their memory stays.

    Example: nexus pause web
    """
    from nexus.cli import actions

    actions.act(session(context, output), "pause", names, timeout)


@commands.command()
def resume(
    context: typer.Context, names: Names, timeout: Timeout = 60.0, output: Output = None
) -> None:
    """Let paused VMs go on.

    Example: nexus resume web
    """
    from nexus.cli import actions

    actions.act(session(context, output), "resume", names, timeout)
