"""A real PostgreSQL for one test run: its own cluster, on a unix socket only."""

import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 60


@contextmanager
def cluster() -> Iterator[Path]:
    """Runs a cluster as the user ``postgres``; gives the folder of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="nexus-pg-"))
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    programs = max(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    as_postgres = [
        *("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"),
        *("--pdeathsig", "KILL", "--"),
    ]
    data = folder / "data"
    subprocess.run(
        [*as_postgres, programs / "initdb", "-D", data, "-A", "trust", "-N", "-E", "UTF8"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    server = subprocess.Popen(
        [
            *as_postgres,
            *(programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="),
            *("-c", "fsync=off", "-c", "max_connections=100"),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_ready(programs, folder, server)
        yield folder
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(30)
        shutil.rmtree(folder)


def make_database(folder: Path, name: str, like: str | None = None) -> str:
    """A database in the cluster, empty or ``like`` another one, as a ``DATABASE_URL``."""
    template = ["-T", like] if like is not None else []
    subprocess.run(["createdb", "-h", folder, "-U", "postgres", *template, name], check=True)
    return f"postgresql://postgres@/{name}?host={folder}"


def drop_database(folder: Path, name: str) -> None:
    subprocess.run(["dropdb", "-f", "-h", folder, "-U", "postgres", name], check=True)


def _wait_ready(programs: Path, folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    pause = select.poll()
    while True:
        done = subprocess.run(
            [programs / "pg_isready", "-q", "-h", folder, "-U", "postgres"], check=False
        )
        if done.returncode == 0:
            return
        assert server.poll() is None, "postgres ended"
        assert time.monotonic() < deadline, "postgres did not start"
        pause.poll(50)
