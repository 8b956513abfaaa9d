"""DHCP and names on networks that want them: one server each, kept alive, told of every VM."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import structlog

from nexus.agent import disks, dnsmasq
from nexus.agent.atomic import write_atomically
from nexus.agent.dhcp import Book, Client, Entry, Service, ServicePaths, config_of
from nexus.agent.errors import NetworkFailed
from nexus.agent.layout import is_vm_id
from nexus.agent.process import Vmm as Process

LIVED_S = 10.0
"""A server that ends sooner is not started again at once."""
LONGEST_PAUSE_S = 30.0

log = structlog.get_logger("name_service")


@dataclass
class _Server:
    """One network's, from when it is wanted until it is not."""

    service: Service
    paths: ServicePaths
    config: Path
    process: Process | None = None
    error: NetworkFailed | None = None
    wanted: bool = True
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    left: anyio.Event = field(default_factory=anyio.Event)
    """Set when nobody keeps it any more."""


@dataclass(frozen=True)
class ServerState:
    """How a network's server is."""

    pid: int | None
    error: NetworkFailed | None


class NameService:
    """The servers of one host. Its methods are called from the event loop only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._book = Book()
        self._servers: dict[str, _Server] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._looked = False
        self._turn = anyio.Lock()

    # -- VMs -------------------------------------------------------------------------------------

    def admit(self, vm_id: str, name: str, clients: Sequence[Client]) -> None:
        """Has a VM get its addresses and its name. Raises NetworkFailed."""
        self._tell(self._book.put(vm_id, name, tuple(clients)))

    def rename(self, vm_id: str, name: str, clients: Sequence[Client]) -> None:
        """The same for a VM that is known. Raises NetworkFailed."""
        if vm_id in self._book:
            self.admit(vm_id, name, clients)

    def forget(self, vm_id: str) -> None:
        """Takes address and name back. Raises NetworkFailed."""
        self._tell(self._book.drop(vm_id))

    def _tell(self, affected: set[str]) -> None:
        for server in self._servers.values():
            # What is new it notices by itself; only what is not so any more it has to be told.
            stale = [self._write(server, vm_id) for vm_id in affected]
            if any(stale) and server.process is not None:
                dnsmasq.reload(server.process)

    def _write(self, server: _Server, vm_id: str) -> bool:
        """Brings the files of one VM up to date; whether something in them is not true any more."""
        entry = self._book.entry(server.service, vm_id) or Entry("", "")
        group = dnsmasq.account().gid
        stale = False
        for folder, text in (
            (server.paths.leases, entry.leases),
            (server.paths.names, entry.names),
        ):
            file = folder / vm_id
            before = _text_of(file)
            if before == text:
                continue
            try:
                if text:
                    write_atomically(file, text.encode(), group=group)
                else:
                    file.unlink(missing_ok=True)
            except OSError as error:
                raise NetworkFailed(
                    f"{error.filename or file} cannot be written: {error.strerror}",
                    suggestion=f"free space on the host: df -h {folder}",
                ) from error
            stale = stale or before != ""
        return stale

    # -- networks --------------------------------------------------------------------------------

    def open(self, tasks: anyio.abc.TaskGroup) -> None:
        """Takes the group that the servers' watchers live in; once, before ``serve``."""
        self._tasks = tasks

    async def serve(self, services: Sequence[Service]) -> dict[str, NetworkFailed]:
        """Serves these networks and no others; returns why some are not.

        What an earlier agent left goes on without a break, if it is what is wanted.
        """
        async with self._turn:
            wanted = {service.network_id: service for service in services}
            strangers = self._strangers()
            for network_id, server in [*self._servers.items()]:
                if wanted.get(network_id) != server.service:
                    await self._end(server)
            for network_id, service in wanted.items():
                if network_id not in self._servers:
                    await self._begin(service, strangers.pop(network_id, []))
            for found in strangers.values():
                await self._end_strangers(found)
            self._remove_folders()
            return {
                network_id: server.error
                for network_id, server in self._servers.items()
                if server.error is not None
            }

    async def end(self, but: set[str]) -> None:
        """Ends the servers of all networks but these; their bridges may go now."""
        async with self._turn:
            for network_id, server in [*self._servers.items()]:
                if network_id not in but:
                    await self._end(server)

    def state(self, network_id: str) -> ServerState | None:
        """How a network's server is; None for a network that has none."""
        server = self._servers.get(network_id)
        if server is None:
            return None
        alive = server.process is not None and server.process.alive
        return ServerState(server.process.pid if server.process and alive else None, server.error)

    def knows(self, network_id: str, vm_id: str) -> bool:
        """Whether a network's server was told of a VM."""
        server = self._servers.get(network_id)
        return server is not None and bool(_text_of(server.paths.leases / vm_id))

    def _strangers(self) -> dict[str, list[tuple[Process, Path]]]:
        """Servers of an earlier agent. They are looked for once: nobody else starts any."""
        if self._looked:
            return {}
        self._looked = True
        return dnsmasq.running(self._folder)

    async def _begin(self, service: Service, found: list[tuple[Process, Path]]) -> None:
        paths = ServicePaths(self._folder / service.network_id)
        text = config_of(service, paths)
        server = _Server(service, paths, paths.config(text))
        self._servers[service.network_id] = server
        try:
            self._prepare(server, text)
        except OSError as error:
            server.error = NetworkFailed(
                f"{error.filename or paths.dir} cannot be written: {error.strerror}",
                suggestion=f"look at the run directory on the host: ls -la {self._folder}",
            )
        except NetworkFailed as error:
            server.error = error
        same = [process for process, config in found if config == server.config]
        server.process = same[0] if same else None
        await self._end_strangers([each for each in found if each[0] is not server.process])
        if server.process is not None:
            log.info("dnsmasq goes on", network=service.name, pid=server.process.pid)
            dnsmasq.reload(server.process)
        elif server.error is None:
            await self._start(server)
        if self._tasks is None:
            raise RuntimeError("the name service is not open")
        self._tasks.start_soon(self._keep, server)

    def _prepare(self, server: _Server, text: str) -> None:
        """Folders and files as they should be, those of every VM among them."""
        paths, whom = server.paths, dnsmasq.account()
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o711)
        for folder in (paths.dir, paths.leases, paths.names, paths.run):
            folder.mkdir(exist_ok=True)
            os.chown(folder, whom.uid if folder == paths.run else -1, whom.gid)
            folder.chmod(0o750)
        write_atomically(server.config, text.encode(), group=whom.gid)
        for file in paths.dir.glob("*.conf"):
            if file != server.config:
                file.unlink(missing_ok=True)
        there = {file.name for folder in (paths.leases, paths.names) for file in folder.iterdir()}
        for vm_id in there | {*self._book.vms()}:
            if is_vm_id(vm_id):
                self._write(server, vm_id)
            else:
                # Half a file of an agent that was killed.
                (paths.leases / vm_id).unlink(missing_ok=True)
                (paths.names / vm_id).unlink(missing_ok=True)

    async def _start(self, server: _Server) -> None:
        try:
            server.process = await dnsmasq.start(
                server.service.network_id, server.paths, server.config
            )
        except NetworkFailed as error:
            server.error = error
            log.warning("dnsmasq does not start", network=server.service.name, error=error.message)
            return
        server.error = None
        log.info("dnsmasq started", network=server.service.name, pid=server.process.pid)

    async def _keep(self, server: _Server) -> None:
        """Starts a server again whenever it ends, until nobody wants it."""
        try:
            with server.scope:
                await self._keep_alive(server)
        finally:
            server.left.set()

    async def _keep_alive(self, server: _Server) -> None:
        pause_s = 1.0 if server.process is None else 0.0
        while True:
            if server.process is None:
                await anyio.sleep(pause_s)
                pause_s = min(max(1.0, 2 * pause_s), LONGEST_PAUSE_S)
                await self._start(server)
                continue
            since = anyio.current_time()
            await server.process.watch()
            if not server.wanted:
                return
            log.warning("dnsmasq ended", network=server.service.name, pid=server.process.pid)
            server.process = None
            if anyio.current_time() - since > LIVED_S:
                pause_s = 0.0

    async def _end(self, server: _Server) -> None:
        """Ends a server and forgets it."""
        self._servers.pop(server.service.network_id, None)
        server.wanted = False
        if server.process is not None:
            await dnsmasq.stop(server.process)
        server.scope.cancel()
        await server.left.wait()
        log.info("dnsmasq is not wanted any more", network=server.service.name)

    async def _end_strangers(self, found: Sequence[tuple[Process, Path]]) -> None:
        for process, _ in found:
            await _end_process(process)

    def _remove_folders(self) -> None:
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            if folder.name not in self._servers:
                disks.remove_tree(folder)


async def _end_process(process: Process) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.watch)
        await dnsmasq.stop(process)


def _text_of(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
