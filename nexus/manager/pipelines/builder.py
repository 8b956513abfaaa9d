"""One image build as a program: ``python -m nexus.images build``, its progress and its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process
from pydantic import BaseModel, TypeAdapter, ValidationError

import nexus
from nexus.api.common import ImageName
from nexus.api.images import ImageBuildOptions, ImageKind, ImageRecipe

_LINE_BYTES = 1 << 16
_TAIL_BYTES = 2000
_SECRETS = frozenset({"DATABASE_URL", "NEXUS_ADMIN_TOKEN_FILE"})

Said = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is being done."""


class BuildFailed(Exception):
    """The build ended without images; the text is for the user."""


class Built(BaseModel):
    """A file that a build made, and what it is to be called."""

    kind: ImageKind
    name: ImageName
    path: Path


class _Progress(BaseModel):
    progress: float
    step: str


class _Done(BaseModel):
    artifacts: list[Built]


class _Failed(BaseModel):
    error: str
    suggestion: str = ""


_LINE: TypeAdapter[_Progress | _Done | _Failed] = TypeAdapter(_Progress | _Done | _Failed)


@dataclass(slots=True)
class _Output:
    """What a build has said so far; bounded, however much it says."""

    end: _Done | _Failed | None = None
    garbled: bool = False
    tail: bytes = b""


def build_command(recipe: ImageRecipe, options: ImageBuildOptions, out: Path) -> list[str]:
    """The program for a recipe. The kernel kills it when the manager dies."""
    build = [sys.executable, "-m", "nexus.images", "build", recipe, "--out", str(out)]
    if options.name is not None:
        build.append(f"--name={options.name}")
    if options.size_mib is not None:
        build.append(f"--size-mib={options.size_mib}")
    if options.source is not None:
        build.append(f"--source={options.source}")
    build += [f"--package={name}" for name in options.packages]
    return ["setpriv", "--pdeathsig", "KILL", "--", *build]


async def run_build(argv: list[str], said: Said, *, timeout_s: float) -> list[Built]:
    """Runs a build to its end and returns what it made.

    Raises BuildFailed when it fails, says nothing sensible, or takes longer than ``timeout_s``.
    Whatever happens, its process group has ended afterwards.
    """
    output = _Output()
    try:
        with anyio.fail_after(timeout_s):
            status = await _run(argv, said, output)
    except TimeoutError:
        raise BuildFailed(f"the build took longer than {timeout_s:.0f} s") from None
    match output.end:
        case _Failed(error=error, suggestion=cure):
            raise BuildFailed(f"{error}; {cure}" if cure else error)
        case _Done(artifacts=artifacts) if status == 0 and artifacts:
            return artifacts
    last = output.tail.decode(errors="replace").strip()
    what = "said too much in one line" if output.garbled else f"ended with status {status}"
    raise BuildFailed(f"the build {what}: {last}" if last else f"the build {what}")


async def _run(argv: list[str], said: Said, output: _Output) -> int:
    process = await anyio.open_process(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    )
    try:
        async with anyio.create_task_group() as tasks:
            if process.stderr is not None:
                tasks.start_soon(_keep_tail, process.stderr, output)
            if process.stdout is not None:
                await _read_lines(process.stdout, said, output)
        return await process.wait()
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    with anyio.CancelScope(shield=True):
        await process.aclose()


async def _read_lines(stream: ByteReceiveStream, said: Said, output: _Output) -> None:
    pending = b""
    async for chunk in stream:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            _take_line(line, said, output)
        if len(pending) > _LINE_BYTES:
            output.garbled, pending = True, b""


def _take_line(line: bytes, said: Said, output: _Output) -> None:
    try:
        match _LINE.validate_json(line):
            case _Progress(progress=progress, step=step):
                said(min(1.0, max(0.0, progress)), step[:200])
            case end:
                output.end = end
    except ValidationError:
        # Not a line of the protocol: a program the build ran wrote to our standard output.
        output.tail = (output.tail + line + b"\n")[-_TAIL_BYTES:]


async def _keep_tail(stream: ByteReceiveStream, output: _Output) -> None:
    async for chunk in stream:
        output.tail = (output.tail + chunk)[-_TAIL_BYTES:]


def _environment() -> dict[str, str]:
    """Ours without its secrets, and with this very package first."""
    kept = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    home = str(Path(nexus.__file__).parents[1])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (home, kept.get("PYTHONPATH"))))
    return kept
