"""What keeps schemathesis from waiting: no streams, no long waits; and VMs that are there."""

from typing import Any

import schemathesis

SHORT = 0.05
KEPT = "0"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """A request that would stream for ever or hold for minutes is sent as one that does not."""
    _keep_the_vm(case)
    _quote_etags(case)
    query = case.query or {}
    if query.get("follow") in (True, "true"):
        query["follow"] = "false"
    if "wait" in query and _is_number(query.get("timeout", 1)):
        query["timeout"] = SHORT
        case.query = query


def _keep_the_vm(case: Any) -> None:
    """The VM named 0 stays: most generated references are to it."""
    refs = case.path_parameters or {}
    if case.method.upper() == "DELETE" and refs.get("ref") == KEPT:
        refs["ref"] = "00"


def _quote_etags(case: Any) -> None:
    """schemathesis reads a header's value as JSON and so takes an ETag's quotation marks away."""
    headers = case.headers or {}
    meta = case.meta
    for name in ("If-Match", "If-None-Match"):
        value = headers.get(name)
        if meta is not None and meta.generation.mode.is_positive and isinstance(value, str):
            headers[name] = value if value.startswith('"') else f'"{value}"'


def _is_number(value: Any) -> bool:
    try:
        return 0 < float(value) <= 600
    except (TypeError, ValueError):
        return False
