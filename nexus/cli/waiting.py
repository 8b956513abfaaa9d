"""Waiting for a VM before somebody's eyes: what its host fetches for it is shown as it comes."""

import time

from nexus.api.common import Progress
from nexus.api.vms import Vm, VmCreate, WaitState
from nexus.client import Client, WaitTimedOut

POLL_FIRST_S = 0.02
POLL_MOST_S = 0.5


def create_and_watch(client: Client, spec: VmCreate, wait: WaitState, timeout_s: float) -> Vm:
    """Makes a VM and returns when it is as wanted, or in error. Raises WaitTimedOut.

    As long as something comes in, the time does not run.
    """
    vm = client.vms.create(spec)
    deadline, far, poll_s = time.monotonic() + timeout_s, vm.progress, POLL_FIRST_S
    with _Bar() as bar:
        while vm.state not in (wait, "error", "stopped"):
            time.sleep(poll_s)
            poll_s = min(poll_s * 1.5, POLL_MOST_S)
            vm = client.vms.get(vm.id)
            bar.show(vm.progress)
            if vm.progress != far:
                deadline, far = time.monotonic() + timeout_s, vm.progress
            if time.monotonic() > deadline:
                raise WaitTimedOut(
                    504,
                    "timed_out",
                    f"VM {vm.name!r} is {vm.state} and not {wait} after {timeout_s:g} s",
                    suggestion=f"it goes on: nexus why {vm.name}",
                )
    return vm


def in_words(progress: Progress) -> str:
    """``fetching the image of rootfs: 40 %``"""
    return f"{progress.what}: {progress.fraction * 100:.0f} %"


class _Bar:
    """A progress bar on standard error, there only while there is progress to show."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TaskProgressColumn())
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bars.add_task("", total=1.0, visible=False)
        self._shown = False

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bars.stop()

    def show(self, progress: Progress | None) -> None:
        if progress is None:
            return
        if not self._shown:
            self._bars.start()
            self._shown = True
        self._bars.update(
            self._task, visible=True, completed=progress.fraction, description=progress.what
        )
