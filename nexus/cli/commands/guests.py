"""Going into guests: programs and files."""

from typing import Annotated

import typer

from nexus.cli.options import Name, session

commands = typer.Typer()


@commands.command(
    "exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
)
def run_program(
    context: typer.Context,
    name: Name,
    command: Annotated[
        list[str] | None, typer.Argument(help="Program and arguments; a shell by default.")
    ] = None,
    tty: Annotated[
        bool | None,
        typer.Option(
            "-t/-T",
            "--tty/--no-tty",
            help="Give it a terminal; by default if this command has one.",
            show_default=False,
        ),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("-i/-n", "--stdin/--no-stdin", help="Pass on standard input.")
    ] = True,
    user: Annotated[str | None, typer.Option("--user", help="Name or number; root.")] = None,
    cwd: Annotated[str | None, typer.Option("--cwd", help="Directory; the user's home.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE, or NAME; repeatable.")
    ] = None,
) -> None:
    """Run a program in a VM. Its exit code becomes this command's.

    Example: nexus exec web -- uname -r
    """
    from nexus.cli import execute

    # Options stand before the name, so that those behind it are the program's, with or without --.
    argv = [*(command or [])]
    if argv[:1] == ["--"]:
        del argv[0]
    options = execute.Options(argv, tty, stdin, user, cwd, env or [])
    execute.run(session(context), name, options)


@commands.command()
def cp(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A file, NAME:/path, or - for stdin.")],
    target: Annotated[str, typer.Argument(help="A file, NAME:/path, or - for stdout.")],
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Whole directories.")
    ] = False,
) -> None:
    """Copy files into a VM, or out of it.

    Example: nexus cp -r site web:/var/www
    """
    from nexus.cli import copying

    copying.copy(session(context), source, target, recursive=recursive)
