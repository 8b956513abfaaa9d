"""Reading server-sent events straight from the application, one piece of the body at a time."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from fastapi import FastAPI

PATIENCE_S = 60


@dataclass
class Message:
    """One server-sent event; ``event`` is empty for a comment."""

    event: str
    id: int | None
    data: Any


class Stream:
    """An open stream. The application waits until a chunk is taken, as behind a full socket."""

    def __init__(self, status: int, chunks: MemoryObjectReceiveStream[bytes]) -> None:
        self.status = status
        self._chunks = chunks
        self._waiting: list[Message] = []

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        with anyio.fail_after(PATIENCE_S):
            return await self._chunks.receive()

    async def message(self) -> Message:
        """The next message, comments too. Raises EOFError at the end."""
        while not self._waiting:
            chunk = await self.chunk()
            if not chunk:
                raise EOFError
            self._waiting = [parse(block) for block in chunk.decode().split("\n\n") if block]
        return self._waiting.pop(0)

    async def next(self) -> Message:
        """The next message that is no comment."""
        while True:
            message = await self.message()
            if message.event:
                return message

    async def until(self, reason: str) -> list[Message]:
        """All messages to the first with this reason."""
        found: list[Message] = []
        while not found or found[-1].data.get("reason") != reason:
            found.append(await self.next())
        return found


def parse(block: str) -> Message:
    """One block of a stream whose lines are ``name: value``."""
    fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
    data = json.loads(fields["data"]) if "data" in fields else None
    return Message(fields.get("event", ""), int(fields["id"]) if "id" in fields else None, data)


@contextlib.asynccontextmanager
async def streaming(
    app: FastAPI, token: str, path: str, query: str = "", last_event_id: int | None = None
) -> AsyncIterator[Stream]:
    """Asks for a stream, and leaves at the end of the block."""
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"accept", b"text/event-stream")]
    if last_event_id is not None:
        headers.append((b"last-event-id", str(last_event_id).encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("manager", 80),
    }
    left = anyio.Event()
    asked = False
    status: list[int] = []
    begun = anyio.Event()
    feed, chunks = anyio.create_memory_object_stream[bytes]()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])
            begun.set()
            return
        # A server drops what is sent to a reader that has left.
        with contextlib.suppress(anyio.BrokenResourceError):
            if message.get("body"):
                await feed.send(message["body"])
            if not message.get("more_body"):
                await feed.send(b"")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, scope, receive, send)
        with anyio.fail_after(PATIENCE_S):
            await begun.wait()
        try:
            yield Stream(status[0], chunks)
        finally:
            left.set()
            chunks.close()
    feed.close()
