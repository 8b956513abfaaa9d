"""Asking who has an address on a bridge, as a machine does that has none itself (RFC 5227)."""

import contextlib
import fcntl
import socket
import struct
import time

_ETH_P_ARP = 0x0806
_SIOCGIFHWADDR = 0x8927
_REQUEST, _REPLY = 1, 2
_FORMAT = "!6s6sHHHBBH6s4s6s4s"
_SIZE = struct.calcsize(_FORMAT)
_EVERYBODY = b"\xff" * 6


def ask(bridge: str, address: str, timeout_s: float, tries: int = 2) -> str | None:
    """The MAC that answers for an address on that bridge; None when nobody does.

    Blocks for at most ``timeout_s``. Raises OSError when there is no such bridge.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as wire:
        wire.bind((bridge, _ETH_P_ARP))
        request = struct.pack("256s", bridge.encode()[:15])
        mac = fcntl.ioctl(wire, _SIOCGIFHWADDR, request)[18:24]
        wanted = socket.inet_aton(address)
        # No sender's address: nobody's table changes by it.
        question = struct.pack(
            _FORMAT,
            *(_EVERYBODY, mac, _ETH_P_ARP),
            *(1, 0x0800, 6, 4, _REQUEST),
            *(mac, bytes(4), bytes(6), wanted),
        )
        for _ in range(tries):
            wire.send(question)
            last = time.monotonic() + timeout_s / tries
            while (rest := last - time.monotonic()) > 0:
                wire.settimeout(rest)
                with contextlib.suppress(TimeoutError):
                    answer = wire.recv(2048)
                    if len(answer) < _SIZE:
                        continue
                    fields = struct.unpack(_FORMAT, answer[:_SIZE])
                    if fields[7] == _REPLY and fields[9] == wanted:
                        return ":".join(f"{octet:02x}" for octet in fields[8])
    return None
