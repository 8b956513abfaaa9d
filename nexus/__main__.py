"""The command ``nexus``: the CLI of the SDK, and the commands that run services."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus.cli.app import app, run
from nexus.cli.commands import hosts
from nexus.cli.options import session

services = typer.Typer()
Output = Literal["text", "json"]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder that holds the whole installation.")
]


@services.command()
def up(
    context: typer.Context,
    data: DataOption = None,
    bind: Annotated[
        str | None, typer.Option("--bind", help="HOST:PORT of the API.", envvar="MANAGER_BIND")
    ] = None,
    engine: Annotated[
        Literal["auto", "firecracker", "qemu"],
        typer.Option("--engine", envvar="NEXUS_ENGINE", help="auto probes what runs here."),
    ] = "auto",
    output: Annotated[Output, typer.Option("-o", "--output", help="text or json.")] = "text",
    demo: Annotated[bool, typer.Option("--demo", help="Boot the VM hello and show it.")] = False,
) -> None:
    """Run all of Nexus on this machine, in the foreground.

    Example: nexus up --data ./data --bind 127.0.0.1:18080 --demo
    """
    from nexus.api.errors import NexusError
    from nexus.up.place import DEFAULT_BIND, Place, default_data_dir
    from nexus.up.run import report
    from nexus.up.run import up as run_up
    from nexus.up.say import ForPeople, ForPrograms, Say

    data = data or session(context).data
    place = Place((data or default_data_dir()).resolve(), bind or DEFAULT_BIND, engine)
    say: Say = ForPrograms() if output == "json" else ForPeople()
    try:
        run_up(place, say, demo=demo)
    except NexusError as error:
        report(error, as_json=output == "json")
        raise typer.Exit(1) from None


@services.command()
def down(context: typer.Context, data: DataOption = None) -> None:
    """Stop an installation and remove all that it made on this machine.

    Example: nexus down --data ./data
    """
    from nexus.api.errors import NexusError
    from nexus.up.down import down as run_down
    from nexus.up.place import DEFAULT_BIND, Place, default_data_dir
    from nexus.up.run import report

    data = data or session(context).data
    place = Place((data or default_data_dir()).resolve(), DEFAULT_BIND, "auto")
    try:
        run_down(place)
    except NexusError as error:
        report(error, as_json=False)
        raise typer.Exit(3 if error.status == 404 else 1) from None


@services.command()
def manager() -> None:
    """Run the manager alone, with settings from the environment."""
    from nexus.manager.__main__ import main as run_manager

    run_manager()


@services.command()
def agent() -> None:
    """Run the agent alone, with settings from the environment."""
    from nexus.agent.__main__ import main as run_agent

    run_agent()


@hosts.commands.command("init")
def host_init(
    context: typer.Context,
    data: DataOption = None,
    size: Annotated[
        str | None, typer.Option("--size", help="100G; three quarters of what is free by itself.")
    ] = None,
    measure: Annotated[
        str, typer.Option("--measure", help="How large a disk is cloned to show it; 0 is none.")
    ] = "2G",
    undo: Annotated[
        bool, typer.Option("--undo", help="Move all back and remove the file system.")
    ] = False,
    output: Annotated[Output, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Give this host a file system that shares blocks, for quick and small VM disks.

    Example: nexus host init --size 100G
    """
    from nexus.api.errors import NexusError
    from nexus.cli.devices import mib
    from nexus.up import disk, say
    from nexus.up.place import DEFAULT_BIND, Place, default_data_dir
    from nexus.up.run import report

    data = data or session(context).data
    place = Place((data or default_data_dir()).resolve(), DEFAULT_BIND, "auto")
    size_mib = None if size is None else mib("--size", size)
    measure_mib = mib("--measure", measure)
    try:
        if undo:
            disk.undo(place)
        else:
            made = disk.init(place, size_mib, measure_mib)
            say.host_disk(made, as_json=output == "json")
    except NexusError as error:
        report(error, as_json=output == "json")
        raise typer.Exit(3 if error.status == 404 else 1) from None


app.add_typer(services)


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
