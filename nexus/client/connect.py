"""Where the manager is, and with which token: arguments, environment, or a local installation."""

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nexus.client.errors import NexusApiError

DEFAULT_URL = "http://127.0.0.1:18080"
_INSTALLED = Path("/var/lib/nexus")


@dataclass(frozen=True)
class Connection:
    url: str
    token: str


def find_connection(
    *,
    url: str | None = None,
    token_file: Path | None = None,
    data: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Connection:
    """The first that is set: arguments; ``data``'s installation; ``NEXUS_URL`` (or
    ``MANAGER_BASE``) with ``NEXUS_TOKEN`` or ``NEXUS_TOKEN_FILE``; the installation in
    ``NEXUS_DATA_DIR``, ``./data``, the checkout's ``data``, or ``/var/lib/nexus``.

    Raises NexusApiError with what to type when there is none or its token cannot be read.
    """
    local = _installation(data, environment) if url is None or token_file is None else None
    if data is None:
        url = url or environment.get("NEXUS_URL") or environment.get("MANAGER_BASE")
        if token_file is None and "NEXUS_TOKEN" in environment:
            return Connection(
                url or (local or {}).get("url", DEFAULT_URL), environment["NEXUS_TOKEN"]
            )
        if token_file is None and "NEXUS_TOKEN_FILE" in environment:
            token_file = Path(environment["NEXUS_TOKEN_FILE"])
    # An installation's token goes to that installation only.
    if local is not None and url in (None, local["url"]):
        url = local["url"]
        token_file = token_file or Path(local["token_file"])
    if token_file is None and url is not None:
        raise NexusApiError(
            401,
            "unauthenticated",
            f"no token is known for {url}",
            suggestion="set NEXUS_TOKEN_FILE, or give --token-file",
        )
    if token_file is None:
        raise NexusApiError(
            0,
            "unauthenticated",
            "no Nexus installation is known here",
            suggestion="nexus up, or set NEXUS_URL and NEXUS_TOKEN_FILE",
        )
    return Connection(url or DEFAULT_URL, _read_token(token_file))


def _installation(data: Path | None, environment: Mapping[str, str]) -> dict[str, str] | None:
    if data is not None:
        return _read_client_file(data / "client.json")
    folders = [Path("data"), Path(__file__).resolve().parents[2] / "data", _INSTALLED]
    if "NEXUS_DATA_DIR" in environment:
        folders.insert(0, Path(environment["NEXUS_DATA_DIR"]))
    for folder in folders:
        file = folder / "client.json"
        # A folder of somebody else's must not choose where this user's commands go.
        try:
            owner = file.stat().st_uid
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(file, error) from error
        if owner in (0, os.geteuid()):
            return _read_client_file(file)
    return None


def _read_client_file(file: Path) -> dict[str, str]:
    try:
        values = json.loads(file.read_text())
        return {"url": str(values["url"]), "token_file": str(values["token_file"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> NexusApiError:
    if isinstance(error, PermissionError):
        return NexusApiError(
            401,
            "unauthenticated",
            f"{file} may be read by another user only",
            suggestion="run as the user who ran nexus up, or set NEXUS_URL and NEXUS_TOKEN_FILE",
        )
    why = error.strerror if isinstance(error, OSError) else f"bad {file.name}: {error}"
    return NexusApiError(
        0,
        "not_found",
        f"no installation in {file.parent}: {why}",
        suggestion=f"nexus up --data {file.parent}",
    )


def _read_token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise NexusApiError(
            401,
            "unauthenticated",
            f"the token file {file} cannot be read: {error.strerror}",
            suggestion="run as the user who ran nexus up, or set NEXUS_TOKEN_FILE",
        ) from error


def trusted(url: str) -> ssl.SSLContext | bool:
    """Whom to trust over TLS, for httpx: the usual authorities, and nobody where there is no TLS.

    Reading the authorities takes a tenth of a short command.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http://") else True
