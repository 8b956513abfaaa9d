"""The sync client against a real server."""

import socket
import threading

import pytest

from nexus.api.images import ImageCreate
from nexus.api.vms import VmCreate
from nexus.client import (
    ChangedError,
    Client,
    ConflictError,
    DeniedError,
    NexusApiError,
    NotFoundError,
    NotReachable,
    WaitTimedOut,
)
from nexus.client.calls import vms as calls
from tests.client.wire import TOKEN, Wire, make_vm


def test_create_sends_what_was_set_and_returns_a_vm(client: Client, wire: Wire) -> None:
    vm = client.vms.create(VmCreate(name="db", mem_mib=512), wait="running", timeout_s=5)
    assert (vm.name, vm.mem_mib) == ("db", 512)
    assert wire.bodies == [{"name": "db", "mem_mib": 512}]
    assert wire.asked_for("POST", "/v1/vms") == [{"wait": "running", "timeout_s": "5"}]


def test_list_reads_every_page(client: Client, wire: Wire) -> None:
    wire.vms = [make_vm(f"vm-{number}") for number in range(5)]
    assert [vm.name for vm in client.vms.list()] == [f"vm-{number}" for number in range(5)]
    assert len(wire.asked_for("GET", "/v1/vms")) == 3


def test_the_vmms_own_api(client: Client, wire: Wire) -> None:
    assert client.vms.firecracker("web", "get", "/vm/config") == {"asked": "vm/config"}
    assert client.vms.firecracker("web", "PATCH", "vm", {"state": "Paused"}) is None
    assert wire.bodies == [{"state": "Paused"}]
    with pytest.raises(NotFoundError):
        client.vms.firecracker("nobody", "GET", "/")


def test_why(client: Client) -> None:
    found = client.vms.why("web")
    assert (found.summary, found.state) == ("web could not start", "error")
    with pytest.raises(NotFoundError):
        client.vms.why("nobody")


def test_events_read_every_page(client: Client) -> None:
    assert [event.reason for event in client.vms.events("web")] == ["created", "started"]


def test_actions_carry_their_options(client: Client, wire: Wire) -> None:
    client.vms.start("web", wait="running", timeout_s=7)
    client.vms.stop("web", force=True, grace_s=3, wait="stopped")
    client.vms.pause("web")
    client.vms.resume("web")
    client.vms.delete("web")
    assert wire.asked_for("POST", "/v1/vms/web/start") == [{"wait": "running", "timeout_s": "7"}]
    assert wire.asked_for("POST", "/v1/vms/web/stop") == [
        {"force": "true", "timeout_s": "3", "wait": "stopped"}
    ]
    assert wire.asked_for("POST", "/v1/vms/web/pause") == [{}]
    assert wire.asked_for("DELETE", "/v1/vms/web") == [{"wait": "deleted"}]
    assert wire.vms == []


def test_logs_come_as_lines_or_as_a_stream(client: Client) -> None:
    assert client.vms.logs("web", tail=1).lines == ["three"]
    assert b"".join(client.vms.follow_logs("web", tail=1)) == b"three\nfour\n"


def test_following_a_log_that_is_not_there_is_not_found(client: Client) -> None:
    with pytest.raises(NotFoundError):
        list(client.vms.follow_logs("nobody"))


def test_images_and_hosts(client: Client) -> None:
    image = client.images.register(ImageCreate(kind="kernel", name="mine", host_path="mine"))
    assert client.images.get("mine") == image
    assert [each.name for each in client.images.list(kind="kernel")] == ["mine"]
    client.images.delete("mine")
    build = client.images.build("busybox")
    assert client.images.get_build(build.id).state == "running"
    assert [host.name for host in client.hosts.list()] == ["host-one"]
    assert client.ready()


def test_an_error_carries_all_of_its_envelope(client: Client) -> None:
    with pytest.raises(NexusApiError) as caught:
        client.vms.start("fault")
    error = caught.value
    assert (error.status, error.code, error.message) == (400, "vmm_fault", "the VMM refused")
    assert (error.fault_message, error.suggestion) == ("no such drive", "look")
    assert error.request_id


@pytest.mark.parametrize(
    ("token", "ref", "kind"),
    [
        (TOKEN, "nobody", NotFoundError),
        (TOKEN, "stuck", WaitTimedOut),
        ("wrong", "web", DeniedError),
        ("viewer", "web", DeniedError),
    ],
)
def test_errors_have_types(wire: Wire, token: str, ref: str, kind: type[NexusApiError]) -> None:
    with Client(wire.url, token) as client, pytest.raises(kind):
        client.vms.stop(ref)


