"""Loading a snapshot in the place of a boot.

A VMM is spawned with nothing configured; while it starts, disks and TAPs are made ready; then it is
told to load, with this VM's TAPs in the place of those of the VM that the snapshot was taken of.
"""

import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from nexus.agent import drives, faults, snapshot_files
from nexus.agent.errors import HostFull, StageFailed, disk_failure
from nexus.agent.inventory import cpu_model
from nexus.agent.layout import (
    SNAPSHOT_MEMORY,
    SNAPSHOT_STATE,
    SnapshotPaths,
    VmPaths,
    drive_file,
    is_disk,
    tap_name,
)
from nexus.agent.process import Vmm
from nexus.agent.snapshots import Shelf
from nexus.agent.starting import BOOT_TIMEOUT_S, ENDING_S, NoAnswer, ensure_taps, first_of
from nexus.agent.tools import Tools
from nexus.agent.tuning import Told, wanted
from nexus.api.common import Engine
from nexus.api.errors import Conflict, NexusError, NotFound
from nexus.api.machines import Machine
from nexus.api.origins import Origin
from nexus.api.snapshots import HostSnapshot
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmFailure
from nexus.vmm.types import InstanceState, MemoryBackend, NetworkOverride, SnapshotLoadParams

FORMAT_TIMEOUT_S = 10.0
_CURES = (
    ("tap", "check the TAP devices on the host (ip -br link)"),
    ("version", "choose a host with the VMM that the snapshot was taken with: nexus host ls"),
    ("cpu", "choose a host with the CPU that the snapshot was taken on: nexus host ls"),
    ("os error 12", "free memory on the host (free -m), or stop VMs"),
    ("crc", "the snapshot's files are damaged: delete it, and take it anew"),
)


@dataclass(frozen=True)
class Host:
    """What a snapshot has to fit."""

    engine: Engine
    vmm_version: str
    cpu: str


def mismatch(snapshot: HostSnapshot, machine: Machine, host: Host) -> Conflict | None:
    """Why this host, or this machine, cannot have that snapshot; versions of a VMM are no reason
    yet, see ``formats_fit``."""
    if snapshot.engine != host.engine:
        return Conflict(
            f"the snapshot was made with the engine {snapshot.engine}, this host has {host.engine}",
            suggestion=f"choose a host with the engine {snapshot.engine}: nexus host ls",
        )
    if snapshot.engine == "qemu" and snapshot.vmm_version != host.vmm_version:
        return Conflict(
            f"the snapshot was made with QEMU {snapshot.vmm_version}, this host has "
            f"{host.vmm_version}",
            suggestion="choose a host with the same QEMU, or take the snapshot anew",
        )
    if snapshot.engine == "firecracker" and snapshot.cpu != host.cpu:
        return Conflict(
            f"the snapshot was made on a CPU {snapshot.cpu!r}, this host has {host.cpu!r}",
            suggestion="choose a host with the same CPU: nexus host ls",
        )
    source = snapshot.machine
    shapes = (
        ("vCPUs", snapshot.vcpu, machine.vcpu),
        ("MiB of memory", snapshot.mem_mib, machine.mem_mib),
        ("NICs", [nic.iface for nic in source.nics], [nic.iface for nic in machine.nics]),
        ("root disk", source.rootfs is not None, machine.rootfs is not None),
        ("drives", _drives(source), _drives(machine)),
        ("balloon", source.balloon is not None, machine.balloon is not None),
    )
    for what, then, now in shapes:
        if then != now:
            return Conflict(
                f"the snapshot's machine and this one differ in {what}: {then} and {now}",
                suggestion="make a VM of the snapshot's shape: nexus snapshot clone",
            )
    return None


def _drives(machine: Machine) -> list[tuple[str, bool]]:
    return [(drive.name, drive.read_only) for drive in machine.drives]


def formats_fit(firecracker: Path, state: Path) -> bool:
    """Whether this Firecracker reads the state that another version wrote.

    Firecracker docs, snapshot-support/versioning: the same major number of the format, and no
    higher minor. Blocks for two runs of the program.
    """
    ours = _format([str(firecracker), "--snapshot-version"])
    theirs = _format([str(firecracker), "--describe-snapshot", str(state)])
    return ours is not None and theirs is not None and ours[0] == theirs[0] and ours >= theirs


