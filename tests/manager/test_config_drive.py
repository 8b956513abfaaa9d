"""Who gets a config drive, and what is on it beside the user's own."""

from pathlib import Path

import pytest

from nexus.agent.vmm_config import needs_config_drive
from nexus.manager.config import BadSetting, Settings
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, running, settings_for

pytestmark = pytest.mark.anyio


async def test_only_where_there_is_something_to_say(
    sqlite_manager: Manager, agent: AgentDouble
) -> None:
    manager = sqlite_manager
    await manager.add_defaults()
    plain = await manager.create(name="plain")
    assert not needs_config_drive(agent.machines[plain["id"]])
    for name, body in {
        "asked": {"config_drive": True},
        "vendor": {"vendor_data": "#cloud-config\n"},
        "user": {"user_data": "#!/bin/sh\n"},
        "keys": {"ssh_keys": ["ssh-ed25519 AAAA me"]},
    }.items():
        made = await manager.create(name=name, **body)
        assert needs_config_drive(agent.machines[made["id"]]), name


async def test_an_installation_has_vendor_data_for_all(
    tmp_path: Path, sqlite_url: str, agent: AgentDouble
) -> None:
    file = tmp_path / "vendor"
    file.write_text("#!/bin/sh\necho ours\n")
    settings = settings_for(tmp_path, sqlite_url, agent.url, MANAGER_VENDOR_DATA_FILE=str(file))
    async with running(settings) as manager:
        await manager.add_defaults()
        given = [
            agent.machines[(await manager.create(**body))["id"]].vendor_data
            for body in ({}, {"vendor_data": "own"}, {"vendor_data": ""})
        ]
    assert given == ["#!/bin/sh\necho ours\n", "own", ""]
    file.write_text("x" * 65537)
    for bad in (file, tmp_path / "nothing"):
        with pytest.raises(BadSetting):
            Settings.from_env({"MANAGER_VENDOR_DATA_FILE": str(bad)})
