"""A typed client of Firecracker's API over its unix socket: one method an endpoint.

It speaks to ``firecracker`` and to ``nexus-qemu`` alike. Every method raises

- ``VmmError`` when the VMM refuses, with its own ``fault_message``,
- ``VmmUnreachable`` when nobody answers,
- ``VmmTimeout`` when the answer does not come in time.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import anyio
import h11
import msgspec

from nexus.vmm import types as t
from nexus.vmm.errors import VmmError, VmmTimeout, VmmUnreachable
from nexus.vmm.wire import exchange, reach

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
START_TIMEOUT_S = 30.0
# A full snapshot writes all of the guest's memory.
SNAPSHOT_TIMEOUT_S = 300.0

_encode = msgspec.json.Encoder().encode


class VmmClient:
    """The API of the VMM that serves ``socket``; holds no connection and needs no closing.

    The path may be longer than a socket address; its directory must then not be replaced during
    a call.
    """

    def __init__(
        self, socket: Path, *, timeout_s: float = CALL_TIMEOUT_S, server_pid: int | None = None
    ) -> None:
        """With ``server_pid`` it speaks to that process only, and raises VmmImpostor for others."""
        self.socket = socket
        self.timeout_s = timeout_s
        self.server_pid = server_pid

    # -- the instance ----------------------------------------------------------------------

    async def wait_for_socket(
        self, timeout_s: float, *, died: Callable[[], bool] | None = None
    ) -> t.InstanceInfo:
        """Waits until the API answers, and returns what ``GET /`` says.

        ``died`` is asked between tries; once true, VmmUnreachable is raised without waiting for
        the time-out, which raises VmmTimeout.
        """
        return await self._tried(self.describe_instance, timeout_s, died)

    async def wait_for_listener(
        self, timeout_s: float, *, died: Callable[[], bool] | None = None
    ) -> None:
        """The same, but for the question: the API takes connections."""
        await self._tried(self._connect, timeout_s, died)

    async def _tried(
        self, ask: Callable[[], Awaitable[T]], timeout_s: float, died: Callable[[], bool] | None
    ) -> T:
        """The socket's file exists a moment before it accepts: what is refused is tried again."""
        pause_s = 0.0005
        unreachable: VmmUnreachable | None = None
        with anyio.move_on_after(timeout_s):
            while True:
                # A look at the file costs a twentieth of a request, so it may be often.
                if self.socket.exists():
                    try:
                        return await ask()
                    except VmmUnreachable as error:
                        unreachable = error
                if died is not None and died():
                    raise VmmUnreachable(f"the VMM of {self.socket} ended before its API answered")
                await anyio.sleep(pause_s)
                pause_s = min(pause_s * 1.1, 0.02)
        raise VmmTimeout(f"no API on {self.socket} after {timeout_s} s") from unreachable

    async def describe_instance(self) -> t.InstanceInfo:
        return await self._get("/", t.InstanceInfo)

    async def version(self) -> str:
        return (await self._get("/version", t.FirecrackerVersion)).firecracker_version

    async def vm_config(self) -> t.FullVmConfiguration:
        return await self._get("/vm/config", t.FullVmConfiguration)

    async def start(self) -> None:
        """Boots the guest with what has been configured."""
        await self._action("InstanceStart", START_TIMEOUT_S)

    async def send_ctrl_alt_del(self) -> None:
        """Asks the guest to shut down; it may take its time, or ignore it."""
        await self._action("SendCtrlAltDel", self.timeout_s)

    async def flush_metrics(self) -> None:
        await self._action("FlushMetrics", self.timeout_s)

    async def pause(self) -> None:
        await self._send("PATCH", "/vm", t.Vm(state="Paused"))

    async def resume(self) -> None:
        await self._send("PATCH", "/vm", t.Vm(state="Resumed"))

    # -- before boot -----------------------------------------------------------------------

    async def put_boot_source(self, source: t.BootSource) -> None:
        await self._send("PUT", "/boot-source", source)

    async def machine_config(self) -> t.ShownMachineConfiguration:
        return await self._get("/machine-config", t.ShownMachineConfiguration)

    async def put_machine_config(self, machine: t.MachineConfiguration) -> None:
        await self._send("PUT", "/machine-config", machine)

    async def patch_machine_config(self, change: t.PartialMachineConfiguration) -> None:
        await self._send("PATCH", "/machine-config", change)

    async def put_cpu_config(self, template: t.CpuConfig) -> None:
        await self._send("PUT", "/cpu-config", template)

    async def put_entropy(self, device: t.EntropyDevice) -> None:
        await self._send("PUT", "/entropy", device)

    async def put_vsock(self, device: t.Vsock) -> None:
        await self._send("PUT", "/vsock", device)

    async def put_serial(self, device: t.SerialDevice) -> None:
        """Firecracker 1.14 and newer."""
        await self._send("PUT", "/serial", device)

    async def put_logger(self, logger: t.Logger) -> None:
        await self._send("PUT", "/logger", logger)

    async def put_metrics(self, metrics: t.Metrics) -> None:
        await self._send("PUT", "/metrics", metrics)

    # -- devices that change while the guest runs ---------------------------------------------

    async def put_drive(self, drive: t.Drive) -> None:
        await self._send("PUT", f"/drives/{_segment(drive.drive_id)}", drive)

    async def patch_drive(self, change: t.PartialDrive) -> None:
        await self._send("PATCH", f"/drives/{_segment(change.drive_id)}", change)

    async def put_network_interface(self, nic: t.NetworkInterface) -> None:
        await self._send("PUT", f"/network-interfaces/{_segment(nic.iface_id)}", nic)

    async def patch_network_interface(self, change: t.PartialNetworkInterface) -> None:
        await self._send("PATCH", f"/network-interfaces/{_segment(change.iface_id)}", change)

    async def balloon(self) -> t.ShownBalloon:
        return await self._get("/balloon", t.ShownBalloon)

    async def put_balloon(self, balloon: t.Balloon) -> None:
        await self._send("PUT", "/balloon", balloon)

    async def patch_balloon(self, change: t.BalloonUpdate) -> None:
        await self._send("PATCH", "/balloon", change)

    async def balloon_stats(self) -> t.BalloonStats:
        return await self._get("/balloon/statistics", t.BalloonStats)

    async def patch_balloon_stats(self, change: t.BalloonStatsUpdate) -> None:
        await self._send("PATCH", "/balloon/statistics", change)

    # -- metadata service --------------------------------------------------------------------

    async def put_mmds_config(self, config: t.MmdsConfig) -> None:
        await self._send("PUT", "/mmds/config", config)

    async def mmds(self) -> t.MmdsContents:
        return await self._get("/mmds", dict)

    async def put_mmds(self, contents: t.MmdsContents) -> None:
        await self._send("PUT", "/mmds", contents)

    async def patch_mmds(self, contents: t.MmdsContents) -> None:
        """Merges: RFC 7396."""
        await self._send("PATCH", "/mmds", contents)

    # -- snapshots ---------------------------------------------------------------------------

    async def create_snapshot(self, snapshot: t.SnapshotCreateParams) -> None:
        """Of a paused guest."""
        await self._send("PUT", "/snapshot/create", snapshot, SNAPSHOT_TIMEOUT_S)

    async def load_snapshot(self, snapshot: t.SnapshotLoadParams) -> None:
        """In a VMM where nothing but logger and metrics has been configured."""
        await self._send("PUT", "/snapshot/load", snapshot, SNAPSHOT_TIMEOUT_S)

    # -- the wire ----------------------------------------------------------------------------

    async def request(
        self, method: str, target: str, body: bytes | None = None, *, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Any request as it is; returns status and body of any answer, refusals included."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            with anyio.fail_after(limit_s):
                return await exchange(self.socket, method, target, body, server_pid=self.server_pid)
        except TimeoutError as error:
            raise VmmTimeout(f"{method} {target}: no answer after {limit_s} s") from error
        except (
            OSError,
            anyio.BrokenResourceError,
            anyio.EndOfStream,
            h11.RemoteProtocolError,
        ) as error:
            raise VmmUnreachable(
                f"{method} {target} on {self.socket}: {error or type(error).__name__}"
            ) from error

    async def _connect(self) -> None:
        try:
            with anyio.fail_after(self.timeout_s):
                await reach(self.socket)
        except (OSError, TimeoutError) as error:
            raise VmmUnreachable(f"{self.socket}: {error or type(error).__name__}") from error

    async def _action(self, action: t.ActionType, timeout_s: float) -> None:
        await self._send("PUT", "/actions", t.InstanceActionInfo(action_type=action), timeout_s)

    async def _send(
        self, method: str, target: str, body: object, timeout_s: float | None = None
    ) -> None:
        status, answer = await self.request(method, target, _encode(body), timeout_s=timeout_s)
        _raise_for_status(status, answer, f"{method} {target}")

    async def _get(self, target: str, shape: type[T]) -> T:
        status, answer = await self.request("GET", target)
        _raise_for_status(status, answer, f"GET {target}")
        try:
            return msgspec.json.decode(answer, type=shape)
        except msgspec.DecodeError as error:
            raise VmmUnreachable(f"GET {target}: not an answer of a VMM: {error}") from error


def _raise_for_status(status: int, answer: bytes, endpoint: str) -> None:
    if 200 <= status < 300:
        return
    try:
        fault = msgspec.json.decode(answer, type=t.Error).fault_message
    except msgspec.DecodeError:
        fault = answer[:500].decode("utf-8", "replace")
    raise VmmError(status, fault, endpoint)


def _segment(text: str) -> str:
    return quote(text, safe="")
