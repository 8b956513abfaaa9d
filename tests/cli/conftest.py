"""A wire server for every test of the SDK."""

from collections.abc import Iterator

import pytest

from nexus.client import Client
from tests.client.wire import TOKEN, Wire, serving


@pytest.fixture
def wire() -> Iterator[Wire]:
    with serving() as server:
        yield server


@pytest.fixture
def client(wire: Wire) -> Iterator[Client]:
    with Client(wire.url, TOKEN) as made:
        yield made
