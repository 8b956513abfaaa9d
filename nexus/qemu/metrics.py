"""Metrics in Firecracker's JSON shape, one line a flush.

Counters give what happened since the last flush, as Firecracker's do. What QEMU does not count
stays 0.
"""

import os
import time
from copy import deepcopy
from typing import Any

import msgspec

from nexus.qemu.faults import Fault, os_error
from nexus.qemu.log import open_target

INTERVAL_S = 60.0

_AGG = {"min_us": 0, "max_us": 0, "sum_us": 0}


def _zeros(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), 0)


_BLOCK = {
    **_zeros(
        "activate_fails cfg_fails no_avail_buffer event_fails execute_fails invalid_reqs_count "
        "flush_count queue_event_count rate_limiter_event_count update_count update_fails "
        "read_bytes write_bytes read_count write_count"
    ),
    "read_agg": _AGG,
    "write_agg": _AGG,
    **_zeros("rate_limiter_throttled_events io_engine_throttled_events remaining_reqs_count"),
}
_NET = {
    **_zeros(
        "activate_fails cfg_fails mac_address_updates no_rx_avail_buffer no_tx_avail_buffer "
        "event_fails rx_queue_event_count rx_event_rate_limiter_count rx_partial_writes "
        "rx_rate_limiter_throttled rx_tap_event_count rx_bytes_count rx_packets_count rx_fails "
        "rx_count tap_read_fails tap_write_fails"
    ),
    "tap_write_agg": _AGG,
    **_zeros(
        "tx_bytes_count tx_malformed_frames tx_fails tx_count tx_packets_count tx_partial_reads "
        "tx_queue_event_count tx_rate_limiter_event_count tx_rate_limiter_throttled "
        "tx_spoofed_mac_count tx_remaining_reqs_count"
    ),
}
_LATENCIES = _zeros(
    "full_create_snapshot diff_create_snapshot load_snapshot pause_vm resume_vm "
    "vmm_full_create_snapshot vmm_diff_create_snapshot vmm_load_snapshot vmm_pause_vm "
    "vmm_resume_vm"
)
_BEFORE_DEVICES = {
    "api_server": _zeros(
        "process_startup_time_us process_startup_time_cpu_us sync_response_fails "
        "sync_vmm_send_timeout_count"
    ),
    "balloon": _zeros(
        "activate_fails inflate_count stats_updates_count stats_update_fails deflate_count "
        "event_fails"
    ),
}
_AFTER_DEVICES = {
    "deprecated_api": _zeros("deprecated_http_api_calls deprecated_cmd_line_api_calls"),
    "get_api_requests": _zeros(
        "instance_info_count machine_cfg_count mmds_count vmm_version_count"
    ),
    "i8042": _zeros(
        "error_count missed_read_count missed_write_count read_count reset_count write_count"
    ),
    "uart": _zeros(
        "error_count flush_count missed_read_count missed_write_count read_count write_count"
    ),
    "latencies_us": _LATENCIES,
    "logger": _zeros("missed_metrics_count metrics_fails missed_log_count log_fails"),
    "mmds": _zeros(
        "rx_accepted rx_accepted_err rx_accepted_unusual rx_bad_eth rx_count tx_bytes tx_count "
        "tx_errors tx_frames connections_created connections_destroyed"
    ),
    "patch_api_requests": _zeros(
        "drive_count drive_fails network_count network_fails machine_cfg_count machine_cfg_fails "
        "mmds_count mmds_fails"
    ),
    "put_api_requests": _zeros(
        "actions_count actions_fails boot_source_count boot_source_fails drive_count drive_fails "
        "logger_count logger_fails machine_cfg_count machine_cfg_fails cpu_cfg_count cpu_cfg_fails "
        "metrics_count metrics_fails network_count network_fails mmds_count mmds_fails "
        "vsock_count vsock_fails"
    ),
    "seccomp": _zeros("num_faults"),
    "vcpu": {
        **_zeros(
            "exit_io_in exit_io_out exit_mmio_read exit_mmio_write failures kvmclock_ctrl_fails"
        ),
        "exit_io_in_agg": _AGG,
        "exit_io_out_agg": _AGG,
        "exit_mmio_read_agg": _AGG,
        "exit_mmio_write_agg": _AGG,
    },
    "vmm": _zeros("device_events panic_count"),
    "signals": _zeros("sigbus sigsegv sigxfsz sigxcpu sigpipe sighup sigill"),
    "vsock": _zeros(
        "activate_fails cfg_fails rx_queue_event_fails tx_queue_event_fails ev_queue_event_fails "
        "muxer_event_fails conn_event_fails rx_queue_event_count tx_queue_event_count "
        "rx_bytes_count tx_bytes_count rx_packets_count tx_packets_count conns_added conns_killed "
        "conns_removed killq_resync tx_flush_fails tx_write_fails rx_read_fails"
    ),
    "entropy": _zeros(
        "activate_fails entropy_event_fails entropy_event_count entropy_bytes host_rng_fails "
        "entropy_rate_limiter_throttled rate_limiter_event_count"
    ),
}


