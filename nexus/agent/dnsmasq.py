"""dnsmasq processes: one for each network that is served. It outlives the agent, as VMMs do.

It runs as an unprivileged user from its first instruction on, with the capabilities that DHCP and
port 53 need. It is found again by the configuration file among its arguments, which lies in the
folder of its network, and held by pid and start time.
"""

import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from nexus.agent.command import SYSTEMD_BOOTED
from nexus.agent.dhcp import ServicePaths
from nexus.agent.errors import NetworkFailed
from nexus.agent.layout import is_vm_id
from nexus.agent.process import Vmm as Process
from nexus.agent.process import start_ticks

PROGRAM = "dnsmasq"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.005
_ARGUMENT = "--conf-file="
_CAPABILITIES = ("net_admin", "net_raw", "net_bind_service")
_PAST_CLOSED_FOLDERS = "dac_read_search"


@dataclass(frozen=True)
class Account:
    """Whom a server runs as."""

    uid: int
    gid: int


def account() -> Account:
    """The user that Debian's package makes, else nobody."""
    for name in (PROGRAM, "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_uid, found.pw_gid)
    return Account(65534, 65534)


def command(
    network_id: str, config: Path, whom: Account, *, closed: bool, scope: bool
) -> list[str]:
    """The argument list. ``closed``: the folder lies in one that only root may enter."""
    kept = [*_CAPABILITIES, *([_PAST_CLOSED_FOLDERS] if closed else [])]
    capabilities = ",".join(["-all", *(f"+{name}" for name in kept)])
    words = ["setpriv", f"--reuid={whom.uid}", f"--regid={whom.gid}", "--clear-groups"]
    words += [f"--{which}={capabilities}" for which in ("inh-caps", "ambient-caps", "bounding-set")]
    words += ["--no-new-privs", "--", PROGRAM, "--keep-in-foreground", f"{_ARGUMENT}{config}"]
    if scope:
        unit = f"nexus-dhcp-{network_id}"
        words = ["systemd-run", "--scope", "--quiet", "--collect", "--unit", unit, "--", *words]
    return words


async def start(network_id: str, paths: ServicePaths, config: Path) -> Process:
    """Starts a server; returns once its sockets are open. Raises NetworkFailed with its words."""
    paths.pid.unlink(missing_ok=True)
    words = command(
        network_id,
        config,
        account(),
        closed=_is_closed(paths.dir),
        scope=SYSTEMD_BOOTED.exists(),
    )
    child = _spawn(words, paths.complaints)
    process = Process(
        pid=child.pid,
        start_ticks=start_ticks(child.pid) or 0,
        pidfd=os.pidfd_open(child.pid),
        child=child,
    )
    try:
        with anyio.move_on_after(START_TIMEOUT_S):
            while process.alive:
                if paths.pid.exists():
                    return process
                await anyio.sleep(_POLL_S)
    except BaseException:
        # Nobody would know of it.
        process.kill()
        child.wait()
        os.close(process.pidfd)
        raise
    process.kill()
    await process.watch()
    raise refusal(paths.complaints.read_text(errors="replace"))


def _spawn(words: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    try:
        with output.open("wb") as complaints:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                cwd="/",
                start_new_session=True,
                env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
            )
    except OSError as error:
        raise _missing(error.filename or words[0]) from error


def reload(process: Process) -> None:
    """Has it read the files of its VMs anew, and forget what is not there any more."""
    _send(process, signal.SIGHUP)


async def stop(process: Process) -> None:
    """Ends a server that somebody else watches; returns when it is gone."""
    _send(process, signal.SIGTERM)
    with anyio.move_on_after(STOP_TIMEOUT_S):
        await process.exited.wait()
        return
    process.kill()
    await process.exited.wait()


def _send(process: Process, number: signal.Signals) -> None:
    if process.pidfd < 0:
        return
    try:
        signal.pidfd_send_signal(process.pidfd, number)
    except ProcessLookupError:
        return


def running(folder: Path) -> dict[str, list[tuple[Process, Path]]]:
    """The servers whose configuration lies in a network's folder beneath this one, with it.

    Reads /proc once.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        config = _config_of(int(entry.name))
        if config is None or config.parent.parent != folder or not is_vm_id(config.parent.name):
            continue
        found.setdefault(config.parent.name, []).append((int(entry.name), config))
    return {network_id: _held(pids) for network_id, pids in found.items()}


def _held(found: Sequence[tuple[int, Path]]) -> list[tuple[Process, Path]]:
    # For each question by TCP it forks a child, which looks like itself.
    pids = {pid for pid, _ in found}
    held = []
    for pid, config in found:
        if _parent(pid) in pids:
            continue
        ticks = start_ticks(pid)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if ticks is not None and start_ticks(pid) == ticks and _config_of(pid) == config:
            held.append((Process(pid=pid, start_ticks=ticks, pidfd=pidfd, child=None), config))
        else:
            os.close(pidfd)
    return held


def _config_of(pid: int) -> Path | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if PROGRAM.encode() not in (words[0].rpartition(b"/")[2], *words):
        return None
    for word in words:
        if word.startswith(_ARGUMENT.encode()):
            return Path(os.fsdecode(word.removeprefix(_ARGUMENT.encode())))
    return None


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def _is_closed(folder: Path) -> bool:
    """Whether somebody without rights cannot come to the folder."""
    return any(not parent.stat().st_mode & 0o001 for parent in folder.parents)


def _missing(program: str) -> NetworkFailed:
    package = "util-linux" if program == "setpriv" else "dnsmasq-base"
    return NetworkFailed(
        f"the program {program} is missing", suggestion=f"apt-get install {package}"
    )


def refusal(words: str) -> NetworkFailed:
    """What it says when it does not start, and what to do about it."""
    said = words.strip().splitlines()
    last = next((line for line in said if "FAILED" not in line), "it says nothing")[:300]
    if PROGRAM in last and "No such file" in last:
        return _missing(PROGRAM)
    cure = "look at the host: journalctl -t dnsmasq, and ss -lnup"
    if "in use" in last:
        cure = "see who has port 53 there (ss -lnup sport = 53) and have it leave this address"
    elif "ermi" in last:
        cure = "run the agent as root (it needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_SETUID)"
    return NetworkFailed(f"dnsmasq does not start: {last}", suggestion=cure)
