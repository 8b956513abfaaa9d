"""NIC rate limits on the host's side of a TAP.

Bandwidth is shaped by ``tbf`` queues: towards the guest on the TAP itself, from the guest on an
``ifb`` device that its packets are taken through. All else is done by nftables in a table that
belongs to an ``nft`` child: the kernel removes the table when that process ends, and it ends when
its stdin closes, so packets flow freely again however this VMM ends. The queue on the TAP vanishes
with it; an ``ifb`` device that a killed VMM leaves is removed by whoever removes the TAP.
"""

import os
import selectors
import subprocess
import time

from nexus.qemu.faults import Fault
from nexus.qemu.throttle import limit, nic_script, shape_command, shaper_name
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
        self._shapers: set[str] = set()

    def apply(
        self, iface_id: str, tap: str, rx: RateLimiter | None, tx: RateLimiter | None
    ) -> None:
        """Makes these the NIC's limits; raises Fault when the host refuses."""
        if (rx and limit(rx.bandwidth)) or tap in self._shaped:
            self._shape(tap, rx)
        shaper = self._ensure_shaper(tap, tx) if tx and limit(tx.bandwidth) else None
        if _buckets(tx, RateLimiter(ops=rx.ops) if rx else None) or self._nft is not None:
            script = nic_script(self._table, iface_id, tap, rx, tx, shaper=shaper)
            self._police(script)
        if shaper is None:
            self._remove_shaper(shaper_name(tap))

    def close(self) -> None:
        """Ends the ``nft`` child, and with it its table; removes the devices."""
        if self._nft is not None and self._nft.stdin is not None:
            self._nft.stdin.close()
            self._nft.wait(_TIMEOUT_S)
        for name in list(self._shapers):
            self._remove_shaper(name)

    def _shape(self, device: str, limiter: RateLimiter | None) -> None:
        done = _run(shape_command(device, limiter))
        if done.returncode != 0:
            raise Fault(f"Network config error: Cannot shape {device}: {done.stderr.strip()}")
        if limiter and limit(limiter.bandwidth):
            self._shaped.add(device)
        else:
            self._shaped.discard(device)

    def _ensure_shaper(self, tap: str, tx: RateLimiter) -> str | None:
        """The device that shapes what the guest sends, or None on a host that has no ``ifb``."""
        name = shaper_name(tap)
        if name not in self._shapers:
            made = _run(["ip", "link", "add", name, "type", "ifb"])
            if made.returncode != 0 and "File exists" not in made.stderr:
                return None
            self._shapers.add(name)
            up = _run(["ip", "link", "set", name, "up"])
            if up.returncode != 0:
                raise Fault(f"Network config error: Cannot shape {tap}: {up.stderr.strip()}")
        self._shape(name, tx)
        return name

    def _remove_shaper(self, name: str) -> None:
        if name in self._shapers:
            _run(["ip", "link", "del", name])
            self._shapers.discard(name)
            self._shaped.discard(name)

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


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
