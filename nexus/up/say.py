"""What ``nexus up`` tells its user: prose and progress for people, one JSON line for programs."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nexus.up.disk import HostDisk


class Say(Protocol):
    def step(self, text: str) -> None: ...
    def progress(self, what: str, step: str, fraction: float) -> None: ...
    def progress_done(self) -> None: ...
    def guest(self, text: str) -> None: ...
    def ready(self, facts: dict[str, Any]) -> None: ...


class ForPrograms:
    """Nothing on stdout but one line, once all is ready."""

    def step(self, text: str) -> None:
        print(text, file=sys.stderr)

    def progress(self, what: str, step: str, fraction: float) -> None:
        return

    def progress_done(self) -> None:
        return

    def guest(self, text: str) -> None:
        return

    def ready(self, facts: dict[str, Any]) -> None:
        print(json.dumps(facts), flush=True)


class ForPeople:
    """Prose, a progress bar on a terminal, and at the end what to try next."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_step = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.progress_done()

    def step(self, text: str) -> None:
        self._console.print(text, markup=False)

    def progress(self, what: str, step: str, fraction: float) -> None:
        if not self._console.is_terminal:
            if step != self._last_step:
                self._last_step = step
                self.step(f"  {what}: {step}")
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("  {task.fields[what]}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[step]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=1.0, what=what, step=step)
        if self._task is not None:
            self._progress.update(self._task, completed=fraction, what=what, step=step)

    def progress_done(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def guest(self, text: str) -> None:
        """The guest's own words, as they come; what could steer the terminal is left out."""
        clean = "".join(c for c in text if c == "\n" or c == "\t" or c.isprintable())
        for line in clean.splitlines():
            self._console.print(f"  │ {line}", markup=False, style="dim")

    def ready(self, facts: dict[str, Any]) -> None:
        nexus = _command(Path(facts["data"]))
        self._console.print()
        for name, value in (
            ("API", f"{facts['url']}  (OpenAPI: {facts['url']}/openapi.json)"),
            ("admin token", facts["token_file"]),
            ("engine", f"{facts['engine']} ({facts['engine_reason']})"),
            ("images from", facts["image_root"]),
        ):
            self._console.print(f"  {name:<12} {value}", markup=False)
        self._console.print("\nTry next, in another terminal:", markup=False)
        for command in ("ls", "console hello", "run busybox --name second --wait"):
            self._console.print(f"  {nexus} {command}", markup=False)
        self._console.print("\nCtrl-C stops the services; VMs keep running.", markup=False)


def _command(data: Path) -> str:
    """How this user calls ``nexus`` from here: by name, by path, with ``--data`` where needed."""
    from nexus.up.place import default_data_dir

    program = Path(sys.argv[0])
    word = "nexus" if program.name != "nexus" else str(program)
    if program.is_relative_to(Path.cwd()):
        word = str(program.relative_to(Path.cwd()))
    if data != default_data_dir():
        word = f"{word} --data {shlex.quote(str(data))}"
    return word


def host_disk(made: HostDisk, *, as_json: bool) -> None:
    """What ``nexus host init`` found or made, and what it gains."""
    if as_json:
        print(json.dumps(asdict(made)))
        return
    if made.file is None:
        print("The file system of the data folder shares blocks already; nothing is to be done.")
    else:
        word = "is made" if made.made else "is there"
        print(f"{made.file} {word}: {made.size_mib} MiB at most, mounted at {made.mounted_at}")
    if made.clone_before_ms is not None:
        print(f"  clone of {made.measured_mib} MiB before  {made.clone_before_ms:.1f} ms")
    if made.clone_after_ms is not None:
        print(f"  clone of {made.measured_mib} MiB now     {made.clone_after_ms:.1f} ms")
    if made.made:
        print("nexus up mounts it; nexus host init --undo moves all back and removes it.")
