"""The first start: default images built and registered, and the demo VM ``hello``."""

import re
import time

import anyio

from nexus.api.errors import Conflict, TimedOut
from nexus.api.images import ImageKind, ImageRecipe
from nexus.api.vms import Vm, VmCreate
from nexus.client import AsyncClient, NexusApiError
from nexus.up.say import Say

BUILD_TIMEOUT_S = 900.0
BUILD_POLL_S = 0.2
HELLO_TIMEOUT_S = 60.0
TALKATIVE = "console=ttyS0 reboot=k panic=1"
"""The default kernel arguments without ``quiet``: a first boot is worth watching."""

_DEFAULTS: dict[ImageRecipe, set[tuple[ImageKind, str]]] = {
    "debian-cloud": {("kernel", "debian-cloud"), ("initrd", "debian-cloud")},
    "busybox": {("rootfs", "busybox")},
}
_READY = re.compile(r"^nexus-guest ready\b.*$", re.MULTILINE)


async def ensure_images(client: AsyncClient, say: Say) -> None:
    """Builds what the registry lacks of the default kernel, initrd and root file system."""
    held = {(image.kind, image.name) async for image in client.images.list()}
    for recipe, wanted in _DEFAULTS.items():
        if not wanted <= held:
            await _build(client, say, recipe)


async def _build(client: AsyncClient, say: Say, recipe: ImageRecipe) -> None:
    build = await client.images.build(recipe)
    try:
        with anyio.fail_after(BUILD_TIMEOUT_S):
            while build.state in ("queued", "running"):
                say.progress(f"image {recipe}", build.step, build.progress)
                await anyio.sleep(BUILD_POLL_S)
                build = await client.images.get_build(build.id)
    except TimeoutError:
        raise TimedOut(
            f"building {recipe} took longer than {BUILD_TIMEOUT_S:.0f} s",
            suggestion="check the network to the package mirror and run nexus up again",
        ) from None
    finally:
        say.progress_done()
    if build.state == "failed":
        raise Conflict(
            f"building the image {recipe} failed: {build.error}",
            suggestion="mend that and run nexus up again; it goes on where it stopped",
        )
    say.step(f"  image {recipe} is built and registered")


async def hello(client: AsyncClient, say: Say) -> None:
    """Makes or starts the VM ``hello`` and shows its console until the guest says it is ready."""
    vm = await _ensure_hello(client)
    if vm.state == "running" and vm.boot and await _is_ready(client, vm):
        say.step(f"VM hello is running ({_address(vm)})")
        return
    say.step(f"Booting VM hello ({_address(vm)}):")
    begun = time.monotonic()
    seen = ""
    try:
        with anyio.fail_after(HELLO_TIMEOUT_S):
            async for chunk in client.vms.follow_logs(vm.id, source="console"):
                seen += chunk.decode(errors="replace")
                *lines, seen = seen.split("\n")
                for line in lines:
                    say.guest(line)
                    if _READY.match(line.strip()):
                        say.step(f"VM hello answered after {time.monotonic() - begun:.1f} s")
                        return
    except TimeoutError:
        pass
    raise TimedOut(
        f"VM hello did not say it is ready within {HELLO_TIMEOUT_S:.0f} s",
        suggestion="nexus logs hello; nexus logs hello --source vmm",
    )


async def _ensure_hello(client: AsyncClient) -> Vm:
    try:
        vm = await client.vms.get("hello")
    except NexusApiError as error:
        if error.status != 404:
            raise
        spec = VmCreate(name="hello", rootfs="busybox", kernel_args=TALKATIVE)
        return await client.vms.create(spec, wait="running")
    if vm.state == "paused":
        await client.vms.resume(vm.id, wait="running")
    elif vm.state != "running":
        await client.vms.start(vm.id, wait="running")
    return await client.vms.get(vm.id)


async def _is_ready(client: AsyncClient, vm: Vm) -> bool:
    chunk = await client.vms.logs(vm.id, source="console", tail=1000)
    return bool(_READY.search("\n".join(chunk.lines)))


def _address(vm: Vm) -> str:
    return vm.nics[0].ip.partition("/")[0] if vm.nics else "no network"
