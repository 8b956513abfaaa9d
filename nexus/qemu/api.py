"""Firecracker's API: which request does what. Order of checks and words follow Firecracker's."""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from nexus.qemu import FIRECRACKER_VERSION
from nexus.qemu.bodies import decode, refusal
from nexus.qemu.config import as_shown
from nexus.qemu.faults import AFTER_BOOT, BEFORE_BOOT, Fault
from nexus.qemu.http import Reply, Request
from nexus.qemu.instance import Instance
from nexus.qemu.log import Log, is_level
from nexus.qemu.metrics import Metrics
from nexus.qemu.mmds import DataStore
from nexus.vmm.types import (
    Balloon,
    BalloonStatsUpdate,
    BalloonUpdate,
    BootSource,
    CpuConfig,
    Drive,
    EntropyDevice,
    Error,
    FirecrackerVersion,
    InstanceActionInfo,
    Logger,
    MachineConfiguration,
    MmdsConfig,
    MmdsContents,
    NetworkInterface,
    PartialDrive,
    PartialMachineConfiguration,
    PartialNetworkInterface,
    ShownBalloon,
    SnapshotCreateParams,
    SnapshotLoadParams,
    Vm,
    Vsock,
)
from nexus.vmm.types import Metrics as MetricsTarget

T = TypeVar("T")
Handler = Callable[[bytes, str | None], Reply]

_ID = re.compile(r"[A-Za-z0-9_]+")
# How Firecracker's metrics call what an endpoint got.
_COUNTED = {
    "PUT": {
        "actions": "actions",
        "boot-source": "boot_source",
        "drives": "drive",
        "logger": "logger",
        "machine-config": "machine_cfg",
        "cpu-config": "cpu_cfg",
        "metrics": "metrics",
        "network-interfaces": "network",
        "mmds": "mmds",
        "vsock": "vsock",
    },
    "PATCH": {
        "drives": "drive",
        "network-interfaces": "network",
        "machine-config": "machine_cfg",
        "mmds": "mmds",
    },
    "GET": {
        "": "instance_info",
        "machine-config": "machine_cfg",
        "mmds": "mmds",
        "version": "vmm_version",
    },
}


