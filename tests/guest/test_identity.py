"""identify: a guest that was loaded from a snapshot becomes somebody of its own."""

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.images import guestagent
from tests.guest.cell import CellAgent
from tests.guest.speaking import DEADLINE_S, Failed, ask

pytestmark = pytest.mark.root

OLD, NEW = "06:00:00:00:00:01", "06:00:00:00:00:02"
OLD2, NEW2 = "06:00:00:00:01:01", "06:00:00:00:01:02"


@pytest.fixture
def cell(guest_agent: Path, tmp_path: Path) -> Iterator[CellAgent]:
    made = CellAgent(guest_agent, tmp_path)
    yield made
    made.close()


def add_nic(cell: CellAgent, name: str, mac: str, address: str) -> None:
    """An interface with an identity; its other end is ``peer-NAME``, in the same network."""
    cell.ip("link", "add", name, "address", mac, "type", "veth", "peer", "name", f"peer-{name}")
    cell.ip("link", "set", f"peer-{name}", "up")
    cell.ip("addr", "add", address, "dev", name)
    cell.ip("link", "set", name, "up")


def defaults(cell: CellAgent, table: str = "main") -> list[tuple[str | None, str]]:
    routes = cell.ip("route", "show", "table", table, "default")
    return [(route.get("gateway"), route["dev"]) for route in routes]


def refusal(cell: CellAgent, *fields: tuple[str, object]) -> str:
    with pytest.raises(Failed) as failed:
        cell.identify(*fields)
    return failed.value.code


def test_a_nic_gets_its_mac_address_and_route(cell: CellAgent) -> None:
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    cell.ip("addr", "add", "10.77.0.6/20", "dev", "eth0")
    cell.ip("route", "add", "default", "via", "10.77.0.1")
    wanted = ("nic", f"{OLD},{NEW},10.78.0.9/24,10.78.0.1")
    for _ in range(2):
        assert cell.identify(wanted) == [("ok", "1")]
        assert (cell.mac("eth0"), cell.addresses("eth0")) == (NEW, ["10.78.0.9/24"])
        assert defaults(cell) == [("10.78.0.1", "eth0")]
    addresses = {a for k, a in ask(cell.talk(), "health") if k == "addr" and ":" not in a[23:]}
    assert addresses == {f"eth0,{NEW},10.78.0.9/24"}


def test_a_nic_that_is_right_already_stays_up(cell: CellAgent) -> None:
    """Restored in place: connections of the guest live on."""
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    cell.ip("route", "add", "192.0.2.0/24", "via", "10.77.0.1")
    cell.identify(("nic", f"{OLD},{OLD},10.77.0.5/20,10.77.0.1"))
    assert len(cell.ip("route", "show", "192.0.2.0/24")) == 1
    assert defaults(cell) == [("10.77.0.1", "eth0")]


def test_the_neighbours_are_told(cell: CellAgent) -> None:
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    theirs_path, ours_path = Path(f"/proc/{cell.pid}/ns/net"), Path("/proc/self/ns/net")
    with theirs_path.open() as theirs, ours_path.open() as ours:
        _setns(theirs.fileno())
        try:
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0806))
            listener.bind(("peer-eth0", 0x0806))
        finally:
            _setns(ours.fileno())
    with listener:
        listener.settimeout(DEADLINE_S)
        cell.identify(("nic", f"{OLD},{NEW},10.78.0.9/24,"))
        packet = listener.recv(100)
    kind, sender, sender_ip, target_ip = struct.unpack("!8s6s4s6x4s", packet[:28])
    assert kind == bytes.fromhex("0001080006040001")
    assert sender == bytes.fromhex(NEW.replace(":", ""))
    assert sender_ip == target_ip == socket.inet_aton("10.78.0.9")


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def test_several_nics_keep_their_ways_out(cell: CellAgent) -> None:
    """As the busybox guest has them: the first by the default route, others by tables."""
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    add_nic(cell, "eth1", OLD2, "10.99.0.5/24")
    cell.ip("rule", "add", "from", "10.99.0.5", "table", "101")
    cell.ip("route", "add", "default", "dev", "eth1", "table", "101")
    cell.ip("rule", "add", "from", "192.0.2.7", "table", "102")
    first = ("nic", f"{OLD},{NEW},10.77.0.8/20,10.77.0.1")
    second = ("nic", f"{OLD2},{NEW2},10.99.0.8/24,")
    for _ in range(2):
        cell.identify(first, second)
        sources = {(r["src"], r["table"]) for r in cell.ip("rule") if r["src"] != "all"}
        assert sources == {("10.99.0.8", "101"), ("192.0.2.7", "102")}
        assert defaults(cell) == [("10.77.0.1", "eth0")]
        assert defaults(cell, "101") == [(None, "eth1")]
    assert (cell.mac("eth0"), cell.mac("eth1")) == (NEW, NEW2)


