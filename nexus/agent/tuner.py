"""Telling one VMM what is wanted of its devices, and resting after it refuses."""

from datetime import UTC, datetime, timedelta

import anyio.to_thread
import structlog

from nexus.agent import disks, tuning
from nexus.agent.errors import StageFailed
from nexus.agent.layout import VmPaths
from nexus.agent.record import Record
from nexus.api.machines import Machine
from nexus.api.vms import VmError
from nexus.vmm.client import VmmClient

log = structlog.get_logger("tuner")


class Tuner:
    """Of one machine. A VM whose VMM refuses goes on as it is; it is told again, ever more
    rarely, until it takes it or something else is wanted."""

    def __init__(self) -> None:
        self.refusal: VmError | None = None
        self._refusals = 0
        self._rests_until: datetime | None = None

    def begin(self) -> None:
        """Another VMM: it has refused nothing."""
        self.refusal, self._refusals = None, 0

    def wake(self) -> None:
        """Something else may be wanted: no rest."""
        self._rests_until = None

    def has_nothing_to_say(self, desired: Machine, record: Record) -> bool:
        resting = self._rests_until is not None and datetime.now(UTC) < self._rests_until
        return resting or record.told == tuning.wanted(desired)

    async def tell(
        self, desired: Machine, record: Record, paths: VmPaths, client: VmmClient
    ) -> float | None:
        """Tells the VMM, and notes in the record what it knows now. After a refusal returns how
        many seconds to rest."""
        wish = tuning.wanted(desired)
        try:
            await anyio.to_thread.run_sync(disks.grow, desired, paths)
            record.told, self.refusal = await tuning.tell(client, record.told, wish)
        except StageFailed as failed:
            self.refusal = failed.error
        if self.refusal is None:
            # Also forgets devices that are no longer wanted.
            record.told, self._refusals = wish, 0
            return None
        self._refusals += 1
        rest_s = tuning.rest_s(self._refusals)
        self._rests_until = datetime.now(UTC) + timedelta(seconds=rest_s)
        refused = self.refusal.message
        log.warning("devices refused", vm=desired.id, error=refused, rest_s=rest_s)
        return rest_s
