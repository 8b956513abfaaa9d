"""The guest's agent shut up in a root, a network and a host name of its own, and without the right
to set the clock: what it changes of a guest changes nothing of this machine."""

import json
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

from tests.guest.speaking import DEADLINE_S, Fields, Talk, ask, identify


class Cell:
    """A guest's surroundings. ``command`` runs the agent in them; ``pid`` is its, once it runs."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self.root = folder / "root"
        self.pid = 0
        for name in ("etc", "dev", "run/nexus/www", "var/lib"):
            (self.root / name).mkdir(parents=True)
        os.mknod(self.root / "dev/urandom", stat.S_IFCHR | 0o666, os.makedev(1, 9))
        program = self.root / "agent"
        program.write_bytes(binary.read_bytes())
        program.chmod(0o755)
        self.command = [
            *("setpriv", "--bounding-set", "-sys_time"),
            *("unshare", "--net", "--uts", f"--root={self.root}", "/agent"),
        ]

    def run(self, *words: str) -> str:
        """Runs a program of this machine in the agent's network."""
        inside = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]
        return subprocess.run(inside, check=True, stdout=subprocess.PIPE, text=True).stdout

    def ip(self, *words: str) -> Any:
        out = self.run("ip", "-j", *words)
        return json.loads(out) if out.strip() else None

    def mac(self, name: str) -> str:
        return str(self.ip("link", "show", "dev", name)[0]["address"])

    def addresses(self, name: str) -> list[str]:
        """IPv4 addresses of an interface."""
        (found,) = self.ip("-4", "addr", "show", "dev", name) or [{"addr_info": []}]
        return [f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"]]

    def text(self, name: str) -> str:
        return (self.root / name).read_text()


class CellAgent(Cell):
    """With an agent that runs; ``talk`` is a fresh connection with it."""

    def __init__(self, binary: Path, folder: Path) -> None:
        super().__init__(binary, folder)
        self._path = folder / "agent.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen()
            fd = listener.fileno()
            self._process = subprocess.Popen([*self.command, "--listen", str(fd)], pass_fds=[fd])
        self.pid = self._process.pid
        ask(self.talk(), "health")  # from here on it is the agent, in namespaces of its own

    def talk(self) -> Talk:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(self._path))
        return Talk(sock)

    def identify(self, *fields: tuple[str, object]) -> Fields:
        """The answer; raises Failed."""
        return identify(self.talk(), *fields)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
