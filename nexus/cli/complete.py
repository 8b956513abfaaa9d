"""Names for the shell's completion, asked of the manager: soon, or not at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nexus.cli.session import Session

if TYPE_CHECKING:
    from nexus.client.calls.call import Call

MOST = 200
PATIENCE_S = 1.0


def vm_names(context: typer.Context, incomplete: str) -> list[str]:
    """VMs whose names begin so."""
    return list(_names(context, "vms", incomplete))


def image_names(context: typer.Context, incomplete: str) -> list[str]:
    """Images whose names begin so."""
    return list(_names(context, "images", incomplete))


def template_names(context: typer.Context, incomplete: str) -> list[str]:
    """Templates whose names begin so."""
    return list(_names(context, "templates", incomplete))


def snapshot_names(context: typer.Context, incomplete: str) -> list[str]:
    """Snapshots whose names begin so."""
    return list(_names(context, "snapshots", incomplete))


def _names(context: typer.Context, what: str, incomplete: str) -> Iterable[str]:
    """Never prints and never raises: a Tab that finds nothing does nothing."""
    try:
        return _ask(_session(context), what, incomplete)
    except Exception:  # noqa: BLE001 - whatever it is, it does not belong on a half-typed line
        return []


def _session(context: typer.Context) -> Session:
    given = context.find_root().params
    token_file, data = (given.get(name) for name in ("token_file", "data"))
    return Session(
        url=given.get("url"),
        token_file=Path(token_file) if token_file else None,
        data=Path(data) if data else None,
        output=None,
    )


def _ask(session: Session, what: str, incomplete: str) -> Iterable[str]:
    with session.client() as client:
        found = client.send(_call(what, incomplete))
    return [name for name in found if name.startswith(incomplete)]


def _call(what: str, incomplete: str) -> "Call[list[str]]":
    from nexus.api.common import Page
    from nexus.api.images import Image
    from nexus.api.templates import Template
    from nexus.api.vm_snapshots import Snapshot
    from nexus.api.vms import Vm
    from nexus.client.calls.call import Call

    pages: dict[str, Any] = {
        "vms": Page[Vm],
        "templates": Page[Template],
        "snapshots": Page[Snapshot],
    }

    def names(content: bytes) -> list[str]:
        page = pages.get(what, Page[Image])
        return list(dict.fromkeys(each.name for each in page.model_validate_json(content).items))

    # The prefix is the manager's to match; the API has none for images.
    name = incomplete if what != "images" and incomplete else None
    query = {"name": name, "limit": MOST}
    return Call("GET", f"/v1/{what}", names, query, timeout_s=PATIENCE_S, probe=True)
