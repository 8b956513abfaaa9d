"""The guest's agent as a process of this machine, behind a listening unix socket."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.speaking import DEADLINE_S, Talk


class HostAgent:
    """One agent. ``talk`` is a fresh connection with it."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self.path = folder / "agent.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(128)
            fd = listener.fileno()
            self.process = subprocess.Popen([binary, "--listen", str(fd)], pass_fds=[fd])

    def talk(self) -> Talk:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(self.path))
        return Talk(sock)

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def spares(self) -> list[int]:
        """Those that wait for a connection: at a socket of a kind that nothing else here has."""
        sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        packets = {f"socket:[{words[6]}]" for words in sockets if words[4] == "0005"}
        return [pid for pid in self.children() if first_of(pid) in packets]

    def handlers(self) -> list[int]:
        """Those that serve one."""
        spares = self.spares()
        return [pid for pid in self.children() if pid not in spares]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def first_of(pid: int) -> str:
    """What a process has as its first descriptor beyond the standard ones."""
    try:
        return str(Path(f"/proc/{pid}/fd/3").readlink())
    except FileNotFoundError:
        return ""


@pytest.fixture(scope="module")
def agent(guest_agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostAgent]:
    made = HostAgent(guest_agent, tmp_path_factory.mktemp("agent"))
    yield made
    made.close()


@pytest.fixture
def talk(agent: HostAgent) -> Callable[[], Talk]:
    return agent.talk
