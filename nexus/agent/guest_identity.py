"""Who a guest is to be once it was loaded from a snapshot, as the guest's agent is told.

docs/guest-agent.md, ``identify``.
"""

from dataclasses import dataclass

from nexus.agent.guest_frames import Fields

ENTROPY_BYTES = 64


@dataclass(frozen=True, slots=True)
class GuestNic:
    """A NIC that the guest has, and what it is to become."""

    old_mac: str
    """By which the guest knew it when the snapshot was taken."""
    mac: str
    address: str
    """With its prefix length: ``10.77.0.5/20``."""
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    """What makes a guest somebody of its own. None, or nothing given, is left as it is."""

    hostname: str | None = None
    machine_id: str | None = None
    """32 digits of hexadecimal numbers (man 5 machine-id)."""
    nics: tuple[GuestNic, ...] = ()
    dns: tuple[str, ...] = ()


def request(identity: GuestIdentity, *, entropy: bytes, time_ms: int) -> Fields:
    """The fields of the request."""
    fields = [("op", "identify"), ("entropy", entropy.hex()), ("time_ms", str(time_ms))]
    if identity.hostname is not None:
        fields.append(("hostname", identity.hostname))
    if identity.machine_id is not None:
        fields.append(("machine_id", identity.machine_id))
    for nic in identity.nics:
        value = f"{nic.old_mac},{nic.mac},{nic.address},{nic.gateway or ''}"
        fields.append(("nic", value))
    return fields + [("dns", server) for server in identity.dns]
