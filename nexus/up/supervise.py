"""Keeps manager and agent running: each a process of its own, restarted when it dies."""

import logging
import logging.handlers
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 10.0
STEADY_AFTER_S = 30.0
STOP_TIMEOUT_S = 8.0
LOG_BYTES = 16 << 20
LOG_FILES = 3


@dataclass
class Service:
    """One supervised process. ``pid`` is None while it is down."""

    module: str
    environment: Mapping[str, str]
    log_file: Path
    pid: int | None = None
    restarts: int = 0
    last_lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    async def run(self) -> None:
        """Runs the process until cancelled, then stops it: SIGTERM, and SIGKILL if need be."""
        backoff_s = FIRST_BACKOFF_S
        log = _rotating_log(self.log_file)
        while True:
            begun = anyio.current_time()
            await self._run_once(log)
            if anyio.current_time() - begun > STEADY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            self.restarts += 1
            await anyio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)

    async def _run_once(self, log: logging.Logger) -> None:
        # setpriv makes the kernel stop the service when this process is killed: a service
        # without its supervisor would hold the port and the socket of the next one.
        command = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", self.module]
        process = await anyio.open_process(
            command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = process.pid
        try:
            await self._pump(process, log)
            code = await process.wait()
            log.error('{"event": "%s ended", "code": %d}', self.name, code)
        finally:
            self.pid = None
            with anyio.CancelScope(shield=True):
                await _stop(process)

    async def _pump(self, process: anyio.abc.Process, log: logging.Logger) -> None:
        if process.stderr is None:
            return
        rest = ""
        async for text in TextReceiveStream(process.stderr, errors="replace"):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                log.info("%s", line)
            self.last_lines = (self.last_lines + lines)[-20:]


async def _stop(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(STOP_TIMEOUT_S):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _rotating_log(path: Path) -> logging.Logger:
    log = logging.getLogger(f"nexus.up.{path}")
    log.propagate = False
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(
            logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES)
        )
    return log
