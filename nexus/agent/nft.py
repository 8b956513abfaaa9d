"""The programs and switches behind the rules: ``nft``, and IPv4 forwarding."""

import subprocess
from pathlib import Path

from nexus.agent.errors import NetworkFailed

NFT_TIMEOUT_S = 20.0
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def apply(text: str) -> None:
    """Has the kernel take a text of rules, all of it or nothing. Blocks; raises NetworkFailed."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=text,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=NFT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise NetworkFailed(
            "the program nft is missing", suggestion="apt-get install nftables"
        ) from error
    if done.returncode != 0:
        refused = "not permitted" in done.stdout
        raise NetworkFailed(
            f"nft refuses the rules: {done.stdout.strip()[:500]}",
            suggestion="run the agent as root" if refused else "modprobe nf_tables nft_masq",
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
