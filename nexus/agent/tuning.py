"""Changing devices of a VMM that runs: limits, sizes of drives, the balloon's target.

What a VMM was told last is written down; what differs from what is wanted is told it. So the same
wish twice does nothing, an agent that was cut off says it again, and what somebody changed past us
through the proxy stays until something else is wanted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from nexus.agent.layout import ROOTFS, drive_file
from nexus.agent.limits import drive_limiter, nic_limiters, outright
from nexus.api.devices import ROOT_DRIVE, DriveLimits, NicLimits
from nexus.api.machines import Machine
from nexus.api.vms import VmError
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmFailure
from nexus.vmm.types import BalloonUpdate, PartialDrive, PartialNetworkInterface

FIRST_REST_S = 1.0
LONGEST_REST_S = 60.0


class Told(BaseModel):
    """What a VMM knows of the devices that can change while it runs."""

    model_config = ConfigDict(extra="forbid")

    drive_limits: dict[str, DriveLimits | None] = Field(default_factory=dict)
    drive_sizes: dict[str, int | None] = Field(default_factory=dict)
    """In MiB; None is as large as what it was made from."""
    nic_limits: dict[str, NicLimits | None] = Field(default_factory=dict)
    balloon_mib: int | None = None


@dataclass(frozen=True)
class Change:
    """One request to the VMM: what it is about, in words, and what is known once it was taken."""

    about: str
    body: PartialDrive | PartialNetworkInterface | BalloonUpdate
    then: Told
    """Only what this change says."""


def wanted(machine: Machine) -> Told:
    """What a VMM of this machine should have been told."""
    told = Told(
        drive_limits={drive.name: drive.limits for drive in machine.drives},
        drive_sizes={drive.name: drive.size_mib for drive in machine.drives},
        nic_limits={nic.iface: nic.limits for nic in machine.nics},
        balloon_mib=machine.balloon.target_mib if machine.balloon else None,
    )
    if machine.rootfs is not None:
        told.drive_limits[ROOT_DRIVE] = machine.rootfs_limits
        told.drive_sizes[ROOT_DRIVE] = machine.rootfs_size_mib
    return told


def changes(told: Told, wish: Told) -> Iterator[Change]:
    """What to tell a VMM that knows ``told``."""
    missing = object()
    for name, limits in wish.drive_limits.items():
        if told.drive_limits.get(name, missing) != limits:
            body = PartialDrive(drive_id=name, rate_limiter=outright(drive_limiter(limits)))
            yield Change(f"the limits of drive {name}", body, Told(drive_limits={name: limits}))
    for name, size_mib in wish.drive_sizes.items():
        # With the path of the same file the VMM looks at its size again.
        if size_mib is not None and told.drive_sizes.get(name) != size_mib:
            path = ROOTFS if name == ROOT_DRIVE else drive_file(name)
            body = PartialDrive(drive_id=name, path_on_host=path)
            about = f"drive {name} of {size_mib} MiB"
            yield Change(about, body, Told(drive_sizes={name: size_mib}))
    for iface, nic in wish.nic_limits.items():
        if told.nic_limits.get(iface, missing) != nic:
            rx, tx = nic_limiters(nic)
            patch = PartialNetworkInterface(
                iface_id=iface, rx_rate_limiter=outright(rx), tx_rate_limiter=outright(tx)
            )
            yield Change(f"the limits of NIC {iface}", patch, Told(nic_limits={iface: nic}))
    if wish.balloon_mib is not None and told.balloon_mib != wish.balloon_mib:
        update = BalloonUpdate(amount_mib=wish.balloon_mib)
        about = f"a balloon of {wish.balloon_mib} MiB"
        yield Change(about, update, Told(balloon_mib=wish.balloon_mib))


def learnt(told: Told, then: Told) -> Told:
    """What a VMM knows after one more change."""
    return Told(
        drive_limits={**told.drive_limits, **then.drive_limits},
        drive_sizes={**told.drive_sizes, **then.drive_sizes},
        nic_limits={**told.nic_limits, **then.nic_limits},
        balloon_mib=told.balloon_mib if then.balloon_mib is None else then.balloon_mib,
    )


async def tell(client: VmmClient, told: Told, wish: Told) -> tuple[Told, VmError | None]:
    """Tells a VMM what it does not know yet. One refusal does not keep the others from it.

    Returns what it knows now, and the first refusal.
    """
    refused: VmError | None = None
    for change in list(changes(told, wish)):
        try:
            await _send(client, change)
        except VmmFailure as error:
            refused = refused or VmError(
                stage="run",
                message=f"the VMM does not take {change.about}: {error.message}",
                fault_message=error.fault_message if isinstance(error, VmmError) else None,
                suggestion="it is tried again; ask for something else, or restart the VM",
            )
        else:
            told = learnt(told, change.then)
    return told, refused


async def _send(client: VmmClient, change: Change) -> None:
    match change.body:
        case PartialDrive() as drive:
            await client.patch_drive(drive)
        case PartialNetworkInterface() as nic:
            await client.patch_network_interface(nic)
        case BalloonUpdate() as balloon:
            await client.patch_balloon(balloon)


def rest_s(refusals: int) -> float:
    """How long to rest after so many refusals in a row."""
    return min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** max(0, min(refusals - 1, 16)))
