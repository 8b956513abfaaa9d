"""``make bench``: what Nexus costs, side by side with bare Firecracker in one run."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import cli, create, fleet, heal, linux, pauses, pools, reads, snapshots
from bench.table import Table, machine, markdown

KINDS = ("cli", "create", "fleet", "heal", "linux", "pauses", "pools", "reads", "snapshots")
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="creates on Firecracker")
    parser.add_argument("--linux-rounds", type=int, default=10, help="creates of Linux VMs")
    parser.add_argument("--fleet-rounds", type=int, default=5, help="creates of many VMs at once")
    parser.add_argument("--fleet", type=int, default=100, help="how many VMs these are")
    parser.add_argument("--heal-rounds", type=int, default=50, help="VMMs killed")
    parser.add_argument("--only", choices=KINDS, help="one of them")
    parser.add_argument("--read-rounds", type=int, default=500, help="reads of each kind")
    parser.add_argument("--clone-rounds", type=int, default=50, help="clones one at a time")
    parser.add_argument("--pause-rounds", type=int, default=10, help="snapshots of each kind")
    parser.add_argument("--cli-rounds", type=int, default=30, help="starts of each command")
    parser.add_argument("--save", action="store_true", help="append the tables to RESULTS.md")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        # A network namespace of its own: what the bench makes vanishes with it.
        command = [sys.executable, "-m", "bench", "--inside", *sys.argv[1:]]
        sys.exit(subprocess.run(["unshare", "--net", "--", *command], check=False).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as folder:
        place = Path(folder)
        measures: dict[str, Callable[[], list[Table]]] = {
            "create": lambda: [create.measure(place / "f", options.rounds)],
            "fleet": lambda: [fleet.measure(place / "n", options.fleet_rounds, options.fleet)],
            "snapshots": lambda: snapshots.measure(
                place / "s", options.clone_rounds, options.fleet_rounds, options.fleet
            ),
            "pools": lambda: [pools.measure(place / "p", options.clone_rounds)],
            "pauses": lambda: pauses.measure(place / "z", options.pause_rounds),
            "heal": lambda: [heal.measure(place / "h", options.heal_rounds)],
            "linux": lambda: [linux.measure(place / "q", options.linux_rounds)],
            "cli": lambda: [cli.measure(place / "c", options.cli_rounds)],
            "reads": lambda: [reads.measure(place / "r", options.read_rounds)],
        }
        tables = [
            table
            for name, measure in measures.items()
            if options.only in (None, name)
            for table in measure()
        ]
    title = f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}, load {os.getloadavg()[0]:.1f}"
    text = "\n\n".join([title, *(markdown(table) for table in tables)]) + "\n"
    print(text)
    if options.save:
        with RESULTS.open("a") as results:
            results.write("\n" + text)


if __name__ == "__main__":
    main()
