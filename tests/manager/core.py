"""A manager in the test's own process, and what tests ask of it."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx
from fastapi import FastAPI

from nexus import httpd
from nexus.api.images import ImageKind
from nexus.ids import new_id
from nexus.manager.app import create_app
from nexus.manager.config import Settings
from nexus.manager.db.tables import ImageRow
from nexus.manager.runtime import Runtime

T = TypeVar("T")


async def until(what: str, check: Callable[[], Awaitable[T | None]], timeout_s: float = 30) -> T:
    """The first true answer of ``check``; fails saying what never came true."""
    try:
        with anyio.fail_after(timeout_s):
            while True:
                answer = await check()
                if answer:
                    return answer
                await anyio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


def settings_for(folder: Path, database_url: str, agent_url: str, **env: str) -> Settings:
    """Settings of a manager that lives in ``folder``."""
    return Settings.from_env(
        {
            "NEXUS_DATA_DIR": str(folder),
            "DATABASE_URL": database_url,
            "NEXUS_AGENT_URL": agent_url,
            "MANAGER_IMAGE_ROOT": str(folder / "images"),
            **env,
        }
    )


@dataclass
class Manager:
    """A running manager and a client with its admin token."""

    runtime: Runtime
    http: httpx.AsyncClient
    app: FastAPI = field(default_factory=FastAPI)
    token: str = ""

    async def add_image(self, kind: ImageKind, name: str) -> str:
        """Registers an image whose content nobody will read."""
        image_id = new_id()
        async with self.runtime.db.write() as session:
            session.add(
                ImageRow(
                    id=image_id,
                    project="default",
                    kind=kind,
                    name=name,
                    sha256=hashlib.sha256(f"{kind}/{name}".encode()).hexdigest(),
                    size_bytes=1,
                    source="test",
                    created_at=datetime.now(UTC),
                )
            )
        return image_id

    async def add_defaults(self) -> None:
        await self.add_image("kernel", "debian-cloud")
        await self.add_image("initrd", "debian-cloud")
        await self.add_image("rootfs", "busybox")

    async def create(self, query: str = "?wait=running", **body: Any) -> dict[str, Any]:
        answer = await self.http.post(f"/v1/vms{query}", json=body)
        assert answer.status_code == 201, answer.text
        item: dict[str, Any] = answer.json()["item"]
        return item

    async def vm(self, ref: str) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/vms/{ref}")
        assert answer.status_code == 200, answer.text
        item: dict[str, Any] = answer.json()["item"]
        return item

    async def reasons(self, ref: str) -> list[str]:
        answer = await self.http.get(f"/v1/vms/{ref}/events")
        return [event["reason"] for event in answer.json()["items"]]

    async def becomes(self, ref: str, state: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            vm = await self.vm(ref)
            return vm if vm["state"] == state else None

        return await until(f"{ref} is {state}", look)

    async def is_ready(self) -> bool:
        return (await self.http.get("/readyz")).status_code == 200


@contextlib.asynccontextmanager
async def running(settings: Settings, *, ready: bool = True) -> AsyncIterator[Manager]:
    """Runs a manager's lifespan; requests reach it without a socket."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        token = settings.admin_token_file.read_text().strip()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://manager",
            headers={"authorization": f"Bearer {token}"},
        ) as http:
            manager = Manager(app.state.runtime, http, app, token)
            if ready:
                await until("the manager is ready", manager.is_ready)
            yield manager


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Serves a manager on a real socket of loopback; yields its address."""
    server = httpd.server(app, drain_s=0)
    server.config.loop = "none"
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    listener = httpd.listen("127.0.0.1:0")

    async def started() -> bool:
        return server.started

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.serve(sockets=[listener]))
        try:
            await until("the manager serves", started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
