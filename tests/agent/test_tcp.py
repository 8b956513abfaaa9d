"""The agent on loopback TCP: nothing without its token."""

from pathlib import Path

import httpx
import pytest

from nexus.api.networks import HostForward, HostNetworks
from tests.agent.harness import Agent, until

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


def test_everything_wants_the_token(firecracker_binary: Path, free_port: int) -> None:
    agent = Agent(FC_BINARY=str(firecracker_binary), AGENT_BIND=f"127.0.0.1:{free_port}")
    token = agent.dir / "token"
    token.write_text("a-token-of-some-length")
    agent.environment["NEXUS_AGENT_TOKEN_FILE"] = str(token)
    try:
        agent.start(ready=False)
        with httpx.Client(base_url=f"http://127.0.0.1:{free_port}") as http:

            def status(headers: dict[str, str]) -> int:
                try:
                    return http.get("/agent/v1/health", headers=headers).status_code
                except httpx.TransportError:
                    return 0

            until("it serves", lambda: status({}))
            assert status({}) == 401
            assert status({"authorization": "Bearer wrong"}) == 401
            assert status({"authorization": "Bearer a-token-of-some-length"}) == 200
            assert http.get("/openapi.json").status_code == 401
            assert http.get("/metrics").status_code == 401
            # Whoever wants its port for a VM would have nobody to ask for it back.
            forward = HostForward(
                protocol="tcp", host_port=free_port, ip="192.0.2.9", guest_port=80
            )
            told = http.put(
                "/agent/v1/networks",
                content=HostNetworks(networks=[], forwards=[forward]).model_dump_json(),
                headers={
                    "authorization": "Bearer a-token-of-some-length",
                    "content-type": "application/json",
                },
            )
            assert told.status_code == 200
        again = httpx.get(f"http://127.0.0.1:{free_port}/agent/v1/health")
        assert again.status_code == 401
        assert "own port is not forwarded" in agent.log.read_text()
    finally:
        agent.close()