class Api:
    """Serves requests to one instance."""

    def __init__(self, instance: Instance, mmds: DataStore, log: Log, metrics: Metrics) -> None:
        self._instance = instance
        self._mmds = mmds
        self._log = log
        self._metrics = metrics
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", ""): self._get_info,
            ("GET", "version"): self._get_version,
            ("GET", "machine-config"): self._get_machine,
            ("PUT", "machine-config"): self._put_machine,
            ("PATCH", "machine-config"): self._patch_machine,
            ("GET", "vm"): self._get_vm_config,
            ("PATCH", "vm"): self._patch_vm,
            ("PUT", "boot-source"): self._put_boot,
            ("PUT", "drives"): self._put_drive,
            ("PATCH", "drives"): self._patch_drive,
            ("PUT", "network-interfaces"): self._put_nic,
            ("PATCH", "network-interfaces"): self._patch_nic,
            ("PUT", "actions"): self._put_action,
            ("PUT", "snapshot"): self._put_snapshot,
            ("GET", "balloon"): self._get_balloon,
            ("PUT", "balloon"): self._put_balloon,
            ("PATCH", "balloon"): self._patch_balloon,
            ("PUT", "entropy"): self._put_entropy,
            ("PUT", "vsock"): self._put_vsock,
            ("PUT", "cpu-config"): self._put_cpu,
            ("GET", "mmds"): self._get_mmds,
            ("PUT", "mmds"): self._put_mmds,
            ("PATCH", "mmds"): self._patch_mmds,
            ("PUT", "logger"): self._put_logger,
            ("PUT", "metrics"): self._put_metrics,
        }

    def serve(self, request: Request) -> tuple[Reply, bool]:
        """The answer, and whether the VMM must end because of what happened."""
        body = f' with body "{_escaped(request.body)}"' if request.body else ""
        method = request.method.capitalize()
        said = f'The API server received a {method} request on "{request.target}"{body}.'
        self._log.info(said, "fc_api")
        fatal = False
        parts = [part for part in request.target.split("/") if part]
        try:
            reply = self._routed(request, parts)
            code = "204 No Content" if reply.status == 204 else "200 OK"
            text = f"The request was executed successfully. Status code: {code}."
            self._log.info(text, "fc_api")
        except Fault as fault:
            text = f"Received Error. Status code: 400 Bad Request. Message: {fault.message}"
            self._log.error(text, "fc_api")
            self._count(request, parts, "fails")
            fatal = fault.fatal
            body_out = msgspec.json.encode(Error(fault_message=fault.message))
            reply = Reply(400, body_out)
        unread = b"deserializing the json body" in reply.body
        reply.deprecated = not unread and _is_deprecated(request, parts)
        if reply.deprecated:
            self._metrics.count("deprecated_api", "deprecated_http_api_calls")
        return reply, fatal

    def _routed(self, request: Request, parts: list[str]) -> Reply:
        """A request never ends the machine: what nobody foresaw becomes a fault and a log line."""
        try:
            return self._route(request, parts)
        except Fault:
            raise
        except Exception as error:
            self._log.error(f"Unforeseen {type(error).__name__}: {error}", "fc_api")
            raise Fault(f"Internal error: {type(error).__name__}: {error}") from error

    def _route(self, request: Request, parts: list[str]) -> Reply:
        head = parts[0] if parts else ""
        if request.method == "GET" and request.body:
            raise Fault("GET request cannot have a body.")
        handler = self._handlers.get((request.method, head))
        if handler is None:
            raise _no_such(request.method, head)
        if request.method != "GET" and not request.body:
            raise Fault(f"Empty {request.method} request.")
        self._count(request, parts, "count")
        return handler(request.body, parts[1] if len(parts) > 1 else None)

    def _count(self, request: Request, parts: list[str], what: str) -> None:
        name = _COUNTED[request.method].get(parts[0] if parts else "")
        if name is not None and not (request.method == "GET" and what == "fails"):
            self._metrics.count(f"{request.method.lower()}_api_requests", f"{name}_{what}")

    # -- instance --------------------------------------------------------------------------------

    def _get_info(self, body: bytes, rest: str | None) -> Reply:
        return _json(self._instance.info(FIRECRACKER_VERSION))

    def _get_version(self, body: bytes, rest: str | None) -> Reply:
        return _json(FirecrackerVersion(firecracker_version=FIRECRACKER_VERSION))

    def _get_vm_config(self, body: bytes, rest: str | None) -> Reply:
        if rest != "config":
            raise _no_such("GET", "vm")
        return _json(self._instance.config.shown())

    def _patch_vm(self, body: bytes, rest: str | None) -> Reply:
        self._instance.set_state(decode(body, Vm).state)
        return Reply()

    def _put_action(self, body: bytes, rest: str | None) -> Reply:
        action = decode(body, InstanceActionInfo).action_type
        if action == "InstanceStart":
            self._instance.start()
        elif self._instance.guest is None:
            raise Fault(BEFORE_BOOT)
        elif action == "FlushMetrics":
            self._instance.flush_metrics()
        else:
            self._instance.press_power()
        return Reply()

    def _put_snapshot(self, body: bytes, rest: str | None) -> Reply:
        if rest == "create":
            self._instance.create_snapshot(decode(body, SnapshotCreateParams))
        elif rest == "load":
            params = decode(body, SnapshotLoadParams)
            if params.mem_file_path is None and params.mem_backend is None:
                raise refusal("missing field: either `mem_backend` or `mem_file_path` is required")
            if params.mem_file_path is not None and params.mem_backend is not None:
                raise refusal(
                    "too many fields: either `mem_backend` or `mem_file_path` exclusively is "
                    "required"
                )
            self._instance.load_snapshot(params)
        elif rest is None:
            raise Fault("Missing snapshot operation type.")
        else:
            raise _no_such("PUT", f"/snapshot/{rest}")
        return Reply()

    # -- configuration ---------------------------------------------------------------------------

    def _get_machine(self, body: bytes, rest: str | None) -> Reply:
        shown = msgspec.to_builtins(self._instance.config.machine_shown())
        return _json({name: value for name, value in shown.items() if value is not None})

    def _put_machine(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, MachineConfiguration)
        self._instance.before_boot().put_machine(new)
        return Reply()

    def _patch_machine(self, body: bytes, rest: str | None) -> Reply:
        change = decode(body, PartialMachineConfiguration)
        if change == PartialMachineConfiguration():
            raise Fault("Empty PATCH request.")
        self._instance.before_boot().patch_machine(change)
        return Reply()

    def _put_boot(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, BootSource)
        self._instance.before_boot().put_boot(new)
        return Reply()

    def _put_drive(self, body: bytes, rest: str | None) -> Reply:
        drive_id = _checked_id(rest)
        new = decode(body, Drive)
        _same_drive(drive_id, new.drive_id)
        self._instance.before_boot().put_drive(new)
        return Reply()

    def _patch_drive(self, body: bytes, rest: str | None) -> Reply:
        drive_id = _checked_id(rest)
        change = decode(body, PartialDrive)
        _same_drive(drive_id, change.drive_id)
        self._instance.patch_drive(change)
        return Reply()

    def _put_nic(self, body: bytes, rest: str | None) -> Reply:
        iface_id = _checked_id(rest)
        new = decode(body, NetworkInterface)
        _same_nic(iface_id, new.iface_id)
        self._instance.before_boot().put_nic(new)
        return Reply()

    def _patch_nic(self, body: bytes, rest: str | None) -> Reply:
        iface_id = _checked_id(rest)
        change = decode(body, PartialNetworkInterface)
        _same_nic(iface_id, change.iface_id)
        self._instance.patch_nic(change)
        return Reply()

    def _get_balloon(self, body: bytes, rest: str | None) -> Reply:
        if rest is None:
            return _json(as_shown(self._instance.balloon(), ShownBalloon))
        if rest != "statistics":
            raise Fault(f"Unrecognized GET request path `{rest}`.")
        return _json(self._instance.balloon_stats())

    def _put_balloon(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, Balloon)
        self._instance.before_boot().put_balloon(new)
        return Reply()

    def _patch_balloon(self, body: bytes, rest: str | None) -> Reply:
        if rest is None:
            self._instance.patch_balloon(decode(body, BalloonUpdate))
        elif rest == "statistics":
            self._instance.patch_balloon_stats(decode(body, BalloonStatsUpdate))
        else:
            raise _no_such("PATCH", f"/balloon/{rest}")
        return Reply()

    def _put_entropy(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, EntropyDevice)
        self._instance.before_boot().put_entropy(new)
        return Reply()

    def _put_vsock(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, Vsock)
        self._instance.before_boot().put_vsock(new)
        return Reply()

    def _put_cpu(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, CpuConfig)
        self._instance.before_boot().put_cpu(new)
        return Reply()

    # -- MMDS, logger, metrics -------------------------------------------------------------------

    def _get_mmds(self, body: bytes, rest: str | None) -> Reply:
        return _json(self._mmds.content)

    def _put_mmds(self, body: bytes, rest: str | None) -> Reply:
        if rest == "config":
            decode(body, MmdsConfig)
            self._instance.before_boot()
            raise Fault("MMDS config error: The guest cannot reach MMDS under nexus-qemu.")
        if rest is not None:
            raise _no_such("PUT", f"/mmds/{rest}")
        self._mmds.put(decode(body, MmdsContents))
        return Reply()

    def _patch_mmds(self, body: bytes, rest: str | None) -> Reply:
        self._mmds.patch(decode(body, MmdsContents))
        return Reply()

    def _put_logger(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, Logger)
        if new.level is not None and not is_level(new.level):
            raise refusal("Invalid LevelFilter")
        if self._instance.guest is not None:
            raise Fault(AFTER_BOOT)
        configure_logger(self._log, new)
        return Reply()

    def _put_metrics(self, body: bytes, rest: str | None) -> Reply:
        new = decode(body, MetricsTarget)
        if self._instance.guest is not None:
            raise Fault(AFTER_BOOT)
        self._metrics.open(new.metrics_path)
        return Reply()


