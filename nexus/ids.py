"""Identifiers: UUIDv7, so that they sort by the time they were made."""

import uuid_utils


def new_id() -> str:
    """A new UUIDv7 (RFC 9562) as lower-case text."""
    return str(uuid_utils.uuid7())
