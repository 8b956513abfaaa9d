"""What one Linux guest writes on a volume, the next one reads."""

import pytest

from nexus.api.devices import DriveCreate
from nexus.api.vms import VmCreate
from nexus.api.volumes import VolumeCreate
from nexus.client import Client, ConflictError
from tests.integration.installation import Installation, machine_state, wait_for, wait_until_as
from tests.integration.test_networks import client_of, is_up

pytestmark = [pytest.mark.root, pytest.mark.qemu]


def in_guest(client: Client, name: str, script: str) -> str:
    wait_for(f"{name} is up", lambda: is_up(client, name))
    done = client.vms.exec(name, ["sh", "-c", script])
    assert done.exit_code == 0, done
    return str(done.stdout)


def test_a_volume_goes_from_one_guest_to_the_next(qemu_installation: Installation) -> None:
    before = machine_state(qemu_installation.data)
    with client_of(qemu_installation) as client:
        made = client.volumes.create(VolumeCreate(name="kept", size_mib=16))

        def on_volume(name: str) -> VmCreate:
            drives = [DriveCreate(name="db", volume="kept")]
            return VmCreate(name=name, rootfs="busybox", mem_mib=128, drives=drives)

        client.vms.create(on_volume("writer"), wait="running")
        in_guest(client, "writer", "echo what the first wrote | dd of=/dev/vdb conv=fsync; sync")
        with pytest.raises(ConflictError, match="writer"):
            client.vms.create(on_volume("thief"))
        client.vms.delete("writer")

        client.vms.create(on_volume("reader"), wait="running")
        read = in_guest(client, "reader", "cat /sys/block/vdb/size; head -n1 /dev/vdb")
        assert read.splitlines() == [str(16 << 11), "what the first wrote"]
        assert client.volumes.get("kept").vm_name == "reader"
        client.volumes.update("kept", size_mib=32)
        assert in_guest(client, "reader", "cat /sys/block/vdb/size").strip() == str(32 << 11)

        # From one that runs it goes with a reboot; then it is nobody's, and can be copied.
        with pytest.raises(ConflictError, match="running"):
            client.volumes.detach("kept")
        with pytest.raises(ConflictError, match="may write"):
            client.volumes.snapshot("kept", "copy")
        assert client.volumes.detach("kept", restart=True).state == "free"
        copy = client.volumes.snapshot("kept", "copy")
        client.vms.stop("reader", force=True, wait="stopped")
        assert client.volumes.attach("copy", "reader", name="db").drive == "db"
        client.vms.start("reader", wait="running")
        read = in_guest(client, "reader", "cat /sys/block/vdb/size; head -n1 /dev/vdb")
        assert read.splitlines() == [str(32 << 11), "what the first wrote"]
        client.vms.delete("reader")

        folder = qemu_installation.data / "fc" / "volumes"
        file = folder / f"{made.id}.img"
        assert {each.stat().st_nlink for each in folder.iterdir()} == {1}
        assert sorted(each.stem for each in folder.iterdir()) == sorted([made.id, copy.id])
        client.volumes.delete("copy")
        client.volumes.delete("kept")
        assert not file.exists()
    wait_until_as(before, qemu_installation.data)
