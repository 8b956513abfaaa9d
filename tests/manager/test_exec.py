"""Programs and files in guests through the manager, from HTTP to real processes and back."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPConnection
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from nexus import streams
from nexus.api.guest import MAX_OUTPUT_BYTES, MAX_UPLOAD_BYTES
from tests.guest_stack import STOPPED, VM, Stack
from tests.manager.core import until

pytestmark = pytest.mark.anyio

EXEC = f"/v1/vms/{VM}/exec"
FILES = f"/v1/vms/{VM}/files"
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture
def http(guest_stack: Stack) -> Iterator[httpx.Client]:
    with guest_stack.http() as client:
        yield client


def run(http: httpx.Client, *argv: str, **options: Any) -> dict[str, Any]:
    answer = http.post(EXEC, json={"argv": argv, **options})
    assert answer.status_code == 200, answer.text
    item: dict[str, Any] = answer.json()["item"]
    return item


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["error"]) == (status, code), body
    return body


async def idle(stack: Stack) -> None:
    """Nothing is left of what was asked: no program, no connection into the guest."""

    async def is_idle() -> bool:
        return not stack.guest.connections and not stack.guest.pids

    await until("the guest is idle", is_idle, 60)


# -- one request -----------------------------------------------------------------------------------


def test_a_program_runs_to_its_end(http: httpx.Client) -> None:
    script = 'cat; echo "$WORD" >&2; exit 3'
    item = run(http, "sh", "-c", script, stdin="grüße\n", env={"WORD": "b"})
    assert item == {
        "exit_code": 3,
        "stdout": "grüße\n",
        "stderr": "b\n",
        "truncated": False,
        "encoding": "text",
    }


def test_bytes_that_are_no_text_come_as_base64_or_replaced(http: httpx.Client) -> None:
    data = bytes(range(256))
    given = base64.b64encode(data).decode()
    item = run(http, "cat", stdin=given, encoding="base64")
    assert base64.b64decode(item["stdout"]) == data
    assert run(http, "printf", r"\377")["stdout"] == "\ufffd"


def test_output_beyond_the_bound_is_cut_and_the_program_still_ends(http: httpx.Client) -> None:
    item = run(http, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; exit 4")
    assert (item["exit_code"], item["truncated"]) == (4, True)
    assert item["stdout"] == "x" * MAX_OUTPUT_BYTES


def test_a_program_that_takes_too_long_is_ended(http: httpx.Client, guest_stack: Stack) -> None:
    answer = http.post(EXEC, json={"argv": ["sleep", "600"], "timeout_s": 0.3})
    body = refused(answer, 504, "timed_out")
    assert "sleep" in body["message"]
    asyncio.run(idle(guest_stack))


def test_a_program_that_is_not_there_is_the_guests_refusal(http: httpx.Client) -> None:
    body = refused(http.post(EXEC, json={"argv": ["no-such"]}), 409, "guest_fault")
    assert body["fault_message"].startswith("ENOENT:")


def test_a_vm_that_does_not_run_and_one_that_is_not_there(http: httpx.Client) -> None:
    body = refused(
        http.post(f"/v1/vms/{STOPPED}/exec", json={"argv": ["true"]}), 409, "invalid_state"
    )
    assert body["suggestion"] == f"nexus start {STOPPED}"
    refused(http.post("/v1/vms/nobody/exec", json={"argv": ["true"]}), 404, "not_found")


def test_a_guest_without_an_agent_says_so(http: httpx.Client, guest_stack: Stack) -> None:
    guest_stack.guest.silent = True
    try:
        for answer in (
            http.post(EXEC, json={"argv": ["true"]}),
            http.get(f"/v1/vms/{VM}/guest"),
            http.get(FILES, params={"path": "/x"}),
            http.put(FILES, params={"path": "/x"}, content=b"x" * 3_000_000, headers=BYTES),
        ):
            body = refused(answer, 409, "guest_agent_missing")
            assert "nexus logs" in body["suggestion"]
    finally:
        guest_stack.guest.silent = False


def test_the_audit_has_the_arguments_but_no_input_and_no_values(
    http: httpx.Client, guest_stack: Stack
) -> None:
    run(http, "cat", "-", stdin="s3cret-in", env={"KEY": "s3cret-env"})
    begun, ended = guest_stack.audit("vm.exec")[-2:]
    assert json.loads(begun["before"])["argv"] == ["cat", "-"]
    assert json.loads(begun["before"])["env"] == ["KEY"]
    assert (begun["permission"], begun["result"]) == ("vms:exec", "ok")
    assert json.loads(ended["after"]) == {"exit_code": 0}
    http.post(EXEC, json={"argv": ["no-such"]})
    assert guest_stack.audit("vm.exec")[-1]["result"] == "guest_fault"
    http.post(f"/v1/vms/{STOPPED}/exec", json={"argv": ["true"]})
    refusal = guest_stack.audit("vm.exec")[-1]
    assert (refusal["action"], refusal["result"]) == ("vm.exec", "invalid_state")
    assert "s3cret" not in str(guest_stack.audit("vm.exec"))


def test_a_viewer_may_look_at_the_guest_but_not_go_in(guest_stack: Stack) -> None:
    with guest_stack.http(guest_stack.viewer) as http:
        said = http.get(f"/v1/vms/{VM}/guest").json()["item"]
        assert (said["hostname"], said["ready"], len(said["addresses"])) == ("double", True, 2)
        refused(http.post(EXEC, json={"argv": ["true"]}), 403, "forbidden")
        refused(http.get(FILES, params={"path": "/x"}), 403, "forbidden")
        for method, path in (("GET", "stat"), ("GET", "list"), ("POST", "mkdir")):
            refused(http.request(method, f"{FILES}/{path}?path=/x"), 403, "forbidden")
        refused(
            http.put(FILES, params={"path": "/x"}, content=b"", headers=BYTES), 403, "forbidden"
        )


def test_a_request_that_is_sent_again_does_not_run_again(
    http: httpx.Client, guest_stack: Stack
) -> None:
    request = {"argv": ["sh", "-c", "echo x >> ran; wc -l < ran"], "cwd": "/"}
    for _ in range(2):
        answer = http.post(EXEC, json=request, headers={"idempotency-key": "one"})
        assert answer.json()["item"]["stdout"].strip() == "1", answer.text
    assert (guest_stack.root / "ran").read_text() == "x\n"


async def test_going_away_ends_the_program(guest_stack: Stack) -> None:
    headers = {"authorization": f"Bearer {guest_stack.token}"}
    async with httpx.AsyncClient(base_url=guest_stack.url, headers=headers) as http:
        with anyio.move_on_after(60) as waiting:

            async def leave_once_it_runs() -> None:
                async def runs() -> bool:
                    return bool(guest_stack.guest.pids)

                await until("the program runs", runs, 60)
                waiting.cancel()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave_once_it_runs)
                await http.post(EXEC, json={"argv": ["sleep", "600"]})
    await idle(guest_stack)

    async def audited() -> bool:
        return guest_stack.audit("vm.exec")[-1]["action"] == "vm.exec_ended"

    await until("the end is audited", audited)
    ended = guest_stack.audit("vm.exec")[-1]
    assert "left" in str(ended["after"]) or ended["result"] == "client_closed_request"


# -- streams ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stream(stack: Stack, ref: str = VM, **start: Any) -> AsyncIterator[ClientConnection]:
    async with connect(
        f"ws{stack.url.removeprefix('http')}/v1/vms/{ref}/exec",
        additional_headers={"authorization": f"Bearer {stack.token}"},
        proxy=None,
    ) as socket:
        if start:
            await socket.send(json.dumps(start))
        yield socket


async def rest_of(socket: ClientConnection) -> tuple[dict[int, bytes], dict[str, Any]]:
    """All output by its stream, and the last message."""
    outputs: dict[int, bytes] = {}
    last: dict[str, Any] = {}
    async for message in socket:
        if isinstance(message, str):
            last = json.loads(message)
        elif message:
            outputs[message[0]] = outputs.get(message[0], b"") + message[1:]
    return outputs, last


async def test_a_stream_carries_input_output_and_the_end(guest_stack: Stack) -> None:
    script = "read x; echo got $x; echo err >&2; cat; exit 5"
    async with stream(guest_stack, argv=["sh", "-c", script]) as socket:
        await socket.send(b"\x00one\n")
        assert await socket.recv() == b"\x01got one\n"
        await socket.send(b"\x00two")
        await socket.send(json.dumps({"type": "stdin_end"}))
        outputs, last = await rest_of(socket)
    assert outputs == {1: b"two", 2: b"err\n"}
    assert last == {"type": "exit", "exit_code": 5}
    assert socket.close_code == 1000


async def test_a_stream_with_a_terminal_is_resized_and_interrupted(guest_stack: Stack) -> None:
    start = {"argv": ["sh", "-c", "stty size; exec sleep 600"], "tty": True, "rows": 20, "cols": 70}
    async with stream(guest_stack, **start) as socket:
        assert await socket.recv() == b"\x0120 70\r\n"
        await socket.send(json.dumps({"type": "resize", "rows": 33, "cols": 44}))
        await socket.send(b"\x00\x03")
        _, last = await rest_of(socket)
    assert last == {"type": "exit", "exit_code": 130}


async def test_a_signal_by_its_number(guest_stack: Stack) -> None:
    async with stream(guest_stack, argv=["sleep", "600"]) as socket:
        await socket.send(json.dumps({"type": "signal", "signal": 15}))
        _, last = await rest_of(socket)
    assert last == {"type": "exit", "exit_code": 143}


async def test_leaving_a_stream_leaves_nothing_behind(guest_stack: Stack) -> None:
    for _ in range(5):
        async with stream(guest_stack, argv=["sh", "-c", "echo up; sleep 600"]) as socket:
            assert await socket.recv() == b"\x01up\n"
            socket.transport.abort()
    await idle(guest_stack)

    async def audited() -> bool:
        return [row["result"] for row in guest_stack.audit("vm.exec")[-10:]].count(
            "client_closed_request"
        ) == 5

    await until("each end is audited", audited)


async def test_a_user_that_vanishes_behind_a_program_that_does_not_read(
    guest_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BEAT_S", 0.2)
    async with stream(guest_stack, argv=["sleep", "600"]) as socket:
        with anyio.move_on_after(2):
            while True:
                await socket.send(b"\x00" + bytes(65536))
        assert guest_stack.guest.pids
        socket.transport.abort()
    await idle(guest_stack)


@pytest.mark.parametrize(
    "first",
    [
        "",
        "x",
        "[]",
        "{}",
        '{"argv": []}',
        '{"argv": [""]}',
        '{"argv": "ls"}',
        '{"argv": ["a\\u0000b"]}',
        '{"argv": ["\\ud800"]}',
        '{"argv": ["x"], "env": {"a b": "x"}}',
        '{"argv": ["x"], "env": {"A=B": "x"}}',
        '{"argv": ["x"], "cwd": "relative"}',
        '{"argv": ["x"], "user": "../x"}',
        '{"argv": ["x"], "rows": 0}',
        '{"argv": ["x"], "rows": 65536}',
        '{"argv": ["x"], "unknown": 1}',
        json.dumps({"argv": ["x" * 30_000] * 3}),
        b"\x00bytes first",
    ],
    ids=lambda first: repr(first)[:60],
)
async def test_a_bad_first_message_is_an_error_message(
    guest_stack: Stack, first: str | bytes
) -> None:
    async with stream(guest_stack) as socket:
        await socket.send(first)
        _, last = await rest_of(socket)
    assert (last["type"], last["error"]["error"]) == ("error", "validation_failed")
    assert last["error"]["request_id"]
    assert socket.close_code == 1000
    await idle(guest_stack)


@pytest.mark.parametrize(
    "message",
    ["", "{}", '{"type": "resize"}', '{"type": "resize", "rows": -1, "cols": 1}',
     '{"type": "signal", "signal": 999}', '{"type": "exit", "exit_code": 0}', "[" * 10_000],
)  # fmt: skip
async def test_a_bad_control_message_ends_the_program(guest_stack: Stack, message: str) -> None:
    async with stream(guest_stack, argv=["sleep", "600"]) as socket:
        await socket.send(message)
        _, last = await rest_of(socket)
    assert (last["type"], last["error"]["error"]) == ("error", "validation_failed")
    await idle(guest_stack)


async def test_a_message_too_large_ends_the_stream(guest_stack: Stack) -> None:
    async with stream(guest_stack, argv=["sleep", "600"]) as socket:
        with contextlib.suppress(Exception):
            await socket.send(b"\x00" + b"x" * (2 << 20))
        with contextlib.suppress(Exception):
            await rest_of(socket)
    assert socket.close_code == 1009
    await idle(guest_stack)


@pytest.mark.parametrize(("ref", "code"), [(STOPPED, "invalid_state"), ("nobody", "not_found")])
async def test_a_stream_to_a_vm_that_has_no_guest(guest_stack: Stack, ref: str, code: str) -> None:
    async with stream(guest_stack, ref, argv=["true"]) as socket:
        _, last = await rest_of(socket)
    assert (last["type"], last["error"]["error"]) == ("error", code)


@pytest.mark.parametrize(("who", "status"), [("viewer", 403), ("nobody", 401)])
async def test_a_stream_is_refused_with_the_envelope(
    guest_stack: Stack, who: str, status: int
) -> None:
    token = guest_stack.viewer if who == "viewer" else "nxs_x"
    with pytest.raises(InvalidStatus) as refusal:
        await connect(
            f"ws{guest_stack.url.removeprefix('http')}{EXEC}",
            additional_headers={"authorization": f"Bearer {token}"},
            proxy=None,
        )
    response = refusal.value.response
    assert response.status_code == status
    assert json.loads(response.body or b"")["status"] == status


# -- files -----------------------------------------------------------------------------------------


def test_files_go_in_and_come_back_without_the_bound_of_other_bodies(
    http: httpx.Client, guest_stack: Stack
) -> None:
    pieces = [bytes([number % 256]) * 65536 for number in range(200)]
    answer = http.put(
        FILES, params={"path": "/big", "mode": "0600"}, content=iter(pieces), headers=BYTES
    )
    assert answer.json() == {"item": {"path": "/big", "size_bytes": 200 * 65536}}, answer.text
    assert (guest_stack.root / "big").stat().st_mode & 0o7777 == 0o600
    with http.stream("GET", FILES, params={"path": "/big"}) as back:
        assert back.headers["x-nexus-file-mode"] == "0600"
        assert back.headers["x-nexus-file-size"] == str(200 * 65536)
        assert b"".join(back.iter_bytes()) == b"".join(pieces)
    begun, ended = guest_stack.audit("vm.put_file")[-2:]
    assert json.loads(begun["before"]) == {"path": "/big", "mode": "0600"}
    assert json.loads(ended["after"]) == {"size_bytes": 200 * 65536}
    assert http.get(f"{FILES}/stat", params={"path": "/big"}).json()["item"]["kind"] == "file"


def test_directories_are_made_and_listed(http: httpx.Client, guest_stack: Stack) -> None:
    made = http.post(f"{FILES}/mkdir", params={"path": "/folder", "mode": "0700"})
    assert made.json() == {"ok": True}
    assert guest_stack.audit("vm.make_directory")[-1]["result"] == "ok"
    (guest_stack.root / "folder" / "ä b").write_text("x")
    listed = http.get(f"{FILES}/list", params={"path": "/folder"}).json()
    assert listed["items"] == [{"name": "ä b", "kind": "file", "mode": 0o644, "size_bytes": 1}]
    refused(http.post(f"{FILES}/mkdir", params={"path": "/folder"}), 409, "guest_fault")
    refused(http.get(f"{FILES}/list", params={"path": "/none"}), 404, "not_found")
    refused(http.get(FILES, params={"path": "/none"}), 404, "not_found")
    refused(http.get(FILES, params={"path": "/folder"}), 409, "guest_fault")


def test_a_refused_upload_is_answered_however_large_it_is(http: httpx.Client) -> None:
    pieces = (b"x" * 65536 for _ in range(300))
    answer = http.put(FILES, params={"path": "/none/x"}, content=pieces, headers=BYTES)
    refused(answer, 404, "not_found")


def test_uploads_are_bounded_and_typed(http: httpx.Client) -> None:
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        answer = http.put(
            FILES, params={"path": "/x"}, content=b"{}", headers={"content-type": kind}
        )
        refused(answer, 415, "unsupported_media_type")


def test_a_file_announced_as_too_large_is_refused_before_it_is_read(guest_stack: Stack) -> None:
    connection = HTTPConnection(guest_stack.url.removeprefix("http://"), timeout=60)
    headers = {**BYTES, "content-length": str(MAX_UPLOAD_BYTES + 1)}
    headers["authorization"] = f"Bearer {guest_stack.token}"
    connection.request("PUT", f"{FILES}?path=/x", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]) == (413, "payload_too_large")
    connection.close()


async def test_an_upload_cut_off_leaves_the_old_file(guest_stack: Stack) -> None:
    (guest_stack.root / "kept").write_bytes(b"old")

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * 100_000

        async def is_open() -> bool:
            return bool(guest_stack.guest.connections)

        await until("the guest is reached", is_open)
        raise ConnectionAbortedError("the sender is gone")

    headers = {"authorization": f"Bearer {guest_stack.token}", **BYTES}
    async with httpx.AsyncClient(base_url=guest_stack.url, headers=headers) as http:
        with pytest.raises(ConnectionAbortedError):
            await http.put(FILES, params={"path": "/kept"}, content=content())
    await idle(guest_stack)
    assert (guest_stack.root / "kept").read_bytes() == b"old"

    async def audited() -> bool:
        return guest_stack.audit("vm.put_file")[-1]["result"] == "client_closed_request"

    await until("it is audited", audited)


async def test_a_download_that_breaks_off_does_not_look_whole(guest_stack: Stack) -> None:
    from nexus.agent.guest_frames import FAILED, OUTPUT, RESULT, Frame, encode_fields

    facts = encode_fields([("kind", "file"), ("mode", "644"), ("size", "9")])
    failure = encode_fields([("code", "EIO"), ("message", "disk")])
    guest_stack.guest.answers = [
        Frame(RESULT, facts).encode()
        + Frame(OUTPUT, b"part").encode()
        + Frame(FAILED, failure).encode()
    ]
    headers = {"authorization": f"Bearer {guest_stack.token}"}
    async with httpx.AsyncClient(base_url=guest_stack.url, headers=headers) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(FILES, params={"path": "/x"})
    await idle(guest_stack)


async def test_leaving_a_download_leaves_nothing_behind(guest_stack: Stack) -> None:
    (guest_stack.root / "large").write_bytes(bytes(30_000_000))
    headers = {"authorization": f"Bearer {guest_stack.token}"}
    async with (
        httpx.AsyncClient(base_url=guest_stack.url, headers=headers) as http,
        http.stream("GET", FILES, params={"path": "/large"}) as answer,
    ):
        async for _ in answer.aiter_bytes():
            break
    await idle(guest_stack)
