"""Where the manager is, and which token goes there."""

import json
from pathlib import Path

import pytest

from nexus.client import Connection, NexusApiError, find_connection


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "admin.token").write_text("local-token\n")
    client = {"url": "http://127.0.0.1:7", "token_file": str(folder / "admin.token")}
    (folder / "client.json").write_text(json.dumps(client))
    return folder


def test_an_installation_is_found_by_its_folder(installation: Path) -> None:
    expected = Connection("http://127.0.0.1:7", "local-token")
    assert find_connection(data=installation, environment={}) == expected
    assert find_connection(environment={"NEXUS_DATA_DIR": str(installation)}) == expected


def test_an_installation_is_found_below_the_working_directory(
    installation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(installation.parent)
    assert find_connection(environment={}).token == "local-token"


def test_the_environment_wins_over_an_installation(installation: Path) -> None:
    environment = {
        "NEXUS_DATA_DIR": str(installation),
        "NEXUS_URL": "http://manager:1",
        "NEXUS_TOKEN": "other",
    }
    assert find_connection(environment=environment) == Connection("http://manager:1", "other")


def test_arguments_win_over_the_environment(installation: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mine")
    environment = {"NEXUS_URL": "http://manager:1", "NEXUS_TOKEN": "other"}
    found = find_connection(url="http://here:2", token_file=token, environment=environment)
    assert found == Connection("http://here:2", "mine")


def test_a_token_stays_with_its_installation(installation: Path) -> None:
    environment = {"NEXUS_DATA_DIR": str(installation)}
    with pytest.raises(NexusApiError, match="no token is known for http://elsewhere"):
        find_connection(url="http://elsewhere:1", environment=environment)


def test_a_folder_without_installation_says_nexus_up(tmp_path: Path) -> None:
    with pytest.raises(NexusApiError) as caught:
        find_connection(data=tmp_path, environment={})
    assert caught.value.suggestion == f"nexus up --data {tmp_path}"


def test_a_broken_client_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "client.json").write_text("[]")
    with pytest.raises(NexusApiError, match=r"bad client\.json"):
        find_connection(environment={"NEXUS_DATA_DIR": str(tmp_path)})


def test_a_missing_token_file_is_denied(tmp_path: Path) -> None:
    environment = {"NEXUS_URL": "http://here:1", "NEXUS_TOKEN_FILE": str(tmp_path / "none")}
    with pytest.raises(NexusApiError) as caught:
        find_connection(environment=environment)
    assert caught.value.status == 401
