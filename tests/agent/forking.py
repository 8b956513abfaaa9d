"""An agent forked from the test process, which has imported it already.

Most of an agent's start is the interpreter's, and the same each time. Tests that start one again
and again use this; what a start is like is for those that run ``python -m nexus.agent``.
"""

import os
import signal
import sys
import time
from typing import NoReturn

import nexus.agent.__main__ as agent_main
from nexus.agent import faults, nft
from tests.agent.harness import Agent, until


class Forked:
    """What the harness needs of a ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Raises TimeoutError."""
        last = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > last:
                raise TimeoutError(f"the agent lives after {timeout} s")
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedAgent(Agent):
    """The same agent, started sooner."""

    def start(self, *, ready: bool = True, **environment: str) -> Agent:
        pid = os.fork()
        if pid == 0:
            self._become({**self.environment, **environment})
        self.process = Forked(pid)  # type: ignore[assignment]
        if ready:
            until("the agent answers", self.answers)
        return self

    def _become(self, environment: dict[str, str]) -> NoReturn:
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for stream in (1, 2):
                os.dup2(log, stream)
            # Connections of the test's are not the agent's to hold: to nftables it opens its own.
            os.closerange(3, 1024)
            nft._nftables = nft._Nftables()
            sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            os.environ.update(environment)
            faults._chosen = environment.get("NEXUS_FAULT")
            sys.argv = ["nexus.agent"]
            code = agent_main.main()
        finally:
            os._exit(code)
