"""The client where a VMM does not do what it should; what it should is the conformance suite's."""

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from nexus.vmm import types as t
from nexus.vmm.client import VmmClient
from nexus.vmm.errors import VmmError, VmmTimeout, VmmUnreachable

pytestmark = pytest.mark.anyio

Answer = Callable[[SocketStream], Awaitable[None]]


@asynccontextmanager
async def served(path: Path, answer: Answer) -> AsyncIterator[VmmClient]:
    """A client of a server that answers every connection in one way."""
    listener = await anyio.create_unix_listener(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        yield VmmClient(path, timeout_s=5)
        tasks.cancel_scope.cancel()


def saying(text: bytes) -> Answer:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(text)

    return answer


def http(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def test_refusal_carries_the_fault(tmp_path: Path) -> None:
    text = http(b"400 Bad Request", b'{"fault_message":"no kernel"}')
    async with served(tmp_path / "s", saying(text)) as client:
        with pytest.raises(VmmError) as caught:
            await client.start()
    error = caught.value
    assert (error.status, error.fault_message) == (400, "no kernel")
    assert error.endpoint == "PUT /actions"


async def test_refusal_that_is_not_json(tmp_path: Path) -> None:
    async with served(tmp_path / "s", saying(http(b"400", b"{ error }"))) as client:
        with pytest.raises(VmmError) as caught:
            await client.pause()
    assert caught.value.fault_message == "{ error }"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="hangs up"),
        pytest.param(b"HTTP/1.1 200", id="half an answer"),
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(http(b"200 OK", b"[1]"), id="other JSON"),
        pytest.param(http(b"200 OK", b"{"), id="no JSON"),
    ],
)
async def test_not_a_vmm(tmp_path: Path, text: bytes) -> None:
    async with served(tmp_path / "s", saying(text)) as client:
        with pytest.raises(VmmUnreachable):
            await client.describe_instance()


async def test_answer_without_end_is_bounded(tmp_path: Path) -> None:
    async def flood(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while True:
                    await stream.send(b"x" * 65536)
            except anyio.BrokenResourceError:
                return

    async with served(tmp_path / "s", flood) as client:
        with pytest.raises(VmmUnreachable, match="larger than"):
            await client.vm_config()


async def test_silence_is_a_timeout(tmp_path: Path) -> None:
    async def silent(stream: SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with served(tmp_path / "s", silent) as client:
        client.timeout_s = 0.05
        with pytest.raises(VmmTimeout):
            await client.version()


async def test_nobody_there(tmp_path: Path) -> None:
    client = VmmClient(tmp_path / "nope" / "s")
    with pytest.raises(VmmUnreachable):
        await client.version()
    with pytest.raises(VmmTimeout):
        await client.wait_for_socket(0.05)
    with pytest.raises(VmmTimeout):
        await client.wait_for_listener(0.05)


async def test_who_only_waits_asks_nothing(tmp_path: Path) -> None:
    heard: list[bytes] = []
    ended = anyio.Event()

    async def listen(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream):
                heard.append(await stream.receive())
            ended.set()

    async with served(tmp_path / "s", listen) as client:
        await client.wait_for_listener(5)
        await ended.wait()
    assert heard == []


async def test_waiting_ends_with_the_process(tmp_path: Path) -> None:
    asked: list[bool] = []

    def died() -> bool:
        asked.append(True)
        return len(asked) == 3

    with anyio.fail_after(5), pytest.raises(VmmUnreachable, match="ended before"):
        await VmmClient(tmp_path / "s").wait_for_socket(60, died=died)


async def test_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    body = b'{"id":"a","state":"Running","vmm_version":"9.9.9","app_name":"F","new_field":1}'
    async with served(tmp_path / "s", saying(http(b"200 OK", body))):
        (folder / "api.sock").symlink_to(tmp_path / "s")
        shown = await VmmClient(folder / "api.sock").wait_for_socket(5)
    assert shown == t.InstanceInfo(id="a", state="Running", vmm_version="9.9.9", app_name="F")


async def test_hostile_ids_stay_in_their_segment(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def record(stream: SocketStream) -> None:
        async with stream:
            seen.append(await stream.receive())
            await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with served(tmp_path / "s", record) as client:
        await client.patch_drive(t.PartialDrive(drive_id="a/../b\r\nX: y"))
    assert seen[0].startswith(b"PATCH /drives/a%2F..%2Fb%0D%0AX%3A%20y HTTP/1.1\r\n")


def test_types_and_probe_are_cheap_to_import() -> None:
    """nexus-qemu imports them once per VM: no framework comes along."""
    code = (
        "import sys, nexus.vmm.types, nexus.vmm.probe\n"
        "print([m for m in ('asyncio', 'anyio', 'httpx', 'pydantic', 'fastapi') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
