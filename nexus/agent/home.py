"""The host's own NAT network: a bridge and a subnet, decided at the agent's first start."""

import ipaddress
from pathlib import Path

from nexus.agent import installation as installations
from nexus.agent import nft
from nexus.agent.errors import NetworkFailed
from nexus.agent.installation import Installation
from nexus.agent.links import Links
from nexus.agent.rules import Segment
from nexus.agent.settings import Settings
from nexus.api.hosts import HostNetwork
from nexus.api.networks import HostNetworkSpec

_RESOLVER_FILES = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))


class HomeNetwork:
    """The bridge with its address; made by ``HomeNetwork.ensure``."""

    def __init__(self, installation: Installation, links: Links) -> None:
        bridge = links.find(installation.bridge or "")
        if bridge is None or installation.subnet is None:
            raise NetworkFailed("the bridge is gone", suggestion="start the agent again")
        self.installation = installation
        self.bridge = bridge
        self.subnet = installation.subnet
        self._links = links

    @classmethod
    def ensure(cls, settings: Settings, links: Links, *, has_vms: bool) -> "HomeNetwork":
        """Bridge and address as they should be; changes only what is not. Not up yet: the rules
        come first.

        Blocks for some 10 ms. Raises NetworkFailed with a cure.
        """
        file = settings.installation_file
        known = installations.load_or_begin(file)
        if known.subnet is None:
            off = installations.forwarding_was_off(nft.forwarding(), links.all())
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
        return cls(known, links)

    def segment(self, spec: HostNetworkSpec | None = None) -> Segment:
        """What the rules are told of it; ``spec`` has the manager's options."""
        return Segment(
            self.bridge.name,
            "nat",
            self.subnet,
            isolate_vms=spec is not None and spec.isolate_vms,
            dhcp=spec is not None and spec.dhcp,
            allow=tuple(spec.allow) if spec else (),
        )

    def bring_up(self) -> None:
        """The bridge with its address, up, and forwarding. The rules must be there."""
        wanted = self._gateway
        for address in self._links.addresses(self.bridge.index):
            if address != wanted:
                self._links.remove_address(self.bridge.index, address)
        self._links.ensure_address(self.bridge.index, wanted)
        self._links.set(self.bridge.index, state="up")
        if not nft.forwarding():
            nft.set_forwarding(True)

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
