"""An agent with real Firecracker for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Agent, agent_of


@pytest.fixture
def agent(firecracker_binary: Path) -> Iterator[Agent]:
    with agent_of(Agent, firecracker_binary) as agent:
        yield agent
