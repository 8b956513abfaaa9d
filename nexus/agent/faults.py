"""Named points at which a test may have the agent die, to prove that a restart recovers.

``NEXUS_FAULT=after_disk`` kills the process with SIGKILL when it passes that point.
"""

import os
import signal

POINTS = (
    "after_desired",
    "after_disk",
    "after_tap",
    "before_spawn",
    "after_spawn",
    "after_running",
    "after_tune",
    "after_copy",
    "after_shed",
    "after_kill",
    "after_trash",
    "capture_begun",
    "capture_paused",
    "capture_created",
    "capture_cloned",
    "capture_resumed",
    "snapshot_sealed",
    "snapshot_kept",
    "snapshot_merged",
    "snapshot_going",
    "load_placing",
    "load_placed",
    "load_ready",
    "load_loaded",
)

_chosen = os.environ.get("NEXUS_FAULT")


def point(name: str) -> None:
    """Nothing, unless ``NEXUS_FAULT`` names this point."""
    if name == _chosen:
        os.kill(os.getpid(), signal.SIGKILL)
