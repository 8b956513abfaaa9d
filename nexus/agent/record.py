"""What the agent remembers of a machine: ``desired.json`` and ``status.json``."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nexus.agent.atomic import write_often
from nexus.agent.identity import KnownAs
from nexus.agent.layout import VmPaths
from nexus.agent.restarts import FRESH, Restarts
from nexus.agent.tuning import Told
from nexus.api.common import Engine, Timestamp
from nexus.api.endings import ExitCause, LastExit
from nexus.api.machines import Machine
from nexus.api.origins import Identity, Origin
from nexus.api.vms import VmError

Phase = Literal["new", "configured", "starting", "running", "ended"]
"""``starting`` is written before the VMM is spawned, ``running`` once its API said so."""


class Record(BaseModel):
    """What was begun for one machine; written ahead of every act that cannot be seen otherwise."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)

    engine: Engine
    engine_version: str | None = None
    """Of the VMM of this boot, which an upgrade leaves alone; None when nobody wrote it down."""
    jailed: bool = False
    uid: int | None = None
    phase: Phase = "new"
    boot: int = 0
    pid: int | None = None
    start_ticks: int | None = None
    """In the records of older agents; a VMM is known by its ``--id`` and its directory."""
    console_offset: int = 0
    """Where the console of this boot begins in ``console.log``."""
    stop_asked_at: Timestamp | None = None
    killed: bool = False
    """Whether we ended this boot by force."""
    configured_at: Timestamp | None = None
    started_at: Timestamp | None = None
    exited_at: Timestamp | None = None
    exit_cause: ExitCause | None = None
    error: VmError | None = None
    told: Told = Field(default_factory=Told)
    """What the VMM of this boot was told of its devices; nothing when nobody wrote it down."""
    volumes: list[str] = Field(default_factory=list)
    """Those that the VM's root has names for; a VMM that runs has none but these."""
    restarts: Restarts = FRESH
    last_exit: LastExit | None = None
    """Of any boot."""
    capturing: str | None = None
    """The snapshot for which the guest was made to stand still; it is to go on."""
    tracks: bool = False
    """Whether the VMM of this boot notes which memory its guest writes."""
    captured: bool = False
    """Whether a capture of this boot was begun: what its VMM noted before is no more all."""
    last_snapshot: str | None = None
    """The one that a diff of this boot leans on; None while it is not known what changed since."""
    placing: Origin | None = None
    """Whose disks are being put in the place of the VM's own: they may be half of each."""
    placed: Origin | None = None
    """Whose disks the VM has."""
    root_boot: int = 0
    """The last of the boots before which the root disk was to be made anew, and was."""
    loaded_from: str | None = None
    """The snapshot that this boot began with, instead of a boot of its guest."""
    known_as: KnownAs | None = None
    """Who the guest takes itself for, while it has not been told that it is another VM."""
    identity: Identity | None = None

    def save(self, paths: VmPaths) -> None:
        write_often(paths.status, self.text())

    def text(self) -> bytes:
        """As it is written down."""
        return self.model_dump_json(exclude_defaults=True).encode()


def load_record(file: Path) -> Record | None:
    """None when nothing was begun yet. Raises ValueError when the file is damaged."""
    try:
        return Record.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{file} is damaged: {error.errors()[0]['msg']}") from error


def load_desired(file: Path) -> Machine | None:
    """None when there is none. Raises ValueError when the file is damaged."""
    try:
        return Machine.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{file} is damaged: {error.errors()[0]['msg']}") from error