class Metrics:
    """Counts between flushes, and writes lines once a target is set."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._counted: dict[tuple[str, str], int] = {}
        self._stored: dict[tuple[str, str], int] = {}
        self._seen: dict[tuple[str, str], int] = {}

    @property
    def on(self) -> bool:
        return self._fd is not None

    def open(self, path: str) -> None:
        """Sets the target, once; raises Fault."""
        refused = "Metrics error: Cannot initialize the metrics system due to bad user input: "
        try:
            target = open_target(path)
        except (OSError, ValueError) as error:
            text = os_error(error) if isinstance(error, OSError) else str(error)
            raise Fault(f"{refused}{text}") from error
        if self._fd is not None:
            os.close(target)
            raise Fault(f"{refused}Reinitialization of metrics not allowed.")
        self._fd = target

    def count(self, group: str, name: str) -> None:
        self._counted[group, name] = self._counted.get((group, name), 0) + 1

    def store(self, group: str, name: str, value: int) -> None:
        """A value that stays until the next one, such as a latency."""
        self._stored[group, name] = value

    def total(self, group: str, name: str, value: int) -> None:
        """An ever-growing count kept elsewhere; a flush gives its growth."""
        self._counted[group, name] = value - self._seen.get((group, name), 0)
        self._seen[group, name] = value

    def flush(self, drives: list[str], nics: list[str]) -> None:
        """Writes one line; raises Fault when that fails."""
        if self._fd is None:
            return
        line = msgspec.json.encode(self._tree(drives, nics)) + b"\n"
        try:
            os.write(self._fd, line)
        except OSError as error:
            self.count("logger", "missed_metrics_count")
            raise Fault(f"Metrics error: Cannot write metrics: {os_error(error)}") from error
        self._counted.clear()

    def _tree(self, drives: list[str], nics: list[str]) -> dict[str, Any]:
        tree: dict[str, Any] = {"utc_timestamp_ms": time.time_ns() // 1_000_000}
        tree |= deepcopy(_BEFORE_DEVICES)
        for name in [*(f"block_{drive}" for drive in drives), "block"]:
            tree[name] = deepcopy(_BLOCK)
        before_net = {"deprecated_api", "get_api_requests", "i8042", "uart", "latencies_us"}
        before_net |= {"logger", "mmds"}
        tree |= deepcopy({k: v for k, v in _AFTER_DEVICES.items() if k in before_net})
        for name in [*(f"net_{nic}" for nic in nics), "net"]:
            tree[name] = deepcopy(_NET)
        tree |= deepcopy({k: v for k, v in _AFTER_DEVICES.items() if k not in before_net})
        for (group, name), value in [*self._counted.items(), *self._stored.items()]:
            if group in tree:
                tree[group][name] += value
            family = group.partition("_")[0]
            if family in ("block", "net") and group != family:
                tree[family][name] += value
        return tree
