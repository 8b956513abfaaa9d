"""What the commands on images and hosts do."""

import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nexus.api.images import (
    Image,
    ImageBuild,
    ImageBuildCreate,
    ImageCreate,
    ImageFormat,
    ImageKind,
    ImageRecipe,
    ImageUploadCreate,
)
from nexus.cli.actions import each
from nexus.cli.exits import UsageFault
from nexus.cli.output import ago, as_json, fields, print_json, size, table
from nexus.cli.session import Session
from nexus.client import Client, NexusApiError

POLL_S = 0.2
BUILD_TIMEOUT_S = 1800.0


def ls(session: Session, kind: ImageKind | None) -> None:
    with session.client() as client:
        found = list(client.images.list(kind=kind))
    if session.output == "json":
        print_json({"items": [as_json(image) for image in found], "next_cursor": None})
        return
    if session.output == "name":
        for image in found:
            print(image.name)
        return
    rows = [
        (
            image.name,
            image.kind,
            size(image.size_bytes),
            image.sha256[:12],
            ago(image.created_at),
            image.source,
            image.id,
        )
        for image in found
    ]
    table(("NAME", "KIND", "SIZE", "SHA256", "AGE", "SOURCE", "ID"), rows)


def add(session: Session, kind: ImageKind, name: str, host_path: str) -> None:
    try:
        spec = ImageCreate(kind=kind, name=name, host_path=host_path)
    except ValueError as error:
        raise _bad_name(name) from error
    with session.client() as client:
        image = client.images.register(spec)
    _print_made(session, image)


def upload(
    session: Session,
    file: Path,
    name: str,
    kind: ImageKind,
    form: ImageFormat | None,
    resume: str | None,
) -> None:
    """Sends a file and shows how far it is. What was sent stays for a day if it breaks off."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    try:
        size_bytes = file.stat().st_size
        spec = ImageUploadCreate(kind=kind, name=name, size_bytes=size_bytes, format=form)
    except OSError as error:
        raise UsageFault(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise (_bad_name(name) if size_bytes else UsageFault(f"{file} is empty")) from error
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn())
    bars = Progress(
        *columns,
        TransferSpeedColumn(),
        console=Console(stderr=True),
        disable=session.output is not None,
    )
    with session.client() as client, bars:
        begun = client.images.get_upload(resume) if resume else client.images.begin_upload(spec)
        task = bars.add_task(begun.name, total=size_bytes)

        def sent(done: int, total: int) -> None:
            bars.update(
                task,
                completed=done,
                description=begun.name if done < total else f"{begun.name}: checking",
            )

        try:
            image = client.images.upload(file, name=name, progress=sent, resume=begun.id)
        except (NexusApiError, KeyboardInterrupt):
            bars.console.print(
                f"what arrived is kept for a day; to go on: "
                f"nexus image upload {file} {name} --kind {kind} --resume {begun.id}",
                soft_wrap=True,
                highlight=False,
            )
            raise
    _print_made(session, image)


def _bad_name(name: str) -> UsageFault:
    return UsageFault(f"{name!r}: names are a-z, 0-9 and . _ : - with a letter first")


def _print_made(session: Session, image: Image) -> None:
    if session.output == "json":
        print_json({"id": image.id, "item": as_json(image)})
    else:
        print(image.name if session.output == "name" else image.id)


def show(session: Session, ref: str) -> None:
    with session.client() as client:
        image = client.images.get(ref)
    if session.output == "json":
        print_json({"item": as_json(image)})
        return
    if session.output == "name":
        print(image.name)
        return
    fields(
        [
            ("name", image.name),
            ("id", image.id),
            ("kind", image.kind),
            ("size", size(image.size_bytes)),
            ("sha256", image.sha256),
            ("source", image.source),
            ("created", image.created_at.isoformat(timespec="seconds")),
        ]
    )


def remove(session: Session, refs: list[str]) -> None:
    each(session, refs, lambda client, ref: client.images.delete(ref))


def build(session: Session, recipe: ImageRecipe, given: Mapping[str, object]) -> None:
    """Begins the build and follows it to its end. Ctrl-C leaves it running."""
    try:
        kept = {key: value for key, value in given.items() if value is not None}
        asked = ImageBuildCreate.model_validate({"recipe": recipe, **kept})
    except ValidationError as error:
        raise UsageFault("; ".join(_words(problem) for problem in error.errors())) from error
    with session.client() as client:
        begun = client.images.build(recipe, asked.options())
        done = _follow(client, begun, quiet=session.output is not None)
    if done.state == "failed":
        raise NexusApiError(
            409,
            "conflict",
            f"building {recipe} failed: {done.error}",
            suggestion="mend that and build again; it goes on where it stopped",
        )
    if session.output == "json":
        print_json({"item": as_json(done)})
    elif session.output == "name":
        print(done.options.name or recipe)


def _words(problem: ErrorDetails) -> str:
    where = " ".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"].removeprefix("Value error, ")


def _follow(client: Client, begun: ImageBuild, *, quiet: bool) -> ImageBuild:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(begun.recipe, total=1.0, step=begun.step)
        now = begun
        while now.state in ("queued", "running"):
            if time.monotonic() > deadline:
                raise NexusApiError(
                    504,
                    "timed_out",
                    f"the build runs longer than {BUILD_TIMEOUT_S:.0f} s; it goes on",
                    suggestion=f"nexus image build {begun.recipe}, to follow it again",
                )
            time.sleep(POLL_S)
            now = client.images.get_build(begun.id)
            progress.update(task, completed=now.progress, step=now.step)
    return now


def hosts(session: Session) -> None:
    with session.client() as client:
        found = list(client.hosts.list())
    if session.output == "json":
        print_json({"items": [as_json(host) for host in found], "next_cursor": None})
        return
    if session.output == "name":
        for host in found:
            print(host.name)
        return
    rows = [
        (
            host.name,
            host.state,
            host.engine,
            str(host.capacity.vms),
            str(host.capacity.vcpus),
            f"{host.capacity.mem_available_mib}/{host.capacity.mem_mib}M",
            host.network.cidr,
            ago(host.last_seen_at),
            host.id,
        )
        for host in found
    ]
    table(("NAME", "STATE", "ENGINE", "VMS", "VCPUS", "MEM FREE", "NETWORK", "SEEN", "ID"), rows)
