"""What is behind the rules: nftables through its library, and IPv4 forwarding."""

import ctypes
import json
import threading
from pathlib import Path
from typing import Any

from nexus.agent.errors import NetworkFailed

_JSON = 1 << 4 | 1 << 9
"""NFT_CTX_OUTPUT_JSON and NFT_CTX_OUTPUT_NUMERIC_SYMBOL: port 80 is a number."""
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class _Nftables:
    """libnftables(3), which is what the program ``nft`` is made of.

    It keeps its netlink socket open: a program that is started anew pays for that, and the kernel
    lets go of a socket that deleted something only after some ten milliseconds.
    """

    def __init__(self, *, dry: bool = False, as_json: bool = False) -> None:
        self._dry = dry
        """Whether the kernel only looks at the rules and throws them away."""
        self._as_json = as_json
        self.output = b""
        """What the last text had it list."""
        self._turn = threading.Lock()
        self._library: ctypes.CDLL | None = None
        self._context: int | None = None

    def run(self, text: str) -> str | None:
        """Has the kernel take a text, all of it or nothing; what is said against it, or None.

        Raises OSError when there is no such library.
        """
        with self._turn:
            library = self._library = self._library or _load()
            if self._context is None:
                self._context = library.nft_ctx_new(0)
                library.nft_ctx_buffer_output(self._context)
                library.nft_ctx_buffer_error(self._context)
                library.nft_ctx_set_dry_run(self._context, self._dry)
                library.nft_ctx_output_set_flags(self._context, _JSON if self._as_json else 0)
            if library.nft_run_cmd_from_buffer(self._context, text.encode()) == 0:
                self.output = library.nft_ctx_get_output_buffer(self._context)
                return None
            said: bytes = library.nft_ctx_get_error_buffer(self._context)
            # What it believes of the kernel may have been wrong: the next one looks anew.
            library.nft_ctx_free(self._context)
            self._context = None
            return said.decode(errors="replace")


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL("libnftables.so.1")
    context = ctypes.c_void_p
    library.nft_ctx_new.argtypes, library.nft_ctx_new.restype = [ctypes.c_uint32], context
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [context, ctypes.c_uint]
    library.nft_ctx_set_dry_run.argtypes = [context, ctypes.c_bool]
    for name in (
        "buffer_output",
        "buffer_error",
        "get_output_buffer",
        "get_error_buffer",
        "free",
    ):
        getattr(library, f"nft_ctx_{name}").argtypes = [context]
    return library


_nftables = _Nftables()


def apply(text: str) -> None:
    """Has the kernel take a text of rules, all of it or nothing. Blocks; raises NetworkFailed."""
    _run(_nftables, text)


def check(text: str) -> None:
    """Asks whether the kernel would take it; changes nothing. Blocks; raises NetworkFailed."""
    _run(_Nftables(dry=True), text)


def listing(*, after: str | None = None) -> list[dict[str, Any]]:
    """All tables of this network namespace, as libnftables-json(5) describes them.

    ``after`` is a text that is applied before. Blocks; raises NetworkFailed.
    """
    nftables = _Nftables(as_json=True)
    if after is not None:
        _run(nftables, after)
    _run(nftables, "list ruleset")
    found: list[dict[str, Any]] = json.loads(nftables.output)["nftables"]
    return found


def _run(nftables: _Nftables, text: str) -> None:
    try:
        said = nftables.run(text)
    except OSError as error:
        raise NetworkFailed(
            "the library libnftables is missing", suggestion="apt-get install nftables"
        ) from error
    if said is not None:
        refused = "not permitted" in said
        raise NetworkFailed(
            f"nftables refuses the rules: {said.strip()[:500]}",
            suggestion="run the agent as root (it needs CAP_NET_ADMIN)"
            if refused
            else "modprobe -a nf_tables nft_masq nft_fib_inet",
        )


def forwarding() -> bool:
    return _IP_FORWARD.read_text().strip() == "1"


def set_forwarding(on: bool) -> None:
    try:
        _IP_FORWARD.write_text("1" if on else "0")
    except OSError as error:
        raise NetworkFailed(
            f"IPv4 forwarding cannot be switched: {error.strerror}",
            suggestion="sysctl -w net.ipv4.ip_forward=1, and start the agent again",
        ) from error


def route_loopback(interface: str) -> None:
    """Lets packets with addresses of loopback go out there; the rules keep them from coming in."""
    switch = Path(f"/proc/sys/net/ipv4/conf/{interface}/route_localnet")
    try:
        switch.write_text("1")
    except OSError as error:
        raise NetworkFailed(
            f"{switch} cannot be written: {error.strerror}", suggestion="run the agent as root"
        ) from error
