"""What the commands on VMs do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nexus.api.vms import Vm, VmCreate, VmState, WaitState
from nexus.cli.events import events_table
from nexus.cli.exits import UsageFault
from nexus.cli.output import ago, as_json, fields, print_json, table
from nexus.cli.session import Session
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
    start: bool
    wait: bool
    timeout_s: float


def run(session: Session, options: RunOptions) -> None:
    given = {
        "name": options.name,
        "kernel": options.kernel,
        "initrd": options.initrd,
        "kernel_args": options.kernel_args,
        "user_data": _read(options.user_data) if options.user_data else None,
    }
    try:
        spec = VmCreate(
            rootfs=options.image,
            vcpu=options.vcpu,
            mem_mib=mem_mib(options.mem),
            tags=dict(_tag(tag) for tag in options.tags),
            ssh_keys=[_read(file).strip() for file in options.ssh_keys],
            start=options.start,
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise UsageFault(_problems(error)) from error
    wait: WaitState | None = None
    if options.wait:
        wait = "running" if options.start else "configured"
    with session.client() as client:
        vm = client.vms.create(spec, wait=wait, timeout_s=options.timeout_s)
    _print_vm(session, vm)
    if vm.state == "error" and vm.error:
        raise NexusApiError(
            409,
            "invalid_state",
            f"{vm.name} failed in stage {vm.error.stage}: {vm.error.message}",
            suggestion=vm.error.suggestion,
            fault_message=vm.error.fault_message,
        )


def _print_vm(session: Session, vm: Vm) -> None:
    if session.output == "json":
        print_json({"id": vm.id, "item": as_json(vm)})
    elif session.output == "name":
        print(vm.name)
    else:
        table(HEADINGS, [_row(vm)])


def mem_mib(text: str) -> int:
    """``256``, ``512M`` or ``2G`` in MiB."""
    match = re.fullmatch(r"(\d{1,9})\s*(|M|MiB|G|GiB)", text)
    if match is None:
        raise UsageFault(f"--mem {text!r}: write MiB as in 256 or 512M, or GiB as in 2G")
    return int(match[1]) * (1024 if match[2].startswith("G") else 1)


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageFault(f"--tag {text!r}: write key=value")
    return key, value


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(f"{file} cannot be read: {error}") from error


def _problems(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()
    )


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


def ls(session: Session, state: str | None, name: str | None) -> None:
    wanted: VmState | None = None
    if state is not None:
        for known in get_args(VmState):
            wanted = known if known == state else wanted
        if wanted is None:
            raise UsageFault(f"--state {state!r}: one of {', '.join(get_args(VmState))}")
    with session.client() as client:
        found = list(client.vms.list(state=wanted, name=name))
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
            ("project", vm.project),
            ("engine", vm.engine),
            ("vcpu", str(vm.vcpu)),
            ("memory", f"{vm.mem_mib} MiB"),
            ("kernel", vm.kernel.name),
            ("initrd", vm.initrd.name if vm.initrd else None),
            ("rootfs", vm.rootfs.name if vm.rootfs else None),
            ("kernel args", vm.kernel_args),
            *((nic.iface, f"{nic.ip} {nic.mac} on {nic.tap}") for nic in vm.nics),
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
        fields(
            [
                ("failed in", vm.error.stage),
                ("because", vm.error.message),
                ("the VMM says", vm.error.fault_message),
                ("try", vm.error.suggestion),
            ]
        )
        for line in vm.error.log_tail:
            print(f"  | {line}")
    print()
    events_table(history)
