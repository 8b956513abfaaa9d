"""Paths and ``?sock=`` values that must not get past the proxy, as an attacker writes them."""

BAD_PATHS: tuple[str, ...] = (
    # climbing
    "..", "../", "../vm", "../../vms", "vm/..", "vm/../logger", "vm/../../../../etc/passwd",
    "./vm", "vm/.", "vm/./config", ".../vm", "..;/vm", "..\\vm", "vm\\config", "drives/..",
    "drives/../logger", "drives/rootfs/..", "drives/rootfs/../../logger",
    # the same in escapes, once and twice
    "%2e%2e", "%2e%2e/vm", "%2E%2E%2Fvm", "..%2f..%2fetc%2fpasswd", "vm%2fconfig", "vm%2Fconfig",
    "%76m", "%2fvm", "vm%2e", "%252e%252e/vm", "%252fvm", "vm%5cconfig", "%c0%ae%c0%ae/vm",
    "%c0%afvm", "%e0%80%af", "vm%09", "vm%20", "vm%0a", "vm%0d%0aX-Y:%20z", "vm%00",
    "drives/%00", "drives/rootfs%00.img", "%ff", "vm%ff", "%uff0e", "%", "%2", "%zz", "vm%3fsock=x",
    # slashes too many
    "/", "//", "/vm", "//vm", "vm/", "vm//", "vm//config", "vm/config/", "machine-config/",
    # other names for the same
    "VM", "Vm", "vm/Config", "VM/CONFIG", "Machine-Config", "actions/", "vm.", "vm..", "vm.json",
    "vm~", "vm*", "*", "vm;a=b", "vm;", ";vm", "vm,config", "vm:config", "vm@x", "vm|config",
    "vm$IFS", "$(id)", "`id`", "vm'", 'vm"', "<vm>", "{vm}",
    # letters that look alike
    "\u2025/vm", "\uff56\uff4d", "v\u043c", "vm\u200b", "\u202evm", "vm\u0301", "💥", "vm\u00a0",
    "drives/r\u043eotfs", "drives/\u0661",
    # names of drives and NICs
    "drives", "drives/", "drives/a b", "drives/a.b", "drives/a/b", "drives/" + "x" * 65,
    "drives/-", "drives/../rootfs", "network-interfaces", "network-interfaces/",
    "network-interfaces/eth0/", "network-interfaces/eth0/x", "network-interfaces/eth.0",
    # whole addresses, and what is no path
    "http://127.0.0.1/vm", "http:/vm", "file:///etc/passwd", "unix:/run/x.sock", "//evil/vm",
    "localhost:80/vm", "\\\\host\\share", "C:\\x", "~/vm", "~root/vm", "-",
    # what Firecracker has not
    "debug", "metrics/flush", "vm/config/x", "snapshot", "snapshot/", "mmds/", "mmds/config/x",
    "balloon/statistics/x", "balloon/statistics/", "hotplug/memory", "vm/pause", "v1/vm", "logger/",
    # long ones
    "x" * 10_000, "vm/" * 2_000, "../" * 1_000 + "etc/passwd", "drives/" + "a" * 30_000,
)  # fmt: skip

REFUSED: tuple[tuple[str, str], ...] = (
    # Firecracker has them; they name files or devices of the host.
    ("PUT", "drives/rootfs"), ("PUT", "drives/new"), ("PUT", "network-interfaces/eth1"),
    ("PUT", "boot-source"), ("PUT", "vsock"), ("PUT", "logger"), ("PUT", "metrics"),
    ("PUT", "serial"), ("PUT", "snapshot/create"), ("PUT", "snapshot/load"),
)  # fmt: skip


def bad_sockets(own: str, other: str) -> list[str]:
    """``?sock=`` values, in escapes as on the wire; ``other`` is another VM's socket."""
    folder, name = own.rsplit("/", 1)
    return [
        "", "%20", ".", "..", "/", "//", "api.sock", "./api.sock", "root/api.sock", "null", "0",
        other, f"{folder}/../root/{name}", f"{folder}/./{name}", f"{folder}//{name}",
        f"/{own}", f"{own}/", f"{own}/.", f"{own}/..", f"{own}.", f"{own}%20", f"%20{own}",
        f"{own}%0a", f"{own}%09", f"{own}%00", f"%00{own}", f"{own}%2500", f"{own};x", f"{own}%23",
        f"{own}%3f", f"{own},{other}", f"{own}%26sock={other}", own.upper(),
        own.replace("/", "%5c"),
        own.replace("/", "%252f"), own.replace("/", "\uff0f"), own.replace("/", "\u2215"),
        own.replace("a", "\u0430"), f"{own}\u200b", f"{own}\u0301", f"unix:{own}", f"unix://{own}",
        f"file://{own}", f"http+unix://{own.replace('/', '%2f')}", f"@{own}", f"~{own}", f"'{own}'",
        f'"{own}"', f"$HOME{own}", f"{own}*", f"{folder}/*", f"{folder}/[a]pi.sock",
        f"{folder}/vmm.json", f"{folder}/link.sock", f"{folder}/v.sock", "/etc/passwd", "/dev/null",
        "/proc/self/fd/3", f"/proc/self/root{own}", f"/proc/1/root{own}", "/var/run/docker.sock",
        "..%2f..%2fapi.sock", "%2e%2e/api.sock", "%c0%ae%c0%ae/api.sock", "%ff", "x" * 5000,
        f"{'../' * 500}{own}", f"{own}&sock={other}", f"{other}&sock={own}", f"{own}&sock=",
    ]  # fmt: skip
