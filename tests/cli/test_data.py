"""``--data`` means the same before and after a command's name."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nexus.__main__ import app
from nexus.up.place import Place


@pytest.mark.parametrize("before", [True, False])
def test_down_takes_the_folder_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    taken: list[Place] = []
    # Replaced, so that a regression cannot remove the installation of whoever runs the test.
    monkeypatch.setattr("nexus.up.down.down", taken.append)
    option = ["--data", str(tmp_path)]
    ended = CliRunner().invoke(app, [*option, "down"] if before else ["down", *option])
    assert ended.exit_code == 0, ended.output
    assert [place.data for place in taken] == [tmp_path]
