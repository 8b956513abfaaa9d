"""Programs and files in guests through the SDK, down to real processes and files."""

import hashlib
import io
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from nexus.client import (
    AsyncClient,
    Client,
    ConflictError,
    DeniedError,
    NexusApiError,
    NotFoundError,
    NotReachable,
)
from tests.guest_stack import STOPPED, VM, Stack
from tests.manager.core import until


@pytest.fixture
def client(guest_stack: Stack) -> Iterator[Client]:
    with Client(guest_stack.url, guest_stack.token) as client:
        yield client


@pytest.fixture
async def async_client(guest_stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(guest_stack.url, guest_stack.token) as client:
        yield client


def test_a_program_runs_to_its_end(client: Client) -> None:
    result = client.vms.exec(
        VM, ["sh", "-c", "cat; echo $A >&2; exit 3"], env={"A": "x"}, cwd="/", stdin="in"
    )
    assert (result.exit_code, result.stdout, result.stderr) == (3, "in", "x\n")
    with pytest.raises(ConflictError) as stopped:
        client.vms.exec(STOPPED, ["true"])
    assert stopped.value.code == "invalid_state"
    with pytest.raises(NotFoundError):
        client.vms.exec("nobody", ["true"])


def test_much_input_that_is_echoed_does_not_stop_itself(client: Client) -> None:
    data = bytes(range(256)) * 80_000
    echoed = hashlib.sha256()
    with client.vms.process(VM, ["cat"]) as process:

        def feed() -> None:
            process.send(data)
            process.end_input()

        feeder = threading.Thread(target=feed)
        feeder.start()
        for output in process:
            assert output.stream == "stdout"
            echoed.update(output.data)
        feeder.join()
    assert process.exit_code == 0
    assert echoed.digest() == hashlib.sha256(data).digest()


def test_a_program_with_a_terminal(client: Client) -> None:
    script = "stty size; read x; stty size"
    with client.vms.process(VM, ["sh", "-c", script], tty=True, rows=10, cols=20) as process:
        seen = b""
        for output in process:
            if b"10 20" not in seen and b"10 20" in seen + output.data:
                process.resize(11, 21)
                process.send(b"x\n")
            seen += output.data
    assert b"11 21" in seen
    assert process.exit_code == 0


def test_a_signal_and_waiting(client: Client) -> None:
    with client.vms.process(VM, ["sleep", "600"]) as process:
        process.signal(15)
        assert process.wait() == 143
        process.send(b"too late")


@pytest.mark.anyio
async def test_leaving_ends_the_program(client: Client, guest_stack: Stack) -> None:
    with client.vms.process(VM, ["sh", "-c", "echo up; sleep 600"]) as process:
        assert next(iter(process)).data == b"up\n"

    async def is_idle() -> bool:
        return not guest_stack.guest.pids and not guest_stack.guest.connections

    await until("the guest is idle", is_idle, 60)


def test_a_program_that_cannot_be_run(client: Client, guest_stack: Stack) -> None:
    with client.vms.process(VM, ["no-such"]) as process, pytest.raises(NexusApiError) as failed:
        process.wait()
    assert (failed.value.code, failed.value.status) == ("guest_fault", 409)
    assert (failed.value.fault_message or "").startswith("ENOENT")
    with pytest.raises(NotFoundError), client.vms.process("nobody", ["true"]) as process:
        process.wait()
    with (
        Client(guest_stack.url, guest_stack.viewer) as viewer,
        pytest.raises(DeniedError) as denied,
        viewer.vms.process(VM, ["true"]),
    ):
        pass
    assert "vms:exec" in denied.value.message
    with (
        Client("http://127.0.0.1:9", "x") as nowhere,
        pytest.raises(NotReachable),
        nowhere.vms.process(VM, ["true"]),
    ):
        pass


@pytest.mark.parametrize("kind", ["bytes", "file", "pieces"])
def test_files_go_in_and_come_back(client: Client, guest_stack: Stack, kind: str) -> None:
    data = bytes(range(256)) * 20_000
    content = {"bytes": data, "file": io.BytesIO(data), "pieces": iter([data[:99], data[99:]])}
    assert client.vms.put_file(VM, f"/{kind}", content[kind], mode=0o600) == len(data)
    assert client.vms.stat_file(VM, f"/{kind}").mode == 0o600
    with client.vms.get_file(VM, f"/{kind}") as file:
        assert (file.mode, file.size_bytes) == (0o600, len(data))
        assert file.read() == data
    client.vms.make_directory(VM, f"/{kind}.d", mode=0o700)
    assert client.vms.list_files(VM, f"/{kind}.d") == []


def test_files_that_are_not_there(client: Client) -> None:
    with pytest.raises(NotFoundError), client.vms.get_file(VM, "/none"):
        pass
    with pytest.raises(NotFoundError):
        client.vms.put_file(VM, "/none/x", b"x" * 5_000_000)
    with pytest.raises(NotFoundError):
        client.vms.list_files(VM, "/none")


def test_what_the_guest_says(client: Client) -> None:
    assert client.vms.guest(VM).addresses[0].ip == "10.77.0.5/20"


@pytest.mark.anyio
async def test_the_same_awaited(async_client: AsyncClient) -> None:
    vms = async_client.vms
    assert (await vms.exec(VM, ["printf", "hi"])).stdout == "hi"
    assert (await vms.guest(VM)).hostname == "double"
    async with vms.process(VM, ["sh", "-c", "cat; exit 9"]) as process:
        await process.send(b"one")
        await process.end_input()
        assert b"".join([output.data async for output in process]) == b"one"
    assert process.exit_code == 9
    async with vms.process(VM, ["sleep", "600"], tty=True) as process:
        await process.resize(30, 40)
        await process.signal(9)
        assert await process.wait() == 137

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 100_000
        yield b"b"

    await vms.make_directory(VM, "/async")
    assert await vms.put_file(VM, "/async/x", pieces()) == 100_001
    assert [entry.name for entry in await vms.list_files(VM, "/async")] == ["x"]
    assert (await vms.stat_file(VM, "/async/x")).size_bytes == 100_001
    async with vms.get_file(VM, "/async/x") as file:
        assert len(await file.read()) == 100_001
    with pytest.raises(NotFoundError):
        async with vms.get_file(VM, "/async/none"):
            pass
