"""What the commands on templates do."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nexus.api.templates import TemplateCreate, TemplateInstantiate, TemplateVersion
from nexus.api.vms import VmSpec, WaitState
from nexus.cli import devices, terms
from nexus.cli.actions import each
from nexus.cli.exits import UsageFault, problems
from nexus.cli.furnish import Given
from nexus.cli.output import ago, as_json, fields, print_json, table
from nexus.cli.session import Session
from nexus.cli.vms import print_vms, read, refuse_failed
from nexus.client import Client

HEADINGS = ("NAME", "VERSION", "VCPU", "MEM", "KERNEL", "IMAGE", "UPDATED", "ID")
EDITOR = "vi"


def ls(session: Session, name: str | None) -> None:
    with session.client() as client:
        found = list(client.templates.list(name=name))
    if session.output == "json":
        print_json({"items": [as_json(template) for template in found], "next_cursor": None})
    elif session.output == "name":
        for template in found:
            print(template.name)
    else:
        table(
            HEADINGS,
            [
                (
                    template.name,
                    str(template.version),
                    str(template.spec.vcpu),
                    f"{template.spec.mem_mib}M",
                    template.images.kernel.name,
                    template.images.rootfs.name if template.images.rootfs else "-",
                    ago(template.updated_at),
                    template.id,
                )
                for template in found
            ],
        )


def create(
    session: Session,
    name: str,
    given: Given,
    file: str | None,
    from_vm: str | None,
    note: str,
    clones: Mapping[str, Any],
) -> None:
    if file is not None and from_vm is not None:
        raise UsageFault("--from and --file are two ways to say the same")
    try:
        spec = VmSpec.model_validate(_from_file(file) | spec_fields(given))
        request: dict[str, Any] = {"name": name, "spec": spec, "note": note}
        request |= {key: value for key, value in clones.items() if value is not None}
        made = TemplateCreate.model_validate(request | ({"from_vm": from_vm} if from_vm else {}))
    except ValidationError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        template = client.templates.create(made)
        version = client.templates.version(template.id, template.version)
    _print_version(session, version, {"id": template.id, "item": as_json(template)})


def update(
    session: Session,
    name: str,
    given: Given,
    file: str | None,
    note: str,
    clones: Mapping[str, Any],
) -> None:
    try:
        spec = VmSpec.model_validate(_from_file(file) | spec_fields(given))
    except ValidationError as error:
        raise UsageFault(problems(error)) from error
    if not spec.model_fields_set and all(value is None for value in clones.values()):
        raise UsageFault("say what is to be changed: an option, or --file")
    _change(session, name, spec, note, clones)


def edit(session: Session, name: str, note: str) -> None:
    """The spec as YAML in an editor; only if nobody else made a version meanwhile."""
    import yaml

    with session.client() as client:
        template, etag = client.templates.get_with_etag(name)
    before = yaml.safe_dump(as_json(template.spec), sort_keys=False, allow_unicode=True)
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or EDITOR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{template.name}.yaml"
        file.write_text(before)
        try:
            ended = subprocess.run([*editor, str(file)], check=False)
        except OSError as error:
            raise UsageFault(f"{editor[0]}: {error.strerror}; set EDITOR") from error
        after = read(file)
    if ended.returncode != 0 or after == before:
        print("nothing was changed", file=sys.stderr)
        return
    try:
        edited = VmSpec.model_validate(_mapping(after, str(file)))
    except ValidationError as error:
        raise UsageFault(problems(error)) from error
    # A field whose line was taken away is as if nobody had ever said anything of it.
    spec = VmSpec(**dict(edited))
    _change(session, template.id, spec, note, {}, if_match=etag)


def _change(
    session: Session,
    name: str,
    spec: VmSpec,
    note: str,
    clones: Mapping[str, Any],
    *,
    if_match: str | None = None,
) -> None:
    with session.client() as client:
        template = client.templates.update(name, spec, note=note, if_match=if_match, **clones)
        version = client.templates.version(template.id, template.version)
    _print_version(session, version, {"item": as_json(template)})


def show(session: Session, name: str, number: int | None) -> None:
    with session.client() as client:
        number = number or client.templates.get(name).version
        version = client.templates.version(name, number)
        booted = client.templates.preboots(name) if version.preboot else []
    _print_version(session, version, {"item": as_json(version)})
    if booted and session.output in (None, "table"):
        print()
        rows = [
            (each.host_id, str(each.version), each.state, str(each.pooled), each.message or "")
            for each in booted
        ]
        table(("HOST", "VERSION", "PREBOOTED", "WAITING", "MESSAGE"), rows)


def versions(session: Session, name: str) -> None:
    with session.client() as client:
        found = list(client.templates.versions(name))
    if session.output == "json":
        print_json({"items": [as_json(version) for version in found], "next_cursor": None})
    elif session.output == "name":
        for version in found:
            print(version.version)
    else:
        rows = [(str(v.version), ago(v.created_at), v.created_by, v.note) for v in found]
        table(("VERSION", "AGE", "BY", "NOTE"), rows)


def diff(
    session: Session, name: str | None, before: int | None, after: int | None, vm: str | None
) -> None:
    if (name is None) == (vm is None):
        raise UsageFault("name a template, or a VM with --vm")
    with session.client() as client:
        if vm is not None:
            template = client.vms.get(vm).template
            if template is None:
                raise UsageFault(f"{vm} comes from no template")
            name = template.id
        found = client.templates.diff(name or "", before=before, after=after, vm=vm)
    if session.output == "json":
        print_json({"item": as_json(found)})
    elif session.output == "name":
        for change in found.changes:
            print(change.field)
    elif not found.changes:
        print(f"{found.template} {found.before} and {found.after} are the same")
    else:
        rows = [(each.field, _word(each.before), _word(each.after)) for each in found.changes]
        table((found.template.upper(), found.before, found.after), rows)


def run(
    session: Session,
    template: str,
    given: Given,
    asked: Mapping[str, Any],
    *,
    wait: bool,
    timeout_s: float,
) -> None:
    named = {key: value for key, value in asked.items() if value is not None}
    if asked["expires_at"] is not None:
        named["expires_at"] = terms.time(asked["expires_at"])
    try:
        request = TemplateInstantiate.model_validate(named | spec_fields(given))
    except ValidationError as error:
        raise UsageFault(problems(error)) from error
    with session.client() as client:
        goal: WaitState | None = None
        if wait:
            goal = "running" if _starts(client, template, request) else "configured"
        made = client.templates.instantiate(template, request, wait=goal, timeout_s=timeout_s)
    if session.output == "json":
        print_json(as_json(made))
    else:
        print_vms(session, made.items, many=request.count is not None)
    refuse_failed(made.items)


def _starts(client: Client, template: str, request: TemplateInstantiate) -> bool:
    if "start" in request.model_fields_set:
        return request.start
    if request.version is None:
        return client.templates.get(template).spec.start
    return client.templates.version(template, request.version).spec.start


def remove(session: Session, names: list[str]) -> None:
    each(session, names, lambda client, name: client.templates.delete(name))


def spec_fields(given: Given) -> dict[str, Any]:
    """The fields of a spec that options give. Raises UsageFault."""
    said: dict[str, Any] = {
        name: given[name]
        for name in ("rootfs", "kernel", "initrd", "kernel_args", "vcpu")
        if name in given
    }
    readers: dict[str, tuple[str, Any]] = {
        "mem": ("mem_mib", lambda text: devices.mib("--mem", text)),
        "tag": ("tags", terms.tags_of),
        "ssh_key": ("ssh_keys", lambda files: [read(file).strip() for file in files]),
        "user_data": ("user_data", read),
        "drive": ("drives", lambda texts: [devices.drive(text) for text in texts]),
        "nic": ("nics", lambda texts: [devices.nic(text) for text in texts]),
        "root_size": ("rootfs_size_mib", lambda text: devices.mib("--root-size", text)),
        "root_limit": ("rootfs_limits", devices.root_limits),
        "balloon": ("balloon", devices.balloon),
        "restart": ("restart_policy", terms.policy),
        "ttl": ("ttl", lambda text: None if text == terms.NEVER else terms.seconds(text)),
    }
    try:
        return said | {
            field: reader(given[name]) for name, (field, reader) in readers.items() if name in given
        }
    except ValidationError as error:
        raise UsageFault(problems(error)) from error


def _from_file(file: str | None) -> dict[str, Any]:
    """Fields of a spec: alone in the file, or as ``nexus template show`` prints them."""
    if file is None:
        return {}
    return _mapping(sys.stdin.read() if file == "-" else read(Path(file)), file)


def _mapping(text: str, file: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageFault(f"{file} is neither YAML nor JSON: {error}") from error
    for key in ("item", "spec"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageFault(f"{file}: write fields of a spec, such as mem_mib: 256")
    return found


def _print_version(session: Session, version: TemplateVersion, answer: object) -> None:
    if session.output == "json":
        print_json(answer)
    elif session.output == "name":
        print(version.name)
    else:
        images = version.images
        spec = as_json(version.spec)
        said = spec.items() if isinstance(spec, dict) else ()
        fields(
            [
                ("name", version.name),
                ("id", version.template_id),
                ("version", str(version.version)),
                ("note", version.note),
                ("preboot", "yes" if version.preboot else None),
                ("pool", str(version.pool) if version.pool else None),
                (
                    "made",
                    f"{version.created_at.isoformat(timespec='seconds')} {version.created_by}",
                ),
                ("kernel", images.kernel.name),
                ("initrd", images.initrd.name if images.initrd else None),
                ("rootfs", images.rootfs.name if images.rootfs else None),
                *(
                    (name, _word(value))
                    for name, value in said
                    if name not in ("kernel", "initrd", "rootfs") and value not in (None, [], {})
                ),
            ]
        )


def _word(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