def configure_logger(log: Log, wanted: Logger) -> None:
    """Applies ``PUT /logger`` or the same part of a configuration file; raises Fault."""
    try:
        log.configure(
            path=wanted.log_path,
            level=wanted.level,
            show_level=wanted.show_level,
            show_origin=wanted.show_log_origin,
        )
    except Fault as fault:
        raise Fault(f"Logger error: {fault.message}") from fault


def _json(answer: object) -> Reply:
    return Reply(200, msgspec.json.encode(answer))


def _no_such(method: str, path: str) -> Fault:
    return Fault(f"Invalid request method and/or path: {method} {path}.")


def _checked_id(given: str | None) -> str:
    if not given:
        raise Fault("The ID cannot be empty.")
    if not _ID.fullmatch(given):
        raise Fault("API Resource IDs can only contain alphanumeric characters and underscores.")
    return given


def _same_drive(from_path: str, from_body: str) -> None:
    if from_path != from_body:
        raise Fault("The id from the path does not match the id from the body!")


def _same_nic(from_path: str, from_body: str) -> None:
    if from_path != from_body:
        raise Fault(
            f"The id from the path [{from_path}] does not match the id from the body [{from_body}]!"
        )


def _is_deprecated(request: Request, parts: list[str]) -> bool:
    """Whether Firecracker marks this request with a Deprecation header."""
    where = (request.method, *parts[:2])
    if where in (("PUT", "machine-config"), ("PATCH", "machine-config")):
        return b'"cpu_template"' in request.body
    if where == ("PUT", "snapshot", "load"):
        return b'"mem_file_path"' in request.body and b'"mem_backend"' not in request.body
    if where == ("PUT", "mmds", "config"):
        return b'"V2"' not in request.body
    return where == ("PUT", "vsock") and b'"vsock_id"' in request.body


def _escaped(body: bytes) -> str:
    text = body[:4096].decode("utf-8", "replace")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
