"""Options and arguments that commands share."""

from typing import Annotated, Literal

import typer

from nexus.cli.complete import vm_names
from nexus.cli.session import Session

OutputFormat = Literal["table", "json", "yaml", "name"]
Output = Annotated[
    OutputFormat | None, typer.Option("-o", "--output", help="table, json, yaml or name.")
]
Name = Annotated[str, typer.Argument(help="A VM's name or id.", autocompletion=vm_names)]
Names = Annotated[list[str], typer.Argument(help="Names or ids of VMs.", autocompletion=vm_names)]
SomeNames = Annotated[
    list[str] | None, typer.Argument(help="Names or ids of VMs.", autocompletion=vm_names)
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="VMs with this tag, key=value, in place of names; repeatable."),
]
Restart = Annotated[
    str | None, typer.Option("--restart", help="never, on-failure or always: when it ends.")
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.1, max=600)]
Source = Annotated[Literal["console", "vmm"], typer.Option("--source", help="Which log.")]


def session(context: typer.Context, output: OutputFormat | None = None) -> Session:
    """What all commands share, with the output asked for behind the command's name."""
    found = context.obj
    if not isinstance(found, Session):
        raise TypeError("the command runs outside of nexus")
    return found.with_output(output)
