"""``nexus image …``"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus.cli.complete import image_names
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


@commands.command("upload")
def upload_image(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file of this machine.")],
    name: Annotated[str, typer.Argument(help="The image's name.")],
    kind: Annotated[Literal["kernel", "initrd", "rootfs"], typer.Option("--kind")] = "rootfs",
    form: Annotated[
        Literal["raw", "gzip", "xz", "zstd", "qcow2"] | None,
        typer.Option("--format", help="What the file must be; its first bytes say it otherwise."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="The id of an upload that broke off.")
    ] = None,
    output: Output = None,
) -> None:
    """Send a file to the manager and make an image of it.

    It goes on after a lost connection, and with --resume after Ctrl-C.

    Example: nexus image upload debian.qcow2 debian:12 --kind rootfs
    """
    from nexus.cli import registry

    registry.upload(session(context, output), file, name, kind, form, resume)


@commands.command("build")
def build_image(
    context: typer.Context,
    recipe: Annotated[Literal["debian-cloud", "busybox", "debian", "oci"], typer.Argument()],
    source: Annotated[
        str | None,
        typer.Argument(help="For oci: docker://REGISTRY/NAME:TAG, oci:FOLDER, oci-archive:FILE."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The image's name; else the recipe's.")
    ] = None,
    package: Annotated[
        list[str] | None, typer.Option("--package", "-p", help="A Debian package to install.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="The disk's size, like 4G.")] = None,
    output: Output = None,
) -> None:
    """Build images from Debian's packages or a container's image, and register them.

    Example: nexus image build debian --name debian:12 -p nginx -p curl --size 2G
    """
    from nexus.cli import registry
    from nexus.cli.devices import mib

    given = {
        "name": name,
        "packages": package,
        "size_mib": mib("--size", size) if size else None,
        "source": source,
    }
    registry.build(session(context, output), recipe, given)


@commands.command("show")
def show_image(
    context: typer.Context,
    image: Annotated[str, typer.Argument(autocompletion=image_names)],
    output: Output = None,
) -> None:
    """Show one image.

    Example: nexus image show busybox
    """
    from nexus.cli import registry

    registry.show(session(context, output), image)


@commands.command("rm")
def remove_image(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names or ids.", autocompletion=image_names)],
    output: Output = None,
) -> None:
    """Delete images that no VM uses.

    Example: nexus image rm old-kernel
    """
    from nexus.cli import registry

    registry.remove(session(context, output), names)
