"""``nexus`` as a process for each command, forked from one that has imported it already.

A command spends most of its time with the interpreter's start and imports, which are the same every
time. Whoever runs many uses these; what a start is like is for those that run ``python -m nexus``.
"""

import base64
import gc
import importlib
import json
import os
import pkgutil
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

REPO = Path(__file__).resolve().parent.parent
PRELOADED = ("nexus.cli", "nexus.client", "nexus.api")


class Nexus:
    """Runs commands, one at a time. It ends when this process does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: bytes = b"",
        cwd: Path | None = None,
        timeout_s: float = 90,
    ) -> subprocess.CompletedProcess[bytes]:
        """As ``subprocess.run`` of ``nexus`` with these arguments."""
        order = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "stdin": base64.b64encode(stdin).decode(),
            "cwd": str(cwd or REPO),
        }
        with self._turn:
            server = self._started()
            assert server.stdin is not None
            assert server.stdout is not None
            late = threading.Timer(timeout_s, server.kill)
            late.start()
            server.stdin.write(json.dumps(order).encode() + b"\n")
            server.stdin.flush()
            line = server.stdout.readline()
            late.cancel()
        assert line, f"nexus {' '.join(arguments)} did not end within {timeout_s} s"
        code, *streams = json.loads(line)
        out, err = map(base64.b64decode, streams)
        return subprocess.CompletedProcess(["nexus", *arguments], code, out, err)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked"],
                cwd=REPO,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        return self._process


nexus = Nexus()


def serve(orders: Iterable[bytes]) -> None:
    """Reads orders until there are no more."""
    for package in PRELOADED:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            importlib.import_module(module.name)
    importlib.import_module("nexus.__main__")
    gc.freeze()
    for line in orders:
        order = json.loads(line)
        inward, outward, errors = os.pipe(), os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            for source, target in ((inward[0], 0), (outward[1], 1), (errors[1], 2)):
                os.dup2(source, target)
            for descriptor in (*inward, *outward, *errors):
                os.close(descriptor)
            _become(order["arguments"], order["environment"], order["cwd"])
        for descriptor in (inward[0], outward[1], errors[1]):
            os.close(descriptor)
        out, err = _exchange(inward[1], outward[0], errors[0], base64.b64decode(order["stdin"]))
        _, status = os.waitpid(child, 0)
        streams = [base64.b64encode(stream).decode() for stream in (out, err)]
        answer = [os.waitstatus_to_exitcode(status), *streams]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _become(arguments: list[str], environment: dict[str, str], cwd: str) -> NoReturn:
    """Does what ``python -m nexus`` does, and ends."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["nexus", *arguments]
    code = 1
    try:
        importlib.import_module("nexus.__main__").main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _exchange(inward: int, outward: int, errors: int, given: bytes) -> tuple[bytes, bytes]:
    """Gives a child its input and takes its output, until it has closed both."""
    found: dict[int, list[bytes]] = {outward: [], errors: []}
    with selectors.DefaultSelector() as selector:
        for descriptor in found:
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(inward, False)
        selector.register(inward, selectors.EVENT_WRITE)
        while any(key in found for key in selector.get_map()):
            for key, _ in selector.select():
                if key.fd == inward:
                    try:
                        given = given[os.write(inward, given) if given else 0 :]
                    except BrokenPipeError:
                        given = b""
                    if not given:
                        selector.unregister(inward)
                        os.close(inward)
                elif data := os.read(key.fd, 1 << 16):
                    found[key.fd].append(data)
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
        if inward in selector.get_map():
            os.close(inward)
    return b"".join(found[outward]), b"".join(found[errors])


if __name__ == "__main__":
    serve(sys.stdin.buffer)
