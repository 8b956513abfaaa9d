"""Fetches Debian packages with apt and unpacks them, without root and only once.

A fetched package stays in the cache folder (``NEXUS_CACHE_DIR``, else ``~/.cache/nexus``); a build
that finds all it needs there uses no network. apt checks signatures and hashes of what it fetches.
"""

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nexus.images import tools
from nexus.images.errors import BuildError

PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


def cache_dir() -> Path:
    """Where fetched packages are kept."""
    chosen = os.environ.get("NEXUS_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexus"


@dataclass(frozen=True)
class Package:
    """A package file in the cache; ``depends`` are the names of packages it needs."""

    name: str
    version: str
    depends: tuple[str, ...]
    path: Path


class Packages:
    """The packages of the machine's apt sources, by name."""

    def __init__(self, cache: Path | None = None, *, refresh: bool = False) -> None:
        """``refresh`` asks apt for newer versions even if the cache has one."""
        self._cache = (cache or cache_dir()) / "debs"
        self._refresh = refresh
        self._own_lists = False

    def fetch(self, name: str) -> Package:
        """The package ``name``: from the cache, else through apt.

        Raises ToolMissing without apt or dpkg, BuildError if apt does not have the package.
        """
        if not PACKAGE_NAME.fullmatch(name):
            raise ValueError(f"not a package name: {name!r}")
        return self._cached(name) or self._download(name)

    def unpack(self, name: str, into: Path) -> Package:
        """Fetches ``name`` and unpacks its files under ``into``."""
        package = self.fetch(name)
        into.mkdir(parents=True, exist_ok=True)
        tools.run(["dpkg-deb", "-x", str(package.path), str(into)])
        return package

    def _cached(self, name: str) -> Package | None:
        note = self._cache / f"{name}.json"
        if self._refresh or not note.exists():
            return None
        known = json.loads(note.read_text())
        path = self._cache / known["file"]
        if not path.exists() or _sha256(path) != known["sha256"]:
            return None
        return Package(name, known["version"], tuple(known["depends"]), path)

    def _download(self, name: str) -> Package:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".fetch-") as work:
            made = self._apt_download(name, Path(work))
            fields = tools.run(
                ["dpkg-deb", "--show", "--showformat", "${Version}\n${Depends}\n", str(made)]
            )
            version, depends, *_ = fields.decode().splitlines()
            path = self._cache / made.name
            made.replace(path)
            known = {
                "file": path.name,
                "sha256": _sha256(path),
                "version": version,
                "depends": _names(depends),
            }
            note = Path(work) / "note.json"
            note.write_text(json.dumps(known, indent=1))
            note.replace(self._cache / f"{name}.json")
        return Package(name, version, tuple(_names(depends)), path)

    def _apt_download(self, name: str, into: Path) -> Path:
        """Tries with the package lists that are there; fetches lists of our own if that fails."""
        if not self._own_lists:
            try:
                return self._try_download(name, into)
            except BuildError:
                self._update()
        return self._try_download(name, into)

    def _try_download(self, name: str, into: Path) -> Path:
        tools.run(
            ["apt-get", *self._options(), "download", name],
            cwd=into,
            suggestion="check the network and the package sources of this machine (Debian 12)",
        )
        return next(into.glob("*.deb"))

    def _update(self) -> None:
        for folder in ("lists/partial", "archives/partial"):
            (self._cache / "apt" / folder).mkdir(parents=True, exist_ok=True)
        self._own_lists = True
        tools.run(
            ["apt-get", *self._options(), "-o", "APT::Update::Error-Mode=any", "update"],
            suggestion="check the network and the package sources of this machine (Debian 12)",
        )

    def _options(self) -> list[str]:
        """apt's options; package lists of our own need no root and leave the system's alone."""
        options = ["-q", "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3"]
        if self._own_lists:
            apt = self._cache / "apt"
            options += ["-o", f"Dir::State::lists={apt / 'lists'}"]
            options += ["-o", f"Dir::Cache={apt}"]
        return options


def _names(depends: str) -> list[str]:
    """Package names in a Depends field, the first of each choice."""
    alternatives = (part.split("|")[0] for part in depends.split(","))
    return [found[0] for part in alternatives if (found := PACKAGE_NAME.findall(part))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
