"""Settings, read once from the environment."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

MOST_TEXT = 65536
"""As much as a VM's own user data."""
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})


class BadSetting(ValueError):
    """An environment variable has a value that means nothing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one manager process runs. See README for what each variable means."""

    database_url: str
    bind: str
    image_root: Path
    allow_image_paths: bool
    reconciler_disabled: bool
    data_dir: Path
    store_dir: Path
    agent_url: str
    """``unix:/path/agent.sock`` or ``http://host:port``."""
    admin_token_file: Path
    host_token_file: Path
    """Holds the token by which hosts fetch images; made at the first start."""
    agent_token_file: Path | None = None
    """Holds the bearer token that an agent on TCP wants."""
    events_keep_days: float = 30.0
    """Events older than this are deleted."""
    mem_overcommit: float = 1.0
    """How much memory VMs may be promised, as a multiple of what a host has."""
    image_max_bytes: int = 65536 << 20
    """How large an image may be, decompressed and with its holes."""
    enable_metrics: bool = True
    """Whether ``/metrics`` answers."""
    vendor_data: str | None = None
    """What VMs are told on their config drive that say nothing of it themselves."""

    @property
    def own_ports(self) -> dict[int, str]:
        """TCP ports of this machine without which there is no Nexus, and whose each is."""
        agent, database = urlsplit(self.agent_url), make_url(self.database_url)
        found = {}
        if database.get_backend_name().startswith("postgres") and _is_loopback(database.host):
            found[database.port or 5432] = "the database's"
        if agent.scheme == "http" and _is_loopback(agent.hostname):
            found[agent.port or 80] = "the agent's"
        port = self.bind.rpartition(":")[2]
        if port.isdigit():
            found[int(port)] = "the manager's own"
        return found

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """The settings of this process. Raises BadSetting for a value that means nothing."""
        given = os.environ if env is None else env
        data = Path(given.get("NEXUS_DATA_DIR", "/var/lib/nexus"))
        settings = cls(
            database_url=given.get("DATABASE_URL") or f"sqlite:///{data / 'nexus.db'}",
            bind=given.get("MANAGER_BIND") or "127.0.0.1:18080",
            image_root=Path(given.get("MANAGER_IMAGE_ROOT") or "/srv/images"),
            allow_image_paths=_flag(given, "MANAGER_ALLOW_IMAGE_PATHS"),
            reconciler_disabled=_flag(given, "MANAGER_RECONCILER_DISABLED"),
            data_dir=data,
            store_dir=Path(given.get("NEXUS_STORE_DIR") or data / "store"),
            agent_url=given.get("NEXUS_AGENT_URL") or f"unix:{data / 'run' / 'agent.sock'}",
            admin_token_file=Path(given.get("NEXUS_ADMIN_TOKEN_FILE") or data / "admin.token"),
            host_token_file=Path(given.get("NEXUS_HOST_TOKEN_FILE") or data / "host.token"),
            agent_token_file=_path(given, "NEXUS_AGENT_TOKEN_FILE"),
            events_keep_days=_above_zero(given, "MANAGER_EVENTS_KEEP_DAYS", "30", 36500),
            mem_overcommit=_above_zero(given, "MANAGER_MEM_OVERCOMMIT", "1", 1000),
            image_max_bytes=_mib(given, "MANAGER_IMAGE_MAX_MIB", 65536) << 20,
            enable_metrics=_flag(given, "MANAGER_ENABLE_METRICS", default="1"),
            vendor_data=_text(given, "MANAGER_VENDOR_DATA_FILE"),
        )
        settings._check_addresses()
        return settings

    def _check_addresses(self) -> None:
        try:
            _ = urlsplit(self.agent_url).port
        except ValueError as error:
            raise BadSetting(f"NEXUS_AGENT_URL={self.agent_url!r}: {error}") from error
        try:
            make_url(self.database_url)
        except (ArgumentError, ValueError) as error:
            # Without what was given: there may be a password in it.
            raise BadSetting(
                "DATABASE_URL is no address of a database: sqlite:////var/lib/nexus/nexus.db, or "
                "postgresql://USER:PASSWORD@HOST/NAME"
            ) from error


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[name]) if env.get(name) else None


def _text(env: Mapping[str, str], name: str) -> str | None:
    """The content of a file that a setting names."""
    if not env.get(name):
        return None
    try:
        text = Path(env[name]).read_text()
    except (OSError, ValueError) as error:
        raise BadSetting(f"{name}={env[name]!r} cannot be read: {error}") from error
    if len(text) > MOST_TEXT:
        raise BadSetting(f"{name}={env[name]!r} has more than {MOST_TEXT} characters")
    return text


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _flag(env: Mapping[str, str], name: str, *, default: str = "0") -> bool:
    value = (env.get(name) or default).strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise BadSetting(f"{name}={value!r} is neither 1 nor 0")


def _above_zero(env: Mapping[str, str], name: str, default: str, most: float) -> float:
    text = env.get(name) or default
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= most:
        raise BadSetting(f"{name}={text!r} is not a number above 0 and up to {most:g}")
    return number


def _mib(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= 1 << 30):
        raise BadSetting(f"{name}={text!r} is not a number of MiB above 0")
    return int(text)
