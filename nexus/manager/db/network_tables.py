"""The tables of networks: their addresses, and the ports of hosts that lead into them."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from nexus.api.networks import NetworkError, NetworkKind, NetworkState, Protocol
from nexus.manager.db.base import BIG_ID, Base
from nexus.manager.db.columns import Typed, UtcDateTime


class NetworkRow(Base):
    """A network. Its hosts make it; ``state`` is what they say of that."""

    __tablename__ = "networks"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    name: Mapped[str] = mapped_column(String(32))
    kind: Mapped[NetworkKind] = mapped_column(String(16))
    host_id: Mapped[str | None] = mapped_column(ForeignKey("hosts.id"), index=True)
    """The host whose own network this is; None for one that every host makes."""
    cidr: Mapped[str] = mapped_column(String(18))
    gateway: Mapped[str | None] = mapped_column(String(15))
    uplink: Mapped[str | None] = mapped_column(String(15))
    isolate_vms: Mapped[bool] = mapped_column(default=False)
    dns: Mapped[list[str] | None] = mapped_column(Typed(list[str]))
    """None for the name servers of the host."""
    dhcp: Mapped[bool] = mapped_column(default=False)
    reserved: Mapped[list[str]] = mapped_column(Typed(list[str]), default=list)
    allow: Mapped[list[str]] = mapped_column(Typed(list[str]), default=list)
    bridge: Mapped[str] = mapped_column(String(15))
    state: Mapped[NetworkState] = mapped_column(String(16))
    error: Mapped[NetworkError | None] = mapped_column(Typed(NetworkError))
    last_address: Mapped[int] = mapped_column(BigInteger, default=0)
    """The address handed out last, as a number: freed addresses rest before they come back."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IpAddressRow(Base):
    """An address in use. The unique constraint decides who gets it."""

    __tablename__ = "ip_addresses"
    __table_args__ = (UniqueConstraint("network_id", "address"),)

    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    network_id: Mapped[str] = mapped_column(ForeignKey("networks.id"))
    address: Mapped[int] = mapped_column(BigInteger)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)


class PortForwardRow(Base):
    """A port of a host that leads to a VM. The unique constraint decides whose it is."""

    __tablename__ = "port_forwards"
    __table_args__ = (UniqueConstraint("host_id", "protocol", "host_port"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), default="default")
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.id"))
    protocol: Mapped[Protocol] = mapped_column(String(8))
    host_port: Mapped[int] = mapped_column(Integer)
    guest_port: Mapped[int] = mapped_column(Integer)
    iface: Mapped[str] = mapped_column(String(8))
    ip: Mapped[str] = mapped_column(String(15))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
