"""Where a container's image comes from: a registry, or files under the image root.

Files are copied into the build's own folder before a program reads them, each opened as
``image_root`` opens files, so that no path and no link is followed by anyone else. Of a layout only
what its manifests name is copied.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from nexus.api.errors import PayloadTooLarge, ValidationFailed
from nexus.images import sparse
from nexus.manager.config import Settings
from nexus.manager.image_root import open_under

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MOST_JSON_BYTES = 4 << 20
_MOST_BLOBS = 2000
_CURE = "make the layout again: skopeo copy docker://NAME oci:FOLDER:TAG"


def check(settings: Settings, source: str) -> None:
    """Raises what ``open_under`` raises unless a source's files are there and may be read."""
    transport, path, _ = _parts(source)
    if transport != "docker":
        wanted = f"{path}/index.json" if transport == "oci" else path
        with open_under(settings.image_root, wanted):
            pass


def stage(settings: Settings, source: str, folder: Path) -> str:
    """The source as the build is to read it, its files copied into ``folder``. Blocks.

    Raises what ``open_under`` raises, ValidationFailed for a layout that is none, PayloadTooLarge.
    """
    transport, path, tag = _parts(source)
    if transport == "docker":
        return source
    copied = folder / "source"
    if transport == "oci":
        _Layout(settings, path, copied).copy()
    else:
        _copy(settings, path, copied)
    return f"{transport}:{copied}{tag}"


def _parts(source: str) -> tuple[str, str, str]:
    """Transport, path, and the tag with its colon. A path ends at the first colon."""
    transport, _, rest = source.partition(":")
    path, colon, tag = rest.partition(":")
    return transport, path, colon + tag


def _copy(settings: Settings, given: str, target: Path) -> None:
    with open_under(settings.image_root, given) as source:
        if os.fstat(source).st_size > settings.image_max_bytes:
            raise PayloadTooLarge(
                f"{Path(given).name} is larger than {settings.image_max_bytes >> 20} MiB",
                suggestion="let the manager take larger ones: MANAGER_IMAGE_MAX_MIB",
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        made = os.open(target, flags, 0o600)
        try:
            sparse.clone(source, made)
        finally:
            os.close(made)


class _Layout:
    """An OCI layout under the image root, and the copy that is made of it."""

    def __init__(self, settings: Settings, given: str, target: Path) -> None:
        self._settings = settings
        self._given = given.rstrip("/")
        self._target = target
        self._seen: set[str] = set()

    def copy(self) -> None:
        (self._target / "blobs" / "sha256").mkdir(parents=True)
        for name in ("oci-layout", "index.json"):
            _copy(self._settings, f"{self._given}/{name}", self._target / name)
        self._follow(self._read(self._target / "index.json"))

    def _follow(self, named: dict[str, Any]) -> None:
        """Copies what an index or manifest names, and reads what may name more."""
        for index_or_manifest in _descriptors(named.get("manifests")):
            if self._blob(index_or_manifest):
                self._follow(self._read(self._path(index_or_manifest)))
        for plain in _descriptors([named.get("config"), *_listed(named.get("layers"))]):
            self._blob(plain)

    def _blob(self, digest: str) -> bool:
        """Copies a blob; false if it is there already."""
        if digest in self._seen:
            return False
        self._seen.add(digest)
        if len(self._seen) > _MOST_BLOBS:
            raise ValidationFailed(
                f"the layout names more than {_MOST_BLOBS} blobs", suggestion=_CURE
            )
        _copy(self._settings, f"{self._given}/blobs/sha256/{digest}", self._path(digest))
        return True

    def _path(self, digest: str) -> Path:
        return self._target / "blobs" / "sha256" / digest

    def _read(self, path: Path) -> dict[str, Any]:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValidationFailed("a manifest of the layout is too large", suggestion=_CURE)
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValidationFailed("a manifest of the layout is no JSON", suggestion=_CURE)
        return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _descriptors(values: Any) -> list[str]:
    """The digests of descriptors, in hex. Raises ValidationFailed for what is none."""
    found = []
    for value in _listed(values):
        if value is None:
            continue
        digest = value.get("digest") if isinstance(value, dict) else None
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            raise ValidationFailed("the layout names a blob without a sha256", suggestion=_CURE)
        found.append(match[1])
    return found
