"""What the commands on VMs do."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nexus.api.vms import Vm, VmCreate, VmState, WaitState
from nexus.cli import devices, terms
from nexus.cli.events import events_table
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import ago, as_json, fields, print_json, table
from nexus.cli.session import Session
from nexus.cli.waiting import create_and_watch, in_words
from nexus.cli.why import show_error, show_lines
from nexus.client import NexusApiError


@dataclass(frozen=True)
class RunOptions:
    image: str
    name: str | None
    vcpu: int
    mem: str
    kernel: str | None
    initrd: str | None
    kernel_args: str | None
    tags: list[str]
    ssh_keys: list[Path]
    user_data: Path | None
    vendor_data: Path | None
    config_drive: bool
    drives: list[str]
    nics: list[str]
    root_size: str | None
    root_limit: str | None
    balloon: str | None
    track_dirty: bool
    count: int | None
    terms: tuple[str | None, str | None, str | None]
    """``--restart``, ``--ttl``, ``--expires-at``"""
    start: bool
    wait: bool
    timeout_s: float


def run(session: Session, options: RunOptions) -> None:
    given: dict[str, object] = {
        "name": options.name,
        "kernel": options.kernel,
        "initrd": options.initrd,
        "kernel_args": options.kernel_args,
        "user_data": read(options.user_data) if options.user_data else None,
    }
    if options.vendor_data is not None:
        given["vendor_data"] = read(options.vendor_data)
    if options.config_drive:
        given["config_drive"] = True
    try:
        given |= _devices(options) | terms.given(*options.terms)
        spec = VmCreate(
            rootfs=options.image,
            vcpu=options.vcpu,
            mem_mib=devices.mib("--mem", options.mem),
            tags=terms.tags_of(options.tags),
            ssh_keys=[read(file).strip() for file in options.ssh_keys],
            start=options.start,
            track_dirty_pages=options.track_dirty,
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise UsageFault(problems(error)) from error
    wait: WaitState | None = None
    if options.wait:
        wait = "running" if options.start else "configured"
    with session.client() as client:
        if options.count is not None:
            made = client.vms.create_many(
                spec, options.count, wait=wait, timeout_s=options.timeout_s
            )
        elif wait is not None and session.output is None and sys.stderr.isatty():
            made = [create_and_watch(client, spec, wait, options.timeout_s)]
        else:
            made = [client.vms.create(spec, wait=wait, timeout_s=options.timeout_s)]
    print_vms(session, made, many=options.count is not None)
    refuse_failed(made)


def refuse_failed(made: list[Vm]) -> None:
    """Raises NexusApiError when a VM that was made is in error."""
    failed = [vm for vm in made if vm.state == "error"]
    vm = failed[0] if failed else made[0]
    if vm.state == "error" and vm.error:
        others = f" ({len(failed)} of {len(made)} failed)" if len(failed) > 1 else ""
        raise NexusApiError(
            409,
            "invalid_state",
            f"{vm.name} failed in stage {vm.error.stage}: {vm.error.message}{others}",
            suggestion=vm.error.suggestion,
            fault_message=vm.error.fault_message,
        )


def _devices(options: RunOptions) -> dict[str, object]:
    size, limit, balloon = options.root_size, options.root_limit, options.balloon
    return {
        "drives": [devices.drive(text) for text in options.drives] or None,
        "nics": [devices.nic(text) for text in options.nics] or None,
        "rootfs_size_mib": devices.mib("--root-size", size) if size else None,
        "rootfs_limits": devices.root_limits(limit) if limit else None,
        "balloon": devices.balloon(balloon) if balloon else None,
    }


def print_vms(session: Session, vms: list[Vm], *, many: bool) -> None:
    """What was made, in the form that was asked for."""
    if session.output == "json":
        shown = {"id": vms[0].id, "item": as_json(vms[0])}
        print_json(shown | {"items": [as_json(vm) for vm in vms]} if many else shown)
    elif session.output == "name":
        for vm in vms:
            print(vm.name)
    else:
        table(HEADINGS, [_row(vm) for vm in vms])


def read(file: Path) -> str:
    """A file's text. Raises UsageFault."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(f"{file} cannot be read: {error}") from error


