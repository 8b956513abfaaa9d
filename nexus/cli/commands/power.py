"""Starting, halting, stopping and rebooting VMs."""

from typing import Annotated

import typer

from nexus.cli.options import Name, Output, Restart, SomeNames, Tags, Timeout, session

commands = typer.Typer()

Force = Annotated[bool, typer.Option("--force", help="Kill at once.")]
Grace = Annotated[
    float, typer.Option("--timeout", help="Seconds the guest has to power off.", min=0, max=600)
]


@commands.command()
def start(
    context: typer.Context,
    names: SomeNames = None,
    tag: Tags = None,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Start VMs and wait until they run.

    Example: nexus start web
    """
    from nexus.cli import actions

    actions.act(session(context, output), "start", names or [], tag or [], timeout_s=timeout)


@commands.command()
def stop(
    context: typer.Context,
    names: SomeNames = None,
    tag: Tags = None,
    force: Force = False,
    timeout: Grace = 10.0,
    output: Output = None,
) -> None:
    """Stop VMs: ask the guest first, force it after the time-out.

    Example: nexus stop web --timeout 30; nexus stop --tag team=blue
    """
    from nexus.cli import actions

    actions.act(
        session(context, output), "stop", names or [], tag or [], force=force, grace_s=timeout
    )


@commands.command()
def reboot(
    context: typer.Context,
    names: SomeNames = None,
    tag: Tags = None,
    force: Force = False,
    timeout: Grace = 10.0,
    output: Output = None,
) -> None:
    """Stop VMs, ask the guest first, and boot them again.

    Example: nexus reboot web
    """
    from nexus.cli import actions

    actions.act(
        session(context, output), "reboot", names or [], tag or [], force=force, grace_s=timeout
    )


commands.command("restart", help="The same as reboot. Example: nexus restart web")(reboot)


@commands.command()
def pause(
    context: typer.Context,
    names: SomeNames = None,
    tag: Tags = None,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Pause VMs; their memory stays.

    Example: nexus pause web
    """
    from nexus.cli import actions

    actions.act(session(context, output), "pause", names or [], tag or [], timeout_s=timeout)


@commands.command()
def resume(
    context: typer.Context,
    names: SomeNames = None,
    tag: Tags = None,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Let paused VMs go on.

    Example: nexus resume web
    """
    from nexus.cli import actions

    actions.act(session(context, output), "resume", names or [], tag or [], timeout_s=timeout)


@commands.command("set")
def set_terms(
    context: typer.Context,
    name: Name,
    restart: Restart = None,
    ttl: Annotated[str | None, typer.Option("--ttl", help="From now: 2h, 1h30m; or never.")] = None,
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", help="A time with its zone; or never.")
    ] = None,
    output: Output = None,
) -> None:
    """Set what follows a VM's end, and when its time is up.

    Example: nexus set web --restart always --ttl 2h
    """
    from nexus.cli import terms

    terms.change(session(context, output), name, restart, ttl, expires_at)
