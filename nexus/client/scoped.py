"""``with client.vm(...)``: a VM for as long as a block lasts."""

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from nexus.api.vms import Vm, VmCreate
from nexus.client.errors import NexusApiError, NotFoundError, WaitTimedOut, failed

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client

LOOK_FIRST_S = 0.01
LOOK_MOST_S = 0.5
DELETE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class VmOptions:
    """What ``client.vm`` takes. See ``nexus.api.vms.VmCreate``; sizes are MiB."""

    image: str | None
    name: str | None
    vcpu: int
    mem_mib: int
    kernel: str | None
    initrd: str | None
    kernel_args: str | None
    tags: Mapping[str, str]
    ssh_keys: Sequence[str]
    user_data: str | None

    def spec(self) -> VmCreate:
        """The request. Raises ValueError (pydantic's) for what no manager would take."""
        given = {
            "rootfs": self.image,
            "name": self.name,
            "kernel": self.kernel,
            "initrd": self.initrd,
            "kernel_args": self.kernel_args,
            "user_data": self.user_data,
        }
        return VmCreate(
            vcpu=self.vcpu,
            mem_mib=self.mem_mib,
            tags=dict(self.tags),
            ssh_keys=list(self.ssh_keys),
            **{name: value for name, value in given.items() if value is not None},
        )


class Boot:
    """A VM's way to ``running``, looked at ever less often. Does no I/O."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._pause_s = LOOK_FIRST_S

    def pause_s(self, vm: Vm) -> float | None:
        """How long to rest before looking again; None when it runs.

        Raises the VM's own error, or WaitTimedOut.
        """
        if vm.state == "running":
            return None
        if vm.state not in ("requested", "configured"):
            raise failed(vm)
        if time.monotonic() >= self._deadline:
            raise WaitTimedOut(
                504,
                "timed_out",
                f"{vm.name} is {vm.state} after {self._timeout_s:g} s, not running",
                suggestion=f"nexus events {vm.name}",
            )
        pause_s, self._pause_s = self._pause_s, min(LOOK_MOST_S, self._pause_s * 1.5)
        return pause_s


@contextmanager
def scoped_vm(client: "Client", options: VmOptions, timeout_s: float) -> Iterator[Vm]:
    """The VM, running; deleted at the end of the block however that ends."""
    boot = Boot(timeout_s)
    # Not with ``wait``: the id is needed at once, to delete what does not come to run.
    vm = client.vms.create(options.spec())
    try:
        while (pause_s := boot.pause_s(vm)) is not None:
            time.sleep(pause_s)
            vm = client.vms.get(vm.id)
        yield vm
    except BaseException as error:
        try:
            _delete(client, vm)
        except NexusApiError as left:
            error.add_note(f"and VM {vm.name} was not deleted: {left}; try: nexus rm -f {vm.name}")
        raise
    _delete(client, vm)


def _delete(client: "Client", vm: Vm) -> None:
    with suppress(NotFoundError):
        client.vms.delete(vm.id, timeout_s=DELETE_TIMEOUT_S)


@asynccontextmanager
async def scoped_vm_async(
    client: "AsyncClient", options: VmOptions, timeout_s: float
) -> AsyncIterator[Vm]:
    """The VM, running; deleted at the end of the block however that ends, also when cancelled."""
    boot = Boot(timeout_s)
    # Not cut off half-way: a VM that was made is one that is deleted.
    with anyio.CancelScope(shield=True):
        vm = await client.vms.create(options.spec())
    try:
        while (pause_s := boot.pause_s(vm)) is not None:
            await anyio.sleep(pause_s)
            vm = await client.vms.get(vm.id)
        yield vm
    except BaseException as error:
        try:
            await _delete_async(client, vm)
        except NexusApiError as left:
            error.add_note(f"and VM {vm.name} was not deleted: {left}; try: nexus rm -f {vm.name}")
        raise
    await _delete_async(client, vm)


async def _delete_async(client: "AsyncClient", vm: Vm) -> None:
    with anyio.CancelScope(shield=True), suppress(NotFoundError):
        await client.vms.delete(vm.id, timeout_s=DELETE_TIMEOUT_S)
