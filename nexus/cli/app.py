"""The command line: global options, and the groups of commands."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nexus.cli.commands import (
    balloon,
    drives,
    events,
    firecracker,
    guests,
    hosts,
    images,
    labels,
    logs,
    networks,
    nics,
    power,
    quotas,
    rollouts,
    snapshots,
    templates,
    vms,
    volumes,
)
from nexus.cli.options import Output
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


for group in (vms, labels, power, balloon, logs, guests, events, firecracker):
    app.add_typer(group.commands)
app.add_typer(drives.commands, name="drive")
app.add_typer(networks.commands, name="network")
app.add_typer(networks.forwards, name="forward")
app.add_typer(nics.commands, name="nic")
app.add_typer(volumes.commands, name="volume")
app.add_typer(snapshots.commands, name="snapshot")
app.add_typer(quotas.commands, name="quota")
app.add_typer(quotas.usage_commands)
app.add_typer(templates.commands, name="template")
app.add_typer(rollouts.commands, name="rollout")
app.add_typer(images.commands, name="image")
app.add_typer(hosts.commands, name="host")


def run(command: typer.Typer) -> None:
    """Runs the command line; every error becomes a message with a cure and an exit code."""
    from nexus.cli.exits import exit_code_of

    # httpx brings a command line of its own and with it click, rich and pygments: a third of the
    # time of a short command. Without that module it does without.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    # Likewise pydantic looks through all installed packages for plugins; we use none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
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
