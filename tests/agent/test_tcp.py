"""The agent on loopback TCP: nothing without its token."""

from pathlib import Path

import httpx
import pytest

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
    finally:
        agent.close()
