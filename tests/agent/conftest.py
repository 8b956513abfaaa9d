"""An agent with real Firecracker for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.harness import Agent


@pytest.fixture
def agent(firecracker_binary: Path) -> Iterator[Agent]:
    agent = Agent(FC_BINARY=str(firecracker_binary))
    try:
        yield agent.start()
    finally:
        agent.close()
