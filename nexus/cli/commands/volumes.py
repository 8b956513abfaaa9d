"""``nexus volume …``"""

from typing import Annotated

import typer

from nexus.cli.options import Name as VmName
from nexus.cli.options import Output, Timeout, session

commands = typer.Typer(help="Disks that outlive their VMs.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A volume's name or id.")]
Reboot = Annotated[bool, typer.Option("--reboot", help="Reboot the VM if it runs.")]


@commands.command("ls")
def list_volumes(context: typer.Context, output: Output = None) -> None:
    """List volumes, and which VMs have them.

    Example: nexus volume ls
    """
    from nexus.cli import volumes

    volumes.ls(session(context, output))


@commands.command("create")
def create_volume(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The volume's name.")],
    size: Annotated[str | None, typer.Option("--size", help="512M, 10G.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Begins as this root file system image.")
    ] = None,
    output: Output = None,
) -> None:
    """Create a volume: empty, or as an image.

    Example: nexus volume create data --size 10G && nexus run --drive data,volume=data
    """
    from nexus.cli import volumes

    volumes.create(session(context, output), name, size, image)


@commands.command("show")
def show_volume(
    context: typer.Context,
    name: Name,
    output: Output = None,
) -> None:
    """Show a volume.

    Example: nexus volume show data
    """
    from nexus.cli import volumes

    volumes.show(session(context, output), name)


@commands.command("attach")
def attach_volume(
    context: typer.Context,
    name: Name,
    vm: VmName,
    drive: Annotated[
        str | None, typer.Option("--name", help="The drive's name; made from the volume's.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--ro", help="Read-only.")] = False,
    reboot: Reboot = False,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Give a volume to a VM that does not run, or reboot it.

    Example: nexus volume attach data web --reboot
    """
    from nexus.cli import volumes

    asked = session(context, output)
    volumes.attach(asked, name, vm, drive, read_only=read_only, reboot=reboot, timeout_s=timeout)


@commands.command("detach")
def detach_volume(
    context: typer.Context,
    name: Name,
    reboot: Reboot = False,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Take a volume from a VM that does not run, or reboot it.

    Example: nexus volume detach data
    """
    from nexus.cli import volumes

    volumes.detach(session(context, output), name, reboot=reboot, timeout_s=timeout)


@commands.command("grow")
def grow_volume(
    context: typer.Context,
    name: Name,
    size: Annotated[str, typer.Argument(help="The new size: 20G, 512M.")],
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Make a volume larger, also while a VM runs with it.

    Example: nexus volume grow data 20G
    """
    from nexus.cli import volumes

    volumes.grow(session(context, output), name, size, timeout)


@commands.command("rename")
def rename_volume(
    context: typer.Context,
    name: Name,
    new: Annotated[str, typer.Argument(help="The new name.")],
    output: Output = None,
) -> None:
    """Rename a volume.

    Example: nexus volume rename data old-data
    """
    from nexus.cli import volumes

    volumes.rename(session(context, output), name, new)


@commands.command("snapshot")
def snapshot_volume(
    context: typer.Context,
    name: Name,
    copy: Annotated[str, typer.Argument(help="The new volume's name.")],
    output: Output = None,
) -> None:
    """Make a new volume that begins as this one is. No VM may run with it.

    Example: nexus volume snapshot data data-monday
    """
    from nexus.cli import volumes

    volumes.snapshot(session(context, output), name, copy)


@commands.command("rm")
def remove_volumes(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names or ids.")],
    output: Output = None,
) -> None:
    """Delete volumes that no VM has, with what is on them.

    Example: nexus volume rm data
    """
    from nexus.cli import volumes

    volumes.remove(session(context, output), names)
