"""nftables: one table of our own, replaced as a whole; nothing else is touched."""

import ipaddress
import subprocess
from pathlib import Path

from nexus.agent.errors import NetworkFailed

NFT_TIMEOUT_S = 20.0
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

_TABLE = """\
table inet {table}
delete table inet {table}
table inet {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{bridge}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" accept
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" meta l4proto {{ icmp, icmpv6 }} accept
    iifname "{bridge}" drop
  }}
}}
"""


def ruleset(table: str, bridge: str, subnet: ipaddress.IPv4Network) -> str:
    """The text given to ``nft -f -``: guests reach the outside, and nothing on the host itself.

    Adding the table before deleting it makes the deletion succeed the first time too; the whole
    text is one transaction.
    """
    return _TABLE.format(table=table, bridge=bridge, subnet=subnet)


def ensure_table(table: str, bridge: str, subnet: ipaddress.IPv4Network) -> None:
    _nft(["-f", "-"], ruleset(table, bridge, subnet))


def remove_table(table: str) -> None:
    """Succeeds as well when there is no such table."""
    _nft(["-f", "-"], f"table inet {table}\ndelete table inet {table}\n")


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


def _nft(arguments: list[str], text: str) -> None:
    try:
        done = subprocess.run(
            ["nft", *arguments],
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
