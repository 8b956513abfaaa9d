"""``nexus down``: stop an installation and remove all that it made on this machine."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from nexus.api.errors import Conflict, NotFound, TimedOut
from nexus.up import disk
from nexus.up.place import STORE, VMS, Place

STOP_TIMEOUT_S = 30
TEARDOWN_TIMEOUT_S = 300

_OURS = (
    "store",
    "cache",
    "builds",
    "run",
    "logs",
    "fc",
    "admin.token",
    "host.token",
    "client.json",
    "nexus.db",
    "nexus.db-wal",
    "nexus.db-shm",
    "settings.json",
    "up.lock",
)
"""What lies in a data folder by Nexus' own hand. The user's image files are not in it."""


def down(place: Place) -> None:
    """Stops services and VMs and removes bridge, TAPs, rules, disks and the data folder's content.

    Image files that a user put under the image root stay, and so does a database outside of the
    data folder. Run twice it finds nothing left to do. Raises NotFound when the folder holds no
    installation.
    """
    if not place.settings_file.is_file():
        raise NotFound(
            f"there is no installation in {place.data}",
            suggestion="nexus down --data DIR, with the DIR that nexus up was given",
        )
    environment = _moved(place, json.loads(place.settings_file.read_text()))
    with place.lock.open("a+") as lock:
        _stop_services(place, lock.fileno())
        disk.mount(place)  # A reboot has unmounted what the VMs lie on.
        _teardown(environment)
        disk.remove(place)
        # The settings file goes last: as long as it is there, a second run finishes the first.
        for name in (n for n in _OURS if n not in ("settings.json", "up.lock")):
            _remove(place.data / name)
        for name in ("settings.json", "up.lock"):
            _remove(place.data / name)
    for folder in (Path(environment["MANAGER_IMAGE_ROOT"]), place.data):
        if folder.is_relative_to(place.data) and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _moved(place: Place, environment: dict[str, str]) -> dict[str, str]:
    """The settings of the last ``nexus up``, with the folders where ``nexus host init`` has put
    them since."""
    folders = {"NEXUS_STORE_DIR": place.large / STORE, "FC_RUN_DIR": place.large / VMS}
    ours = {
        name: str(folder)
        for name, folder in folders.items()
        if Path(environment[name]).is_relative_to(place.data)
    }
    return environment | ours


def _stop_services(place: Place, lock: int) -> None:
    """Asks the running ``nexus up`` to end and waits until its lock is free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = place.lock.read_text().strip()
        if not holder.isdigit():
            raise Conflict(
                f"the installation in {place.data} is being started or stopped right now",
                suggestion="try again in a moment",
            ) from None
        os.kill(int(holder), signal.SIGTERM)
        signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(STOP_TIMEOUT_S)
        fcntl.flock(lock, fcntl.LOCK_EX)
        signal.alarm(0)


def _too_slow(number: int, frame: object) -> None:
    raise TimedOut(
        f"the services did not stop within {STOP_TIMEOUT_S} s",
        suggestion="stop nexus up with Ctrl-C and run nexus down again",
    )


def _teardown(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nexus.agent", "--teardown"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TEARDOWN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        words = "\n".join(done.stderr.splitlines()[-5:])
        raise Conflict(
            f"removing VMs and networks failed:\n{words}",
            suggestion="mend that and run nexus down again",
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
