"""nexus-qemu's vsock device with the real agent at its port, and no QEMU between them."""

import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from nexus.qemu.vsock import Vsock
from tests.guest.speaking import DEADLINE_S


class Port:
    """A port with a device at its host's end, served by a thread as nexus-qemu's loop does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "v.sock"
        self.device = Vsock(str(self.path), "")
        ours, self.guest = socket.socketpair()
        self.device.attach(ours, is_open=False)
        self._calls: list[Callable[[], None]] = []
        self._read, self._write = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._agents: list[subprocess.Popen[bytes]] = []

    def _serve(self) -> None:
        poll = select.epoll()
        poll.register(self.device.fileno(), select.EPOLLIN)
        poll.register(self._read, select.EPOLLIN)
        while True:
            deadline = self.device.deadline
            for fd, _ in poll.poll(None if deadline is None else 0.05):
                if fd == self.device.fileno():
                    self.device.serve()
                elif os.read(self._read, 1) == b"x":
                    return
                else:
                    self._calls.pop(0)()
            self.device.expire()

    def do(self, call: Callable[[], None]) -> None:
        """Calls it in the thread of the loop, and waits for that."""
        done = threading.Event()
        self._calls.append(lambda: (call(), done.set())[0])
        os.write(self._write, b"c")
        assert done.wait(DEADLINE_S)

    def start_agent(self, *command: str | Path) -> "subprocess.Popen[bytes]":
        """The guest's agent opens the port."""
        fd = self.guest.fileno()
        agent = subprocess.Popen([*command, "--port", str(fd)], pass_fds=[fd])
        self._agents.append(agent)
        self.do(lambda: self.device.port_changed(is_open=True))
        return agent

    def close(self) -> None:
        for agent in self._agents:
            agent.kill()
            agent.wait()
        os.write(self._write, b"x")
        self._thread.join()
        self.device.remove()
        self.guest.close()
        os.close(self._read)
        os.close(self._write)
