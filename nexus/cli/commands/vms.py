"""Making, listing and deleting VMs."""

from pathlib import Path
from typing import Annotated

import typer

from nexus.cli.complete import image_names
from nexus.cli.options import Name, Output, Restart, SomeNames, Tags, Timeout, session

commands = typer.Typer()


@commands.command("run")
def run_vm(
    context: typer.Context,
    image: Annotated[
        str,
        typer.Argument(help="Root file system: an image's name or id.", autocompletion=image_names),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name and host name.")] = None,
    vcpu: Annotated[int, typer.Option("--vcpu", min=1, max=32)] = 1,
    mem: Annotated[str, typer.Option("--mem", help="MiB, or 512M, or 2G.")] = "256M",
    kernel: Annotated[
        str | None, typer.Option("--kernel", help="Kernel image.", autocompletion=image_names)
    ] = None,
    initrd: Annotated[
        str | None, typer.Option("--initrd", help="Initrd image.", autocompletion=image_names)
    ] = None,
    kernel_args: Annotated[str | None, typer.Option("--kernel-args")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="key=value; repeatable.")] = None,
    ssh_key: Annotated[
        list[Path] | None, typer.Option("--ssh-key", help="Public key file; repeatable.")
    ] = None,
    user_data: Annotated[
        Path | None, typer.Option("--user-data", help="File given to the guest.")
    ] = None,
    vendor_data: Annotated[
        Path | None, typer.Option("--vendor-data", help="In place of the installation's own.")
    ] = None,
    config_drive: Annotated[
        bool, typer.Option("--config-drive", help="In any case: for images with cloud-init.")
    ] = False,
    drive: Annotated[
        list[str] | None,
        typer.Option(
            "--drive", help="NAME,size=10G, NAME,image=IMAGE,ro or NAME,volume=VOLUME; repeatable."
        ),
    ] = None,
    nic: Annotated[
        list[str] | None,
        typer.Option("--nic", help="NETWORK,ip=ADDRESS,rx=100,tx=50 (Mbit/s); repeatable."),
    ] = None,
    root_size: Annotated[
        str | None, typer.Option("--root-size", help="A larger root disk: 4G.")
    ] = None,
    root_limit: Annotated[
        str | None, typer.Option("--root-limit", help="bw=50,iops=1000: MiB/s, operations/s.")
    ] = None,
    balloon: Annotated[
        str | None, typer.Option("--balloon", help="With a balloon; memory to give back: 64M, 0.")
    ] = None,
    track_dirty: Annotated[
        bool, typer.Option("--track-dirty", help="Diff snapshots can be taken of it.")
    ] = False,
    count: Annotated[
        int | None, typer.Option("--count", min=1, max=1000, help="So many alike: NAME-1, NAME-2 …")
    ] = None,
    restart: Restart = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", help="Gone after this time: 90s, 45m, 2h, 1h30m, 3d.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", help="Gone at this time: 2026-01-31T12:00:00Z.")
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start")] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it runs.")] = True,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Create a VM, or many, and start them.

    Example: nexus run busybox --name web --vcpu 1 --mem 256M --wait
    Example: nexus run busybox --name job --count 20 --ttl 2h --restart on-failure
    """
    from nexus.cli import vms

    vms.run(
        session(context, output),
        vms.RunOptions(
            image=image,
            name=name,
            vcpu=vcpu,
            mem=mem,
            kernel=kernel,
            initrd=initrd,
            kernel_args=kernel_args,
            tags=tag or [],
            ssh_keys=ssh_key or [],
            user_data=user_data,
            vendor_data=vendor_data,
            config_drive=config_drive,
            drives=drive or [],
            nics=nic or [],
            root_size=root_size,
            root_limit=root_limit,
            balloon=balloon,
            track_dirty=track_dirty,
            count=count,
            terms=(restart, ttl, expires_at),
            start=start,
            wait=wait,
            timeout_s=timeout,
        ),
    )


@commands.command("ls")
def list_vms(
    context: typer.Context,
    state: Annotated[str | None, typer.Option("--state", help="Only VMs in this state.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only names that begin so.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Only on this host.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", help="Only with this tag: key=value, or key; repeatable."),
    ] = None,
    project: Annotated[str | None, typer.Option("--project", help="Only this project's.")] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Only of this template.")
    ] = None,
    pooled: Annotated[bool, typer.Option("--pooled", help="Also VMs that wait in pools.")] = False,
    output: Output = None,
) -> None:
    """List VMs.

    Example: nexus ls --state running --tag team=blue -o json
    """
    from nexus.cli import vms

    narrowed = vms.ListOptions(
        state=state,
        name=name,
        host=host,
        tags=tag or [],
        project=project,
        template=template,
        pooled=pooled,
    )
    vms.ls(session(context, output), narrowed)


commands.command("ps", help="The same as ls.")(list_vms)


@commands.command()
def show(context: typer.Context, name: Name, output: Output = None) -> None:
    """Show one VM: state, error, images, addresses and events.

    Example: nexus show web
    """
    from nexus.cli import vms

    vms.show(session(context, output), name)


@commands.command()
def why(context: typer.Context, name: Name, output: Output = None) -> None:
    """Say why a VM is as it is, and what to type next; also after it was deleted.

    Example: nexus why web
    """
    from nexus.cli.why import why as say_why

    say_why(session(context, output), name)


@commands.command()
def rm(
    context: typer.Context,
    names: SomeNames = None,
    tag: Tags = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Also VMs that run.")] = False,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Delete VMs with their disks.

    Example: nexus rm -f web; nexus rm -f --tag team=blue
    """
    from nexus.cli import actions

    actions.remove(session(context, output), names or [], tag or [], force=force, timeout_s=timeout)
