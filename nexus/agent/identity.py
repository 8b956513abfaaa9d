"""Telling a guest that was loaded from a snapshot which VM it is by now.

It woke up as the VM that the snapshot was taken of: with that one's name, addresses, machine id and
random numbers, and with the time of then.
"""

import hashlib
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict

from nexus.agent import guest
from nexus.agent.guest_identity import GuestIdentity, GuestNic
from nexus.api.errors import GuestAgentMissing, GuestFault, NexusError
from nexus.api.machines import Machine
from nexus.api.origins import Identity, IdentityState
from nexus.api.snapshots import HostSnapshot

PATIENCE_S = 5.0
"""How long a guest may say nothing before it is taken for one without an agent."""
RESTS_S = (0.0, 5.0, 15.0, 30.0)
"""Before each try; one that is called ``absent`` may still turn up."""
AGAIN_S = 0.005
SELDOM_S = 0.1


class KnownAs(BaseModel):
    """Who a guest takes itself for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vm_id: str
    macs: list[str]
    """Of its NICs, in their order."""

    @classmethod
    def of(cls, snapshot: HostSnapshot) -> "KnownAs":
        # Not the VM that was captured: that one may not have been told who it was.
        known = snapshot.machine
        return cls(vm_id=known.id, macs=[nic.mac for nic in known.nics])

    def machine(self, machine: Machine) -> Machine:
        """The machine with the id and the addresses that its guest knows."""
        nics = [
            nic.model_copy(update={"mac": mac})
            for nic, mac in zip(machine.nics, self.macs, strict=True)
        ]
        return machine.model_copy(update={"id": self.vm_id, "nics": nics})


def machine_id(vm_id: str) -> str:
    """``/etc/machine-id`` of a VM: always the same for it, and no other VM's."""
    return hashlib.sha256(vm_id.encode()).hexdigest()[:32]


def identity_of(machine: Machine, known_as: KnownAs) -> GuestIdentity:
    """What the guest is to be told. Its machine id stays when it is the same VM as before."""
    servers = dict.fromkeys(server for nic in machine.nics for server in nic.dns)
    return GuestIdentity(
        hostname=machine.name,
        machine_id=machine_id(machine.id) if known_as.vm_id != machine.id else None,
        nics=tuple(
            GuestNic(old_mac=old, mac=nic.mac, address=nic.ip, gateway=nic.gateway)
            for nic, old in zip(machine.nics, known_as.macs, strict=True)
        ),
        dns=tuple(servers),
    )


async def tell(
    socket: Path, machine: Machine, known_as: KnownAs, undisturbed: AbstractAsyncContextManager[Any]
) -> Identity:
    """Tells it as soon as it listens, and how that went. ``undisturbed`` is held meanwhile."""
    try:
        await _until_it_answers(socket)
        async with undisturbed:
            with anyio.fail_after(PATIENCE_S):
                await guest.identify(socket, identity_of(machine, known_as))
    except GuestAgentMissing as error:
        return _ended("absent", error.message)
    except NexusError as error:
        why = f"{error.message}: {error.fault_message}" if error.fault_message else error.message
        return _ended("failed", why)
    except TimeoutError:
        return _ended("failed", "the guest's agent does not say whether it took it")
    return _ended("applied", None)


async def _until_it_answers(socket: Path) -> None:
    """Firecracker resets the connections of a moment after a load, and a guest has its own work
    to take up first. Raises GuestAgentMissing, or another NexusError, when it never does."""
    last, pause_s = time.monotonic() + PATIENCE_S, AGAIN_S
    while True:
        try:
            with anyio.fail_after(PATIENCE_S):
                await guest.health(socket)
            return
        except TimeoutError as error:
            raise GuestAgentMissing("the guest's agent says nothing") from error
        except (GuestAgentMissing, GuestFault):
            if time.monotonic() > last:
                raise
        await anyio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, SELDOM_S)


def _ended(state: IdentityState, message: str | None) -> Identity:
    return Identity(state=state, message=message, at=datetime.now(UTC))
