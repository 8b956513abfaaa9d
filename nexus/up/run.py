"""``nexus up``: start everything, make the first images and the first VM, keep it running."""

import fcntl
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.abc

from nexus.api.errors import BadRequest, Conflict, NexusError, TimedOut
from nexus.client import AsyncClient, NexusApiError
from nexus.up import disk, first
from nexus.up.place import Place
from nexus.up.say import Say
from nexus.up.supervise import Service

READY_TIMEOUT_S = 60.0
READY_POLL_S = 0.05

_PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "mke2fs": "e2fsprogs",
    "lz4": "lz4",
    "dpkg-deb": "dpkg",
    "gcc": "gcc libc6-dev",
    "setpriv": "util-linux",
}


def up(place: Place, say: Say, *, demo: bool) -> None:
    """Runs an installation in the foreground until SIGINT or SIGTERM.

    Raises NexusError with a suggestion when the machine lacks something, the address is taken or
    the same installation runs already.
    """
    _check_machine(place)
    place.prepare()
    with _only_one(place):
        disk.mount(place)
        _check_address(place)
        try:
            anyio.run(partial(_run, place, say, demo=demo), backend_options={"use_uvloop": True})
        except BaseExceptionGroup as group:
            raise _first_cause(group) from group


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong, out of the group that the tasks' scope wrapped it in."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, NexusApiError):
        return Conflict(cause.message, suggestion=cause.suggestion)
    return cause


async def _run(place: Place, say: Say, *, demo: bool) -> None:
    environment = place.environment()
    agent = Service("nexus.agent", environment, place.logs / "agent.log")
    manager = Service("nexus.manager", environment, place.logs / "manager.log")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_signal, tasks.cancel_scope)
        tasks.start_soon(agent.run)
        tasks.start_soon(manager.run)
        await _wait_ready(place, (agent, manager))
        async with AsyncClient(url=place.url, token=place.token_file.read_text().strip()) as client:
            await first.ensure_images(client, say)
            (host,) = [host async for host in client.hosts.list()]
            if demo:
                await first.hello(client, say)
        say.ready(
            {
                "url": place.url,
                "token_file": str(place.token_file),
                "engine": host.engine,
                "engine_reason": host.engine_reason,
                "image_root": environment["MANAGER_IMAGE_ROOT"],
                "data": str(place.data),
                "pids": {"up": os.getpid(), "manager": manager.pid, "agent": agent.pid},
            }
        )


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


async def _wait_ready(place: Place, services: tuple[Service, ...]) -> None:
    """Waits for ``/readyz``; a service that keeps dying fails at once, with its last words."""
    try:
        with anyio.fail_after(READY_TIMEOUT_S):
            async with AsyncClient(url=place.url, token="") as client:
                while not await client.ready():
                    for service in services:
                        if service.restarts >= 3:
                            raise _dead(service, place)
                    await anyio.sleep(READY_POLL_S)
    except TimeoutError:
        raise TimedOut(
            f"manager and agent were not ready after {READY_TIMEOUT_S:.0f} s",
            suggestion=f"read {place.logs}/manager.log and {place.logs}/agent.log",
        ) from None


def _dead(service: Service, place: Place) -> NexusError:
    words = "\n  ".join(line[:400] for line in service.last_lines[-8:] if line.strip())
    return Conflict(
        f"the {service.name} does not stay up; its last words were:\n  {words}",
        suggestion=f"read {place.logs}/{service.name}.log",
    )


def _check_machine(place: Place) -> None:
    if os.geteuid() != 0:
        raise BadRequest(
            "Nexus needs root on this machine: it makes TAP devices and a bridge",
            suggestion="sudo nexus up",
        )
    wanted = dict(_PROGRAMS)
    if place.engine == "qemu":
        wanted["qemu-system-x86_64"] = "qemu-system-x86"
    missing = sorted(package for program, package in wanted.items() if not shutil.which(program))
    if missing:
        raise BadRequest(
            f"this machine lacks: {', '.join(missing)}",
            suggestion=f"make setup (or: apt-get install {' '.join(missing)})",
        )


def _check_address(place: Place) -> None:
    host, _, port = place.bind.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadRequest(
            f"bad address {place.bind!r}", suggestion="write HOST:PORT, such as 127.0.0.1:18080"
        )
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise Conflict(
                f"cannot listen on {place.bind}: {error.strerror}",
                suggestion=f"choose another: nexus up --bind {host}:{(int(port) + 1) % 65536}",
            ) from error


@contextmanager
def _only_one(place: Place) -> Iterator[None]:
    """Holds the installation's lock; its file carries the holder's pid for ``nexus down``."""
    with place.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Conflict(
                f"the installation in {place.data} is running already (pid {lock.read().strip()})",
                suggestion="use it, stop it with Ctrl-C there, or give another --data and --bind",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


def report(error: NexusError, *, as_json: bool) -> None:
    """Prints an error and its cure on stderr."""
    if as_json:
        print(
            json.dumps(
                {"error": error.code, "message": error.message, "suggestion": error.suggestion}
            ),
            file=sys.stderr,
        )
        return
    print(f"nexus: {error.message}", file=sys.stderr)
    if error.suggestion:
        print(f"try: {error.suggestion}", file=sys.stderr)