def _format(command: list[str]) -> tuple[int, ...] | None:
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=FORMAT_TIMEOUT_S, text=True, check=False
        )
        first = done.stdout.partition("\n")[0]
        return tuple(int(part) for part in first.removeprefix("v").split("."))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


async def loadable(
    shelf: Shelf, origin: Origin, machine: Machine, tools: Tools, engine: Engine
) -> HostSnapshot:
    """The snapshot, with all of its memory.

    Raises Conflict or NotFound with the reason when this host or this machine cannot have it,
    before anything was done; HostFull when a diff cannot be merged.
    """
    snapshot = shelf.get(origin.snapshot)
    host = Host(engine, tools.engine_version, cpu_model())
    refusal = mismatch(snapshot, machine, host)
    if refusal is not None:
        raise refusal
    if engine == "firecracker" and snapshot.vmm_version != host.vmm_version and tools.firecracker:
        state = shelf.paths(snapshot.id).state
        if not await anyio.to_thread.run_sync(formats_fit, tools.firecracker, state):
            raise Conflict(
                f"the snapshot was made with Firecracker {snapshot.vmm_version}; this host's "
                f"{host.vmm_version} does not read its format",
                suggestion="choose a host with that Firecracker, or take the snapshot anew",
            )
    return await shelf.whole(snapshot.id)


def failed(error: NexusError) -> StageFailed:
    """What ``loadable`` raised, as the failure of a machine's step."""
    if isinstance(error, NotFound | HostFull):
        return StageFailed("disk", error.message, suggestion=error.suggestion)
    return StageFailed("configure", error.message, suggestion=error.suggestion)


def told(snapshot: HostSnapshot) -> Told:
    """What a VMM knows of its devices once it has loaded: what the one before was told."""
    return wanted(snapshot.machine) if snapshot.devices_told else Told()


# -- files ---------------------------------------------------------------------------------------


@dataclass
class Placing:
    """How far a snapshot's disks got on their way."""

    begun: bool = False
    """The first of the VM's own may be gone."""
    done: bool = False


def place(
    machine: Machine,
    snapshot: HostSnapshot,
    folder: SnapshotPaths,
    paths: VmPaths,
    owner: int | None,
    placing: Placing | None = None,
) -> None:
    """Puts the snapshot's disks where the VM has its own, for ever. Cut off, it is done again;
    ``placing`` tells how far it got.

    Blocks for the time of the clones. Raises StageFailed("disk").
    """
    volumes = {drive_file(d.name): d for d in machine.drives if d.volume is not None}
    read_only = {drive_file(d.name) for d in snapshot.machine.drives if d.read_only}
    placing = placing or Placing()
    fresh: dict[Path, Path] = {}
    try:
        for file in snapshot.files:
            if not is_disk(file.name):
                continue
            volume = volumes[file.name].volume if file.name in volumes else None
            target = paths.volume(volume) if volume else paths.root / file.name
            fresh[target] = made = target.with_name(f".{target.name}.new")
            if file.name in read_only and volume is None:
                snapshot_files.link(folder.disk(file.name), made)
            else:
                snapshot_files.clone(folder.disk(file.name), made)
                drives.make_private(made, owner)
        faults.point("load_placing")
        placing.begun = True
        for target, made in fresh.items():
            made.replace(target)
        for drive in volumes.values():
            drives.ensure_volume(drive, paths.volume(drive.volume or ""), paths.root, owner)
        placing.done = True
    except FileNotFoundError as error:
        raise gone(snapshot.id) from error
    except OSError as error:
        raise disk_failure(error, paths.root) from error
    finally:
        for made in fresh.values():
            made.unlink(missing_ok=True)
    faults.point("load_placed")


def link_memory(snapshot: HostSnapshot, folder: SnapshotPaths, paths: VmPaths) -> None:
    """Memory and state under their names in the VM's root. Raises StageFailed("disk")."""
    try:
        snapshot_files.link(folder.memory, paths.snapshot_memory)
        snapshot_files.link(folder.state, paths.snapshot_state)
    except FileNotFoundError as error:
        raise gone(snapshot.id) from error
    except OSError as error:
        raise disk_failure(error, paths.root) from error


