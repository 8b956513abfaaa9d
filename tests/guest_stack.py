"""Everything between a user and a guest over real sockets: manager, an agent's routes, a guest.

Only the VMM is missing: the guest's agent is a double that runs real programs on this machine.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
from fastapi import FastAPI

from nexus import httpd
from nexus.ids import new_id
from nexus.manager.app import create_app
from nexus.manager.db.tables import TokenRow
from nexus.manager.runtime import Runtime
from nexus.manager.verify import hash_secret, make_token, parse
from tests.guest_double import GuestDouble
from tests.manager.agent_double import AgentDouble
from tests.manager.core import Manager, settings_for, until

VM = "web"
STOPPED = "off"


@dataclass
class Stack:
    """A running stack with a VM ``web``, and a VM ``off`` that was never started."""

    folder: Path
    url: str = ""
    token: str = ""
    viewer: str = ""
    guest: GuestDouble = field(init=False)
    agent: AgentDouble = field(init=False)

    @property
    def root(self) -> Path:
        """The guest's file system."""
        return self.guest.root

    def http(self, token: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token or self.token}"},
            timeout=60,
            trust_env=False,
        )

    def audit(self, action: str) -> list[dict[str, Any]]:
        """The audit's rows of an action and of its end, oldest first."""
        with sqlite3.connect(f"file:{self.folder / 'nexus.db'}?mode=ro", uri=True) as db:
            db.row_factory = sqlite3.Row
            rows = db.execute(
                "SELECT * FROM audit WHERE action IN (?, ?) ORDER BY id",
                (action, f"{action}_ended"),
            ).fetchall()
            return [dict(row) for row in rows]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Stack]:
    """The stack in a thread of its own, until the end of the block."""
    stack = Stack(folder)
    (folder / "guest").mkdir()
    stack.guest = GuestDouble(folder / "v.sock", folder / "guest")
    stack.agent = AgentDouble(folder / "agent.sock")
    stack.agent.guest_socket = stack.guest.socket
    failures: list[BaseException] = []
    ready, done = threading.Event(), threading.Event()

    def run() -> None:
        try:
            anyio.run(_serve, stack, ready, done)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60), "the stack did not start"
        if failures:
            raise failures[0]
        yield stack
    finally:
        done.set()
        thread.join()


async def _serve(stack: Stack, ready: threading.Event, done: threading.Event) -> None:
    settings = settings_for(stack.folder, f"sqlite:///{stack.folder / 'nexus.db'}", stack.agent.url)
    app = create_app(settings)
    server = httpd.server(app, drain_s=0)
    server.config.loop = "none"
    listener = httpd.listen("127.0.0.1:0")
    stack.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with stack.guest.serving(), stack.agent.serving(), anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: server.serve(sockets=[listener]))
        try:
            await _fill(stack, app, settings.admin_token_file)
            ready.set()
            await anyio.to_thread.run_sync(done.wait)
        finally:
            server.should_exit = True


async def _fill(stack: Stack, app: FastAPI, token_file: Path) -> None:
    runtime: Runtime = app.state.runtime

    async def has_token() -> bool:
        return token_file.exists()

    await until("the manager made its token", has_token, 60)
    stack.token = token_file.read_text().strip()
    headers = {"authorization": f"Bearer {stack.token}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as http:
        manager = Manager(runtime, http, app, stack.token)
        await until("the manager is ready", manager.is_ready, 60)
        await manager.add_defaults()
        await manager.create(name=VM)
        await manager.create("?wait=configured", name=STOPPED, start=False)
    stack.viewer = make_token()
    lookup_id, secret = parse(stack.viewer) or ("", "")
    async with runtime.db.write() as session:
        session.add(
            TokenRow(
                id=new_id(),
                lookup_id=lookup_id,
                secret_hash=hash_secret(secret),
                name="a viewer",
                project="default",
                role="viewer",
                created_at=datetime.now(UTC),
            )
        )
