"""The QMP client against a scripted peer."""

import socket

import pytest

from nexus.qemu.qmp import Qmp, QmpGone, QmpRefused


@pytest.fixture
def peers() -> tuple[Qmp, socket.socket]:
    ours, theirs = socket.socketpair()
    return Qmp(ours), theirs


def test_an_event_in_one_piece_with_the_answer_is_seen(peers: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = peers
    event = b'{"event": "MIGRATION", "data": {"status": "completed"}}\r\n'
    peer.sendall(b'{"return": {}}\r\n' + event)
    qmp.execute("migrate-incoming")
    assert qmp.wait_event("MIGRATION", ("completed",), timeout_s=1) == "completed"


def test_an_event_before_the_answer_is_kept(peers: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = peers
    peer.sendall(b'{"event": "STOP"}\r\n{"return": 7}\r\n')
    assert qmp.execute("stop") == 7
    assert [event["event"] for event in qmp.events] == ["STOP"]


def test_an_error_is_refused_and_an_end_is_gone(peers: tuple[Qmp, socket.socket]) -> None:
    qmp, peer = peers
    peer.sendall(b'{"error": {"class": "GenericError", "desc": "no"}}\r\n')
    with pytest.raises(QmpRefused, match="no"):
        qmp.execute("cont")
    peer.close()
    with pytest.raises(QmpGone):
        qmp.execute("cont")
