"""The wire of templates and rollouts: one template in two versions, one rollout."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from nexus.api.common import Created, Item, Ok, Page
from nexus.api.errors import NotFound
from nexus.api.rollouts import (
    Rollout,
    RolloutCounts,
    RolloutCreate,
    RolloutOptions,
    RolloutVm,
)
from nexus.api.templates import (
    Instantiated,
    SpecChange,
    Template,
    TemplateChange,
    TemplateCreate,
    TemplateDiff,
    TemplateImages,
    TemplateInstantiate,
    TemplateVersion,
)
from nexus.api.vms import VmImage, VmSpec, VmTemplate
from nexus.ids import new_id

if TYPE_CHECKING:
    from tests.client.wire import Wire

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KERNEL = VmImage(id=new_id(), kind="kernel", name="tiny", sha256="ab" * 32)
IMAGES = TemplateImages(kernel=KERNEL, initrd=None, rootfs=None)
ID = new_id()


def template_of(name: str, spec: VmSpec | None = None, version: int = 2) -> Template:
    return Template(
        id=ID,
        name=name,
        project="default",
        version=version,
        spec=spec or VmSpec(mem_mib=64),
        images=IMAGES,
        created_at=NOW,
        updated_at=NOW,
    )


def version_of(name: str, number: int) -> TemplateVersion:
    return TemplateVersion(
        template_id=ID,
        name=name,
        version=number,
        spec=VmSpec(mem_mib=64, tags={"team": "blue"}),
        images=IMAGES,
        note=f"note {number}",
        created_at=NOW,
        created_by="admin",
    )


VM_TEMPLATE = VmTemplate(id=ID, name="worker", version=1)


def add_template_routes(
    app: FastAPI, wire: "Wire", check: Callable[[Request], None], made: Callable[..., Any]
) -> None:
    """``made`` makes a VM by its name."""
    state = {"rollout": "done"}

    def rollout() -> Rollout:
        return Rollout(
            id=ID,
            project="default",
            template_id=ID,
            template="worker",
            version=2,
            state=state["rollout"],  # type: ignore[arg-type]
            reason="1 of 2 VMs failed, none may" if state["rollout"] == "halted" else None,
            options=RolloutOptions(batch="50%"),
            vms=RolloutCounts(done=1, failed=1),
            next_at=None,
            created_at=NOW,
            updated_at=NOW,
            created_by="admin",
        )

    @app.get("/v1/templates")
    async def templates(request: Request) -> Page[Template]:
        check(request)
        return Page(items=[template_of("worker")])

    @app.post("/v1/templates", status_code=201)
    async def create(request: Request, body: TemplateCreate) -> Created[Template]:
        check(request)
        wire.bodies.append(body.model_dump(mode="json", exclude_unset=True))
        return Created(id=ID, item=template_of(body.name, body.spec, 1))

    @app.get("/v1/templates/{ref}")
    async def get(request: Request, ref: str, response: Response) -> Item[Template]:
        check(request)
        if ref == "nothing":
            raise NotFound("there is no template 'nothing'", suggestion="nexus template ls")
        response.headers["etag"] = '"7"'
        return Item(item=template_of(ref))

    @app.patch("/v1/templates/{ref}")
    async def update(request: Request, ref: str, body: TemplateChange) -> Item[Template]:
        check(request)
        change = body.model_dump(mode="json", exclude_unset=True)
        wire.bodies.append(change | {"if-match": request.headers.get("if-match")})
        return Item(item=template_of(ref, body.spec))

    @app.delete("/v1/templates/{ref}")
    async def delete(request: Request, ref: str) -> Ok:
        check(request)
        return Ok()

    @app.get("/v1/templates/{ref}/versions")
    async def versions(request: Request, ref: str) -> Page[TemplateVersion]:
        check(request)
        return Page(items=[version_of(ref, 1), version_of(ref, 2)])

    @app.get("/v1/templates/{ref}/versions/{number}")
    async def version(request: Request, ref: str, number: int) -> Item[TemplateVersion]:
        check(request)
        return Item(item=version_of("worker", number))

    @app.get("/v1/templates/{ref}/diff")
    async def diff(request: Request, ref: str, vm: str | None = None) -> Item[TemplateDiff]:
        check(request)
        changes = [SpecChange(field="mem_mib", before=64, after=128)] if vm is None else []
        after = f"VM {vm}" if vm else "2"
        found = TemplateDiff(template="worker", before="1", after=after, changes=changes)
        return Item(item=found)

    @app.post("/v1/templates/{ref}/instantiate", status_code=201)
    async def instantiate(request: Request, ref: str, body: TemplateInstantiate) -> Instantiated:
        check(request)
        wire.bodies.append(body.model_dump(mode="json", exclude_unset=True))
        vm = made(body.name or "made-up")
        version = version_of(ref, body.version or 2)
        return Instantiated(id=vm.id, item=vm, items=[vm], template=version, overrides={})

    @app.post("/v1/templates/{ref}/rollouts", status_code=201)
    async def roll_out(request: Request, ref: str, body: RolloutCreate) -> Created[Rollout]:
        check(request)
        wire.bodies.append(body.model_dump(mode="json", exclude_unset=True))
        state["rollout"] = "halted" if ref == "bad" else "done"
        return Created(id=ID, item=rollout())

    @app.get("/v1/rollouts")
    async def rollouts(request: Request) -> Page[Rollout]:
        check(request)
        return Page(items=[rollout()])

    @app.get("/v1/rollouts/{rollout_id}")
    async def get_rollout(request: Request, rollout_id: str) -> Item[Rollout]:
        check(request)
        return Item(item=rollout())

    @app.get("/v1/rollouts/{rollout_id}/vms")
    async def members(request: Request, rollout_id: str) -> Page[RolloutVm]:
        check(request)
        member = RolloutVm(
            vm_id=ID,
            vm_name="worker-1",
            state="failed",
            message="no such kernel",
            former_version=1,
            begun_at=NOW,
            ended_at=NOW,
        )
        return Page(items=[member])

    @app.post("/v1/rollouts/{rollout_id}/{action}")
    async def act(request: Request, rollout_id: str, action: str) -> Ok:
        check(request)
        ends = {"halt": "halted", "resume": "done", "cancel": "cancelled"}
        state["rollout"] = ends.get(action, "rolled_back")
        return Ok()
