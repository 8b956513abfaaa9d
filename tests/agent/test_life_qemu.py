"""A life of real Linux under nexus-qemu: the same agent, the other engine."""

from collections.abc import Iterator

import httpx
import pytest

from tests.agent.harness import Agent, until
from tests.guest.speaking import ask, connect
from tests.parts import LinuxImages

pytestmark = [pytest.mark.qemu, pytest.mark.root]


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent(NEXUS_ENGINE="qemu")
    try:
        yield agent.start()
    finally:
        agent.close()


def test_linux_boots_answers_pauses_stops_and_leaves_nothing(
    agent: Agent, linux_images: LinuxImages
) -> None:
    images = {
        "initrd": agent.blob(linux_images.initrd),
        "rootfs": agent.blob(linux_images.rootfs),
    }
    machine = agent.machine(linux_images.kernel, mem_mib=128, stop_timeout_s=20, **images)
    agent.blob(linux_images.kernel)
    before = agent.traces()
    status = agent.put(machine)
    assert (status.state, status.engine, status.error) == ("running", "qemu", None)
    until("Linux is up", lambda: "nexus-guest ready" in "".join(agent.console(machine.id)), 60)
    address = machine.nics[0].ip.partition("/")[0]
    assert machine.name in until("it answers", lambda: _page(f"http://{address}/"))
    vsock = agent.run_dir / "vms" / machine.id / "root" / "v.sock"
    nic = machine.nics[0]
    assert ("addr", f"eth0,{nic.mac},{nic.ip}") in ask(connect(vsock), "health")

    agent.kill()
    agent.start()
    found = until("it is found", lambda: agent.get(machine.id))
    assert (found.state, found.pid) == ("running", status.pid)
    paused = machine.model_copy(update={"generation": 2, "power": "paused"})
    assert agent.put(paused).state == "paused"
    running = machine.model_copy(update={"generation": 3})
    assert agent.put(running).state == "running"
    assert machine.name in until("it answers", lambda: _page(f"http://{address}/"))
    stopped = agent.put(machine.model_copy(update={"generation": 4, "power": "stopped"}))
    assert (stopped.state, stopped.exit_cause) == ("stopped", "stopped")
    agent.delete(machine.id)
    assert agent.traces() == before


def _page(url: str) -> str:
    try:
        return httpx.get(url, timeout=2).text
    except httpx.TransportError:
        return ""
