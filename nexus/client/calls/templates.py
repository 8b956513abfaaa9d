"""The calls of ``/v1/templates``."""

from nexus.api.common import Created, Item, Page
from nexus.api.templates import (
    Instantiated,
    Template,
    TemplateChange,
    TemplateCreate,
    TemplateDiff,
    TemplateInstantiate,
    TemplatePreboot,
    TemplateVersion,
)
from nexus.api.vms import WaitState
from nexus.client.calls.call import Call, created, item, nothing, one, patience, waiting

PATH = "/v1/templates"


def create_template(spec: TemplateCreate) -> Call[Template]:
    return Call("POST", PATH, created(Created[Template]), body=spec)


def list_templates(name: str | None, limit: int | None, cursor: str | None) -> Call[Page[Template]]:
    query = {"name": name, "limit": limit, "cursor": cursor}
    return Call("GET", PATH, Page[Template].model_validate_json, query)


def get_template(ref: str) -> Call[Template]:
    return Call("GET", one(PATH, ref), item(Item[Template]))


def change_template(ref: str, change: TemplateChange, if_match: str | None) -> Call[Template]:
    return Call("PATCH", one(PATH, ref), item(Item[Template]), body=change, if_match=if_match)


def delete_template(ref: str) -> Call[None]:
    return Call("DELETE", one(PATH, ref), nothing)


def list_versions(ref: str, limit: int | None, cursor: str | None) -> Call[Page[TemplateVersion]]:
    query = {"limit": limit, "cursor": cursor}
    read = Page[TemplateVersion].model_validate_json
    return Call("GET", one(PATH, ref, "versions"), read, query)


def get_version(ref: str, number: int) -> Call[TemplateVersion]:
    return Call("GET", one(PATH, ref, "versions", str(number)), item(Item[TemplateVersion]))


def list_preboots(ref: str) -> Call[Page[TemplatePreboot]]:
    read = Page[TemplatePreboot].model_validate_json
    return Call("GET", one(PATH, ref, "preboots"), read)


def diff_template(
    ref: str, before: int | None, after: int | None, vm: str | None
) -> Call[TemplateDiff]:
    query = {"before": before, "after": after, "vm": vm}
    return Call("GET", one(PATH, ref, "diff"), item(Item[TemplateDiff]), query)


def instantiate(
    ref: str,
    request: TemplateInstantiate,
    wait: WaitState | None,
    timeout_s: float | None,
    key: str | None,
) -> Call[Instantiated]:
    return Call(
        "POST",
        one(PATH, ref, "instantiate"),
        Instantiated.model_validate_json,
        waiting(wait, timeout_s),
        request,
        patience(wait, timeout_s),
        key=key,
    )
