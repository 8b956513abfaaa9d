"""``Allow`` on 405: all methods that a path has, though each of them is a route of its own."""

import re
from collections.abc import Iterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from nexus import httpd

_Known = list[tuple[str, re.Pattern[str], frozenset[str]]]


def install(app: FastAPI) -> None:
    """Answers what no route takes with the methods that the path's routes do take.

    Call it when all routes are there.
    """
    known: _Known = []
    for route in iter_route_contexts(app.routes):
        if route.path and route.methods:
            known.append((route.path, compile_path(route.path)[0], frozenset(route.methods)))

    async def refuse(request: Request, exc: Exception) -> JSONResponse:
        allowed = sorted(set(_methods(known, request.url.path)))
        response = httpd.envelope(
            httpd.request_id_of(request),
            405,
            "method_not_allowed",
            f"{request.url.path[:200]} takes {' and '.join(allowed)}, not {request.method[:20]}",
        )
        given = exc.headers if isinstance(exc, HTTPException) else None
        response.headers["allow"] = ", ".join(allowed) or (given or {}).get("Allow", "")
        return response

    app.add_exception_handler(405, refuse)


def _methods(known: _Known, path: str) -> Iterator[str]:
    """The methods of a path; a route with exactly this path counts before those with parameters."""
    exact = [methods for template, _, methods in known if template == path]
    found = exact or [methods for _, pattern, methods in known if pattern.match(path)]
    for methods in found:
        yield from methods
