"""The agent's settings, from the environment."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from nexus.agent.errors import SettingsInvalid

EngineSetting = Literal["auto", "firecracker", "qemu"]


@dataclass(frozen=True)
class Settings:
    """One agent on one host."""

    bind: str
    run_dir: Path
    bridge: str
    store_dir: Path
    installation_file: Path
    engine: EngineSetting = "auto"
    firecracker: Path | None = None
    jailer: Path | None = None
    jail: bool = False
    subnet: ipaddress.IPv4Network | None = None
    token: str | None = None
    manager_base: str | None = None
    """Where images come from that this host lacks; None for a store that the manager shares."""
    host_token: str | None = field(default=None, repr=False)
    """By which the manager knows this host."""
    store_limit_mib: int | None = None
    """The most that the images of this host may take."""
    capture_in_memory: bool = True
    """Whether captures may use the host's memory while a guest stands still for them."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Raises SettingsInvalid with the variable's name when a value makes no sense."""
        run_dir = Path(environment.get("FC_RUN_DIR") or "/srv/fc").absolute()
        engine = environment.get("NEXUS_ENGINE") or "auto"
        if engine not in ("auto", "firecracker", "qemu"):
            raise SettingsInvalid(f"NEXUS_ENGINE is auto, firecracker or qemu, not {engine!r}")
        bridge = environment.get("FC_BRIDGE") or "fcbr0"
        if not 0 < len(bridge.encode()) <= 15 or not bridge.isprintable() or "/" in bridge:
            raise SettingsInvalid(f"FC_BRIDGE is not an interface name: {bridge!r}")
        installation_file = environment.get("NEXUS_INSTALLATION_FILE")
        settings = cls(
            bind=environment.get("AGENT_BIND") or "127.0.0.1:9090",
            run_dir=run_dir,
            bridge=bridge,
            store_dir=Path(environment.get("NEXUS_STORE_DIR") or run_dir / "store").absolute(),
            installation_file=Path(installation_file or run_dir / "installation.json").absolute(),
            engine=cast("EngineSetting", engine),
            firecracker=_path(environment, "FC_BINARY"),
            jailer=_path(environment, "JAILER_BINARY"),
            jail=_switch(environment, "NEXUS_JAILER", default="0"),
            subnet=_subnet(environment.get("NEXUS_SUBNET")),
            token=_token(environment, "NEXUS_AGENT_TOKEN_FILE"),
            manager_base=_manager(environment),
            host_token=_token(environment, "NEXUS_HOST_TOKEN_FILE"),
            store_limit_mib=_mib(environment, "NEXUS_STORE_LIMIT_MIB"),
            capture_in_memory=_switch(environment, "NEXUS_CAPTURE_IN_MEMORY", default="1"),
        )
        if len(os.fsencode(settings.run_dir)) > 200:
            raise SettingsInvalid(f"FC_RUN_DIR is too long: {settings.run_dir}")
        return settings

    @property
    def tcp_port(self) -> int | None:
        """Where it listens, unless that is a unix socket."""
        port = self.bind.rpartition(":")[2]
        return int(port) if port.isdigit() and not self.bind.startswith("unix:") else None

    def check_bind(self) -> None:
        """Raises SettingsInvalid unless the address is one that may be served.

        A unix socket of mode 0600 needs no more. TCP is loopback only, and only with a token.
        """
        if self.bind.startswith("unix:/"):
            return
        host, _, port = self.bind.rpartition(":")
        if not port.isdigit() or not _is_loopback(host.strip("[]")):
            raise SettingsInvalid(
                f"AGENT_BIND={self.bind} is refused: without mutual TLS the agent serves only "
                "loopback or a unix socket; set AGENT_BIND=unix:/run/nexus-agent.sock"
            )
        if self.token is None:
            raise SettingsInvalid(
                f"AGENT_BIND={self.bind} needs NEXUS_AGENT_TOKEN_FILE, a file holding a token of "
                "at least 16 characters; or set AGENT_BIND=unix:/run/nexus-agent.sock"
            )


def _switch(environment: Mapping[str, str], name: str, *, default: str) -> bool:
    value = environment.get(name) or default
    if value not in ("0", "1"):
        raise SettingsInvalid(f"{name} is 1 or 0, not {value!r}")
    return value == "1"


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    value = environment.get(name)
    return Path(value).absolute() if value else None


def _subnet(text: str | None) -> ipaddress.IPv4Network | None:
    if not text:
        return None
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise SettingsInvalid(f"NEXUS_SUBNET: {error}; write for example 10.77.0.0/20") from error
    if not 8 <= subnet.prefixlen <= 29:
        raise SettingsInvalid(f"NEXUS_SUBNET={subnet}: the prefix must be from /8 to /29")
    return subnet


def _token(environment: Mapping[str, str], name: str) -> str | None:
    file = environment.get(name)
    if not file:
        return None
    try:
        token = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{name}: {error}") from error
    if len(token) < 16:
        raise SettingsInvalid(f"{name}: {file} holds less than 16 characters")
    return token


def _manager(environment: Mapping[str, str]) -> str | None:
    """``MANAGER_BASE``, which without this host's token means nothing to an agent.

    The token goes over loopback, a unix socket or TLS: raises SettingsInvalid for anything else.
    """
    if not environment.get("NEXUS_HOST_TOKEN_FILE"):
        return None
    base = (environment.get("MANAGER_BASE") or "").rstrip("/")
    if not base:
        raise SettingsInvalid(
            "NEXUS_HOST_TOKEN_FILE is for a manager that MANAGER_BASE names: set that as well"
        )
    parts = urlsplit(base)
    if base.startswith("unix:/") or (parts.scheme == "https" and parts.hostname):
        return base
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return base
    raise SettingsInvalid(
        f"MANAGER_BASE={base} is refused: this host's token would go over the network as it is; "
        "write https://HOST, http://127.0.0.1:PORT or unix:/PATH"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mib(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= 1 << 30):
        raise SettingsInvalid(f"{name}={text!r} is not a number of MiB above 0")
    return int(text)
