"""NIC rate limits on the host's side of a TAP.

Bandwidth towards the guest is shaped by a ``tbf`` queue, which vanishes with the TAP. All else is
bounded by nftables in a table that belongs to an ``nft`` child: the kernel removes the table when
that process ends, and it ends when its stdin closes, so nothing is left however this VMM ends.
"""

import os
import selectors
import subprocess
import time

from nexus.qemu.faults import Fault
from nexus.qemu.throttle import limit, police_script, shape_command
from nexus.vmm.types import RateLimiter

_TIMEOUT_S = 10.0


def _buckets(*limiters: RateLimiter | None) -> bool:
    return any(limit(each.bandwidth) or limit(each.ops) for each in limiters if each)


class NicLimits:
    """The limits of this machine's NICs."""

    def __init__(self) -> None:
        self._nft: subprocess.Popen[bytes] | None = None
        self._table = f"nexus_qemu_{os.getpid()}"
        self._shaped: set[str] = set()

    def apply(
        self, iface_id: str, tap: str, rx: RateLimiter | None, tx: RateLimiter | None
    ) -> None:
        """Makes these the NIC's limits; raises Fault when the host refuses."""
        if (rx and limit(rx.bandwidth)) or tap in self._shaped:
            self._shape(tap, rx)
        if _buckets(tx, RateLimiter(ops=rx.ops) if rx else None) or self._nft is not None:
            self._police(police_script(self._table, iface_id, tap, rx, tx))

    def close(self) -> None:
        """Ends the ``nft`` child, and with it its table."""
        if self._nft is not None and self._nft.stdin is not None:
            self._nft.stdin.close()
            self._nft.wait(_TIMEOUT_S)

    def _shape(self, tap: str, rx: RateLimiter | None) -> None:
        done = subprocess.run(
            shape_command(tap, rx),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise Fault(f"Network config error: Cannot shape {tap}: {done.stderr.strip()}")
        if rx and limit(rx.bandwidth):
            self._shaped.add(tap)
        else:
            self._shaped.discard(tap)

    def _police(self, script: str) -> None:
        if self._nft is None:
            self._nft = subprocess.Popen(
                ["nft", "-i"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            script = f"add table netdev {self._table} {{ flags owner; }}\n{script}"
        answer = self._converse(self._nft, script)
        if "Error" in answer:
            raise Fault(f"Network config error: Cannot limit the NIC: {' '.join(answer.split())}")

    def _converse(self, nft: subprocess.Popen[bytes], script: str) -> str:
        """Sends commands and gives what nft said, up to the answer of a last, harmless one."""
        if nft.stdin is None or nft.stdout is None:
            raise Fault("Network config error: The nft process has no pipes")
        end = "nexus_qemu_end_of_answer"
        try:
            nft.stdin.write(f"{script}list table netdev {end}\n".encode())
            nft.stdin.flush()
        except BrokenPipeError as error:
            raise Fault("Network config error: The nft process has ended") from error
        said = b""
        deadline = time.monotonic() + _TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(nft.stdout, selectors.EVENT_READ)
            # The last command names a table that does not exist; its error marks the end.
            while f"list table netdev {end}".encode() not in said:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise Fault("Network config error: nft does not answer")
                data = os.read(nft.stdout.fileno(), 1 << 16)
                if not data:
                    break
                said += data
        text = said.decode("utf-8", "replace")
        return text.rpartition("Error")[0] if end in text else text
