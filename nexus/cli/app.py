"""The commands and their options. What they do is imported when one of them runs."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus.cli.session import Session

app = typer.Typer(
    name="nexus",
    help="Operate Firecracker microVMs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
images = typer.Typer(help="Kernels, initrds and root file systems.", no_args_is_help=True)
hosts = typer.Typer(help="Machines with an agent.", no_args_is_help=True)
app.add_typer(images, name="image")
app.add_typer(hosts, name="host")

OutputFormat = Literal["table", "json", "name"]
Output = Annotated[OutputFormat | None, typer.Option("-o", "--output", help="table, json or name.")]
Name = Annotated[str, typer.Argument(help="A VM's name or id.")]
Names = Annotated[list[str], typer.Argument(help="Names or ids of VMs.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.1, max=600)]
Source = Annotated[Literal["console", "vmm"], typer.Option("--source", help="Which log.")]


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option("--url", help="Address of the manager.")] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File that holds the token.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of a local installation.")
    ] = None,
    output: Output = None,
) -> None:
    """Operate Firecracker microVMs.

    The manager is found by --url and --token-file, by --data, by NEXUS_URL and NEXUS_TOKEN_FILE,
    or in ./data and /var/lib/nexus.
    """
    context.obj = Session(url=url, token_file=token_file, data=data, output=output)


def session(context: typer.Context, output: OutputFormat | None = None) -> Session:
    found = context.obj
    if not isinstance(found, Session):
        raise TypeError("the command runs outside of nexus")
    return found.with_output(output)


@app.command("run")
def run_vm(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="Root file system: an image's name or id.")],
    name: Annotated[str | None, typer.Option("--name", help="Name and host name.")] = None,
    vcpu: Annotated[int, typer.Option("--vcpu", min=1, max=32)] = 1,
    mem: Annotated[str, typer.Option("--mem", help="MiB, or 512M, or 2G.")] = "256M",
    kernel: Annotated[str | None, typer.Option("--kernel", help="Kernel image.")] = None,
    initrd: Annotated[str | None, typer.Option("--initrd", help="Initrd image.")] = None,
    kernel_args: Annotated[str | None, typer.Option("--kernel-args")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="key=value; repeatable.")] = None,
    ssh_key: Annotated[
        list[Path] | None, typer.Option("--ssh-key", help="Public key file; repeatable.")
    ] = None,
    user_data: Annotated[
        Path | None, typer.Option("--user-data", help="File given to the guest.")
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start")] = True,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it runs.")] = True,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Create a VM and start it.

    Example: nexus run busybox --name web --vcpu 1 --mem 256M --wait
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
            start=start,
            wait=wait,
            timeout_s=timeout,
        ),
    )


@app.command("ls")
def list_vms(
    context: typer.Context,
    state: Annotated[str | None, typer.Option("--state", help="Only VMs in this state.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only names that begin so.")] = None,
    output: Output = None,
) -> None:
    """List VMs.

    Example: nexus ls --state running -o json
    """
    from nexus.cli import vms

    vms.ls(session(context, output), state, name)


app.command("ps", help="The same as ls.")(list_vms)


@app.command()
def show(context: typer.Context, name: Name, output: Output = None) -> None:
    """Show one VM: state, error, images, addresses and events.

    Example: nexus show web
    """
    from nexus.cli import vms

    vms.show(session(context, output), name)


@app.command()
def start(
    context: typer.Context, names: Names, timeout: Timeout = 60.0, output: Output = None
) -> None:
    """Start VMs and wait until they run.

    Example: nexus start web
    """
    from nexus.cli import vms

    vms.act(session(context, output), "start", names, timeout)


@app.command()
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
    from nexus.cli import vms

    vms.stop(session(context, output), names, force=force, grace_s=timeout)


@app.command()
def pause(
    context: typer.Context, names: Names, timeout: Timeout = 60.0, output: Output = None
) -> None:
    """Pause VMs; their memory stays.

    Example: nexus pause web
    """
    from nexus.cli import vms

    vms.act(session(context, output), "pause", names, timeout)


@app.command()
def resume(
    context: typer.Context, names: Names, timeout: Timeout = 60.0, output: Output = None
) -> None:
    """Let paused VMs go on.

    Example: nexus resume web
    """
    from nexus.cli import vms

    vms.act(session(context, output), "resume", names, timeout)


@app.command()
def rm(
    context: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("-f", "--force", help="Also VMs that run.")] = False,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Delete VMs with their disks.

    Example: nexus rm -f web
    """
    from nexus.cli import vms

    vms.remove(session(context, output), names, force=force, timeout_s=timeout)


@app.command()
def logs(
    context: typer.Context,
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    source: Source = "console",
    tail: Annotated[int, typer.Option("--tail", min=1, max=10000)] = 100,
    output: Output = None,
) -> None:
    """Print a VM's console or VMM log.

    Example: nexus logs -f web
    """
    from nexus.cli import vms

    vms.logs(session(context, output), name, source, follow=follow, tail=tail)


@app.command()
def console(context: typer.Context, name: Name) -> None:
    """Attach to a VM's serial console. Ctrl-] leaves.

    Example: nexus console web
    """
    from nexus.cli import terminal

    terminal.attach(session(context), name)


@app.command()
def events(context: typer.Context, name: Name, output: Output = None) -> None:
    """List what happened to a VM.

    Example: nexus events web
    """
    from nexus.cli import vms

    vms.events(session(context, output), name)


@images.command("ls")
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


@images.command("add")
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


@images.command("build")
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


@images.command("show")
def show_image(
    context: typer.Context, image: Annotated[str, typer.Argument()], output: Output = None
) -> None:
    """Show one image.

    Example: nexus image show busybox
    """
    from nexus.cli import registry

    registry.show(session(context, output), image)


@images.command("rm")
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


@hosts.command("ls")
def list_hosts(context: typer.Context, output: Output = None) -> None:
    """List hosts.

    Example: nexus host ls
    """
    from nexus.cli import registry

    registry.hosts(session(context, output))


def run(command: typer.Typer) -> None:
    """Runs the command line; every error becomes a message with a cure and an exit code."""
    from nexus.cli.exits import exit_code_of

    try:
        command()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has had enough; a second flush at exit must not complain.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        sys.exit(code)
