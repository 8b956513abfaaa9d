"""``nexus console``: the serial console of a VM in this terminal."""

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from nexus.cli.session import Session
from nexus.client import NexusApiError, NotFoundError

LEAVE = b"\x1d"
"""Ctrl-]"""
OPEN_TIMEOUT_S = 10.0


def attach(session: Session, name: str) -> None:
    """Relays keys and output until Ctrl-], the end of the input, or the end of the console."""
    found = session.connection()
    url = f"{found.url.replace('http', 'ws', 1)}/v1/vms/{quote(name, safe='')}/console"
    try:
        connection = connect(
            url,
            additional_headers={"authorization": f"Bearer {found.token}"},
            open_timeout=OPEN_TIMEOUT_S,
            proxy=None,
            max_size=None,
        )
    except (InvalidHandshake, OSError, TimeoutError) as error:
        raise _refused(name, error) from error
    with connection, _raw_terminal():
        if sys.stdin.isatty():
            _say(f"connected to {name}; Ctrl-] leaves\r\n")
        _relay(connection)
    if sys.stdin.isatty():
        _say("\r\n")


def _relay(connection: ClientConnection) -> None:
    wake, woken = os.pipe()
    reader = threading.Thread(target=_show, args=(connection, woken), daemon=True)
    reader.start()
    try:
        while True:
            readable, _, _ = select.select([sys.stdin, wake], [], [])
            if wake in readable:
                return
            keys = os.read(sys.stdin.fileno(), 4096)
            before, leave, _ = keys.partition(LEAVE)
            if before:
                connection.send(before)
            if leave or not keys:
                return
    except ConnectionClosed:
        return
    finally:
        connection.close()
        reader.join(timeout=1)
        os.close(wake)
        os.close(woken)


def _show(connection: ClientConnection, woken: int) -> None:
    try:
        for message in connection:
            chunk = message.encode() if isinstance(message, str) else message
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except ConnectionClosed:
        return
    finally:
        os.write(woken, b"x")


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the guest as they are pressed; the terminal is restored however this ends."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def leave(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, leave)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _refused(name: str, error: Exception) -> NexusApiError:
    status = error.response.status_code if isinstance(error, InvalidStatus) else 0
    if status == 404:
        return NotFoundError(404, "not_found", f"there is no VM {name}", suggestion="nexus ls")
    return NexusApiError(
        status,
        "host_unreachable",
        f"no console of {name}: {error}",
        suggestion=f"nexus show {name}",
    )
