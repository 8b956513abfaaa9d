"""What all routes have in common."""

import inspect
from collections.abc import Iterator
from pathlib import Path

from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from nexus.manager.app import create_app
from nexus.manager.config import Settings


def test_no_part_of_a_request_is_run_in_a_thread(tmp_path: Path) -> None:
    app = create_app(Settings.from_env({"NEXUS_DATA_DIR": str(tmp_path)}))
    calls = {
        call
        for route in iter_route_contexts(app.routes)
        if isinstance(dependant := getattr(route, "dependant", None), Dependant)
        for call in _calls(dependant)
    }
    assert len(calls) > 50
    assert [call for call in calls if not _is_async(call)] == []


def _calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)


def _is_async(call: object) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - a dependency may be an object
    )
