"""What the commands on VMs do."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nexus.api.vms import LogSource, Vm, VmCreate, VmEvent, VmState, WaitState
from nexus.cli.exits import UsageFault, exit_code_of
from nexus.cli.output import ago, as_json, fields, print_done, print_json, show_bytes, table
from nexus.cli.session import Session
from nexus.client import Client, NexusApiError


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
    _events_table(history)


def events(session: Session, name: str) -> None:
    with session.client() as client:
        found = list(client.vms.events(name))
    if session.output == "json":
        print_json({"items": [as_json(event) for event in found], "next_cursor": None})
    else:
        _events_table(found)


def _events_table(found: list[VmEvent]) -> None:
    rows = [
        (
            event.at.isoformat(timespec="milliseconds"),
            event.state,
            event.reason,
            event.actor,
            event.message,
        )
        for event in found
    ]
    table(("TIME", "STATE", "REASON", "BY", "MESSAGE"), rows)


Action = Literal["start", "pause", "resume"]


def act(session: Session, action: Action, names: list[str], timeout_s: float) -> None:
    def one(client: Client, name: str) -> None:
        match action:
            case "start":
                client.vms.start(name, wait="running", timeout_s=timeout_s)
            case "pause":
                client.vms.pause(name, wait="paused", timeout_s=timeout_s)
            case "resume":
                client.vms.resume(name, wait="running", timeout_s=timeout_s)

    each(session, names, one)


def stop(session: Session, names: list[str], *, force: bool, grace_s: float) -> None:
    each(
        session,
        names,
        lambda client, name: client.vms.stop(name, force=force, grace_s=grace_s, wait="stopped"),
    )


def remove(session: Session, names: list[str], *, force: bool, timeout_s: float) -> None:
    def one(client: Client, name: str) -> None:
        if not force and (state := client.vms.get(name).state) in ("running", "paused"):
            raise NexusApiError(
                409,
                "invalid_state",
                f"{name} is {state}",
                suggestion=f"nexus rm -f {name}, or nexus stop {name} first",
            )
        client.vms.delete(name, timeout_s=timeout_s)

    each(session, names, one)


def each(session: Session, names: list[str], one: Callable[[Client, str], None]) -> None:
    """Does it for every name; a failure does not keep the others from it. The worst code wins."""
    code = 0
    done: list[str] = []
    with session.client() as client:
        for name in names:
            try:
                one(client, name)
            except NexusApiError as error:
                code = max(code, exit_code_of(error) or 1)
            else:
                done.append(name)
                if session.output != "json":
                    print(name, flush=True)
    if session.output == "json":
        print_done(done)
    if code:
        sys.exit(code)


def logs(session: Session, name: str, source: LogSource, *, follow: bool, tail: int) -> None:
    with session.client() as client:
        if follow:
            for chunk in client.vms.follow_logs(name, source=source, tail=tail):
                show_bytes(chunk)
            return
        chunk_of_lines = client.vms.logs(name, source=source, tail=tail)
    if session.output == "json":
        print_json({"item": as_json(chunk_of_lines)})
        return
    for line in chunk_of_lines.lines:
        show_bytes(f"{line}\n".encode())
