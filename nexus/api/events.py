"""What the stream of events says besides events."""

from typing import Literal

from nexus.api.common import Wire

GapReason = Literal["pruned", "ahead"]


class EventGap(Wire):
    """Events that a reader has missed for good; the stream goes on behind ``to``.

    ``pruned``: they were older than the manager keeps events. ``ahead``: the position the reader
    gave is one that this database has not come to, as after a restore from a backup.
    """

    after: int
    to: int
    reason: GapReason
