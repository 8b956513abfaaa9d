"""What a short command of ``nexus`` takes, with the interpreter's start; promised: ls in 400 ms."""

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.table import Table
from tests.client.wire import TOKEN, make_vm, serving

WARM_UP = 2


def measure(folder: Path, rounds: int) -> Table:
    """Each command in turn, as a process of its own, against a manager's wire in this process."""
    nexus = str(Path(sys.executable).with_name("nexus"))
    commands = {
        "python -c pass, for comparison": [sys.executable, "-c", "pass"],
        "nexus --help": [nexus, "--help"],
        "nexus ls": [nexus, "ls"],
        "nexus ls -o json": [nexus, "ls", "-o", "json"],
    }
    rows: dict[str, list[float]] = {name: [] for name in commands}
    with serving() as wire:
        wire.vms = [make_vm("web"), make_vm("db")]
        environment = os.environ | {"NEXUS_URL": wire.url, "NEXUS_TOKEN": TOKEN}
        # Python keeps what it compiled, as it does for everybody; the first rounds fill the folder.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(folder)
        for number in range(rounds + WARM_UP):
            for name, command in commands.items():
                begun = time.perf_counter()
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
                if number >= WARM_UP:
                    rows[name].append((time.perf_counter() - begun) * 1000)
    return Table("The command line, interpreter and all", rows, next(iter(rows)))
