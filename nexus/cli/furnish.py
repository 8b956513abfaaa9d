"""The options that say what a VM is made of, for commands that take any of them and need none."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.cli.complete import image_names

Given = dict[str, Any]
"""The options that were given, by the names of their parameters."""


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help)


_IMAGES: dict[str, Any] = {"autocompletion": image_names}
OPTIONS: dict[str, Any] = {
    "rootfs": Annotated[
        str | None, typer.Option("--rootfs", help="Root file system image.", **_IMAGES)
    ],
    "kernel": Annotated[str | None, typer.Option("--kernel", help="Kernel image.", **_IMAGES)],
    "initrd": Annotated[str | None, typer.Option("--initrd", help="Initrd image.", **_IMAGES)],
    "kernel_args": Annotated[str | None, _option("--kernel-args", help="The guest's own.")],
    "vcpu": Annotated[int | None, typer.Option("--vcpu", min=1, max=32)],
    "mem": Annotated[str | None, _option("--mem", help="MiB, or 512M, or 2G.")],
    "tag": Annotated[list[str] | None, _option("--tag", help="key=value; repeatable.")],
    "ssh_key": Annotated[
        list[Path] | None, _option("--ssh-key", help="Public key file; repeatable.")
    ],
    "user_data": Annotated[Path | None, _option("--user-data", help="File given to the guest.")],
    "drive": Annotated[list[str] | None, _option("--drive", help="As for nexus run; repeatable.")],
    "nic": Annotated[list[str] | None, _option("--nic", help="As for nexus run; repeatable.")],
    "root_size": Annotated[str | None, _option("--root-size", help="A larger root disk: 4G.")],
    "root_limit": Annotated[str | None, _option("--root-limit", help="bw=50,iops=1000.")],
    "balloon": Annotated[str | None, _option("--balloon", help="Memory to give back: 64M, 0.")],
    "restart": Annotated[str | None, _option("--restart", help="never, on-failure or always.")],
    "ttl": Annotated[str | None, _option("--ttl", help="Gone after this time: 45m, 2h, 3d.")],
}


def furnished(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options. It gets those that were given as ``given``."""

    @functools.wraps(command)
    def called(*args: Any, **kwargs: Any) -> None:
        values = {name: kwargs.pop(name) for name in OPTIONS}
        given = {name: value for name, value in values.items() if value not in (None, [])}
        command(*args, given=given, **kwargs)

    signature = inspect.signature(command)
    own = [each for name, each in signature.parameters.items() if name != "given"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=None, annotation=option)
        for name, option in OPTIONS.items()
    ]
    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(each.replace(kind=keyword) for each in own), *more]
    )
    notes = {name: note for name, note in command.__annotations__.items() if name != "given"}
    called.__annotations__ = notes | OPTIONS
    return called
