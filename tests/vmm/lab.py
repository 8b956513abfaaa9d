"""VMMs of one engine in furnished folders, and bringing them into the states that tests need."""

from pathlib import Path

import pytest

from tests.vmm.cases import Case, kernel, machine
from tests.vmm.differences import DIFFERENCES
from tests.vmm.vmm_process import BOOT_S, Engine, Taps, VmmProcess


class Lab:
    """Makes VMMs, each in a furnished folder of its own, and ends them all."""

    def __init__(self, engine: Engine, folders: pytest.TempPathFactory) -> None:
        self.engine = engine
        self.taps = Taps()
        self._folders = folders
        self._made: list[VmmProcess] = []

    def folder(self) -> Path:
        folder = self._folders.mktemp(self.engine.name)
        self.engine.furnish(folder)
        return folder

    def spawn(self, *arguments: str, folder: Path | None = None) -> VmmProcess:
        if "--log-path" not in arguments:
            # By default the log goes to stdout, in the middle of what the guest prints there.
            arguments = (*arguments, "--log-path", "log")
        made = self.engine.spawn(folder or self.folder(), *arguments)
        self._made.append(made)
        return made

    def with_api(self, *arguments: str, folder: Path | None = None) -> VmmProcess:
        made = self.spawn("--api-sock", "api.sock", *arguments, folder=folder)
        made.wait_for_api()
        made.tap = self.taps.make()
        return made

    def configured(self) -> VmmProcess:
        """Ready to start: root and data drive, a NIC, metrics; no balloon."""
        vmm, guest = self.with_api(), self.engine.guest
        source = kernel(boot_args=guest.boot_args)
        if guest.initrd is not None:
            source["initrd_path"] = "initrd"
        drive = {"is_root_device": False, "is_read_only": False}
        root = {**drive, "drive_id": "root", "path_on_host": "root.img", "is_root_device": True}
        data = {**drive, "drive_id": "data", "path_on_host": "data.img"}
        nic = {"iface_id": "eth0", "host_dev_name": vmm.tap, "guest_mac": "06:00:00:00:00:01"}
        must_accept(vmm, "PUT /boot-source", source)
        must_accept(vmm, "PUT /machine-config", machine())
        must_accept(vmm, "PUT /drives/root", root)
        must_accept(vmm, "PUT /drives/data", data)
        must_accept(vmm, "PUT /network-interfaces/eth0", nic)
        must_accept(vmm, "PUT /metrics", {"metrics_path": "metrics"})
        return vmm

    def running(self) -> VmmProcess:
        """A guest that is up, with a balloon without statistics."""
        vmm = self.configured()
        must_accept(vmm, "PUT /balloon", {"amount_mib": 0, "deflate_on_oom": True})
        must_accept(vmm, "PUT /actions", {"action_type": "InstanceStart"})
        self.wait_for_guest(vmm)
        return vmm

    def wait_for_guest(self, vmm: VmmProcess) -> None:
        vmm.console.wait_for(self.engine.guest.banner, timeout_s=BOOT_S)

    def close(self) -> None:
        for made in self._made:
            made.close()
        self.taps.close()


def ask(vmm: VmmProcess, case: Case) -> tuple[int, str]:
    payload = case.payload
    if payload is not None:
        payload = payload.replace(b'"TAP"', f'"{vmm.tap}"'.encode())
    return vmm.request(case.method, case.path, payload)


def must_accept(vmm: VmmProcess, request: str, body: object) -> None:
    status, answer = ask(vmm, Case(request, request, body))
    assert status in (200, 204), f"{request}: {status} {answer}"


def expected(engine: Engine, case: Case) -> tuple[int, str]:
    """Status and fault of this engine: Firecracker's, unless the table of differences has it."""
    if engine.name == "nexus-qemu" and case.name in DIFFERENCES:
        difference = DIFFERENCES[case.name]
        return difference.status, difference.fault
    return case.status, case.fault
