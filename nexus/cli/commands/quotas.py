"""``nexus quota …`` and ``nexus usage``"""

from typing import Annotated

import typer

from nexus.cli.options import Output, session

commands = typer.Typer(help="How much a project may have.", no_args_is_help=True)
Project = Annotated[str, typer.Argument(help="A project's name.")]
_NONE = "none lifts the limit."


usage_commands = typer.Typer()


@usage_commands.command("usage")
def show_usage(context: typer.Context, output: Output = None) -> None:
    """Show what projects and hosts use: what is taken, of what was promised.

    Example: nexus usage
    """
    from nexus.cli import usage

    usage.show(session(context, output))


@commands.command("show")
def show_quota(context: typer.Context, project: Project = "default", output: Output = None) -> None:
    """Show what a project may have, and what it has.

    Example: nexus quota show
    """
    from nexus.cli import quotas

    quotas.show(session(context, output), project)


@commands.command("set")
def set_quota(
    context: typer.Context,
    project: Project = "default",
    vms: Annotated[str | None, typer.Option("--vms", help=f"How many VMs; {_NONE}")] = None,
    vcpu: Annotated[str | None, typer.Option("--vcpu", help=f"How many vCPUs; {_NONE}")] = None,
    mem: Annotated[str | None, typer.Option("--mem", help=f"Memory: 16G; {_NONE}")] = None,
    disk: Annotated[str | None, typer.Option("--disk", help=f"Disks: 1T; {_NONE}")] = None,
    output: Output = None,
) -> None:
    """Limit what a project may have. What is left out stays as it is.

    Example: nexus quota set default --vms 50 --mem 64G --disk none
    """
    from nexus.cli import quotas

    given = {"vms": vms, "vcpu": vcpu, "mem_mib": mem, "disk_mib": disk}
    asked = {name: text for name, text in given.items() if text is not None}
    quotas.change(session(context, output), project, asked)
