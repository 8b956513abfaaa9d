"""``nexus image …``"""

from typing import Annotated, Literal

import typer

from nexus.cli.options import Output, session

commands = typer.Typer(help="Kernels, initrds and root file systems.", no_args_is_help=True)


@commands.command("ls")
def list_images(
    context: typer.Context,
    kind: Annotated[Literal["kernel", "initrd", "rootfs"] | None, typer.Option("--kind")] = None,
    output: Output = None,
) -> None:
    """List images.

    Example: nexus image ls --kind kernel
    """
    from nexus.cli import registry

    registry.ls(session(context, output), kind)


@commands.command("add")
def add_image(
    context: typer.Context,
    kind: Annotated[Literal["kernel", "initrd", "rootfs"], typer.Argument()],
    name: Annotated[str, typer.Argument(help="The image's name.")],
    host_path: Annotated[str, typer.Argument(help="A file under the manager's image root.")],
    output: Output = None,
) -> None:
    """Register a file that lies under the manager's image root.

    Example: nexus image add rootfs alpine alpine.ext4
    """
    from nexus.cli import registry

    registry.add(session(context, output), kind, name, host_path)


@commands.command("build")
def build_image(
    context: typer.Context,
    recipe: Annotated[Literal["debian-cloud", "busybox"], typer.Argument()],
    output: Output = None,
) -> None:
    """Build images from Debian's packages and register them.

    Example: nexus image build busybox
    """
    from nexus.cli import registry

    registry.build(session(context, output), recipe)


@commands.command("show")
def show_image(
    context: typer.Context, image: Annotated[str, typer.Argument()], output: Output = None
) -> None:
    """Show one image.

    Example: nexus image show busybox
    """
    from nexus.cli import registry

    registry.show(session(context, output), image)


@commands.command("rm")
def remove_image(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names or ids.")],
    output: Output = None,
) -> None:
    """Delete images that no VM uses.

    Example: nexus image rm old-kernel
    """
    from nexus.cli import registry

    registry.remove(session(context, output), names)
