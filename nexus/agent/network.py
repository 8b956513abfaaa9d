"""The NAT network of one installation, and the TAPs of its VMs."""

import ipaddress
from pathlib import Path

import anyio.to_thread

from nexus.agent import installation as installations
from nexus.agent import nat
from nexus.agent.errors import NetworkFailed
from nexus.agent.installation import Installation
from nexus.agent.layout import MAX_NICS, nic_links, tap_name
from nexus.agent.links import Links
from nexus.agent.settings import Settings
from nexus.api.hosts import HostNetwork

_RESOLVER_FILES = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))


class Network:
    """The bridge with its address and rules; made by ``Network.ensure``."""

    def __init__(self, installation: Installation, links: Links) -> None:
        bridge = links.find(installation.bridge or "")
        if bridge is None or installation.subnet is None:
            raise NetworkFailed("the bridge is gone", suggestion="start the agent again")
        self.installation = installation
        self.bridge = bridge
        self.subnet = installation.subnet
        self._links = links

    @classmethod
    def ensure(cls, settings: Settings, links: Links, *, has_vms: bool) -> "Network":
        """Bridge, address, rules and forwarding as they should be; changes only what is not.

        Blocks for some 10 ms. Raises NetworkFailed with a cure.
        """
        file = settings.installation_file
        known = installations.load_or_begin(file)
        if known.subnet is None:
            off = installations.forwarding_was_off(nat.forwarding(), links.all())
            subnet = settings.subnet
            if subnet is None:
                subnet = installations.choose_subnet(known.id, links.networks_in_use())
            known = known.model_copy(update={"subnet": subnet, "forward_was_off": off})
            installations.save(file, known)
        elif settings.subnet is not None and settings.subnet != known.subnet:
            if has_vms:
                raise NetworkFailed(
                    f"NEXUS_SUBNET={settings.subnet}, but VMs of this installation have addresses "
                    f"in {known.subnet}",
                    suggestion="delete the VMs first, or take NEXUS_SUBNET back",
                )
            known = known.model_copy(update={"subnet": settings.subnet})
            installations.save(file, known)
        name = installations.claim_bridge(known, settings.bridge, links)
        if name != known.bridge:
            known = known.model_copy(update={"bridge": name})
            installations.save(file, known)
        network = cls(known, links)
        network._ensure_rules()
        return network

    def _ensure_rules(self) -> None:
        # The rules come before the bridge is up: there is no moment without them.
        nat.ensure_table(self.installation.table, self.bridge.name, self.subnet)
        wanted = self._gateway
        for address in self._links.addresses(self.bridge.index):
            if address != wanted:
                self._links.remove_address(self.bridge.index, address)
        self._links.ensure_address(self.bridge.index, wanted)
        self._links.set(self.bridge.index, state="up")
        if not nat.forwarding():
            nat.set_forwarding(True)

    @property
    def _gateway(self) -> ipaddress.IPv4Interface:
        return ipaddress.IPv4Interface((self.subnet.network_address + 1, self.subnet.prefixlen))

    @property
    def wire(self) -> HostNetwork:
        """What the manager is told of it."""
        return HostNetwork(
            bridge=self.bridge.name,
            cidr=str(self.subnet),
            gateway=str(self._gateway.ip),
            dns=name_servers(_RESOLVER_FILES),
        )

    async def ensure_taps(self, vm_id: str, count: int, owner: int | None) -> None:
        """The TAPs of a VM's first ``count`` NICs, in the bridge and up."""

        def ensure() -> None:
            for index in range(count):
                self._links.ensure_tap(tap_name(vm_id, index), self.bridge.index, owner)

        await anyio.to_thread.run_sync(ensure)

    async def remove_taps(self, vm_id: str) -> None:
        """Every TAP this VM can have, and what shapes it; absent ones are no error."""

        def remove() -> None:
            for index in range(MAX_NICS):
                for name in nic_links(vm_id, index):
                    self._links.delete_of_vm(name, self.bridge.index)

        await anyio.to_thread.run_sync(remove)

    def remove_orphans(self, vm_ids: list[str]) -> list[str]:
        """Deletes the TAPs in our bridge that belong to none of these VMs, and what shapes them;
        returns the TAPs' names."""
        known = {tap_name(vm_id, index) for vm_id in vm_ids for index in range(MAX_NICS)}
        orphans = [
            link.name
            for link in self._links.all()
            if link.master == self.bridge.index
            and link.name.startswith("nx")
            and link.name not in known
        ]
        for name in orphans:
            self._links.delete(name)
            self._links.delete(f"i{name}")
        return orphans


def name_servers(files: tuple[Path, ...]) -> list[str]:
    """The host's IPv4 name servers that a guest can reach too: none on loopback.

    Of the first file that names any. A guest cannot use a resolver on the host itself.
    """
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        found = []
        for line in lines:
            words = line.split()
            if len(words) < 2 or words[0] != "nameserver":
                continue
            try:
                address = ipaddress.IPv4Address(words[1])
            except ValueError:
                continue
            if not address.is_loopback:
                found.append(str(address))
        if found:
            return found[:3]
    return []
