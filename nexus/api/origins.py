"""Machines that begin with a snapshot instead of a boot, and who they are afterwards."""

from typing import Annotated, Literal

from pydantic import Field

from nexus.api.common import Timestamp, Uuid, Wire


class Origin(Wire):
    """The snapshot that a machine is loaded from."""

    snapshot: Uuid
    boot: Annotated[int, Field(ge=1)]
    """This boot is not booted but loaded: its disks and its memory are the snapshot's. Every
    later one is an ordinary boot from the machine's own disks."""


IdentityState = Literal["pending", "applied", "absent", "failed"]


class Identity(Wire):
    """Whether a loaded guest knows its own name, addresses, machine id, time and entropy.

    ``absent``: nobody in the guest answers who could tell it.
    """

    state: IdentityState
    message: str | None = None
    at: Timestamp | None = None
