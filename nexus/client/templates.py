"""``client.templates``, sync and async."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

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
from nexus.api.vms import VmSpec, WaitState
from nexus.client.calls import templates as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Templates:
    """``client.templates``. A template is named by its id or its name."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(self, spec: TemplateCreate) -> Template:
        """Version 1. Its images are found now and stay what they are."""
        return self._client.send(calls.create_template(spec))

    def list(self, *, name: str | None = None, limit: int | None = None) -> Iterator[Template]:
        """``name`` is how names begin."""
        return self._client.pages(lambda cursor: calls.list_templates(name, limit, cursor))

    def get(self, ref: str) -> Template:
        return self._client.send(calls.get_template(ref))

    def get_with_etag(self, ref: str) -> tuple[Template, str]:
        """A template, and the ETag that lets a change require that it is still as it is here."""
        return self._client.send_for_etag(calls.get_template(ref))

    def update(
        self,
        ref: str,
        spec: VmSpec | None = None,
        *,
        preboot: bool | None = None,
        pool: int | None = None,
        note: str = "",
        if_match: str | None = None,
    ) -> Template:
        """A new version: the fields that ``spec`` was given are as it says, the rest stays."""
        change = TemplateChange(spec=spec or VmSpec(), preboot=preboot, pool=pool, note=note)
        return self._client.send(calls.change_template(ref, change, if_match))

    def delete(self, ref: str) -> None:
        """With all versions. Its VMs stay."""
        self._client.send(calls.delete_template(ref))

    def versions(self, ref: str, *, limit: int | None = None) -> Iterator[TemplateVersion]:
        """Oldest first."""
        return self._client.pages(lambda cursor: calls.list_versions(ref, limit, cursor))

    def version(self, ref: str, number: int) -> TemplateVersion:
        return self._client.send(calls.get_version(ref, number))

    def preboots(self, ref: str) -> Sequence[TemplatePreboot]:
        """Where VMs of the template were booted before, and are clones from now on."""
        return (self._client.send(calls.list_preboots(ref))).items

    def diff(
        self,
        ref: str,
        *,
        before: int | None = None,
        after: int | None = None,
        vm: str | None = None,
    ) -> TemplateDiff:
        """How version ``after`` (the newest) differs from ``before`` (the one before it), or how
        ``vm`` differs from the version that it comes from."""
        return self._client.send(calls.diff_template(ref, before, after, vm))

    def instantiate(
        self,
        ref: str,
        request: TemplateInstantiate | None = None,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Instantiated:
        """A VM of a template, or ``count`` of them. With ``wait``, returns when each is so or in
        ``error``."""
        asked = request or TemplateInstantiate()
        return self._client.send(calls.instantiate(ref, asked, wait, timeout_s, idempotency_key))


class AsyncTemplates:
    """``client.templates``. A template is named by its id or its name."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def create(self, spec: TemplateCreate) -> Template:
        """Version 1. Its images are found now and stay what they are."""
        return await self._client.send(calls.create_template(spec))

    def list(self, *, name: str | None = None, limit: int | None = None) -> AsyncIterator[Template]:
        """``name`` is how names begin."""
        return self._client.pages(lambda cursor: calls.list_templates(name, limit, cursor))

    async def get(self, ref: str) -> Template:
        return await self._client.send(calls.get_template(ref))

    async def get_with_etag(self, ref: str) -> tuple[Template, str]:
        """A template, and the ETag that lets a change require that it is still as it is here."""
        return await self._client.send_for_etag(calls.get_template(ref))

    async def update(
        self,
        ref: str,
        spec: VmSpec | None = None,
        *,
        preboot: bool | None = None,
        pool: int | None = None,
        note: str = "",
        if_match: str | None = None,
    ) -> Template:
        """A new version: the fields that ``spec`` was given are as it says, the rest stays."""
        change = TemplateChange(spec=spec or VmSpec(), preboot=preboot, pool=pool, note=note)
        return await self._client.send(calls.change_template(ref, change, if_match))

    async def delete(self, ref: str) -> None:
        """With all versions. Its VMs stay."""
        await self._client.send(calls.delete_template(ref))

    def versions(self, ref: str, *, limit: int | None = None) -> AsyncIterator[TemplateVersion]:
        """Oldest first."""
        return self._client.pages(lambda cursor: calls.list_versions(ref, limit, cursor))

    async def version(self, ref: str, number: int) -> TemplateVersion:
        return await self._client.send(calls.get_version(ref, number))

    async def preboots(self, ref: str) -> Sequence[TemplatePreboot]:
        """Where VMs of the template were booted before, and are clones from now on."""
        return (await self._client.send(calls.list_preboots(ref))).items

    async def diff(
        self,
        ref: str,
        *,
        before: int | None = None,
        after: int | None = None,
        vm: str | None = None,
    ) -> TemplateDiff:
        """How version ``after`` (the newest) differs from ``before`` (the one before it), or how
        ``vm`` differs from the version that it comes from."""
        return await self._client.send(calls.diff_template(ref, before, after, vm))

    async def instantiate(
        self,
        ref: str,
        request: TemplateInstantiate | None = None,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Instantiated:
        """A VM of a template, or ``count`` of them. With ``wait``, returns when each is so or in
        ``error``."""
        asked = request or TemplateInstantiate()
        return await self._client.send(
            calls.instantiate(ref, asked, wait, timeout_s, idempotency_key)
        )
