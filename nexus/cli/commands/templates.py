"""``nexus template …``"""

from typing import Annotated, Literal

import typer

from nexus.cli.complete import template_names
from nexus.cli.furnish import Given, furnished
from nexus.cli.options import Output, Timeout, session

commands = typer.Typer(help="Descriptions of VMs, in versions.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="A template's name or id.", autocompletion=template_names)
]
File = Annotated[
    str | None, typer.Option("-f", "--file", help="YAML or JSON with fields of a spec; - is stdin.")
]
Preboot = Annotated[
    bool | None,
    typer.Option("--preboot/--no-preboot", help="Boot one VM a host; later ones are its clones."),
]
Pool = Annotated[
    int | None,
    typer.Option("--pool", min=0, max=100, help="With --preboot: so many wait, paused, a host."),
]
Note = Annotated[str, typer.Option("--note", help="Why, in one line.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="The newest if left away.")]


@commands.command("ls")
def list_templates(
    context: typer.Context,
    name: Annotated[str | None, typer.Option("--name", help="Only names that begin so.")] = None,
    output: Output = None,
) -> None:
    """List templates.

    Example: nexus template ls
    """
    from nexus.cli import templates

    templates.ls(session(context, output), name)


@commands.command("create")
@furnished
def create_template(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The template's name.")],
    file: File = None,
    from_vm: Annotated[str | None, typer.Option("--from", help="As this VM is now.")] = None,
    preboot: Preboot = None,
    pool: Pool = None,
    note: Note = "",
    output: Output = None,
    *,
    given: Given,
) -> None:
    """Create a template from options, a file, or a VM; options come before the others.

    Example: nexus template create worker --rootfs busybox --mem 128M --tag team=blue --ttl 2h

    Example: nexus template create like-web --from web
    """
    from nexus.cli import templates

    clones = {"preboot": preboot, "pool": pool}
    templates.create(session(context, output), name, given, file, from_vm, note, clones)


@commands.command("show")
def show_template(
    context: typer.Context, name: Name, version: Version = None, output: Output = None
) -> None:
    """Show a template, or one of its versions.

    Example: nexus template show worker --version 1
    """
    from nexus.cli import templates

    templates.show(session(context, output), name, version)


@commands.command("versions")
def list_versions(context: typer.Context, name: Name, output: Output = None) -> None:
    """List the versions of a template.

    Example: nexus template versions worker
    """
    from nexus.cli import templates

    templates.versions(session(context, output), name)


@commands.command("update")
@furnished
def update_template(
    context: typer.Context,
    name: Name,
    file: File = None,
    preboot: Preboot = None,
    pool: Pool = None,
    note: Note = "",
    output: Output = None,
    *,
    given: Given,
) -> None:
    """Make a new version: what is given is so from then on, the rest stays.

    Example: nexus template update worker --mem 256M --note "more room"
    """
    from nexus.cli import templates

    clones = {"preboot": preboot, "pool": pool}
    templates.update(session(context, output), name, given, file, note, clones)


@commands.command("edit")
def edit_template(
    context: typer.Context, name: Name, note: Note = "", output: Output = None
) -> None:
    """Make a new version in $EDITOR.

    Example: nexus template edit worker
    """
    from nexus.cli import templates

    templates.edit(session(context, output), name, note)


@commands.command("diff")
def diff_template(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(autocompletion=template_names)] = None,
    before: Annotated[int | None, typer.Argument(min=1, help="The newest but one.")] = None,
    after: Annotated[int | None, typer.Argument(min=1, help="The newest.")] = None,
    vm: Annotated[
        str | None, typer.Option("--vm", help="A VM, against the version that it comes from.")
    ] = None,
    output: Output = None,
) -> None:
    """Show how two versions differ, or a VM from its version.

    Example: nexus template diff worker 1 2

    Example: nexus template diff --vm worker-1
    """
    from nexus.cli import templates

    templates.diff(session(context, output), name, before, after, vm)


@commands.command("run")
@furnished
def run_template(
    context: typer.Context,
    template: Name,
    name: Annotated[str | None, typer.Option("--name", help="Name and host name.")] = None,
    version: Version = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, max=1000, help="So many: NAME-1, NAME-2 …")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", help="Gone at this time: 2026-01-31T12:00:00Z.")
    ] = None,
    start: Annotated[bool | None, typer.Option("--start/--no-start")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it runs.")] = True,
    timeout: Timeout = 60.0,
    output: Output = None,
    *,
    given: Given,
) -> None:
    """Create a VM of a template, or many. Options come before what the template says.

    Example: nexus template run worker --name job --count 3 --mem 512M
    """
    from nexus.cli import templates

    templates.run(
        session(context, output),
        template,
        given,
        {
            "name": name,
            "version": version,
            "count": count,
            "expires_at": expires_at,
            "start": start,
        },
        wait=wait,
        timeout_s=timeout,
    )


@commands.command("rollout")
def roll_out(
    context: typer.Context,
    name: Name,
    version: Version = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only VMs with this tag; repeatable.")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="So many VMs at a time: 2, 25%.")] = "1",
    max_failures: Annotated[
        int, typer.Option("--max-failures", min=0, help="It halts with more than so many.")
    ] = 0,
    pause: Annotated[str, typer.Option("--pause", help="Between batches: 30s, 5m.")] = "0",
    rootfs: Annotated[
        Literal["keep", "replace"],
        typer.Option("--rootfs", help="Their root disks stay, or are made anew of its image."),
    ] = "keep",
    health: Annotated[
        Literal["running", "agent"],
        typer.Option("--health", help="When a VM is up: it runs, or its guest's agent answers."),
    ] = "running",
    steady: Annotated[float, typer.Option("--steady", help="Seconds that it has to run.")] = 5.0,
    vm_timeout: Annotated[
        float, typer.Option("--vm-timeout", help="Seconds that each VM may take.")
    ] = 120.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it ends or halts.")] = True,
    output: Output = None,
) -> None:
    """Move the template's VMs to a version, some at a time. Each is rebooted.

    Example: nexus template rollout worker --version 2 --tag team=blue --batch 25% --pause 30s
    """
    from nexus.cli import rollouts, terms

    rollouts.begin(
        session(context, output),
        name,
        {
            "version": version,
            "selector": terms.tags_of(tag or []),
            "batch": int(batch) if batch.isdigit() else batch,
            "max_failures": max_failures,
            "pause_s": terms.seconds(pause),
            "rootfs": rootfs,
            "health": health,
            "steady_s": steady,
            "timeout_s": vm_timeout,
        },
        wait=wait,
    )


@commands.command("rm")
def remove_templates(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names or ids.")],
    output: Output = None,
) -> None:
    """Delete templates with all their versions. Their VMs stay.

    Example: nexus template rm worker
    """
    from nexus.cli import templates

    templates.remove(session(context, output), names)
