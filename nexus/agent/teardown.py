"""Removing everything of one installation from this machine, and nothing else."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import structlog

from nexus.agent import bridges, disks, dnsmasq, nft, process, rules
from nexus.agent import installation as installations
from nexus.agent.layout import MAX_NICS, Layout, nic_links, shaper_of
from nexus.agent.links import Links, looks_like_our_tap
from nexus.agent.networks import load_networks
from nexus.agent.settings import Settings
from nexus.api.errors import Conflict

KILL_TIMEOUT_S = 10.0

log = structlog.get_logger("teardown")


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Holds the run directory for one agent, or one teardown. Raises Conflict when it is held.

    The lock goes with the process that holds it, however that ends.
    """
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    with (settings.run_dir / "agent.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"an agent already serves {settings.run_dir}",
                suggestion="stop it first, or give this one another FC_RUN_DIR",
            ) from None
        yield


def teardown(settings: Settings) -> None:
    """Ends all VMs and removes TAPs, bridge, rules, forwarding and the run directory.

    Needs no agent, and refuses while one is live. Run twice, or after being cut off, it finishes:
    the installation's file, by which its things are known, goes last.
    """
    if not settings.run_dir.exists() and not settings.installation_file.exists():
        return
    with only_one(settings):
        layout, links = Layout(settings.run_dir), Links()
        try:
            anyio.run(_kill_all, layout)
            ours = _bridges_of(settings, layout, links)
            for vm_id in {*layout.vm_ids(), *layout.trashed_ids()}:
                for index in range(MAX_NICS):
                    for name in nic_links(vm_id, index):
                        links.delete_of_vm(name, ours)
            _remove_network(settings, links)
        finally:
            links.close()
        for folder in (
            layout.vms_dir,
            layout.trash_dir,
            layout.blanks_dir,
            layout.expired_dir,
            layout.volumes_dir,
            layout.snapshots_dir,
            layout.dhcp_dir,
        ):
            disks.remove_tree(folder)
        if settings.store_dir == settings.run_dir / "store":
            disks.remove_tree(settings.store_dir)
        if settings.bind.startswith("unix:"):
            disks.remove_tree(Path(settings.bind.removeprefix("unix:")))
        layout.networks_file.unlink(missing_ok=True)
        settings.installation_file.unlink(missing_ok=True)
        (settings.run_dir / "agent.lock").unlink(missing_ok=True)
    if settings.run_dir.is_dir() and not any(settings.run_dir.iterdir()):
        settings.run_dir.rmdir()


async def _kill_all(layout: Layout) -> None:
    vmms = []
    for vm_id, pids in process.vmm_pids().items():
        roots = [layout.vm(vm_id, jailed=jailed).root for jailed in (False, True)]
        found = (process.adopt(pid, root) for pid in pids for root in roots if root.is_dir())
        vmms += [vmm for vmm in found if vmm is not None]
    running = dnsmasq.running(layout.dhcp_dir)
    servers = [server for found in running.values() for server, _ in found]
    for each in (*vmms, *servers):
        each.kill()
    with anyio.fail_after(KILL_TIMEOUT_S):
        for each in (*vmms, *servers):
            await each.watch()
    log.info("VMs ended", count=len(vmms))


def _bridges_of(settings: Settings, layout: Layout, links: Links) -> set[int]:
    """The indices of all bridges that a TAP of ours may be in."""
    installation = installations.load(settings.installation_file)
    if installation is None:
        return set()
    uplinks = {spec.uplink for spec in load_networks(layout.networks_file).networks}
    return {
        link.index
        for link in links.all()
        if installation.owns(link)
        or bridges.is_ours(installation, link)
        or (link.kind == "bridge" and link.name in uplinks)
    }


def _remove_network(settings: Settings, links: Links) -> None:
    installation = installations.load(settings.installation_file)
    if installation is None:
        return
    everything = links.all()
    ours = [
        link
        for link in everything
        if installation.owns(link) or bridges.is_ours(installation, link)
    ]
    for bridge in ours:
        for port in everything:
            if port.master == bridge.index and looks_like_our_tap(port):
                links.delete(port.name)
                links.delete(shaper_of(port.name))
        links.delete(bridge.name)
    nft.apply(rules.removal_of(installation.table))
    others = [link for link in links.all() if installations.marked_by_anyone(link)]
    if installation.forward_was_off and not others and nft.forwarding():
        nft.set_forwarding(False)
