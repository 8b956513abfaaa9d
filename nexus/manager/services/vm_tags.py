"""Finding VMs by their tags: ``key=value`` or ``key``, through the rows of ``vm_tags``.

Those rows follow ``VmRow.tags`` by themselves (``db.tables``); nothing else writes them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints
from sqlalchemy import ColumnElement, select

from nexus.manager.db.tables import VmRow, VmTagRow

TagSelector = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?(=[ -~]{0,255})?$",
        max_length=320,
    ),
]
"""``key=value``, or ``key`` for VMs that have this tag with any value."""

MOST_SELECTORS = 16


@dataclass(frozen=True, slots=True)
class TagTerm:
    """One condition on a VM's tags; without a value any value will do."""

    key: str
    value: str | None = None

    @classmethod
    def parse(cls, text: str) -> "TagTerm":
        """Reads a ``TagSelector``. Keys hold no ``=``, values may."""
        key, equals, value = text.partition("=")
        return cls(key, value if equals else None)


def tagged(project: str, selectors: Iterable[str]) -> list[ColumnElement[bool]]:
    """Conditions for a query on ``VmRow``: VMs of the project that match all ``TagSelector``s."""
    return [_has(project, TagTerm.parse(selector)) for selector in selectors]


def _has(project: str, term: TagTerm) -> ColumnElement[bool]:
    found = select(VmTagRow.vm_id).where(VmTagRow.project == project, VmTagRow.key == term.key)
    if term.value is not None:
        found = found.where(VmTagRow.value == term.value)
    return VmRow.id.in_(found)
