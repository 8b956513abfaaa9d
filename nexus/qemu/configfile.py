"""``--config-file``: the whole machine in one JSON file, then the start."""

import msgspec

from nexus.qemu.api import configure_logger
from nexus.qemu.bodies import decode
from nexus.qemu.faults import Fault, os_error
from nexus.qemu.instance import Instance
from nexus.qemu.log import Log, is_level
from nexus.qemu.metrics import Metrics
from nexus.vmm.types import VmConfigFile

_FAILED = "Configuration for VMM from one single json failed: "


def start_from_file(path: str, instance: Instance, log: Log, metrics: Metrics) -> None:
    """Configures and starts the machine; raises Fault."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not imported otherwise
            data = file.read()
    except OSError as error:
        text = f"Unable to open or read from the configuration file: {os_error(error)}"
        raise Fault(text) from error
    try:
        _apply(_parsed(data), instance, log, metrics)
        instance.start()
    except Fault as fault:
        raise Fault(f"{_FAILED}{fault.message}") from fault


def _parsed(data: bytes) -> VmConfigFile:
    try:
        return decode(data, VmConfigFile)
    except Fault as fault:
        raise Fault(f"Invalid JSON: {fault.message.partition(': ')[2]}") from fault


def _apply(wanted: VmConfigFile, instance: Instance, log: Log, metrics: Metrics) -> None:
    if wanted.logger is not None:
        if wanted.logger.level is not None and not is_level(wanted.logger.level):
            raise Fault("Invalid JSON: Invalid LevelFilter")
        configure_logger(log, wanted.logger)
    if wanted.metrics is not None:
        metrics.open(wanted.metrics.metrics_path)
    config = instance.config
    if wanted.machine_config is not None:
        config.put_machine(wanted.machine_config)
    if wanted.cpu_config is not None:
        config.put_cpu(_cpu_template(wanted.cpu_config))
    config.put_boot(wanted.boot_source)
    for drive in wanted.drives:
        config.put_drive(drive)
    for nic in wanted.network_interfaces:
        config.put_nic(nic)
    if wanted.balloon is not None:
        config.put_balloon(wanted.balloon)
    if wanted.entropy is not None:
        config.put_entropy(wanted.entropy)
    if wanted.vsock is not None:
        config.put_vsock(wanted.vsock)
    if wanted.mmds_config is not None:
        raise Fault("MMDS config error: The guest cannot reach MMDS under nexus-qemu.")


def _cpu_template(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not imported otherwise
            return msgspec.json.decode(file.read(), type=dict[str, object])
    except OSError as error:
        raise Fault(f"CPU configuration error: {os_error(error)}") from error
    except msgspec.DecodeError as error:
        raise Fault(f"CPU configuration error: {error}") from error
