"""``nexus snapshot …``"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus.cli.complete import snapshot_names
from nexus.cli.options import Name, Output, Restart, Timeout, session

commands = typer.Typer(help="VMs as they were at a moment: memory and disks.", no_args_is_help=True)

Snapshot = Annotated[
    str, typer.Argument(help="A snapshot's name or id.", autocompletion=snapshot_names)
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is done.")]


@commands.command("create")
def create_snapshot(
    context: typer.Context,
    vm: Name,
    name: Annotated[
        str | None, typer.Argument(help="The snapshot's name; made of the VM's and the time.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Only what changed since the VM's last snapshot.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = 300.0,
    output: Output = None,
) -> None:
    """Take a snapshot of a VM that runs or is paused; its guest stands still for a moment.

    Example: nexus snapshot create web before-upgrade
    """
    from nexus.cli import snapshots

    kind: Literal["full", "diff"] = "diff" if diff else "full"
    snapshots.create(session(context, output), vm, name, kind, wait=wait, timeout_s=timeout)


@commands.command("ls")
def list_snapshots(
    context: typer.Context,
    vm: Annotated[
        str | None, typer.Option("--vm", help="Only of this VM, also a gone one.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only names that begin so.")] = None,
    state: Annotated[
        Literal["requested", "importing", "ready", "error", "deleting"] | None,
        typer.Option("--state", help="Only those in this state."),
    ] = None,
    output: Output = None,
) -> None:
    """List snapshots.

    Example: nexus snapshot ls --vm web
    """
    from nexus.cli import snapshots

    snapshots.ls(session(context, output), vm, name, state)


@commands.command("show")
def show_snapshot(context: typer.Context, name: Snapshot, output: Output = None) -> None:
    """Show a snapshot: its files, their checksums, and what it takes to load it.

    Example: nexus snapshot show before-upgrade
    """
    from nexus.cli import snapshots

    snapshots.show(session(context, output), name)


@commands.command("rename")
def rename_snapshot(
    context: typer.Context,
    name: Snapshot,
    new_name: Annotated[str, typer.Argument(help="What it is to be called.")],
    output: Output = None,
) -> None:
    """Rename a snapshot.

    Example: nexus snapshot rename before-upgrade gold
    """
    from nexus.cli import snapshots

    snapshots.rename(session(context, output), name, new_name)


@commands.command("rm")
def remove_snapshots(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(help="Names or ids.", autocompletion=snapshot_names)
    ],
    merge: Annotated[
        bool, typer.Option("--merge", help="Make diffs on top of them whole first.")
    ] = False,
    output: Output = None,
) -> None:
    """Delete snapshots. VMs that were made from them stay.

    Example: nexus snapshot rm before-upgrade
    """
    from nexus.cli import snapshots

    snapshots.remove(session(context, output), names, merge=merge)


@commands.command("clone")
def clone_snapshot(
    context: typer.Context,
    snapshot: Snapshot,
    name: Annotated[str | None, typer.Option("--name", help="Name and host name.")] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, max=1000, help="So many: NAME-1, NAME-2 …")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="In place of its VM's; repeatable.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option("--network", help="One for each NIC, in their order.")
    ] = None,
    restart: Restart = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", help="Gone after this time: 90s, 45m, 2h, 3d.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", help="Gone at this time: 2026-01-31T12:00:00Z.")
    ] = None,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Not started, they are loaded and paused.")
    ] = True,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Make VMs from a snapshot: each goes on from there with its own name, addresses and disks.

    Example: nexus snapshot clone gold --name job --count 20 --ttl 2h
    """
    from nexus.cli import snapshots

    snapshots.clone(
        session(context, output),
        snapshot,
        {"name": name, "count": count, "networks": network or None},
        tag or [],
        (restart, ttl, expires_at),
        start=start,
        wait=wait,
        timeout_s=timeout,
    )


@commands.command("restore")
def restore_vm(
    context: typer.Context,
    vm: Name,
    snapshot: Snapshot,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Not started, it is loaded and paused.")
    ] = True,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = None,
) -> None:
    """Put a VM back to one of its snapshots, memory and disks. What it does now is lost.

    Example: nexus snapshot restore web before-upgrade
    """
    from nexus.cli import snapshots

    snapshots.restore(
        session(context, output), vm, snapshot, start=start, wait=wait, timeout_s=timeout
    )


@commands.command("schedule")
def schedule_snapshots(
    context: typer.Context,
    vm: Name,
    every: Annotated[
        str | None, typer.Option("--every", help="How often: 30m, 6h, 1d. At least 60s.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, max=1000, help="How many are kept.")
    ] = None,
    output: Output = None,
) -> None:
    """Have snapshots of a VM taken by themselves; without options, show its schedule.

    Example: nexus snapshot schedule web --every 6h --keep 7
    """
    from nexus.cli import snapshot_schedules

    snapshot_schedules.schedule(session(context, output), vm, every, keep)


@commands.command("unschedule")
def unschedule_snapshots(context: typer.Context, vm: Name, output: Output = None) -> None:
    """End a VM's schedule. The snapshots that it made stay.

    Example: nexus snapshot unschedule web
    """
    from nexus.cli import snapshot_schedules

    snapshot_schedules.unschedule(session(context, output), vm)


@commands.command("export")
def export_snapshot(
    context: typer.Context,
    name: Snapshot,
    file: Annotated[
        str | None, typer.Argument(help="NAME.nexus-snapshot.tar when left away; - is stdout.")
    ] = None,
    output: Output = None,
) -> None:
    """Write a snapshot into one archive, with its checksums. It holds the guest's memory.

    Example: nexus snapshot export gold
    Example: nexus snapshot export gold - | zstd > gold.tar.zst
    """
    from nexus.cli import snapshot_files

    snapshot_files.export(session(context, output), name, file)


@commands.command("import")
def import_snapshot(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What an export wrote; - is stdin.")],
    name: Annotated[str | None, typer.Option("--name", help="Its own when left away.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Where it is to lie.")] = None,
    output: Output = None,
) -> None:
    """Make a snapshot of an archive, which its host verifies. Take archives only from whom you
    trust: a VMM does what the state in one says.

    Example: nexus snapshot import gold.nexus-snapshot.tar --name gold-2
    Example: zstd -dc gold.tar.zst | nexus snapshot import -
    """
    from nexus.cli import snapshot_files

    snapshot_files.take_in(session(context, output), file, name, host)