def unlink_memory(paths: VmPaths) -> None:
    """Takes the names away: a VMM that has loaded needs them no more."""
    paths.snapshot_memory.unlink(missing_ok=True)
    paths.snapshot_state.unlink(missing_ok=True)


def gone(snapshot_id: str) -> StageFailed:
    return StageFailed(
        "disk",
        f"this host has no snapshot {snapshot_id}",
        suggestion="see which there are: nexus snapshot ls",
    )


# -- the VMM -------------------------------------------------------------------------------------


async def make_ready(
    machine: Machine,
    snapshot: HostSnapshot,
    folder: SnapshotPaths,
    paths: VmPaths,
    tools: Tools,
    uid: int | None,
    placing: Placing | None,
) -> None:
    """Files and TAPs side by side; without ``placing`` the VM's disks are the snapshot's already.

    Raises StageFailed. The TAPs' rules are there before the guest goes on, so it never speaks
    with the addresses of the VM that the snapshot was taken of.
    """

    def files() -> None:
        if placing is not None:
            place(machine, snapshot, folder, paths, uid, placing)
        link_memory(snapshot, folder, paths)

    try:
        async with anyio.create_task_group() as both:
            both.start_soon(anyio.to_thread.run_sync, files)
            both.start_soon(ensure_taps, machine, paths, tools, uid)
    except* StageFailed as failures:
        raise first_of(failures) from None


async def load(
    machine: Machine,
    vmm: Vmm,
    client: VmmClient,
    ready: Callable[[], Awaitable[None]],
    *,
    fresh: bool,
) -> bool | None:
    """Whether the guest is paused, once it was loaded; None for a VMM that ended before.

    ``ready`` is what must be done before; a ``fresh`` VMM starts meanwhile, one that an earlier
    agent started may have loaded already. Raises what ``ready`` raises, StageFailed("configure")
    when the VMM refuses, NoAnswer when it lives and does not answer.
    """
    try:
        state = await _until_api(vmm, client, ready, fresh=fresh)
        if state != "Not started":
            return state == "Paused"
        faults.point("load_ready")
        paused = machine.power == "paused"
        await client.load_snapshot(_params(machine, resume=not paused))
    except VmmError as error:
        raise _refusal(error, machine) from error
    except VmmFailure as error:
        with anyio.move_on_after(ENDING_S):
            await vmm.exited.wait()
            return None
        raise NoAnswer(error.message) from error
    faults.point("load_loaded")
    return paused


async def _until_api(
    vmm: Vmm, client: VmmClient, ready: Callable[[], Awaitable[None]], *, fresh: bool
) -> InstanceState:
    if not fresh:
        info = await client.wait_for_socket(BOOT_TIMEOUT_S, died=lambda: not vmm.alive)
        if info.state == "Not started":
            await ready()
        return info.state
    failures: list[Exception] = []
    async with anyio.create_task_group() as both:

        async def start() -> None:
            try:
                await client.wait_for_listener(BOOT_TIMEOUT_S, died=lambda: not vmm.alive)
            except VmmFailure as error:
                failures.append(error)

        both.start_soon(start)
        try:
            await ready()
        except StageFailed as error:
            failures.insert(0, error)
            both.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return "Not started"


def _refusal(error: VmmError, machine: Machine) -> StageFailed:
    return StageFailed(
        "configure",
        "the VMM does not load the snapshot",
        fault_message=error.fault_message,
        suggestion=_cure(error.fault_message, machine.name),
    )


def _cure(fault: str, name: str) -> str:
    for sign, cure in _CURES:
        if sign in fault.lower():
            return cure
    return f"take the snapshot anew; the VMM's log says more: nexus logs {name} --source vmm"


def _params(machine: Machine, *, resume: bool) -> SnapshotLoadParams:
    return SnapshotLoadParams(
        snapshot_path=SNAPSHOT_STATE,
        mem_backend=MemoryBackend(backend_path=SNAPSHOT_MEMORY, backend_type="File"),
        enable_diff_snapshots=machine.track_dirty_pages,
        resume_vm=resume,
        network_overrides=[
            NetworkOverride(iface_id=nic.iface, host_dev_name=tap_name(machine.id, index))
            for index, nic in enumerate(machine.nics)
        ],
    )
