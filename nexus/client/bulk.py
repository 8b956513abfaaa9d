"""Many VMs at once, and what follows a VM's end: parts of ``client.vms``, sync and async."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from nexus.api.bulk import BulkAction, VmActions
from nexus.api.endings import RestartPolicy
from nexus.api.vms import Vm, VmCreate, VmUpdate, WaitState
from nexus.client.calls import bulk as calls
from nexus.client.calls.bulk import Answers

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


def _request(
    action: BulkAction,
    refs: Sequence[str] | None,
    tags: Mapping[str, str] | None,
    force: bool,
    grace_s: float | None,
) -> VmActions:
    return VmActions(
        action=action,
        ids=None if refs is None else list(refs),
        selector=None if tags is None else dict(tags),
        force=force,
        stop_timeout_s=grace_s,
    )


def _expiry(ttl_s: int | None, at: datetime | None) -> VmUpdate:
    return VmUpdate(expires_at=at) if ttl_s is None else VmUpdate(ttl=ttl_s)


class BulkCalls:
    """VMs are named by their ids or names, or found by tags."""

    _client: "Client"

    def create_many(
        self,
        spec: VmCreate,
        count: int,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> list[Vm]:
        """Makes ``count`` VMs alike, all of them or none. With ``wait``, returns when each is so or
        in ``error``. A name gets a number behind it."""
        many = spec.model_copy(update={"count": count})
        return self._client.send(calls.create_vms(many, wait, timeout_s, idempotency_key))

    def act(
        self,
        action: BulkAction,
        refs: Sequence[str] | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
    ) -> Answers:
        """One action on many VMs, in one request: those named, or those that have all ``tags``.

        What one VM does not allow is told in its answer and keeps no other. ``force`` and
        ``grace_s`` are for ``stop`` and ``reboot``.
        """
        request = _request(action, refs, tags, force, grace_s)
        return self._client.send(calls.act_on_vms(request, wait, timeout_s))

    def reboot(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
    ) -> None:
        """Stops a VM as ``stop`` does, and boots it again."""
        self._client.send(calls.reboot_vm(ref, force, grace_s, wait))

    def set_restart_policy(self, ref: str, policy: RestartPolicy) -> Vm:
        """What follows when the guest ends without being asked to."""
        return self._client.send(calls.change_terms(ref, VmUpdate(restart_policy=policy)))

    def set_expiry(self, ref: str, *, ttl_s: int | None = None, at: datetime | None = None) -> Vm:
        """When the VM is ended and deleted: in so many seconds, at a time; without both never."""
        return self._client.send(calls.change_terms(ref, _expiry(ttl_s, at)))


class AsyncBulkCalls:
    """VMs are named by their ids or names, or found by tags."""

    _client: "AsyncClient"

    async def create_many(
        self,
        spec: VmCreate,
        count: int,
        *,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> list[Vm]:
        """Makes ``count`` VMs alike, all of them or none. With ``wait``, returns when each is so or
        in ``error``. A name gets a number behind it."""
        many = spec.model_copy(update={"count": count})
        return await self._client.send(calls.create_vms(many, wait, timeout_s, idempotency_key))

    async def act(
        self,
        action: BulkAction,
        refs: Sequence[str] | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
        timeout_s: float | None = None,
    ) -> Answers:
        """One action on many VMs, in one request: those named, or those that have all ``tags``.

        What one VM does not allow is told in its answer and keeps no other. ``force`` and
        ``grace_s`` are for ``stop`` and ``reboot``.
        """
        request = _request(action, refs, tags, force, grace_s)
        return await self._client.send(calls.act_on_vms(request, wait, timeout_s))

    async def reboot(
        self,
        ref: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        wait: WaitState | None = None,
    ) -> None:
        """Stops a VM as ``stop`` does, and boots it again."""
        await self._client.send(calls.reboot_vm(ref, force, grace_s, wait))

    async def set_restart_policy(self, ref: str, policy: RestartPolicy) -> Vm:
        """What follows when the guest ends without being asked to."""
        return await self._client.send(calls.change_terms(ref, VmUpdate(restart_policy=policy)))

    async def set_expiry(
        self, ref: str, *, ttl_s: int | None = None, at: datetime | None = None
    ) -> Vm:
        """When the VM is ended and deleted: in so many seconds, at a time; without both never."""
        return await self._client.send(calls.change_terms(ref, _expiry(ttl_s, at)))
