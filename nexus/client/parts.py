"""What a client consists of, ``client.vms`` and so on, each imported when it is first used: a short
command needs one of them, and all of them take longer to import than it takes to run."""

from functools import cached_property
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from nexus.client.async_client import AsyncClient
    from nexus.client.hosts import AsyncHosts, Hosts
    from nexus.client.images import AsyncImages, Images
    from nexus.client.networks import AsyncForwards, AsyncNetworks, Forwards, Networks
    from nexus.client.quotas import AsyncQuotas, Quotas
    from nexus.client.rollouts import AsyncRollouts, Rollouts
    from nexus.client.snapshots import AsyncSnapshots, Snapshots
    from nexus.client.sync_client import Client
    from nexus.client.templates import AsyncTemplates, Templates
    from nexus.client.vms import AsyncVms, Vms
    from nexus.client.volumes import AsyncVolumes, Volumes


class Parts:
    """Of the sync client."""

    @cached_property
    def vms(self) -> "Vms":
        from nexus.client.vms import Vms

        return Vms(cast("Client", self))

    @cached_property
    def images(self) -> "Images":
        from nexus.client.images import Images

        return Images(cast("Client", self))

    @cached_property
    def networks(self) -> "Networks":
        from nexus.client.networks import Networks

        return Networks(cast("Client", self))

    @cached_property
    def forwards(self) -> "Forwards":
        from nexus.client.networks import Forwards

        return Forwards(cast("Client", self))

    @cached_property
    def volumes(self) -> "Volumes":
        from nexus.client.volumes import Volumes

        return Volumes(cast("Client", self))

    @cached_property
    def snapshots(self) -> "Snapshots":
        from nexus.client.snapshots import Snapshots

        return Snapshots(cast("Client", self))

    @cached_property
    def quotas(self) -> "Quotas":
        from nexus.client.quotas import Quotas

        return Quotas(cast("Client", self))

    @cached_property
    def templates(self) -> "Templates":
        from nexus.client.templates import Templates

        return Templates(cast("Client", self))

    @cached_property
    def rollouts(self) -> "Rollouts":
        from nexus.client.rollouts import Rollouts

        return Rollouts(cast("Client", self))

    @cached_property
    def hosts(self) -> "Hosts":
        from nexus.client.hosts import Hosts

        return Hosts(cast("Client", self))


class AsyncParts:
    """Of the async client."""

    @cached_property
    def vms(self) -> "AsyncVms":
        from nexus.client.vms import AsyncVms

        return AsyncVms(cast("AsyncClient", self))

    @cached_property
    def images(self) -> "AsyncImages":
        from nexus.client.images import AsyncImages

        return AsyncImages(cast("AsyncClient", self))

    @cached_property
    def networks(self) -> "AsyncNetworks":
        from nexus.client.networks import AsyncNetworks

        return AsyncNetworks(cast("AsyncClient", self))

    @cached_property
    def forwards(self) -> "AsyncForwards":
        from nexus.client.networks import AsyncForwards

        return AsyncForwards(cast("AsyncClient", self))

    @cached_property
    def volumes(self) -> "AsyncVolumes":
        from nexus.client.volumes import AsyncVolumes

        return AsyncVolumes(cast("AsyncClient", self))

    @cached_property
    def snapshots(self) -> "AsyncSnapshots":
        from nexus.client.snapshots import AsyncSnapshots

        return AsyncSnapshots(cast("AsyncClient", self))

    @cached_property
    def quotas(self) -> "AsyncQuotas":
        from nexus.client.quotas import AsyncQuotas

        return AsyncQuotas(cast("AsyncClient", self))

    @cached_property
    def templates(self) -> "AsyncTemplates":
        from nexus.client.templates import AsyncTemplates

        return AsyncTemplates(cast("AsyncClient", self))

    @cached_property
    def rollouts(self) -> "AsyncRollouts":
        from nexus.client.rollouts import AsyncRollouts

        return AsyncRollouts(cast("AsyncClient", self))

    @cached_property
    def hosts(self) -> "AsyncHosts":
        from nexus.client.hosts import AsyncHosts

        return AsyncHosts(cast("AsyncClient", self))
