"""VMs, images and a host as the wire of tests tells of them."""

from datetime import UTC, datetime
from typing import Any

from nexus.api.hosts import Capacity, Host, HostNetwork
from nexus.api.images import (
    Image,
)
from nexus.api.vms import Vm, VmImage, VmNic
from nexus.ids import new_id

TOKEN = "wire-token"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHA = "ab" * 32


def make_vm(name: str, **changes: Any) -> Vm:
    image = VmImage(id=new_id(), kind="kernel", name="debian-cloud", sha256=SHA)
    vm = Vm(
        id=new_id(),
        name=name,
        project="default",
        state="running",
        error=None,
        vcpu=1,
        mem_mib=256,
        kernel=image,
        initrd=None,
        rootfs=image.model_copy(update={"kind": "rootfs", "name": "busybox"}),
        kernel_args=None,
        nics=[
            VmNic(iface="eth0", mac="06:00:0a:4d:00:05", ip="10.77.0.5/20", gateway=None, tap="t5")
        ],
        tags={},
        host_id=new_id(),
        engine="qemu",
        socket="/srv/fc/vms/x/root/api.sock",
        pid=42,
        generation=1,
        boot=1,
        created_at=NOW,
        updated_at=NOW,
        started_at=NOW,
    )
    return vm.model_copy(update=changes)


def make_image(kind: str, name: str) -> Image:
    return Image(
        id=new_id(),
        kind=kind,
        name=name,
        project="default",
        sha256=SHA,
        size_bytes=1 << 20,
        source="recipe",
        created_at=NOW,
    )


def make_host() -> Host:
    return Host(
        id=new_id(),
        name="host-one",
        state="healthy",
        engine="qemu",
        engine_reason="no KVM",
        engine_version="7.2",
        network=HostNetwork(bridge="fcbr0", cidr="10.77.0.0/20", gateway="10.77.0.1", dns=[]),
        capacity=Capacity(
            vcpus=2,
            mem_mib=2048,
            mem_available_mib=1024,
            disk_mib=10,
            disk_available_mib=5,
            vms=3,
        ),
        run_dir="/srv/fc",
        agent_version="0",
        last_seen_at=NOW,
        created_at=NOW,
    )
