"""What a VM shows while its host fetches what it needs, and when that failed at first."""

from pathlib import Path

import pytest

from nexus.api.common import Progress
from nexus.api.vms import VmError
from nexus.manager.lifecycle import told_of
from tests.manager.agent_double import AgentDouble
from tests.manager.core import running, settings_for, until

pytestmark = pytest.mark.anyio

WHAT = "fetching the image of rootfs"


def far(fraction: float) -> Progress:
    return Progress(what=WHAT, fraction=fraction)


def test_it_is_told_at_the_beginning_and_each_quarter() -> None:
    told = [told_of(None, far(0.1))]
    told += [told_of(far(old), far(new)) for old, new in ((0.1, 0.24), (0.24, 0.26), (0.3, 0.9))]
    assert told == [f"{WHAT}: 10%", None, f"{WHAT}: 26%", f"{WHAT}: 90%"]
    assert told_of(far(0.9), None) is None
    assert told_of(far(0.9), Progress(what="another", fraction=0.0)) == "another: 0%"


async def test_a_vm_shows_it_and_runs_at_last(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble
) -> None:
    async with running(settings_for(tmp_path, sqlite_url, agent.url)) as manager:
        await manager.add_defaults()
        agent.fails_with = VmError(stage="disk", message="the manager does not answer")
        vm = await manager.create("", name="one")
        await manager.becomes("one", "error")

        # The agent tries again by itself.
        agent.push(vm["id"], progress=far(0.4))

        async def shown() -> bool:
            return (await manager.vm("one"))["progress"] == {"what": WHAT, "fraction": 0.4}

        await until("it shows how far the image is", shown)
        agent.push(vm["id"], state="running", boot=1, pid=1, error=None, progress=None)
        now = await manager.becomes("one", "running")
        assert (now["error"], now["progress"]) == (None, None)
        reasons = await manager.reasons("one")
        assert [each for each in reasons if each in ("failed", "fetching", "started")] == [
            *("failed", "fetching", "started")
        ]