HEADINGS = ("NAME", "STATE", "ADDRESS", "VCPU", "MEM", "IMAGE", "AGE", "ID")


def _row(vm: Vm) -> tuple[str, ...]:
    return (
        vm.name,
        vm.state,
        vm.nics[0].ip.partition("/")[0] if vm.nics else "-",
        str(vm.vcpu),
        f"{vm.mem_mib}M",
        vm.rootfs.name if vm.rootfs else vm.kernel.name,
        ago(vm.created_at),
        vm.id,
    )


@dataclass(frozen=True)
class ListOptions:
    state: str | None
    name: str | None
    host: str | None
    tags: list[str]
    project: str | None
    template: str | None = None
    pooled: bool = False


def ls(session: Session, options: ListOptions) -> None:
    state = options.state
    wanted: VmState | None = None
    if state is not None:
        for known in get_args(VmState):
            wanted = known if known == state else wanted
        if wanted is None:
            raise UsageFault(f"--state {state!r}: one of {', '.join(get_args(VmState))}")
    with session.client() as client:
        found = list(
            client.vms.list(
                state=wanted,
                name=options.name,
                host=options.host,
                tags=options.tags,
                project=options.project,
                template=options.template,
                pooled=options.pooled,
            )
        )
    if session.output == "json":
        print_json({"items": [as_json(vm) for vm in found], "next_cursor": None})
    elif session.output == "name":
        for vm in found:
            print(vm.name)
    else:
        table(HEADINGS, [_row(vm) for vm in found])


def show(session: Session, name: str) -> None:
    with session.client() as client:
        vm = client.vms.get(name)
        history = [] if session.output else list(client.vms.events(name))
    if session.output == "json":
        print_json({"item": as_json(vm)})
        return
    if session.output == "name":
        print(vm.name)
        return
    fields(
        [
            ("name", vm.name),
            ("id", vm.id),
            ("state", vm.state),
            ("progress", in_words(vm.progress) if vm.progress else None),
            ("project", vm.project),
            (
                "template",
                f"{vm.template.name} version {vm.template.version}" if vm.template else None,
            ),
            *_origin(vm),
            ("engine", vm.engine),
            ("vcpu", str(vm.vcpu)),
            ("memory", f"{vm.mem_mib} MiB"),
            ("kernel", vm.kernel.name),
            ("initrd", vm.initrd.name if vm.initrd else None),
            ("rootfs", vm.rootfs.name if vm.rootfs else None),
            ("kernel args", vm.kernel_args),
            *devices.shown(vm),
            *terms.shown(vm),
            ("tags", ", ".join(f"{key}={value}" for key, value in vm.tags.items())),
            ("host", vm.host_id),
            ("pid", str(vm.pid) if vm.pid else None),
            ("socket", vm.socket),
            ("created", vm.created_at.isoformat(timespec="seconds")),
            ("started", vm.started_at.isoformat(timespec="seconds") if vm.started_at else None),
        ]
    )
    if vm.error:
        print()
        show_error(vm.error)
        show_lines(vm.error.log_tail)
        print(f"more: nexus why {vm.name}")
    print()
    events_table(history)


def _origin(vm: Vm) -> list[tuple[str, str | None]]:
    """Which snapshot it was loaded from, and whether its guest knows who it is now."""
    if vm.origin is None:
        return []
    loaded = "" if vm.boot == vm.origin.boot else f"; boot {vm.boot} began with the kernel"
    said = vm.identity
    message = f": {said.message}" if said and said.message else ""
    return [
        (
            "loaded from",
            f"{vm.origin.name} ({vm.origin.snapshot}) at boot {vm.origin.boot}{loaded}",
        ),
        ("identity", f"{said.state}{message}" if said else None),
    ]
