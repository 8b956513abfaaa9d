"""The network of an installation: two side by side, and what teardown leaves."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.agent.harness import Agent, forwarding, links, tables, until

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


@pytest.fixture
def forwarding_off() -> Iterator[None]:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    yield
    assert forwarding() == "0"


def test_teardown_leaves_the_machine_as_it_was(
    firecracker_binary: Path, tiny_kernel: Path, forwarding_off: None
) -> None:
    before = (sorted(links()), tables(), forwarding())
    with closing(Agent(FC_BINARY=str(firecracker_binary))) as agent:
        agent.start()
        assert forwarding() == "1"
        for _ in range(3):
            agent.put(agent.machine(tiny_kernel))
        agent.kill()
        assert len(agent.vmms()) == 3
        agent.teardown()
        assert agent.vmms() == []
        assert not agent.run_dir.exists()
        assert (sorted(links()), tables(), forwarding()) == before
        agent.teardown()


def test_teardown_refuses_while_an_agent_lives(agent: Agent) -> None:
    process, agent.process = agent.process, None
    with pytest.raises(AssertionError, match="already serves"):
        agent.teardown()
    agent.process = process
    assert agent.http.get("/agent/v1/health").json() == {"ok": True}


def test_two_side_by_side(
    firecracker_binary: Path, tiny_kernel: Path, forwarding_off: None
) -> None:
    with (
        closing(Agent(FC_BINARY=str(firecracker_binary))) as one,
        closing(Agent(FC_BINARY=str(firecracker_binary))) as two,
    ):
        one.start()
        two.start()
        first = one.http.get("/agent/v1/inventory").json()
        second = two.http.get("/agent/v1/inventory").json()
        assert first["host_id"] != second["host_id"]
        assert first["network"]["bridge"] == "fcbr0"
        assert second["network"]["bridge"].startswith("fcbr")
        assert second["network"]["bridge"] != "fcbr0"
        assert first["network"]["cidr"] != second["network"]["cidr"]
        assert len(tables()) == 4
        kept = two.machine(tiny_kernel)
        one.put(one.machine(tiny_kernel))
        two.put(kept)
        one.teardown()
        # The other one goes on: its bridge, its rules, its VM, and forwarding, which it needs.
        assert forwarding() == "1"
        assert len(tables()) == 2
        assert two.get(kept.id).state == "running"
        assert second["network"]["bridge"] in links()


def test_a_bridge_of_somebody_else_is_left_alone(firecracker_binary: Path) -> None:
    subprocess.run(["ip", "link", "add", "fcbr0", "type", "bridge"], check=True)
    try:
        with closing(Agent(FC_BINARY=str(firecracker_binary))) as agent:
            agent.start()
            bridge = agent.http.get("/agent/v1/inventory").json()["network"]["bridge"]
            assert bridge != "fcbr0"
            agent.stop()
            agent.start()
            again = agent.http.get("/agent/v1/inventory").json()["network"]["bridge"]
            assert again == bridge
        assert "fcbr0" in links()
        assert bridge not in links()
    finally:
        subprocess.run(["ip", "link", "del", "fcbr0"], check=True)


def test_the_identity_is_kept(agent: Agent) -> None:
    before = agent.http.get("/agent/v1/inventory").json()
    agent.kill()
    agent.start()
    assert agent.http.get("/agent/v1/inventory").json() == before


def test_a_subnet_of_ones_own(firecracker_binary: Path, tiny_kernel: Path) -> None:
    with closing(
        Agent(FC_BINARY=str(firecracker_binary), NEXUS_SUBNET="10.99.0.0/24", FC_BRIDGE="mybr")
    ) as agent:
        agent.start()
        network = agent.http.get("/agent/v1/inventory").json()["network"]
        assert network["bridge"] == "mybr"
        assert (network["cidr"], network["gateway"]) == ("10.99.0.0/24", "10.99.0.1")
        agent.put(agent.machine(tiny_kernel))
        agent.stop()
        agent.environment["NEXUS_SUBNET"] = "10.98.0.0/24"
        agent.start(ready=False)
        assert agent.process is not None
        assert agent.process.wait(timeout=30) == 1
        assert "delete the VMs first" in agent.log.read_text()


def test_guests_cannot_reach_the_host(agent: Agent) -> None:
    """A namespace in the bridge stands for a guest: the host answers ping and nothing else."""
    network = agent.http.get("/agent/v1/inventory").json()["network"]
    first, length = network["gateway"].rpartition(".")[0], network["cidr"].partition("/")[2]
    guest = f"nxg{agent.dir.name[-5:]}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def inside(*words: str) -> int:
        command = ["ip", "netns", "exec", guest, *words]
        return subprocess.run(command, check=False, capture_output=True).returncode

    ip("netns", "add", guest)
    try:
        ip("link", "add", "nexv0", "type", "veth", "peer", "name", "nexv1", "netns", guest)
        ip("link", "set", "nexv0", "master", network["bridge"], "up")
        ip("-n", guest, "addr", "add", f"{first}.77/{length}", "dev", "nexv1")
        ip("-n", guest, "link", "set", "nexv1", "up")
        listener = subprocess.Popen(
            ["busybox", "nc", "-l", "-p", "19090", "-s", network["gateway"]],
            stdin=subprocess.DEVNULL,
        )
        try:
            knock = ["busybox", "nc", "-w", "1", network["gateway"], "19090"]
            until("ping", lambda: inside("busybox", "ping", "-c1", "-W1", network["gateway"]) == 0)
            assert inside(*knock) != 0
        finally:
            listener.kill()
            listener.wait()
    finally:
        ip("netns", "del", guest)