def test_an_interface_of_others_is_not_taken_for_the_nic(cell: CellAgent) -> None:
    """A bridge has the MAC of its first port."""
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    cell.ip("link", "add", "br0", "address", OLD, "type", "bridge")
    cell.identify(("nic", f"{OLD},{NEW},10.77.0.8/20,"))
    assert (cell.mac("eth0"), cell.mac("br0")) == (NEW, OLD)


def test_a_name_is_everywhere_where_images_keep_it(cell: CellAgent) -> None:
    (cell.root / "etc/machine-id").write_text("0" * 32 + "\n")
    (cell.root / "etc/hosts").write_text("127.0.0.1 localhost first # first\n::1 localhost\n")
    (cell.root / "run/nexus/www/index.txt").write_text("first\n")
    (cell.root / "run/nexus/identity").write_text("hostname=first ip=10.77.0.5\n")
    (cell.root / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    cell.identify(("hostname", "first"))
    cell.identify(("hostname", "second"), ("machine_id", "ab" * 16), ("dns", "10.77.0.1"))
    assert cell.text("etc/hosts") == "127.0.0.1 localhost second # first\n::1 localhost\n"
    assert cell.text("etc/hostname") == cell.text("run/nexus/www/index.txt") == "second\n"
    assert cell.text("run/nexus/identity") == "hostname=second ip=10.77.0.5\n"
    assert cell.text("etc/machine-id") == "ab" * 16 + "\n"
    assert (cell.root / "etc/resolv.conf").is_symlink()
    assert cell.text("run/resolv.conf") == "nameserver 10.77.0.1\n"
    assert not (cell.root / "var/lib/dbus").exists()
    assert dict(ask(cell.talk(), "health"))["hostname"] == "second"
    assert socket.gethostname() not in ("first", "second")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "127.0.0.1 localhost\n127.0.1.1 new\n"),
        ("127.0.0.1 localhost\n127.0.1.1 old\n", "127.0.0.1 localhost\n127.0.1.1 new\n"),
        ("127.0.0.1\tlocalhost\told old.org old2", "127.0.0.1\tlocalhost\tnew old.org old2"),
        ("# old\n10.0.0.9 db", "# old\n10.0.0.9 db\n127.0.1.1 new\n"),
        ("127.0.1.1 new\nold\n", "127.0.1.1 new\nold\n"),
    ],
)
def test_hosts(cell: CellAgent, before: str | None, after: str) -> None:
    cell.identify(("hostname", "old"))
    (cell.root / "etc/hosts").unlink()
    if before is not None:
        (cell.root / "etc/hosts").write_text(before)
    cell.identify(("hostname", "new"))
    assert cell.text("etc/hosts") == after


def test_a_guest_without_etc_is_renamed_all_the_same(cell: CellAgent) -> None:
    (cell.root / "etc").rmdir()
    fields = (("hostname", "name"), ("machine_id", "ab" * 16), ("dns", "10.77.0.1"))
    assert cell.identify(*fields) == [("ok", "1")]
    assert dict(ask(cell.talk(), "health"))["hostname"] == "name"
    assert not (cell.root / "etc").exists()


def test_a_clock_that_is_nearly_right_is_left_alone(cell: CellAgent) -> None:
    """This agent may not set the clock: it is refused where it tries to."""
    now_ms = time.time_ns() // 1_000_000
    assert cell.identify(("time_ms", now_ms)) == [("ok", "1")]
    assert refusal(cell, ("time_ms", now_ms + 3_600_000)) == "EPERM"


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = guestagent.SOURCES / "clock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@given(st.integers(0, 1 << 42), st.integers(-500, 500))
def test_a_clock_is_set_beyond_a_tenth_of_a_second(
    clock: ctypes.CDLL, now_ms: int, off_ms: int
) -> None:
    clock.clock_differs.restype = ctypes.c_bool
    differs = clock.clock_differs(ctypes.c_longlong(now_ms), ctypes.c_longlong(now_ms + off_ms))
    assert differs == (abs(off_ms) > 100)


