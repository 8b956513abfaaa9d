"""The calls that change drives, NICs and the balloon of a VM."""

from typing import TypeVar

from nexus.api.common import Item
from nexus.api.devices import BalloonChange, DeviceWait, DriveChange, NicChange
from nexus.api.vms import Vm
from nexus.client.calls.call import Call, item, one, patience, waiting

Change = TypeVar("Change", DriveChange, NicChange, BalloonChange)


def change_drive(
    ref: str, name: str, change: DriveChange, wait: bool, timeout_s: float | None
) -> Call[Vm]:
    return _patch(one(one("/v1/vms", ref, "drives"), name), change, wait, timeout_s)


def change_nic(
    ref: str, iface: str, change: NicChange, wait: bool, timeout_s: float | None
) -> Call[Vm]:
    return _patch(one(one("/v1/vms", ref, "nics"), iface), change, wait, timeout_s)


def change_balloon(
    ref: str, change: BalloonChange, wait: bool, timeout_s: float | None
) -> Call[Vm]:
    return _patch(one("/v1/vms", ref, "balloon"), change, wait, timeout_s)


def _patch(path: str, change: Change, wait: bool, timeout_s: float | None) -> Call[Vm]:
    until: DeviceWait | None = "applied" if wait else None
    return Call(
        "PATCH",
        path,
        item(Item[Vm]),
        waiting(until, timeout_s),
        change,
        patience(until, timeout_s),
    )
