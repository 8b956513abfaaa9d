"""JSON bodies, taken strictly: one meaning, or 400.

RFC 8259 leaves open what duplicate keys, ``NaN`` and lone surrogates mean, and databases do not
store NUL. Whatever two readers might read differently is refused before a route sees it.
"""

import json
import math
from typing import Any

from nexus import httpd
from nexus.api.errors import BadRequest, PayloadTooLarge
from nexus.httpd import App, Message, Receive, Scope, Send

MAX_DEPTH = 64


class StrictJson:
    """ASGI middleware: reads a JSON body as a whole, refuses it or passes it on unchanged."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_json(scope):
            await self.app(scope, receive, send)
            return
        bound = scope["state"].get("body_bound")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if bound is not None and announced.isdigit() and int(announced) > bound.max_bytes:
            # Before a byte of it was read.
            large = PayloadTooLarge(f"the request body is larger than {bound.max_bytes} bytes")
            await httpd.answer(scope["state"]["request_id"], large)(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        try:
            if body:
                check(body)
        except BadRequest as error:
            await httpd.answer(scope["state"]["request_id"], error)(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)


def check(body: bytes) -> None:
    """Raises BadRequest unless ``body`` is JSON that every reader reads alike."""
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
        _check_strings(value)
    except RecursionError:
        raise _bad(f"the JSON is nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError:
        raise _bad("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _bad(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise _bad("the JSON holds a number that is too long") from None


def _is_json(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
            return bool(kind == b"application/json" or kind.endswith(b"+json"))
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _bad("an object of the JSON names a key twice")
    return value


def _constant(name: str) -> float:
    raise _bad(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _bad("the JSON holds a number that is too large")
    return value


def _check_strings(value: Any) -> None:
    """Refuses NUL and lone surrogates anywhere, and nesting beyond ``MAX_DEPTH``."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not _is_text(item):
                raise _bad("a string of the JSON holds NUL or half a surrogate pair")
        if not below:
            return
        level = below
    raise _bad(f"the JSON is nested deeper than {MAX_DEPTH}")


def _is_text(text: str) -> bool:
    if text.isascii():
        return "\x00" not in text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def _bad(message: str) -> BadRequest:
    return BadRequest(message, suggestion="compare the request with /openapi.json")
