"""Network devices by netlink: bridges and TAPs. Blocking calls of about a millisecond or less."""

import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from nexus.agent.errors import NetworkFailed

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_UP = 0x1
# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCBRADDIF = 0x89A2


@dataclass(frozen=True)
class Link:
    """A network device as it was seen."""

    index: int
    name: str
    alias: str | None
    kind: str | None
    master: int | None
    up: bool = False
    carrier: bool = False
    """Whether something is at the other end."""
    owner: int | None = None
    """Of a TAP: the uid that may open it; None for nobody in particular."""


class Links:
    """Netlink, one request at a time; may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def find(self, name: str) -> Link | None:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return None
        with self._lock:
            try:
                found = self._netlink.link("get", index=index)
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise
        return _link(found[0])

    def all(self) -> list[Link]:
        with self._lock:
            return [_link(message) for message in self._netlink.get_links()]

    def create_bridge(self, name: str) -> None:
        """Raises FileExistsError when there is a device of that name."""
        self._ask("link", "add", ifname=name, kind="bridge")

    def set(self, index: int, **change: Any) -> None:
        """Changes a device: ``state``, ``master``, ``ifname``, ``ifalias``."""
        self._ask("link", "set", index=index, **change)

    def delete(self, name: str) -> bool:
        """False when there was no such device."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return False
        # A socket of its own: the kernel takes some 20 ms, and others need not wait for it.
        with IPRoute() as netlink:
            try:
                netlink.link("del", index=index)
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return False
                raise
        return True

    def ensure_address(self, index: int, address: ipaddress.IPv4Interface) -> None:
        try:
            self._ask(
                "addr",
                "add",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )
        except FileExistsError:
            return

    def addresses(self, index: int) -> list[ipaddress.IPv4Interface]:
        with self._lock:
            found = self._netlink.get_addr(family=socket.AF_INET, index=index)
        return [ipaddress.IPv4Interface((m.get_attr("IFA_ADDRESS"), m["prefixlen"])) for m in found]

    def remove_address(self, index: int, address: ipaddress.IPv4Interface) -> None:
        self._ask(
            "addr",
            "del",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
        )

    def networks_in_use(self, *, but: Collection[int] = ()) -> list[ipaddress.IPv4Network]:
        """Every network that this machine has an address in or a route to, but the default and
        those of the devices in ``but``, given by index."""
        networks = []
        with self._lock:
            routes = list(self._netlink.get_routes(family=socket.AF_INET))
            addresses = list(self._netlink.get_addr(family=socket.AF_INET))
        for route in routes:
            if route.get_attr("RTA_OIF") in but:
                continue
            destination = route.get_attr("RTA_DST")
            if destination and route["dst_len"]:
                networks.append(
                    ipaddress.IPv4Network((destination, route["dst_len"]), strict=False)
                )
        for address in addresses:
            if address["index"] in but:
                continue
            given = (address.get_attr("IFA_ADDRESS"), address["prefixlen"])
            networks.append(ipaddress.IPv4Network(given, strict=False))
        return networks

    def ensure_tap(self, name: str, bridge: int, owner: int | None) -> None:
        """A persistent TAP in the bridge, up, that ``owner`` (uid and gid) may open.

        Raises NetworkFailed when a device of that name is there that is not ours.
        """
        found = self.find(name)
        if found is not None and not is_our_tap(found, (bridge,)):
            raise _taken(name)
        device = _open_tap(name, owner)
        try:
            if found is None:
                self._plug_in(name, bridge)
            _raise_up(name)
            # Last: a TAP that stays is in our bridge, by which it is known as ours.
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
        finally:
            os.close(device)

    def _plug_in(self, name: str, bridge: int) -> None:
        """Puts a new TAP into its bridge, unless it was taken back there at this very moment."""
        try:
            _add_port(name, bridge)
        except OSError as error:
            there = self.find(name) if error.errno == errno.EBUSY else None
            if there is None or there.master != bridge:
                raise _not_taken(name, error) from error

    def delete_of_vm(self, name: str, bridges: Collection[int]) -> bool:
        """Deletes a VM's TAP, which is in one of these bridges, or its ``ifb``.

        False when there is none: what somebody else named so stays.
        """
        found = self.find(name)
        if found is None or not (found.kind == "ifb" or is_our_tap(found, bridges)):
            return False
        return self.delete(name)

    def _ask(self, what: str, *arguments: Any, **keywords: Any) -> None:
        with self._lock:
            try:
                getattr(self._netlink, what)(*arguments, **keywords)
            except NetlinkError as error:
                if error.code == errno.EEXIST:
                    raise FileExistsError(errno.EEXIST, str(error)) from error
                if error.code in (errno.EPERM, errno.EACCES):
                    raise NetworkFailed(
                        "the kernel does not let this process change the network",
                        suggestion="run the agent as root (it needs CAP_NET_ADMIN)",
                    ) from error
                raise NetworkFailed(
                    f"the kernel refuses a change of the network: {error}",
                    suggestion="check that our bridge exists (ip -br link), or restart the agent",
                ) from error


