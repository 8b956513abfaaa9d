"""QEMU as a child that cannot outlive this process, and what it says on stderr."""

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import time

from nexus.qemu.qmp import Qmp

_PR_SET_PDEATHSIG = 1


class QemuProcess:
    """A QEMU child on our stdin and stdout; ``qmp`` speaks with it over an unnamed socket."""

    def __init__(self, argv: list[str], qmp_child: socket.socket, qmp: Qmp, fds: list[int]) -> None:
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            # One thread and nothing but a system call between fork and exec.
            self._popen = subprocess.Popen(
                argv,
                stderr=write_end,
                pass_fds=[*fds, qmp_child.fileno()],
                preexec_fn=die_with_parent,
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        os.set_blocking(read_end, False)
        self.qmp = qmp
        self.stderr_fd = read_end
        self.pidfd = os.pidfd_open(self._popen.pid)
        self._partial = b""

    @property
    def pid(self) -> int:
        return self._popen.pid

    def stderr_lines(self) -> list[str]:
        """Whole lines that QEMU has written to stderr since the last call."""
        while True:
            try:
                data = os.read(self.stderr_fd, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self._partial += data
        *lines, self._partial = self._partial.split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines if line.strip()]

    def wait(self, timeout_s: float) -> int | None:
        """The exit code (negative: the signal), or None if it still runs after this time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.pidfd, selectors.EVENT_READ)
            deadline = time.monotonic() + timeout_s
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
        return self._popen.wait()

    def kill(self) -> None:
        """Ends QEMU at once and reaps it."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """Gives back the descriptors; the process has ended."""
        self.qmp.close()
        os.close(self.stderr_fd)
        os.close(self.pidfd)


def spawn(
    argv: list[str], qmp_ours: socket.socket, qmp_child: socket.socket, fds: list[int]
) -> QemuProcess:
    """Starts QEMU with these descriptors inherited under their own numbers; raises OSError."""
    try:
        return QemuProcess(argv, qmp_child, Qmp(qmp_ours), fds)
    finally:
        qmp_child.close()