def test_entropy_is_taken(cell: CellAgent) -> None:
    assert cell.identify(("entropy", os.urandom(32).hex())) == [("ok", "1")]
    assert cell.identify(("entropy", os.urandom(256).hex())) == [("ok", "1")]


@pytest.mark.parametrize(
    "field",
    [
        ("hostname", ""),
        ("hostname", "a b"),
        ("hostname", "a\nb"),
        ("hostname", "-a"),
        ("hostname", "a" * 65),
        ("machine_id", "ab"),
        ("machine_id", "AB" * 16),
        ("entropy", "ab" * 31),
        ("entropy", "ab" * 257),
        ("entropy", "xy" * 32),
        ("time_ms", "-1"),
        ("time_ms", "9" * 16),
        ("dns", "example.org"),
        ("dns", "10.0.0.1\nsearch x"),
        ("nic", ""),
        ("nic", f"{OLD},{NEW}"),
        ("nic", f"{OLD},{NEW},10.0.0.1/24"),
        ("nic", f"{OLD},{NEW},10.0.0.1/33,"),
        ("nic", f"{OLD},{NEW},10.0.0.1/0,"),
        ("nic", f"{OLD},{NEW},10.0.0.1,"),
        ("nic", f"{OLD},{NEW},10.0.0/24,"),
        ("nic", f"{OLD},{NEW},10.0.0.1/24,x"),
        ("nic", f"{OLD},{NEW},10.0.0.1/24,10.0.0.2,"),
        ("nic", f"{OLD},01:00:00:00:00:02,10.0.0.1/24,"),
        ("nic", f"{OLD},06:00:00:00:00,10.0.0.1/24,"),
    ],
)
def test_nothing_is_changed_by_a_request_that_is_refused(
    shut_up: CellAgent, field: tuple[str, str]
) -> None:
    name = dict(ask(shut_up.talk(), "health"))["hostname"]
    assert refusal(shut_up, ("hostname", "changed"), field) == "EINVAL"
    assert refusal(shut_up, field, ("machine_id", "ab" * 16), *[field] * 40) == "EINVAL"
    assert dict(ask(shut_up.talk(), "health"))["hostname"] == name
    assert list((shut_up.root / "etc").iterdir()) == []


@pytest.fixture(scope="module")
def shut_up(guest_agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CellAgent]:
    """One agent for all tests that change nothing."""
    made = CellAgent(guest_agent, tmp_path_factory.mktemp("cell"))
    yield made
    made.close()


def test_a_nic_that_is_not_there_is_named_before_anything_is_changed(shut_up: CellAgent) -> None:
    nic = ("nic", f"{OLD},{NEW},10.0.0.1/24,")
    assert refusal(shut_up, ("hostname", "changed"), nic) == "no-such-nic"
    assert list((shut_up.root / "etc").iterdir()) == []


def test_a_gateway_that_cannot_be_reached_is_said(cell: CellAgent) -> None:
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    assert refusal(cell, ("nic", f"{OLD},{NEW},10.78.0.9/24,192.0.2.1")) == "ENETUNREACH"
    cell.identify(("nic", f"{OLD},{NEW},10.78.0.9/24,10.78.0.1"))
    assert defaults(cell) == [("10.78.0.1", "eth0")]


def test_two_at_once_are_one_after_the_other(cell: CellAgent) -> None:
    add_nic(cell, "eth0", OLD, "10.77.0.5/20")
    wanted = [("nic", f"{OLD},{OLD},10.78.0.{host}/24,10.78.0.1") for host in (8, 9)]
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda number: cell.identify(wanted[number % 2]), range(48)))
    assert done == [[("ok", "1")]] * 48
    assert cell.addresses("eth0") in (["10.78.0.8/24"], ["10.78.0.9/24"])
    assert defaults(cell) == [("10.78.0.1", "eth0")]


def test_nothing_given_is_nothing_changed(shut_up: CellAgent) -> None:
    assert shut_up.identify() == [("ok", "1")]
    assert list((shut_up.root / "etc").iterdir()) == []
