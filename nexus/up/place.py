"""Where one installation keeps what: every path follows from its data folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nexus.api.errors import BadRequest

CHECKOUT = Path(__file__).resolve().parents[2]
_LONGEST_SOCKET_PATH = 107
STORE, VMS = "store", "fc"
MOVED = (STORE, VMS)
"""What lies on the file system of ``nexus host init``, if there is one."""
DEFAULT_BIND = "127.0.0.1:18080"


def default_data_dir() -> Path:
    """``data`` beside the sources in a checkout, ``/var/lib/nexus`` when installed."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return CHECKOUT / "data"
    return Path("/var/lib/nexus")


@dataclass(frozen=True)
class Place:
    """One installation: its data folder, its address, and the engine that was asked for."""

    data: Path
    bind: str
    engine: str

    @property
    def agent_socket(self) -> Path:
        return self.data / "run" / "agent.sock"

    @property
    def lock(self) -> Path:
        return self.data / "up.lock"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def token_file(self) -> Path:
        return self.data / "admin.token"

    @property
    def client_file(self) -> Path:
        """What the CLI reads to find this installation."""
        return self.data / "client.json"

    @property
    def settings_file(self) -> Path:
        """The environment the services were started with, for ``nexus down``."""
        return self.data / "settings.json"

    @property
    def disk_file(self) -> Path:
        """The file system that ``nexus host init`` makes (``nexus.up.disk``), if it has."""
        return self.data / "disk.xfs"

    @property
    def new_disk_file(self) -> Path:
        """The same while it is made."""
        return self.data / "disk.xfs.new"

    @property
    def disk(self) -> Path:
        """Where it is mounted."""
        return self.data / "disk"

    @property
    def large(self) -> Path:
        """Where images and VMs lie."""
        return self.disk if self.disk_file.exists() else self.data

    @property
    def url(self) -> str:
        host, _, port = self.bind.rpartition(":")
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}"  # noqa: S104

    def environment(self) -> dict[str, str]:
        """The settings of manager and agent; what the caller's environment sets wins."""
        defaults = {
            "NEXUS_DATA_DIR": str(self.data),
            "NEXUS_STORE_DIR": str(self.large / STORE),
            "NEXUS_CACHE_DIR": str(self.data / "cache"),
            "FC_RUN_DIR": str(self.large / VMS),
            "MANAGER_IMAGE_ROOT": str(self.data / "images"),
        }
        chosen = {name: os.environ.get(name, value) for name, value in defaults.items()}
        passed_on = (
            "DATABASE_URL",
            "MANAGER_ALLOW_IMAGE_PATHS",
            "MANAGER_RECONCILER_DISABLED",
            "MANAGER_MEM_OVERCOMMIT",
            "MANAGER_EVENTS_KEEP_DAYS",
            "MANAGER_IMAGE_MAX_MIB",
            "MANAGER_ENABLE_METRICS",
            "MANAGER_INSECURE_REGISTRIES",
            "FC_BRIDGE",
            "FC_BINARY",
            "JAILER_BINARY",
            "NEXUS_JAILER",
            "NEXUS_CAPTURE_IN_MEMORY",
            "NEXUS_SUBNET",
        )
        chosen |= {name: os.environ[name] for name in passed_on if name in os.environ}
        return chosen | {
            "NEXUS_DATA_DIR": str(self.data),
            "NEXUS_ADMIN_TOKEN_FILE": str(self.token_file),
            "NEXUS_AGENT_URL": f"unix:{self.agent_socket}",
            "AGENT_BIND": f"unix:{self.agent_socket}",
            "MANAGER_BIND": self.bind,
            "NEXUS_ENGINE": self.engine,
        }

    def prepare(self) -> None:
        """Makes the folders. Raises BadRequest when the data folder's path is too long."""
        if len(os.fsencode(self.agent_socket)) > _LONGEST_SOCKET_PATH:
            raise BadRequest(
                f"the path {self.agent_socket} is too long for a unix socket",
                suggestion="choose a shorter path: nexus up --data /var/lib/nexus",
            )
        self.data.mkdir(parents=True, exist_ok=True)
        for folder in (self.agent_socket.parent, self.logs):
            folder.mkdir(mode=0o700, exist_ok=True)
        environment = self.environment()
        Path(environment["MANAGER_IMAGE_ROOT"]).mkdir(parents=True, exist_ok=True)
        write_private(self.settings_file, json.dumps(environment, indent=2))
        client = {"url": self.url, "token_file": str(self.token_file)}
        write_private(self.client_file, json.dumps(client))


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 as a whole: a reader sees the old text or the new."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)
