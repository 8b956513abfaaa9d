"""What an agent tells Prometheus, after VMs that began and ended in every way."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets.sync.client

from nexus.api.machines import Machine
from nexus.ids import new_id
from tests.agent.forking import ForkedAgent
from tests.agent.harness import Agent, agent_of, until
from tests.agent.snapshots import capture, clone
from tests.scraping import Scrape, read

pytestmark = [pytest.mark.firecracker, pytest.mark.root]

STARTS = "nexus_agent_vmm_start_duration_seconds_count"
EXITS = "nexus_agent_vmm_exits_total"


@pytest.fixture
def agent(firecracker_binary: Path) -> Iterator[Agent]:
    with agent_of(ForkedAgent, firecracker_binary) as agent:
        yield agent


def scrape(agent: Agent) -> Scrape:
    return read(agent.http.get("/metrics"))


def ended(agent: Agent) -> Counter[tuple[str, str]]:
    """How many VMMs ended, by cause and by whether that was asked for."""
    samples = scrape(agent).families["nexus_agent_vmm_exits"].samples
    return Counter({(s.labels["cause"], s.labels["asked"]): int(s.value) for s in samples})


def changed(machine: Machine, **change: object) -> Machine:
    return machine.model_copy(update={"generation": machine.generation + 1, **change})


def test_starts_ends_and_the_host(agent: Agent, tiny_kernel: Path) -> None:
    source, doomed = agent.machine(tiny_kernel), agent.machine(tiny_kernel)
    agent.put(source)
    loaded = clone(agent, tiny_kernel, capture(agent, source))
    assert agent.put(loaded).state == "running"
    pid = agent.put(doomed).pid
    bad_kernel = agent.dir / "no.kernel"
    bad_kernel.write_bytes(b"no ELF" * 1000)
    broken = agent.machine(bad_kernel)
    assert agent.put(broken).state == "error"

    seen = scrape(agent)
    assert seen.value(STARTS, way="boot", outcome="running") == 2
    assert seen.value(STARTS, way="load", outcome="running") == 1
    assert seen.value(STARTS, way="boot", outcome="failed") == 1
    assert seen.value("nexus_agent_machines", state="running") == 3
    assert seen.value("nexus_agent_machines", state="error") == 1
    assert 0 < seen.value("nexus_agent_memory_available_bytes") < 1 << 50
    assert seen.value("nexus_agent_memory_bytes") > seen.value("nexus_agent_memory_available_bytes")
    assert seen.value("nexus_agent_disk_bytes") >= seen.value("nexus_agent_disk_available_bytes")
    assert seen.value("process_open_fds") > 0
    put = {"method": "PUT", "route": "/agent/v1/vms/{vm_id}", "status": "200"}
    assert seen.value("nexus_http_request_duration_seconds_count", **put) == 4
    console = f"ws://agent/agent/v1/vms/{source.id}/console"
    with websockets.sync.client.unix_connect(str(agent.socket), console):
        assert scrape(agent).value("nexus_http_open", protocol="websocket") == 1
    agent.http.get(f"/agent/v1/vms/{new_id()}")
    agent.http.get("/agent/v1/nowhere")
    assert scrape(agent).labels("route") <= {
        *("/agent/v1/vms/{vm_id}", "/agent/v1/snapshots/{snapshot_id}", "/metrics", "other"),
        *("/agent/v1/health", "/agent/v1/inventory"),
    }

    before = ended(agent)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until("it is seen", lambda: agent.get(doomed.id).state == "stopped")
    assert agent.put(changed(source, power="stopped")).exit_cause == "stopped"
    agent.delete(loaded.id)
    after = ended(agent)
    assert after - before == {("crashed", "no"): 1, ("stopped", "yes"): 1, ("killed", "yes"): 1}
    agent.delete(doomed.id)
    agent.delete(source.id)
    assert ended(agent) == after, "nothing of theirs ran any more"
