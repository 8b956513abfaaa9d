"""What every machine of this host shares: engine, binaries, store, network."""

import compileall
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nexus
from nexus.agent import command
from nexus.agent.capture_files import Ram
from nexus.agent.counts import Counts
from nexus.agent.errors import SettingsInvalid
from nexus.agent.fetching import Fetcher
from nexus.agent.layout import VmPaths
from nexus.agent.manager_images import ManagerImages
from nexus.agent.networks import Networks
from nexus.agent.settings import Settings
from nexus.agent.volumes import VolumeUse
from nexus.api.common import Engine
from nexus.images.store import Store
from nexus.vmm import binaries
from nexus.vmm.errors import VmmFailure
from nexus.vmm.probe import choose_engine


@dataclass(frozen=True)
class Tools:
    """Found once, when the agent starts."""

    engine: Engine
    engine_reason: str
    engine_version: str
    firecracker: Path | None
    jailer: Path | None
    """None when VMs are not jailed."""
    qemu: list[str]
    store: Store
    network: Networks
    scope: bool
    environment: Mapping[str, str] = field(repr=False)
    """Of the VMMs: they get no secret of the agent's."""
    fetcher: Fetcher | None = None
    """None where the manager shares the store."""
    volumes: VolumeUse = field(default_factory=VolumeUse)
    ram: Ram = field(default_factory=Ram)
    """For captures."""
    counts: Counts = field(default_factory=Counts)

    def command(
        self, engine: Engine, paths: VmPaths, jail: command.Jail | None, *, boots: bool = True
    ) -> list[str]:
        """Raises FileNotFoundError when the engine's program is not installed any more."""
        if engine == "qemu":
            return command.vmm_command(self.qemu, paths, boots=boots, scope=self.scope)
        if self.firecracker is None:
            raise FileNotFoundError(2, "not installed", "firecracker")
        if jail is not None and not self.firecracker.exists():
            # The jailer would say so only in the VM's console.
            raise FileNotFoundError(2, "No such file or directory", str(self.firecracker))
        return command.vmm_command(
            [str(self.firecracker)],
            paths,
            boots=boots,
            jail=jail,
            scope=self.scope,
            cgroup_version=2 if command.CGROUP2.exists() else 1,
        )


def find_tools(settings: Settings, network: Networks) -> Tools:
    """Raises SettingsInvalid with a cure when the wanted engine cannot run here."""
    try:
        choice = choose_engine(settings.engine, firecracker=settings.firecracker)
        firecracker = jailer = None
        if choice.engine == "firecracker":
            firecracker = binaries.find_firecracker(settings.firecracker).resolve()
            version = str(binaries.version_of([str(firecracker)]))
            if settings.jail:
                jailer = binaries.find_jailer(settings.jailer).resolve()
        else:
            version = str(binaries.version_of([str(binaries.find_qemu())]))
            _compile_vmm()
    except VmmFailure as error:
        cure = f"; {error.suggestion}" if error.suggestion else ""
        raise SettingsInvalid(f"{error.message}{cure}") from error
    if jailer is not None and firecracker is not None and firecracker.name != "firecracker":
        raise SettingsInvalid(
            f"the jailer names its directory after the program, which must be called firecracker; "
            f"FC_BINARY is {firecracker}"
        )
    store = Store(settings.store_dir)
    return Tools(
        engine=choice.engine,
        engine_reason=choice.reason,
        engine_version=version,
        firecracker=firecracker,
        jailer=jailer,
        qemu=_isolated(binaries.nexus_qemu_command()),
        store=store,
        network=network,
        scope=command.SYSTEMD_BOOTED.exists(),
        environment=vmm_environment(os.environ),
        fetcher=_fetcher(settings, store),
        ram=Ram(lends=settings.capture_in_memory),
    )


def _fetcher(settings: Settings, store: Store) -> Fetcher | None:
    base, token, limit_mib = settings.manager_base, settings.host_token, settings.store_limit_mib
    if base is None or token is None:
        return None
    limit_bytes = None if limit_mib is None else limit_mib << 20
    return Fetcher(store, lambda: ManagerImages(base, token), limit_bytes)


def vmm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a VMM sees: where programs and ``nexus`` itself are, and nothing else."""
    kept = {name: environment[name] for name in ("PATH", "LANG", "TMPDIR") if name in environment}
    home = str(Path(nexus.__file__).resolve().parent.parent)
    return kept | {"PYTHONPATH": home, "PYTHONDONTWRITEBYTECODE": "1"}


def _compile_vmm() -> None:
    """Has the bytecode of ``nexus-qemu`` ready, as not every installer does: each VM's own process
    writes none, and would compile all of it for a third of its start. Nothing where it may not be
    written."""
    if not sys.dont_write_bytecode:
        for package in ("qemu", "vmm"):
            compileall.compile_dir(Path(nexus.__file__).parent / package, quiet=2)


def _isolated(python: list[str]) -> list[str]:
    """Python must not import from its working directory: that is the VM's."""
    return [python[0], "-P", *python[1:]]
