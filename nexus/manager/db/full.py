"""A database whose disk is full, told apart from other failures of a database."""

import sqlite3

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError

from nexus import httpd
from nexus.api.errors import NoCapacity

_POSTGRES_DISK_FULL = "53100"
"""Source: PostgreSQL's documentation, appendix "Error Codes"."""


def is_full(error: DBAPIError) -> bool:
    """Whether the database could not write because there is no room."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or (
        getattr(error.orig, "sqlstate", None) == _POSTGRES_DISK_FULL
    )


def install(app: FastAPI) -> None:
    """Answers a request that failed for it with what to do; nothing of the request was done."""
    app.add_exception_handler(DBAPIError, _answer)


async def _answer(request: Request, exc: Exception) -> JSONResponse:
    if not isinstance(exc, DBAPIError) or not is_full(exc):
        raise exc
    full = NoCapacity(
        "the disk of the manager's database is full: nothing can be changed",
        suggestion="make room on it (df -h), such as a file under the image root; then try again",
    )
    return httpd.answer(httpd.request_id_of(request), full)
