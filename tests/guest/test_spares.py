"""The processes that wait for a connection, so that an answer need not wait for a fork."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import HostAgent
from tests.guest.speaking import Done, ask, run


@pytest.fixture
def agent(guest_agent: Path, tmp_path: Path) -> Iterator[HostAgent]:
    made = HostAgent(guest_agent, tmp_path)
    yield made
    made.close()


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_quiet_agent_has_processes_waiting(agent: HostAgent) -> None:
    until(lambda: len(agent.spares()) == 2)
    before = agent.spares()
    with agent.talk() as first, agent.talk() as second:
        for talk in (first, second):
            talk.ask(("op", "exec"), ("arg", "cat"))
        until(lambda: sorted(agent.handlers()) == sorted(before))
        assert run(agent.talk(), "echo", "a third").out == b"a third\n"
    until(lambda: agent.handlers() == [] and len(agent.spares()) == 2)
    assert not set(agent.spares()) & set(before)


def test_a_spare_that_was_killed_is_not_missed(agent: HostAgent) -> None:
    until(lambda: len(agent.spares()) == 2)
    for pid in agent.spares():
        os.kill(pid, signal.SIGKILL)
    until(lambda: agent.spares() == [])
    assert run(agent.talk(), "true") == Done(0)
    assert dict(ask(agent.talk(), "health"))["ready"] == "1"
    until(lambda: len(agent.spares()) == 2)


def test_spares_end_with_their_agent(agent: HostAgent) -> None:
    until(lambda: len(agent.spares()) == 2)
    waiting = [os.pidfd_open(pid) for pid in agent.spares()]
    agent.close()
    for pidfd in waiting:
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)
