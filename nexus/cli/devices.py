"""Drives, NICs, limits and balloons on the command line: reading, showing and changing them."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nexus.api.devices import (
    Balloon,
    BalloonChange,
    DriveChange,
    DriveCreate,
    DriveLimits,
    NicChange,
    NicCreate,
    NicLimits,
)
from nexus.api.vms import Vm
from nexus.cli.exits import UsageFault, problems
from nexus.cli.output import as_json, print_json
from nexus.cli.session import Session
from nexus.client import Client

Change = TypeVar("Change", DriveChange, NicChange, BalloonChange)

_UNITS = {"": 1, "M": 1, "MiB": 1, "G": 1024, "GiB": 1024, "T": 1 << 20, "TiB": 1 << 20}
_DRIVE_LIMITS = {
    "bw": "bandwidth_mib_s",
    "bw-burst": "bandwidth_burst_mib",
    "iops": "iops",
    "iops-burst": "iops_burst",
}
_NIC_LIMITS = {"rx": "rx_mbit_s", "tx": "tx_mbit_s"}
NONE = "none"
"""What lifts a limit."""


def drive(text: str) -> DriveCreate:
    """``data,size=10G,bw=50,iops=1000``, ``tools,image=NAME,ro`` or ``db,volume=NAME``."""
    name, *words = text.split(",")
    given: dict[str, Any] = {"name": name}
    limits: dict[str, float | None] = {}
    for key, value in _pairs("--drive", words):
        if key in ("ro", "rw") and value is None:
            given["read_only"] = key == "ro"
        elif key == "size" and value is not None:
            given["size_mib"] = mib("--drive size", value)
        elif key == "image" and value is not None:
            given["image"] = value
        elif key == "volume" and value is not None:
            given["volume"] = value
        elif key in _DRIVE_LIMITS and value is not None:
            limits[_DRIVE_LIMITS[key]] = _number(f"--drive {key}", value)
        else:
            raise UsageFault(
                f"--drive {text!r}: write NAME,size=10G, NAME,image=IMAGE,ro or NAME,volume=VOLUME"
            )
    if limits:
        given["limits"] = limits
    return DriveCreate.model_validate(given)


def nic(text: str) -> NicCreate:
    """A network's name, with ``ip=``, ``rx=`` and ``tx=`` behind it: ``lab,ip=10.9.0.5,rx=100``.

    Without a name, or with ``default`` or ``nat``, it is the host's own network.
    """
    words = text.split(",")
    given: dict[str, Any] = {}
    if "=" not in words[0]:
        name = words.pop(0)
        if name not in ("nat", "default"):
            given["network"] = name
    given |= {key: value for key, value in _pairs("--nic", words) if key == "ip"}
    rest = [word for word in words if not word.strip().startswith("ip=")]
    limits = _limits("--nic", rest, _NIC_LIMITS, "NETWORK,ip=ADDRESS,rx=100,tx=50")
    if limits:
        given["limits"] = limits
    return NicCreate.model_validate(given)


def root_limits(text: str) -> DriveLimits:
    """``bw=50,iops=1000``"""
    limits = _limits("--root-limit", text.split(","), _DRIVE_LIMITS, "bw=50,iops=1000")
    return DriveLimits.model_validate(limits)


def balloon(text: str) -> Balloon:
    """``64M``, with ``stats=SECONDS`` and ``no-deflate`` behind it."""
    size, *words = text.split(",")
    given: dict[str, Any] = {"target_mib": mib("--balloon", size)}
    for key, value in _pairs("--balloon", words):
        if key == "no-deflate" and value is None:
            given["deflate_on_oom"] = False
        elif key == "stats" and value is not None:
            given["stats_interval_s"] = _number("--balloon stats", value)
        else:
            raise UsageFault(f"--balloon {text!r}: write 64M, or 64M,stats=1,no-deflate")
    return Balloon.model_validate(given)


def mib(option: str, text: str) -> int:
    """``256``, ``512M``, ``2G`` or ``1T`` in MiB."""
    match = re.fullmatch(r"(\d{1,9})\s*([MGT]iB|[MGT]|)", text)
    if match is None:
        raise UsageFault(f"{option} {text!r}: write MiB as in 256 or 512M, or GiB as in 2G")
    return int(match[1]) * _UNITS[match[2]]


def _pairs(option: str, words: list[str]) -> list[tuple[str, str | None]]:
    found = []
    for word in words:
        key, equals, value = word.strip().partition("=")
        if not key or (equals and not value):
            raise UsageFault(f"{option}: {word!r} is neither KEY=VALUE nor a word")
        found.append((key, value if equals else None))
    return found


def _limits(
    option: str, words: list[str], known: Mapping[str, str], example: str
) -> dict[str, float | None]:
    limits: dict[str, float | None] = {}
    for key, value in _pairs(option, words):
        if key not in known or value is None:
            raise UsageFault(f"{option} {','.join(words)!r}: write {example}")
        limits[known[key]] = _number(f"{option} {key}", value)
    return limits


def _number(option: str, text: str) -> float | None:
    if text == NONE:
        return None
    if re.fullmatch(r"\d{1,12}", text):
        return int(text)
    if re.fullmatch(r"\d{1,12}\.\d{1,6}", text):
        return float(text)
    raise UsageFault(f"{option} {text!r}: write a number, or none")


# -- showing ---------------------------------------------------------------------------------------


def shown(vm: Vm) -> list[tuple[str, str | None]]:
    """Drives, NICs and balloon for ``nexus show``."""
    found: list[tuple[str, str | None]] = []
    for each in vm.drives:
        words = [each.device, f"{each.size_mib} MiB"]
        words += [f"from {each.image.name}"] if each.image else []
        words += [f"volume {each.volume.name}"] if each.volume else []
        words += ["read-only"] if each.read_only else []
        found.append((f"drive {each.name}", " ".join([*words, _drive_words(each.limits)])))
    for one in vm.nics:
        words = [one.ip, one.mac, "on", one.tap]
        found.append((one.iface, " ".join([*words, _nic_words(one.limits)])))
    if vm.balloon is not None:
        found.append(("balloon", f"{vm.balloon.target_mib} MiB are to be given back"))
    if vm.devices_error is not None:
        found.append(("refused", vm.devices_error.message))
        found.append(("the VMM says", vm.devices_error.fault_message))
    return [(name, text.strip() if text else None) for name, text in found]


def _drive_words(limits: DriveLimits | None) -> str:
    if limits is None:
        return ""
    words = []
    if limits.bandwidth_mib_s is not None:
        words.append(f"{limits.bandwidth_mib_s:g} MiB/s")
    if limits.iops is not None:
        words.append(f"{limits.iops} IOPS")
    return f"at most {', '.join(words)}"


def _nic_words(limits: NicLimits | None) -> str:
    if limits is None:
        return ""
    given = (("receives", limits.rx_mbit_s), ("sends", limits.tx_mbit_s))
    words = [f"{verb} {rate:g} Mbit/s" for verb, rate in given if rate is not None]
    return f"at most {', '.join(words)}"


# -- changing --------------------------------------------------------------------------------------


def limit_drive(
    session: Session, name: str, drive_name: str, given: Mapping[str, str | None], timeout_s: float
) -> None:
    change = _checked(DriveChange, {"limits": _given(given, _DRIVE_LIMITS)})
    _change(
        session,
        lambda client: client.vms.change_drive(name, drive_name, change, timeout_s=timeout_s),
    )


def grow_drive(session: Session, name: str, drive_name: str, size: str, timeout_s: float) -> None:
    change = _checked(DriveChange, {"size_mib": mib("SIZE", size)})
    _change(
        session,
        lambda client: client.vms.change_drive(name, drive_name, change, timeout_s=timeout_s),
    )


def limit_nic(
    session: Session, name: str, iface: str, given: Mapping[str, str | None], timeout_s: float
) -> None:
    change = _checked(NicChange, {"limits": _given(given, _NIC_LIMITS)})
    _change(session, lambda client: client.vms.change_nic(name, iface, change, timeout_s=timeout_s))


def set_balloon(session: Session, name: str, size: str, timeout_s: float) -> None:
    target_mib = _checked(BalloonChange, {"target_mib": mib("SIZE", size)}).target_mib
    _change(session, lambda client: client.vms.set_balloon(name, target_mib, timeout_s=timeout_s))


def _given(given: Mapping[str, str | None], known: Mapping[str, str]) -> dict[str, float | None]:
    found = {
        known[key]: _number(f"--{key}", value) for key, value in given.items() if value is not None
    }
    if not found:
        raise UsageFault(f"nothing to change: give {' or '.join(f'--{key}' for key in known)}")
    return found


def _checked(kind: type[Change], value: dict[str, Any]) -> Change:
    try:
        return kind.model_validate(value)
    except ValueError as error:
        raise UsageFault(problems(error)) from error


def _change(session: Session, send: Callable[[Client], Vm]) -> None:
    with session.client() as client:
        vm = send(client)
    if session.output == "json":
        print_json({"item": as_json(vm)})
    else:
        print(vm.name)
