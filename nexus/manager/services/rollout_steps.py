"""One step of a rollout for one VM, within the transaction of the step."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from nexus.api.errors import NexusError, NoCapacity
from nexus.api.quotas import Resources
from nexus.api.rollouts import MemberState, RolloutOptions
from nexus.manager import boot_config, devices, rollout_plan, wanting
from nexus.manager.boot_config import BootConfig
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.db.template_tables import RolloutRow, RolloutVmRow, TemplateVersionRow
from nexus.manager.services import quotas
from nexus.manager.uow import SYSTEM, UnitOfWork

Ending = tuple[MemberState, str | None]


def has_ended(
    member: RolloutVmRow,
    seen: rollout_plan.Seen | None,
    options: RolloutOptions,
    now: datetime,
) -> Ending | None:
    """The state that a VM under way has come to, and why; None while it is on its way."""
    forward = member.state == "updating"
    if seen is None:
        return "skipped", "it was deleted"
    verdict = rollout_plan.judge(seen, options, member.begun_at or now, now)
    if verdict is None:
        return None
    if verdict.outcome == "up":
        return ("done" if forward else "reverted"), None
    return ("failed" if forward else "not_reverted"), verdict.message


def observe(
    member: RolloutVmRow,
    seen: rollout_plan.Seen | None,
    options: RolloutOptions,
    now: datetime,
) -> None:
    """Writes down what became of a VM under way, if it has come to an end."""
    ended = has_ended(member, seen, options, now)
    if ended is not None:
        (member.state, member.message), member.ended_at = ended, now


async def begin(
    unit: UnitOfWork, rollout: RolloutRow, member: RolloutVmRow, overcommit: float
) -> VmRow | None:
    """Has a VM boot with another configuration: the version's, or in a rollback its former one.

    Answers the VM's row if its host has to be told something. What a VM does not allow is written
    down for it, and keeps no other VM from its turn.
    """
    forward = rollout.state == "running"
    vm = await unit.session.get(VmRow, member.vm_id, with_for_update=True, populate_existing=True)
    member.begun_at, member.ended_at, member.message = unit.at, unit.at, None
    if vm is None or vm.power == "deleted":
        member.state, member.message = "skipped", "it was deleted"
        return None
    if vm.power == "paused":
        member.state = "skipped" if forward else "not_reverted"
        member.message = "it is paused: a boot would lose its memory"
        return None
    if not forward and member.former is None:
        member.state = "reverted"
        return None
    if not forward and vm.template_version != rollout.version:
        member.state, member.message = "not_reverted", "it was changed since"
        return None
    try:
        wanted = await _wanted(unit, rollout, member, vm)
        await _check_room(unit.session, vm, wanted, overcommit)
    except NexusError as error:
        member.state = "failed" if forward else "not_reverted"
        member.message = error.message
        return None
    former = boot_config.of_row(vm)
    if forward and (member.former is None or vm.template_version != rollout.version):
        member.former = former
    boot_config.apply(vm, wanted)
    done: MemberState = "done" if forward else "reverted"
    ended = _ended_by_itself(member, vm)
    is_first = (member.generation is None or not forward) and not ended
    if is_first and boot_config.same_boot(former, wanted) and vm.state != "error":
        vm.updated_at = unit.at
        member.state, member.message = done, "it boots as before"
        return None
    which = f"{rollout.template_name} version {wanted.version}, as {rollout.created_by} asked"
    if vm.power == "stopped" and not ended:
        # Somebody stopped it: from here on it is no boot of this rollout's that is missing.
        member.generation = None
        wanting.change(unit, vm, "rollout", f"boots as {which} from its next start")
        member.state, member.message = done, "it does not run: it has it from its next start"
        return vm
    vm.power = "running"
    wanting.boot_anew(unit, vm, "rollout", f"boots as {which}")
    member.state, member.ended_at = ("updating" if forward else "reverting"), None
    member.generation = vm.generation
    return vm


def _ended_by_itself(member: RolloutVmRow, vm: VmRow) -> bool:
    """Whether the boot that this rollout gave a VM came to its end without anybody asking: then it
    is one that failed, and not one that its user wants off."""
    return member.generation is not None and vm.power == "stopped" and vm.wanted_by == SYSTEM.actor


async def _wanted(
    unit: UnitOfWork, rollout: RolloutRow, member: RolloutVmRow, vm: VmRow
) -> BootConfig:
    if rollout.state != "running" and member.former is not None:
        return member.former
    version = await unit.session.get_one(TemplateVersionRow, (rollout.template_id, rollout.version))
    return boot_config.of_version(
        vm,
        version.version,
        version.spec,
        version.images,
        new_root=rollout.options.rootfs == "replace",
    )


async def _check_room(
    session: AsyncSession, vm: VmRow, wanted: BootConfig, overcommit: float
) -> None:
    """Raises NoCapacity or QuotaExceeded for a VM that would become larger than there is room."""
    more = Resources(
        vcpu=max(0, wanted.vcpu - vm.vcpu),
        mem_mib=max(0, wanted.mem_mib - vm.mem_mib),
        disk_mib=max(0, root_mib(wanted) - root_mib(boot_config.of_row(vm))),
    )
    if more == Resources():
        return
    await quotas.admit(session, vm.project, more)
    # Not locked: hosts are locked before VMs elsewhere, and here the VM is locked already.
    host = await session.get_one(HostRow, vm.host_id)
    promised = await session.scalar(select(func.sum(VmRow.mem_mib)).where(VmRow.host_id == host.id))
    left = int(host.capacity.mem_mib * overcommit) - int(promised or 0)
    if more.mem_mib > left:
        raise NoCapacity(
            f"it would need {more.mem_mib} MiB more memory, and its host has {max(0, left)} left",
            suggestion="delete VMs on that host, or roll out a smaller version",
        )


def root_mib(config: BootConfig) -> int:
    """How large a VM's root disk is."""
    return config.rootfs_size_mib or devices.size_of(config.rootfs) or 0
