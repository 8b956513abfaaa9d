"""``client.quotas``, sync and async."""

from typing import TYPE_CHECKING

from nexus.api.quotas import ProjectQuota, Quota
from nexus.client.calls import quotas as calls

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.sync_client import Client


class Quotas:
    """``client.quotas``."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def get(self, project: str = "default") -> ProjectQuota:
        """What a project may have, and what it has."""
        return self._client.send(calls.get_quota(project))

    def set(self, project: str, limits: Quota) -> ProjectQuota:
        """Replaces all limits of a project. What it has already stays."""
        return self._client.send(calls.set_quota(project, limits))


class AsyncQuotas:
    """``client.quotas``."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def get(self, project: str = "default") -> ProjectQuota:
        """What a project may have, and what it has."""
        return await self._client.send(calls.get_quota(project))

    async def set(self, project: str, limits: Quota) -> ProjectQuota:
        """Replaces all limits of a project. What it has already stays."""
        return await self._client.send(calls.set_quota(project, limits))
