"""A guest's agent without a guest: the channel's protocol over a unix socket, with real programs.

It answers ``CONNECT`` as Firecracker does and then does what the request says on this machine:
programs are run, files are written. Paths lie under ``root``, as in a guest of its own.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import stat
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

from nexus.agent.guest_frames import (
    END,
    ERROR_OUTPUT,
    EXIT,
    FAILED,
    INPUT,
    MAX_PAYLOAD_BYTES,
    OUTPUT,
    REQUEST,
    RESULT,
    SIGNAL,
    WINDOW,
    Fields,
    Frame,
    decode_fields,
    encode_fields,
)

_CHUNK = 32768


class GuestDouble:
    """Serves ``socket``; ``root`` is its file system. ``silent`` means that nobody listens."""

    def __init__(self, socket: Path, root: Path) -> None:
        self.socket = socket
        self.root = root
        self.silent = False
        self.answers: list[bytes] = []
        """Taken one by one: bytes sent, after the request, instead of doing anything."""
        self.pids: set[int] = set()
        """Programs that run at this moment."""
        self.connections = 0
        self.identities: list[Fields] = []
        """What it was told to become."""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["GuestDouble"]:
        folder = os.open(self.socket.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            server = await asyncio.start_unix_server(
                self._serve, f"/proc/self/fd/{folder}/{self.socket.name}"
            )
            try:
                yield self
            finally:
                server.close()
        finally:
            os.close(folder)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self.silent or await reader.readline() != b"CONNECT 1024\n":
                return
            writer.write(b"OK 1073741824\n")
            if self.answers:
                await reader.read(MAX_PAYLOAD_BYTES)
                writer.write(self.answers.pop(0))
                await writer.drain()
                return
            await _Operation(self, reader, writer).run()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self.connections -= 1
            writer.close()


class _Operation:
    def __init__(
        self, guest: GuestDouble, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.guest = guest
        self.reader = reader
        self.writer = writer

    async def run(self) -> None:
        request = await self.receive()
        assert request.kind == REQUEST
        fields = decode_fields(request.payload)
        values = dict(fields)
        try:
            match values["op"]:
                case "exec":
                    await self.exec(fields)
                case "health":
                    await self.health()
                case "identify":
                    self.guest.identities.append(fields)
                    await self.send(RESULT, [("ok", "1")])
                case "put":
                    await self.put(self.path(values), int(values["mode"], 8))
                case "get":
                    await self.get(self.path(values))
                case "stat":
                    await self.send(RESULT, _facts(f"{self.guest.root}{values['path']}"))
                case "list":
                    await self.list(self.path(values))
                case "mkdir":
                    self.path(values).mkdir(mode=int(values["mode"], 8))
                    await self.send(RESULT, [("done", "1")])
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            name = errno.errorcode.get(error.errno or 0, "EIO")
            await self.send(FAILED, [("code", name), ("message", os.strerror(error.errno or 0))])

    def path(self, values: dict[str, str]) -> Path:
        return self.guest.root / values["path"].lstrip("/")

    async def receive(self) -> Frame:
        head = await self.reader.readexactly(5)
        payload = await self.reader.readexactly(int.from_bytes(head[1:], "big"))
        return Frame(head[:1], payload)

    async def send(self, kind: bytes, payload: bytes | Fields) -> None:
        data = payload if isinstance(payload, bytes) else encode_fields(payload)
        self.writer.write(Frame(kind, data).encode())
        await self.writer.drain()

    async def health(self) -> None:
        said = [("version", "2"), ("hostname", "double"), ("uptime_s", "12.5"), ("ready", "1")]
        said += [("addr", "eth0,06:00:0a:4d:00:05,10.77.0.5/20")]
        said += [("addr", "eth0,06:00:0a:4d:00:05,fe80::1/64")]
        await self.send(RESULT, said)

    async def put(self, path: Path, mode: int) -> None:
        beside = path.with_name(f".{path.name}.part")
        try:
            with beside.open("wb") as file:
                while (frame := await self.receive()).kind == INPUT:
                    file.write(frame.payload)
                size = file.tell()
            beside.chmod(mode)
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
        await self.send(RESULT, [("bytes", str(size))])

    async def get(self, path: Path) -> None:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            mode = f"{stat.S_IMODE(found.st_mode):o}"
            await self.send(
                RESULT, [("kind", "file"), ("mode", mode), ("size", str(found.st_size))]
            )
            while chunk := file.read(_CHUNK):
                await self.send(OUTPUT, chunk)
        await self.send(END, b"")

    async def list(self, path: Path) -> None:
        for entry in sorted(path.iterdir()):
            found = entry.lstat()
            fact = f"{_letter(found.st_mode)},{stat.S_IMODE(found.st_mode):o},{found.st_size}"
            await self.send(RESULT, b"entry=" + os.fsencode(f"{fact},{entry.name}"))
        await self.send(END, b"")

    # -- programs --------------------------------------------------------------------------------

    async def exec(self, fields: Fields) -> None:
        values = dict(fields)
        tty = values.get("tty") == "1"
        env = dict(value.split("=", 1) for key, value in fields if key == "env")
        env = {"PATH": os.environ["PATH"], "HOME": "/root", **env}
        outputs: list[tuple[bytes, int]]
        if tty:
            keyboard, screen = pty.openpty()
            _resize(keyboard, int(values["rows"]), int(values["cols"]))
            ends = (screen, screen, screen)
            outputs = [(OUTPUT, keyboard)]
        else:
            out, child_out = os.pipe()
            err, child_err = os.pipe()
            child_in, keyboard = os.pipe()
            ends = (child_in, child_out, child_err)
            outputs = [(OUTPUT, out), (ERROR_OUTPUT, err)]
        try:
            program = await asyncio.create_subprocess_exec(
                *(value for key, value in fields if key == "arg"),
                stdin=ends[0],
                stdout=ends[1],
                stderr=ends[2],
                env=env,
                cwd=self.guest.root / values.get("cwd", "/").lstrip("/"),
                start_new_session=True,
                preexec_fn=_take_terminal if tty else None,
            )
        except OSError:
            for descriptor in {keyboard, *(descriptor for _, descriptor in outputs)}:
                os.close(descriptor)
            raise
        finally:
            for descriptor in set(ends):
                os.close(descriptor)
        self.guest.pids.add(program.pid)
        typed = asyncio.create_task(self._input(keyboard, program.pid, tty=tty))
        shown = [asyncio.create_task(self._output(*output)) for output in outputs]
        ended = asyncio.create_task(program.wait())
        try:
            await asyncio.wait({typed, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return  # the host hung up
            await asyncio.gather(*shown)
            code = ended.result()
            await self.send(EXIT, bytes([code if code >= 0 else 128 - code]))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            await program.wait()
            for task in (typed, *shown):
                task.cancel()
            await asyncio.gather(typed, *shown, return_exceptions=True)
            self.guest.pids.discard(program.pid)
            if not tty:
                os.close(keyboard)

    async def _input(self, keyboard: int, pid: int, *, tty: bool) -> None:
        """Returns when the host hangs up."""
        loop = asyncio.get_running_loop()
        open_ = True
        while True:
            try:
                frame = await self.receive()
            except (ConnectionError, asyncio.IncompleteReadError):
                return
            if frame.kind == INPUT and open_:
                try:
                    await loop.run_in_executor(None, self._write, keyboard, frame.payload)
                except BrokenPipeError:
                    continue
                except ConnectionResetError:
                    return
            elif frame.kind == END and open_:
                open_ = False
                if tty:
                    os.write(keyboard, b"\x04")
                else:
                    null = os.open("/dev/null", os.O_WRONLY)
                    os.dup2(null, keyboard)
                    os.close(null)
            elif frame.kind == WINDOW:
                _resize(keyboard, *struct.unpack(">HH", frame.payload))
            elif frame.kind == SIGNAL:
                os.killpg(pid, frame.payload[0])

    def _write(self, keyboard: int, data: bytes) -> None:
        """Waits for a program that does not read, but not longer than the host does."""
        poll = select.poll()
        poll.register(keyboard, select.POLLOUT)
        poll.register(self.writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        while data:
            ready = dict(poll.poll())
            if keyboard not in ready:
                raise ConnectionResetError
            data = data[os.write(keyboard, data[:4096]) :]

    async def _output(self, kind: bytes, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_PAYLOAD_BYTES)
        file = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            while data := await reader.read(_CHUNK):
                await self.send(kind, data)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says that a terminal has no more users
                raise
        finally:
            transport.close()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _resize(terminal: int, rows: int, cols: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def _letter(mode: int) -> str:
    kinds = ((stat.S_ISREG, "f"), (stat.S_ISDIR, "d"), (stat.S_ISLNK, "l"))
    return next((letter for is_one, letter in kinds if is_one(mode)), "o")


def _facts(path: str) -> Fields:
    # Not through pathlib, which takes "x/." for "x".
    found = os.lstat(path)
    letter = _letter(found.st_mode)
    kind = {"f": "file", "d": "dir", "l": "link", "o": "other"}[letter]
    mode = f"{stat.S_IMODE(found.st_mode):o}"
    facts = [("kind", kind), ("mode", mode), ("size", str(found.st_size))]
    if letter == "l":
        facts.append(("target", str(Path(path).readlink())))
    return facts
