"""The machine's own Debian package sources, as apt knows them, for building a Debian root."""

import re
from pathlib import Path

from nexus.images import tools
from nexus.images.errors import BuildError

_FIELDS = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
_CODENAME = re.compile(r"^VERSION_CODENAME=\"?([a-z]+)\"?$", re.MULTILINE)
_DEBIAN_HOST = re.compile(r"(^|\.)debian\.org$")


def codename() -> str:
    """The release of this machine. Raises BuildError if it is no Debian."""
    text = Path("/etc/os-release").read_text()
    found = _CODENAME.search(text)
    if found is None or "ID=debian" not in text.splitlines():
        raise BuildError("this machine is no Debian", "build Debian images on a Debian machine")
    return found[1]


def lines() -> list[str]:
    """One-line sources (sources.list(5)) of Debian itself; what others offer is left out.

    Raises ToolMissing without apt, BuildError if there are none.
    """
    said = tools.run(
        ["apt-get", "indextargets", "--format", _FIELDS, "Created-By: Packages"]
    ).decode()
    found = chosen(said, codename())
    if not found:
        raise BuildError(
            "apt has no sources of Debian here", "add Debian's sources, then apt-get update"
        )
    return found


def chosen(said: str, release: str) -> list[str]:
    """The sources among what apt said that are Debian's and of this release."""
    kept: dict[str, None] = {}
    for line in said.splitlines():
        origin, address, suite, component, signed_by = line.split("|")
        host = address.split("/")[2] if "://" in address else ""
        # Without lists apt does not know a source's origin yet; then its host tells.
        ours = origin == "Debian" or (not origin and _DEBIAN_HOST.search(host))
        if ours and suite.split("-")[0].split("/")[0] == release:
            signed = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            kept[f"deb {signed}{address} {suite} {component}"] = None
    return list(kept)
