"""Answers made once: straight from the wire types to bytes, with what HTTP has to say of them."""

from typing import TypeVar

from fastapi import Request, Response

from nexus.api.common import Page, Wire
from nexus.manager import etags

JSON = "application/json"

T = TypeVar("T")


def item(request: Request, thing: Wire) -> Response:
    """``{"item": …}`` with its ETag; 304 for a reader that has it already."""
    content = thing.model_dump_json().encode()
    etag = etags.etag_of_bytes(content)
    headers = {"etag": etag}
    if request.method == "GET" and etags.is_known(etags.read(request, "if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(b'{"item":' + content + b"}", media_type=JSON, headers=headers)


def page(found: Page[T]) -> Response:
    """A page of a list. The types were checked when it was made; they are not checked again."""
    return Response(found.model_dump_json(), media_type=JSON)
