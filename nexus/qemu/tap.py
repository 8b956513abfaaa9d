"""Opening TAP devices, as Firecracker does: when the NIC is configured, created if missing."""

import fcntl
import os
import struct

from nexus.qemu.faults import Fault, os_error

_TUNSETIFF = 0x400454CA
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_NAME_MAX = 15
# virtio_net_hdr with num_buffers, as QEMU's virtio-net uses it.
_VNET_HEADER_BYTES = 12
_PREFIX = "Network config error: Could not create the network device: Open tap device failed: "


def open_tap(name: str) -> int:
    """A descriptor of the TAP; raises Fault when there is none to be had (busy, no permission)."""
    raw = name.encode()
    if not raw or len(raw) > _NAME_MAX or b"/" in raw or b"\0" in raw:
        raise Fault(f"{_PREFIX}Invalid interface name")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Fault(f"{_PREFIX}Couldn't open /dev/net/tun: {os_error(error)}") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", raw, flags))
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER_BYTES))
    except OSError as error:
        os.close(fd)
        raise Fault(
            f"{_PREFIX}Error while creating ifreq structure: {os_error(error)}. Invalid TUN/TAP "
            f"Backend provided by {name}. Check our documentation on setting up the network "
            "devices."
        ) from error
    return fd