def test_a_wrong_state_is_a_conflict(client: Client, wire: Wire) -> None:
    wire.vms = [make_vm("web", state="stopped")]
    with pytest.raises(ConflictError, match="web is stopped"):
        client.vms.pause("web")


def test_reads_are_retried(client: Client, wire: Wire) -> None:
    wire.failures = [503, 502]
    assert client.vms.get("web").name == "web"
    assert len(wire.asked_for("GET", "/v1/vms/web")) == 3


def test_reads_are_not_retried_for_ever(client: Client, wire: Wire) -> None:
    wire.failures = [503, 503, 503, 503]
    with pytest.raises(NexusApiError) as caught:
        client.vms.get("web")
    assert caught.value.status == 503
    assert wire.failures == [503]


def test_a_post_is_retried_with_its_key(client: Client, wire: Wire) -> None:
    wire.failures = [503, 502]
    client.vms.create(VmCreate(name="once"))
    client.vms.create(VmCreate(name="twice"), idempotency_key="mine")
    first, second, third, fourth = wire.keys
    assert first == second == third
    assert first
    assert fourth == "mine"


def test_a_wait_that_ended_is_not_begun_again(client: Client, wire: Wire) -> None:
    wire.failures = [504]
    with pytest.raises(WaitTimedOut):
        client.vms.create(VmCreate(name="once"), wait="running")
    assert len(wire.keys) == 1


def test_changes_without_a_key_are_never_retried(client: Client, wire: Wire) -> None:
    wire.failures = [503]
    with pytest.raises(NexusApiError):
        client.vms.delete("web")
    wire.failures = [503]
    with pytest.raises(NexusApiError):
        client.vms.update("web", name="new")
    assert [vm.name for vm in wire.vms] == ["web"]


def test_a_list_is_narrowed(client: Client, wire: Wire) -> None:
    list(client.vms.list(host="one", tags=["a=b", "c"], project="default", name="w"))
    (query,) = wire.asked_for("GET", "/v1/vms")
    assert query == {"host": "one", "tag": "c", "project": "default", "name": "w"}
    narrowed = calls.list_vms(calls.VmQuery(tags=["a=b", "c"]), None)
    assert narrowed.params() == (("tag", "a=b"), ("tag", "c"))


def test_an_update_sends_what_was_given(client: Client, wire: Wire) -> None:
    vm, etag = client.vms.get_with_etag("web")
    assert client.vms.update("web", tags={}, if_match=etag).name == "web"
    assert client.vms.update("web", name="new").id == vm.id
    client.vms.update("new", restart_policy="always", ttl_s=60)
    client.vms.update("new", expires_at="never")
    assert wire.bodies[-2:] == [{"restart_policy": "always", "ttl": 60}, {"expires_at": None}]
    with pytest.raises(ChangedError, match="it has changed"):
        client.vms.update("new", tags={"a": "1"}, if_match='"other"')
    with pytest.raises(ValueError, match="name"):
        client.vms.update("new", name="Not A Name")


def test_an_answer_of_something_else_is_explained(client: Client, wire: Wire) -> None:
    wire.failures = [200]
    with pytest.raises(NexusApiError, match="not what this version"):
        client.vms.get("web")


def test_nobody_there_is_not_reachable(free_port: int) -> None:
    with Client(f"http://127.0.0.1:{free_port}", TOKEN) as client:
        assert not client.ready()
        with pytest.raises(NotReachable) as caught:
            client.vms.get("web")
    assert "nexus up" in (caught.value.suggestion or "")


def test_a_broken_connection_is_tried_again() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    tries = []

    def hang_up() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            tries.append(connection.recv(65536)[:4])
            connection.close()

    server = threading.Thread(target=hang_up)
    server.start()
    with Client(address, TOKEN) as client, pytest.raises(NotReachable):
        client.vms.get("web")
    server.join()
    listener.close()
    assert tries == [b"GET "] * 3


def test_a_console_goes_both_ways(client: Client) -> None:
    with client.vms.console("web") as console:
        said = iter(console)
        assert next(said) == b"hello from the guest\r\n"
        console.send(b"\x03ls\r")
        assert next(said) == b"<\x03ls\r>"
        console.send(b"bye")
        assert list(said) == []


def test_a_console_that_is_refused_says_why(wire: Wire) -> None:
    client = Client(wire.url, "wrong")
    with client, pytest.raises(ConflictError, match="refused"), client.vms.console("web"):
        pass