def is_our_tap(link: Link, bridges: Collection[int]) -> bool:
    """Whether a device with a name of ours is a TAP in one of our bridges."""
    return link.kind == "tun" and link.master in bridges


def is_stray_tap(link: Link) -> bool:
    """Whether a device is a TAP without a bridge."""
    return link.kind == "tun" and not link.master


def looks_like_our_tap(link: Link) -> bool:
    """Whether a port of a bridge of ours is a TAP, and not the interface that leads out."""
    return link.kind == "tun" and link.name.startswith("nx")


def _taken(name: str) -> NetworkFailed:
    return NetworkFailed(
        f"the host has a device named {name} that is not ours",
        suggestion=f"look at it (ip -d link show {name}), remove it (ip link delete {name}), "
        "then start the VM again",
    )


def _open_tap(name: str, owner: int | None) -> int:
    """The TAP of that name, made if need be; it stays for as long as the descriptor is open."""
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NetworkFailed("there is no /dev/net/tun", suggestion="modprobe tun") from error
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
        try:
            fcntl.ioctl(device, _TUNSETIFF, request)
        except PermissionError as error:
            raise NetworkFailed(
                f"the kernel does not let this process make the TAP {name}",
                suggestion="run the agent as root (it needs CAP_NET_ADMIN)",
            ) from error
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise NetworkFailed(
                f"another process holds the TAP {name}",
                suggestion=f"find it (grep -l {name} /proc/[0-9]*/fdinfo/*), end it, then start "
                "the VM again",
            ) from error
        if owner is not None:
            fcntl.ioctl(device, _TUNSETOWNER, owner)
            fcntl.ioctl(device, _TUNSETGROUP, owner)
    except BaseException:
        os.close(device)
        raise
    return device


# By the kernel's older door: that takes a third of what pyroute2's messages do, and a VM's start
# waits for it.


def _add_port(name: str, bridge: int) -> None:
    """Raises OSError: EBUSY for a device that is in a bridge already."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        port = socket.if_nametoindex(name)
        request = struct.pack("16si20x", socket.if_indextoname(bridge).encode(), port)
        fcntl.ioctl(door, _SIOCBRADDIF, request)


def _raise_up(name: str) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            request = fcntl.ioctl(door, _SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
            (flags,) = struct.unpack_from("H", request, 16)
            request = struct.pack("16sH22x", name.encode(), flags | _IFF_UP)
            fcntl.ioctl(door, _SIOCSIFFLAGS, request)
    except OSError as error:
        raise _not_taken(name, error) from error


def _not_taken(name: str, error: OSError) -> NetworkFailed:
    return NetworkFailed(
        f"the kernel does not take the TAP {name} into its bridge: {error.strerror}",
        suggestion="check that our bridge exists (ip -br link), or restart the agent",
    )


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    data = info.get_attr("IFLA_INFO_DATA") if kind == "tun" else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        alias=message.get_attr("IFLA_IFALIAS"),
        kind=kind,
        master=message.get_attr("IFLA_MASTER"),
        up=bool(message["flags"] & _IFF_UP),
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        owner=data.get_attr("IFLA_TUN_OWNER") if data else None,
    )
