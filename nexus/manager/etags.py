"""``ETag``, ``If-Match`` and ``If-None-Match`` (RFC 9110): a thing as somebody saw it.

A thing's ETag is a hash of its representation: it changes with everything that a reader sees,
whatever changed it, and is the same at every manager.
"""

import hashlib
import re

from starlette.requests import HTTPConnection

from nexus.api.common import Wire
from nexus.api.errors import NexusError, ValidationFailed

MOST_TAGS = 32
_TAG = r'(?:W/)?"[\x21\x23-\x7e]{0,128}"'
_LIST = re.compile(rf"\s*(?:\*|{_TAG}(?:\s*,\s*{_TAG}){{0,{MOST_TAGS - 1}}})\s*", re.ASCII)
_ONE = re.compile(rf"\*|{_TAG}", re.ASCII)

IfMatch = frozenset[str]
"""The ETags of an ``If-Match`` or ``If-None-Match`` header, ``*`` among them if it was given."""


class PreconditionFailed(NexusError):
    """The thing is not as it was when its ETag was read; nothing was changed."""

    code = "precondition_failed"
    status = 412


def etag_of(thing: Wire) -> str:
    """The strong ETag of a thing's representation."""
    return etag_of_bytes(thing.model_dump_json().encode())


def etag_of_bytes(content: bytes) -> str:
    """The same, of a representation that is made already."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def read(connection: HTTPConnection, header: str) -> IfMatch | None:
    """The ETags of a header, None without one. Raises ValidationFailed for something else."""
    given = connection.headers.getlist(header)
    if not given:
        return None
    text = ",".join(given)
    if not _LIST.fullmatch(text):
        raise ValidationFailed(
            f"{header} is neither * nor a list of at most {MOST_TAGS} ETags",
            suggestion='send the ETag of an earlier answer with its quotation marks: "…"',
        )
    return frozenset(_ONE.findall(text))


def expect(wanted: IfMatch | None, thing: Wire, name: str) -> None:
    """Raises PreconditionFailed unless the thing is as it was seen. Weak ETags never match."""
    if wanted is None or "*" in wanted:
        return
    now = etag_of(thing)
    if now not in wanted:
        raise PreconditionFailed(
            f"{name} has changed since its ETag was read: it is {now} now",
            suggestion="read it again, look at what changed, and send this with the new ETag",
        )


def is_known(seen: IfMatch | None, etag: str) -> bool:
    """Whether a reader has this representation already: ``If-None-Match``, compared weakly."""
    return seen is not None and ("*" in seen or etag in {tag.removeprefix("W/") for tag in seen})
