"""Tags, times and restart policies on the command line."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import get_args

from nexus.api.endings import RestartPolicy
from nexus.api.vms import Vm
from nexus.cli.exits import UsageFault
from nexus.cli.output import as_json, print_json
from nexus.cli.session import Session

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TTL = re.compile(r"(?:\d{1,9}[smhd])+|\d{1,9}")
NEVER = "never"


def tag_of(text: str) -> tuple[str, str]:
    """``key=value``. Raises UsageFault."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageFault(f"--tag {text!r}: write key=value")
    return key, value


def tags_of(texts: Sequence[str]) -> dict[str, str]:
    return dict(tag_of(text) for text in texts)


def seconds(text: str, option: str = "--ttl") -> int:
    """``90``, ``90s``, ``45m``, ``1h30m``, ``2d`` in seconds. Raises UsageFault."""
    if not _TTL.fullmatch(text):
        raise UsageFault(f"{option} {text!r}: write 90s, 45m, 2h, 1h30m or 3d")
    if text.isdigit():
        return int(text)
    return sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", text))


def time(text: str) -> datetime:
    """RFC 3339 with a zone. Raises UsageFault."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise UsageFault(f"--expires-at {text!r}: write 2026-01-31T12:00:00Z")
    return at


def policy(text: str) -> RestartPolicy:
    """Raises UsageFault."""
    for known in get_args(RestartPolicy):
        if known == text:
            return known  # type: ignore[no-any-return]
    raise UsageFault(f"--restart {text!r}: one of {', '.join(get_args(RestartPolicy))}")


def given(restart: str | None, ttl: str | None, expires_at: str | None) -> dict[str, object]:
    """What ``nexus run`` adds to its request."""
    return {
        "restart_policy": policy(restart) if restart else None,
        "ttl": seconds(ttl) if ttl else None,
        "expires_at": time(expires_at) if expires_at else None,
    }


def change(
    session: Session, name: str, restart: str | None, ttl: str | None, expires_at: str | None
) -> None:
    """``nexus set``: what was given, the rest stays."""
    if restart is None and ttl is None and expires_at is None:
        raise UsageFault("say what to set: --restart, --ttl or --expires-at")
    if ttl is not None and expires_at is not None:
        raise UsageFault("--ttl and --expires-at are two ways to say the same")
    wanted = policy(restart) if restart else None
    ttl_s = seconds(ttl) if ttl not in (None, NEVER) and ttl else None
    at = time(expires_at) if expires_at not in (None, NEVER) and expires_at else None
    with session.client() as client:
        vm = client.vms.set_restart_policy(name, wanted) if wanted else None
        if ttl is not None or expires_at is not None:
            vm = client.vms.set_expiry(name, ttl_s=ttl_s, at=at)
    if vm is None:
        return
    if session.output == "json":
        print_json({"item": as_json(vm)})
    elif session.output == "name":
        print(vm.name)
    else:
        print(f"{vm.name}: {', '.join(f'{key} {value}' for key, value in shown(vm) if value)}")


def shown(vm: Vm) -> list[tuple[str, str | None]]:
    """The lines of ``nexus show``."""
    last = vm.last_exit
    return [
        ("restart policy", vm.restart_policy),
        ("restarts", str(vm.restarts) if vm.restarts else None),
        ("starts again", _when(vm.restart_at)),
        ("last exit", f"{last.message} at {_when(last.at)}" if last else None),
        ("expires", _when(vm.expires_at)),
    ]


def _when(at: datetime | None) -> str | None:
    return at.isoformat(timespec="seconds") if at else None
