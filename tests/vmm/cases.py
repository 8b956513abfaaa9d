# ruff: noqa: E501  -- a table: one row a line
# fmt: off
"""The API's requests, one by one: what is asked, in which state, and what must be answered.

Learnt from Firecracker 1.12. ``fault`` is a regular expression that the whole ``fault_message``
must match; texts of its JSON parser are matched by their beginning and the field they name.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

PARSE = re.escape("An error occurred when deserializing the json body of a request: ")
BEFORE = re.escape("The requested operation is not supported before starting the microVM.")
AFTER = re.escape("The requested operation is not supported after starting the microVM.")
CONFIG = "Machine config error: "
VCPUS = re.escape(
    f"{CONFIG}The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even "
    "number if SMT is enabled."
)
MEMORY = re.escape(
    f"{CONFIG}The memory size (MiB) is either 0, or not a multiple of the configured page size."
)
BAD_ID = re.escape("API Resource IDs can only contain alphanumeric characters and underscores.")
NO_FILE = re.escape("No such file or directory (os error 2)")
NO_BUS = re.escape("Failed to find the device on the bus.")
# An answer of the HTTP server itself, under the key `error`.
HTTP = r"[\s\S]*All previous unanswered requests will be dropped\."

LIMIT = {"bandwidth": {"size": 1_000_000, "refill_time": 100}}
LOAD = {"snapshot_path": "s", "mem_backend": {"backend_path": "m", "backend_type": "File"}}
SAVE = {"snapshot_path": "s", "mem_file_path": "m"}


@dataclass(frozen=True)
class Case:
    name: str
    request: str
    body: Any = None
    status: int = 400
    fault: str = ""

    @property
    def method(self) -> str:
        return self.request.split()[0]

    @property
    def path(self) -> str:
        return self.request.split()[1]

    @property
    def payload(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


def root(**fields: Any) -> dict[str, Any]:
    drive = {"drive_id": "root", "path_on_host": "root.img"}
    return {**drive, "is_root_device": True, "is_read_only": False, **fields}


def data(**fields: Any) -> dict[str, Any]:
    return root(drive_id="data", path_on_host="data.img", is_root_device=False) | fields


def nic(**fields: Any) -> dict[str, Any]:
    return {"iface_id": "eth0", "host_dev_name": "TAP", **fields}


def machine(**fields: Any) -> dict[str, Any]:
    return {"vcpu_count": 1, "mem_size_mib": 128, **fields}


def kernel(**fields: Any) -> dict[str, Any]:
    return {"kernel_image_path": "kernel", **fields}


def parse(text: str) -> str:
    """A complaint of the JSON parser that contains ``text``."""
    return f"{PARSE}[\\s\\S]*{re.escape(text)}[\\s\\S]*"


def nowhere(text: str) -> str:
    return re.escape(f"Invalid request method and/or path: {text}.")


# Refused by a VMM in which nothing but drive `root`, NIC `eth0` and their like is configured; none
# of them changes it. They run in one VMM.
BEFORE_BOOT = [
    Case("flush before boot", "PUT /actions", {"action_type": "FlushMetrics"}, fault=BEFORE),
    Case("ctrl-alt-del before boot", "PUT /actions", {"action_type": "SendCtrlAltDel"}, fault=BEFORE),
    Case("unknown action", "PUT /actions", {"action_type": "Fly"}, fault=parse("Fly")),
    Case("action without body", "PUT /actions", fault=r"Empty PUT request\."),
    Case("action, unknown field", "PUT /actions", {"action_type": "InstanceStart", "x": 1}, fault=parse("`x`")),
    Case("pause before boot", "PATCH /vm", {"state": "Paused"}, fault=BEFORE),
    Case("resume before boot", "PATCH /vm", {"state": "Resumed"}, fault=BEFORE),
    Case("unknown state", "PATCH /vm", {"state": "Running"}, fault=parse("Running")),
    Case("snapshot before boot", "PUT /snapshot/create", SAVE, fault=BEFORE),
    Case("load after configuring", "PUT /snapshot/load", LOAD, fault=re.escape("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.")),
    Case("load without memory", "PUT /snapshot/load", {"snapshot_path": "s"}, fault=parse("either `mem_backend` or `mem_file_path` is required")),
    Case("load with two memories", "PUT /snapshot/load", LOAD | {"mem_file_path": "m"}, fault=parse("either `mem_backend` or `mem_file_path` exclusively is required")),
    Case("load, unknown field", "PUT /snapshot/load", LOAD | {"x": 1}, fault=parse("`x`")),
    Case("load without state file", "PUT /snapshot/load", {"mem_file_path": "m"}, fault=parse("snapshot_path")),
    Case("load, unknown backend", "PUT /snapshot/load", {"snapshot_path": "s", "mem_backend": {"backend_path": "m", "backend_type": "Tape"}}, fault=parse("Tape")),
    Case("snapshot without kind", "PUT /snapshot", {}, fault=re.escape("Missing snapshot operation type.")),
    Case("unknown snapshot kind", "PUT /snapshot/nope", {}, fault=nowhere("PUT /snapshot/nope")),
    # boot source
    Case("missing kernel file", "PUT /boot-source", {"kernel_image_path": "nope"}, fault=re.escape("Boot source error: The kernel file cannot be opened: ") + NO_FILE),
    Case("missing initrd file", "PUT /boot-source", kernel(initrd_path="nope"), fault=re.escape("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. ") + NO_FILE),
    Case("kernel path with NUL", "PUT /boot-source", {"kernel_image_path": "a\0b"}, fault=r"Boot source error: The kernel file cannot be opened: .*"),
    Case("boot arguments too long", "PUT /boot-source", kernel(boot_args="x" * 5000), fault=r"Boot source error: The kernel command line is invalid: .*"),
    Case("boot source without body", "PUT /boot-source", fault=r"Empty PUT request\."),
    Case("half an object", "PUT /boot-source", b"{", fault=parse("")),
    Case("not UTF-8", "PUT /boot-source", b'{"kernel_image_path":"\xff"}', fault=parse("")),
    Case("text after the object", "PUT /boot-source", b'{"kernel_image_path":"kernel"} x', fault=parse("trailing characters")),
    Case("null for an object", "PUT /boot-source", b"null", fault=parse("null")),
    Case("text for an object", "PUT /boot-source", b'"x"', fault=parse("string")),
    Case("empty object", "PUT /boot-source", {}, fault=parse("missing field `kernel_image_path`")),
    Case("number for a text", "PUT /boot-source", {"kernel_image_path": 1}, fault=parse("string")),
    Case("boot source, unknown field", "PUT /boot-source", kernel(x=1), fault=parse("unknown field `x`")),
    # machine
    Case("no vCPU", "PUT /machine-config", machine(vcpu_count=0), fault=VCPUS),
    Case("33 vCPUs", "PUT /machine-config", machine(vcpu_count=33), fault=VCPUS),
    Case("256 vCPUs", "PUT /machine-config", machine(vcpu_count=256), fault=parse("")),
    Case("-1 vCPUs", "PUT /machine-config", machine(vcpu_count=-1), fault=parse("")),
    Case("1.5 vCPUs", "PUT /machine-config", machine(vcpu_count=1.5), fault=parse("")),
    Case("text for vCPUs", "PUT /machine-config", machine(vcpu_count="1"), fault=parse("string")),
    Case("odd vCPUs with SMT", "PUT /machine-config", machine(vcpu_count=3, smt=True), fault=VCPUS),
    Case("no memory", "PUT /machine-config", machine(mem_size_mib=0), fault=MEMORY),
    Case("odd memory in huge pages", "PUT /machine-config", machine(mem_size_mib=127, huge_pages="2M"), fault=MEMORY),
    Case("machine without memory", "PUT /machine-config", {"vcpu_count": 1}, fault=parse("missing field `mem_size_mib`")),
    Case("machine without vCPUs", "PUT /machine-config", {"mem_size_mib": 128}, fault=parse("missing field `vcpu_count`")),
    Case("unknown CPU template", "PUT /machine-config", machine(cpu_template="Z9"), fault=parse("Z9")),
    Case("null for a boolean", "PUT /machine-config", machine(smt=None), fault=parse("null")),
    Case("machine, unknown field", "PUT /machine-config", machine(x=1), fault=parse("unknown field `x`")),
    Case("empty machine patch", "PATCH /machine-config", {}, fault=r"Empty PATCH request\."),
    Case("machine patch to no vCPU", "PATCH /machine-config", {"vcpu_count": 0}, fault=VCPUS),
    Case("machine patch, unknown field", "PATCH /machine-config", {"x": 1}, fault=parse("unknown field `x`")),
    # drives
    Case("drive id mismatch", "PUT /drives/root", root(drive_id="other"), fault=re.escape("The id from the path does not match the id from the body!")),
    Case("bad drive id", "PUT /drives/ro-ot", root(drive_id="ro-ot"), fault=BAD_ID),
    Case("escaped drive id", "PUT /drives/%72oot", root(), fault=BAD_ID),
    Case("empty drive id", "PUT /drives/", root(drive_id=""), fault=re.escape("The ID cannot be empty.")),
    Case("no drive id", "PUT /drives", root(), fault=re.escape("The ID cannot be empty.")),
    Case("missing drive file", "PUT /drives/data", data(path_on_host="nope"), fault=re.escape("Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: ") + NO_FILE + " nope"),
    Case("directory for a drive", "PUT /drives/data", data(path_on_host="folder"), fault=r"Drive config error: .*Is a directory \(os error 21\) folder"),
    Case("second root drive", "PUT /drives/root2", root(drive_id="root2"), fault=re.escape("Drive config error: A root block device already exists!")),
    Case("drive with file and socket", "PUT /drives/data", data(socket="x"), fault=r"Drive config error: .*"),
    Case("drive with neither", "PUT /drives/data", {"drive_id": "data", "is_root_device": False}, fault=r"Drive config error: .*"),
    Case("drive without root flag", "PUT /drives/data", {"drive_id": "data"}, fault=parse("missing field `is_root_device`")),
    Case("unknown cache type", "PUT /drives/data", data(cache_type="Magic"), fault=parse("Magic")),
    Case("unknown I/O engine", "PUT /drives/data", data(io_engine="Magic"), fault=parse("Magic")),
    Case("number for a limiter", "PUT /drives/data", data(rate_limiter=5), fault=parse("")),
    Case("half a token bucket", "PUT /drives/data", data(rate_limiter={"ops": {"size": 1}}), fault=parse("missing field `refill_time`")),
    Case("negative token bucket", "PUT /drives/data", data(rate_limiter={"ops": {"size": -1, "refill_time": 1}}), fault=parse("")),
    Case("limiter, unknown field", "PUT /drives/data", data(rate_limiter={"x": 1}), fault=parse("unknown field `x`")),
    Case("drive, unknown field", "PUT /drives/data", data(x=1), fault=parse("unknown field `x`")),
    Case("drive patch before boot", "PATCH /drives/root", {"drive_id": "root"}, fault=BEFORE),
    Case("drive read", "GET /drives/root", fault=nowhere("GET drives")),
    # network interfaces
    Case("NIC id mismatch", "PUT /network-interfaces/eth0", nic(iface_id="other"), fault=re.escape("The id from the path [eth0] does not match the id from the body [other]!")),
    Case("bad NIC id", "PUT /network-interfaces/e-0", nic(iface_id="e-0"), fault=BAD_ID),
    Case("no NIC id", "PUT /network-interfaces", nic(), fault=re.escape("The ID cannot be empty.")),
    Case("TAP name too long", "PUT /network-interfaces/eth1", nic(iface_id="eth1", host_dev_name="t" * 20), fault=re.escape("Network config error: Could not create the network device: Open tap device failed: Invalid interface name")),
    Case("bad MAC", "PUT /network-interfaces/eth0", nic(guest_mac="zz"), fault=parse("MAC address is invalid")),
    Case("MAC of another NIC", "PUT /network-interfaces/eth1", nic(iface_id="eth1", host_dev_name="nexusconf9", guest_mac="06:00:00:00:00:01"), fault=re.escape("Network config error: The MAC address is already in use: 06:00:00:00:00:01")),
    Case("TAP of another NIC", "PUT /network-interfaces/eth1", nic(iface_id="eth1"), fault=r"Network config error: Could not create the network device: Open tap device failed: .*[Rr]esource busy.*"),
    Case("NIC without TAP", "PUT /network-interfaces/eth0", {"iface_id": "eth0"}, fault=parse("missing field `host_dev_name`")),
    Case("NIC, unknown field", "PUT /network-interfaces/eth0", nic(mtu=1500), fault=parse("unknown field `mtu`")),
    Case("NIC patch before boot", "PATCH /network-interfaces/eth0", {"iface_id": "eth0"}, fault=BEFORE),
    # balloon, entropy, vsock, MMDS
    Case("no balloon", "GET /balloon", fault=re.escape("Balloon config error: No balloon device found.")),
    Case("balloon patch before boot", "PATCH /balloon", {"amount_mib": 1}, fault=BEFORE),
    Case("balloon statistics before boot", "GET /balloon/statistics", fault=BEFORE),
    Case("statistics patch before boot", "PATCH /balloon/statistics", {"stats_polling_interval_s": 1}, fault=BEFORE),
    Case("balloon larger than memory", "PUT /balloon", {"amount_mib": 100_000, "deflate_on_oom": False}, fault=re.escape("Balloon config error: Amount of pages requested is too large.")),
    Case("half a balloon", "PUT /balloon", {"amount_mib": 1}, fault=parse("missing field `deflate_on_oom`")),
    Case("negative balloon", "PUT /balloon", {"amount_mib": -1, "deflate_on_oom": True}, fault=parse("")),
    Case("balloon, unknown field", "PUT /balloon", {"amount_mib": 0, "deflate_on_oom": True, "x": 1}, fault=parse("unknown field `x`")),
    Case("unknown balloon path", "GET /balloon/nope", fault=re.escape("Unrecognized GET request path `nope`.")),
    Case("entropy, bad limiter", "PUT /entropy", {"rate_limiter": 1}, fault=parse("")),
    Case("entropy, unknown field", "PUT /entropy", {"x": 1}, fault=parse("unknown field `x`")),
    Case("vsock without path", "PUT /vsock", {"guest_cid": 3}, fault=parse("missing field `uds_path`")),
    Case("vsock in no folder", "PUT /vsock", {"guest_cid": 3, "uds_path": "nope/v"}, fault=re.escape("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: ") + NO_FILE),
    Case("vsock at a file's place", "PUT /vsock", {"guest_cid": 3, "uds_path": "data.img"}, fault=re.escape("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: Address in use (os error 98)")),
    Case("vsock path too long", "PUT /vsock", {"guest_cid": 3, "uds_path": "v" * 120}, fault=re.escape("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: path must be shorter than SUN_LEN")),
    Case("vsock path with NUL", "PUT /vsock", {"guest_cid": 3, "uds_path": "a\0b"}, fault=r"Vsock config error: .* paths must not contain interior null bytes"),
    Case("vsock without CID", "PUT /vsock", {"uds_path": "v.sock"}, fault=parse("missing field `guest_cid`")),
    Case("vsock, CID beyond 32 bits", "PUT /vsock", {"guest_cid": 1 << 32, "uds_path": "v.sock"}, fault=parse("")),
    Case("vsock, unknown field", "PUT /vsock", {"guest_cid": 3, "uds_path": "v.sock", "x": 1}, fault=parse("unknown field `x`")),
    Case("MMDS patch of nothing", "PATCH /mmds", {"a": 1}, fault=re.escape("MMDS error: The MMDS data store is not initialized.")),
    Case("MMDS on an unknown NIC", "PUT /mmds/config", {"network_interfaces": ["nope"]}, fault=r"MMMDS config error: The list of network interface IDs provided contains at least one ID that does not correspond.*"),
    Case("MMDS on no NIC", "PUT /mmds/config", {"network_interfaces": []}, fault=r"MMMDS config error: The list of network interface IDs .* is empty\."),
    Case("MMDS beyond link-local", "PUT /mmds/config", {"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}, fault=re.escape("MMMDS config error: The MMDS IPv4 address is not link local.")),
    Case("MMDS version 3", "PUT /mmds/config", {"network_interfaces": ["eth0"], "version": "V3"}, fault=parse("V3")),
    # logger, metrics, CPU
    Case("log file in no folder", "PUT /logger", {"log_path": "nope/l"}, fault=re.escape("Logger error: Failed to open target file: ") + NO_FILE),
    Case("unknown log level", "PUT /logger", {"level": "Loud"}, fault=parse("LevelFilter")),
    Case("logger, unknown field", "PUT /logger", {"x": 1}, fault=parse("unknown field `x`")),
    Case("metrics in no folder", "PUT /metrics", {"metrics_path": "nope/m"}, fault=re.escape("Metrics error: Cannot initialize the metrics system due to bad user input: ") + NO_FILE),
    Case("metrics without path", "PUT /metrics", {}, fault=parse("missing field `metrics_path`")),
    Case("CPU template, unknown field", "PUT /cpu-config", {"x": 1}, fault=parse("unknown field `x`")),
    Case("CPU template without body", "PUT /cpu-config", fault=r"Empty PUT request\."),
    Case("serial, new in 1.14", "PUT /serial", {}, fault=nowhere("PUT serial")),
    # paths, methods, HTTP
    Case("unknown path", "GET /nope", fault=nowhere("GET nope")),
    Case("PUT to an unknown path", "PUT /nope", {}, fault=nowhere("PUT nope")),
    Case("PUT of the version", "PUT /version", {}, fault=nowhere("PUT version")),
    Case("GET of actions", "GET /actions", fault=nowhere("GET actions")),
    Case("GET of the boot source", "GET /boot-source", fault=nowhere("GET boot-source")),
    Case("GET of the state", "GET /vm", fault=nowhere("GET vm")),
    Case("PUT of the state", "PUT /vm", {}, fault=nowhere("PUT vm")),
    Case("PATCH of the boot source", "PATCH /boot-source", {}, fault=nowhere("PATCH boot-source")),
    Case("GET with a body", "GET /version", {}, fault=re.escape("GET request cannot have a body.")),
    Case("DELETE", "DELETE /drives/root", fault=HTTP),
    Case("POST", "POST /actions", {"action_type": "InstanceStart"}, fault=HTTP),
]

# Accepted before boot. Each runs in the order given, in one VMM that is never started.
ACCEPTED_BEFORE_BOOT = [
    Case("describe", "GET /", status=200),
    Case("version", "GET /version", status=200),
    Case("defaults of the machine", "GET /machine-config", status=200),
    Case("defaults of the VM", "GET /vm/config", status=200),
    Case("machine", "PUT /machine-config", machine(), 204),
    Case("machine, everything given", "PUT /machine-config", machine(vcpu_count=2, smt=False, track_dirty_pages=False, cpu_template=None, huge_pages="None"), 204),
    Case("machine patch", "PATCH /machine-config", {"mem_size_mib": 96}, 204),
    Case("boot source", "PUT /boot-source", kernel(boot_args="console=ttyS0"), 204),
    Case("boot source again", "PUT /boot-source", kernel(), 204),
    Case("data drive", "PUT /drives/data", data(rate_limiter=LIMIT), 204),
    Case("root drive", "PUT /drives/root", root(), 204),
    Case("root drive again", "PUT /drives/root", root(is_read_only=True, cache_type="Writeback"), 204),
    Case("NIC", "PUT /network-interfaces/eth0", nic(guest_mac="06:00:00:00:00:01"), 204),
    Case("NIC again", "PUT /network-interfaces/eth0", nic(rx_rate_limiter=LIMIT, tx_rate_limiter=LIMIT), 204),
    Case("balloon", "PUT /balloon", {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 1}, 204),
    Case("balloon read", "GET /balloon", status=200),
    Case("entropy", "PUT /entropy", {}, 204),
    Case("entropy with a limiter", "PUT /entropy", {"rate_limiter": LIMIT}, 204),
    Case("vsock", "PUT /vsock", {"guest_cid": 3, "uds_path": "v.sock"}, 204),
    Case("vsock again", "PUT /vsock", {"guest_cid": 4, "uds_path": "v.sock", "vsock_id": "old"}, 204),
    Case("MMDS configuration", "PUT /mmds/config", {"network_interfaces": ["eth0"], "version": "V2"}, 204),
    Case("MMDS contents", "PUT /mmds", {"a": {"b": 1, "c": 2}}, 204),
    Case("MMDS merge", "PATCH /mmds", {"a": {"b": None}}, 204),
    Case("MMDS read", "GET /mmds", status=200),
    Case("logger", "PUT /logger", {"log_path": "log", "level": "info", "show_level": True, "show_log_origin": True}, 204),
    Case("metrics", "PUT /metrics", {"metrics_path": "metrics"}, 204),
    Case("CPU template", "PUT /cpu-config", {"cpuid_modifiers": []}, 204),
    Case("path with a slash at its end", "GET /version/", status=200),
]

# Refused while the guest runs, changing nothing.
WHILE_RUNNING = [
    Case("second start", "PUT /actions", {"action_type": "InstanceStart"}, fault=AFTER),
    Case("boot source after boot", "PUT /boot-source", kernel(), fault=AFTER),
    Case("missing kernel after boot", "PUT /boot-source", {"kernel_image_path": "nope"}, fault=AFTER),
    Case("machine after boot", "PUT /machine-config", machine(), fault=AFTER),
    Case("bad machine after boot", "PUT /machine-config", machine(vcpu_count=0), fault=AFTER),
    Case("machine patch after boot", "PATCH /machine-config", {"mem_size_mib": 64}, fault=AFTER),
    Case("drive after boot", "PUT /drives/root", root(), fault=AFTER),
    Case("NIC after boot", "PUT /network-interfaces/eth0", nic(), fault=AFTER),
    Case("balloon after boot", "PUT /balloon", {"amount_mib": 0, "deflate_on_oom": True}, fault=AFTER),
    Case("vsock after boot", "PUT /vsock", {"guest_cid": 3, "uds_path": "v.sock"}, fault=AFTER),
    Case("entropy after boot", "PUT /entropy", {}, fault=AFTER),
    Case("MMDS configuration after boot", "PUT /mmds/config", {"network_interfaces": ["eth0"]}, fault=AFTER),
    Case("CPU template after boot", "PUT /cpu-config", {"cpuid_modifiers": []}, fault=AFTER),
    Case("metrics after boot", "PUT /metrics", {"metrics_path": "metrics"}, fault=AFTER),
    Case("logger after boot", "PUT /logger", {"log_path": "log"}, fault=AFTER),
    Case("load after boot", "PUT /snapshot/load", LOAD, fault=AFTER),
    Case("snapshot while running", "PUT /snapshot/create", SAVE, fault=r"Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"),
    Case("patch of an unknown drive", "PATCH /drives/nope", {"drive_id": "nope", "path_on_host": "data.img"}, fault=re.escape("Drive config error: Unable to patch the block device: Device manager error: ") + NO_BUS + " Please verify the request arguments."),
    Case("drive patch id mismatch", "PATCH /drives/root", {"drive_id": "other"}, fault=re.escape("The id from the path does not match the id from the body!")),
    Case("drive patch to a missing file", "PATCH /drives/data", {"drive_id": "data", "path_on_host": "nope"}, fault=re.escape("Drive config error: Unable to patch the block device: Device manager error: Virtio backend error: Error manipulating the backing file: ") + NO_FILE + r" nope Please verify the request arguments\."),
    Case("empty drive patch", "PATCH /drives/data", {"drive_id": "data"}, fault=r"Drive config error: Unable to patch the block device: .* Please verify the request arguments\."),
    Case("drive patch, unknown field", "PATCH /drives/data", {"drive_id": "data", "is_read_only": True}, fault=parse("unknown field `is_read_only`")),
    Case("drive patch without id", "PATCH /drives/data", {}, fault=parse("missing field `drive_id`")),
    Case("patch of an unknown NIC", "PATCH /network-interfaces/nope", {"iface_id": "nope"}, fault=re.escape("Network config error: Unable to update the net device: Device manager error: ") + NO_BUS),
    Case("NIC patch id mismatch", "PATCH /network-interfaces/eth0", {"iface_id": "x"}, fault=re.escape("The id from the path [eth0] does not match the id from the body [x]!")),
    Case("NIC patch of the TAP", "PATCH /network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "y"}, fault=parse("unknown field `host_dev_name`")),
    Case("balloon beyond memory", "PATCH /balloon", {"amount_mib": 10_000}, fault=r"Balloon config error: .*"),
    Case("balloon before its driver", "PATCH /balloon", {"amount_mib": 1}, fault=re.escape("Balloon config error: Error creating the balloon device: Device not activated yet.")),
    Case("statistics that are off", "GET /balloon/statistics", fault=re.escape("Balloon config error: Error creating the balloon device: Received stats querry when stats are disabled.")),
    Case("statistics switched on", "PATCH /balloon/statistics", {"stats_polling_interval_s": 2}, fault=re.escape("Balloon config error: Error creating the balloon device: Statistics cannot be enabled/disabled after activation.")),
]

# Accepted while the guest runs, in this order.
ACCEPTED_WHILE_RUNNING = [
    Case("describe after boot", "GET /", status=200),
    Case("VM after boot", "GET /vm/config", status=200),
    Case("machine read after boot", "GET /machine-config", status=200),
    Case("balloon read after boot", "GET /balloon", status=200),
    Case("drive limit", "PATCH /drives/data", {"drive_id": "data", "rate_limiter": LIMIT}, 204),
    Case("drive limit unchanged", "PATCH /drives/data", {"drive_id": "data", "rate_limiter": {}}, 204),
    Case("drive limit taken off", "PATCH /drives/data", {"drive_id": "data", "rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}}, 204),
    Case("other file for a drive", "PATCH /drives/data", {"drive_id": "data", "path_on_host": "other.img"}, 204),
    Case("NIC limit", "PATCH /network-interfaces/eth0", {"iface_id": "eth0", "rx_rate_limiter": LIMIT, "tx_rate_limiter": LIMIT}, 204),
    Case("NIC limit taken off", "PATCH /network-interfaces/eth0", {"iface_id": "eth0", "tx_rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}}, 204),
    Case("empty NIC patch", "PATCH /network-interfaces/eth0", {"iface_id": "eth0"}, 204),
    Case("statistics kept off", "PATCH /balloon/statistics", {"stats_polling_interval_s": 0}, 204),
    Case("MMDS contents after boot", "PUT /mmds", {"a": 1}, 204),
    Case("MMDS merge after boot", "PATCH /mmds", {"b": 1}, 204),
    Case("flush", "PUT /actions", {"action_type": "FlushMetrics"}, 204),
    Case("resume while running", "PATCH /vm", {"state": "Resumed"}, 204),
    Case("pause", "PATCH /vm", {"state": "Paused"}, 204),
    Case("pause again", "PATCH /vm", {"state": "Paused"}, 204),
    Case("resume", "PATCH /vm", {"state": "Resumed"}, 204),
]

# Refused while the guest is paused, changing nothing.
WHILE_PAUSED = [
    Case("start while paused", "PUT /actions", {"action_type": "InstanceStart"}, fault=AFTER),
    Case("state in no folder", "PUT /snapshot/create", SAVE | {"snapshot_path": "nope/s"}, fault=re.escape("Create snapshot error: Cannot perform open on the snapshot backing file: ") + NO_FILE),
    Case("memory in no folder", "PUT /snapshot/create", SAVE | {"mem_file_path": "nope/m"}, fault=re.escape("Create snapshot error: Cannot perform open on the memory backing file: ") + NO_FILE),
    Case("diff without tracking", "PUT /snapshot/create", SAVE | {"snapshot_type": "Diff"}, fault=re.escape("The requested operation is not supported: Diff snapshots are not allowed on uVMs with dirty page tracking disabled.")),
    Case("unknown snapshot type", "PUT /snapshot/create", SAVE | {"snapshot_type": "Half"}, fault=parse("Half")),
    Case("snapshot, unknown field", "PUT /snapshot/create", SAVE | {"version": "1"}, fault=parse("unknown field `version`")),
    Case("snapshot without state file", "PUT /snapshot/create", {"mem_file_path": "m"}, fault=parse("missing field `snapshot_path`")),
    Case("load while paused", "PUT /snapshot/load", LOAD, fault=AFTER),
]

# Refused by a VMM in which nothing is configured, each in one of its own: Firecracker ends after
# a failed load, and may reset the connection that follows a body it refused to read.
FRESH = [
    Case("start without kernel", "PUT /actions", {"action_type": "InstanceStart"}, fault=re.escape("Start microvm error: Cannot start microvm without kernel configuration.")),
    Case("load of missing files", "PUT /snapshot/load", LOAD, fault=re.escape("Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: ") + NO_FILE),
    Case("load of a file that is no snapshot", "PUT /snapshot/load", LOAD | {"snapshot_path": "data.img"}, fault=r"Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: .*"),
    Case("a body beyond 51,200 bytes", "PUT /boot-source", kernel(boot_args="x" * 60_000), fault=HTTP),
]
