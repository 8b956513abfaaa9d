"""Reading request bodies into the API's types, refusing in the words of Firecracker's parser."""

import re
from typing import Any, TypeVar

import msgspec

from nexus.qemu.faults import Fault

T = TypeVar("T")

_REFUSED = "An error occurred when deserializing the json body of a request: "
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_VARIANT = re.compile(r"Invalid enum value '(.*)'")
_TYPE = re.compile(r"Expected `(.*?)`, got `(.*?)`(.*)")
_SERDE_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "floating point",
    "bool": "boolean",
    "array": "sequence",
    "object": "map",
}
_BYTE = re.compile(r"\(byte (\d+)\)")


def decode(body: bytes, kind: type[T]) -> T:
    """The body as ``kind``; raises Fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise refusal(_in_serde_words(str(error), kind)) from error
    except UnicodeDecodeError as error:
        raise refusal(f"invalid unicode code point at line 1 column {error.start + 1}") from error
    except msgspec.DecodeError as error:
        if "trailing characters" in str(error):
            raise refusal(f"trailing characters at line 1 column {len(body)}") from error
        found = _BYTE.search(str(error))
        column = int(found[1]) + 1 if found else len(body)
        raise refusal(f"expected value at line 1 column {column}") from error


def decode_any(body: bytes) -> Any:
    """The body as whatever JSON it is; raises Fault."""
    return decode(body, Any)


def refusal(reason: str) -> Fault:
    """The fault for a body that does not fit, for this reason."""
    return Fault(f"{_REFUSED}{reason}.")


def _in_serde_words(text: str, kind: type[object]) -> str:
    if found := _UNKNOWN.match(text):
        fields = getattr(kind, "__struct_encode_fields__", ())
        known = ", ".join(f"`{field}`" for field in fields)
        return f"unknown field `{found[1]}`, expected one of {known}"
    if found := _MISSING.match(text):
        return f"missing field `{found[1]}`"
    if found := _VARIANT.match(text):
        return f"unknown variant `{found[1]}`{text[found.end() :]}"
    if found := _TYPE.match(text):
        got, wanted = (_SERDE_TYPES.get(name, name) for name in (found[2], found[1]))
        return f"invalid type: {got}, expected {wanted}{found[3]}"
    return text
