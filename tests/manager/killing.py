"""Kills managers in the middle of a create: before its first statement, its second, and so on.

``python -m tests.manager.killing DATABASE_URL FOLDER QUERY`` prints one JSON line a life: whether
it was killed, how many VMs it left, and what there was after the same request at the next manager.
Every life is a process of its own, forked before it does anything, and ends by SIGKILL.
"""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
from sqlalchemy import event, func, select, update

from nexus import httpd
from nexus.manager.app import create_app, start
from nexus.manager.config import Settings
from nexus.manager.db.journal_tables import AuditRow
from nexus.manager.db.network_tables import IpAddressRow
from nexus.manager.db.tables import HostRow, VmRow
from nexus.manager.runtime import Runtime
from tests.manager.core import settings_for
from tests.manager.rows import host_row, image_row, network_row

Act = Callable[[Runtime, httpx.AsyncClient], Awaitable[dict[str, Any]]]


async def manager(settings: Settings, act: Act) -> dict[str, Any]:
    """A manager without background work: what is committed is what the request did."""
    app = create_app(settings)
    runtime: Runtime = app.state.runtime
    await start(runtime)
    token = settings.admin_token_file.read_text().strip()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://manager",
        headers={"authorization": f"Bearer {token}"},
    ) as http:
        found = await act(runtime, http)
    await runtime.db.close()
    return found


def forked(settings: Settings, act: Act) -> tuple[int, dict[str, Any]]:
    """Runs a manager in a child; its exit status and what ``act`` returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        found = anyio.run(manager, settings, act)
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said or b"{}")


async def prepare(runtime: Runtime, http: httpx.AsyncClient) -> dict[str, Any]:
    host = host_row()
    host.capacity = host.capacity.model_copy(update={"mem_mib": 1 << 20})
    async with runtime.db.write() as session:
        session.add_all([host, image_row("tiny")])
        await session.flush()
        session.add(network_row(host))
    return {}


async def count(runtime: Runtime, name: str) -> dict[str, Any]:
    async with runtime.db.read() as session:
        ids = (await session.scalars(select(VmRow.id).where(VmRow.name == name))).all()
        addresses = select(func.count()).select_from(IpAddressRow)
        audits = select(func.count()).select_from(AuditRow)
        return {
            "vms": len(ids),
            "addresses": await session.scalar(addresses.where(IpAddressRow.vm_id.in_(ids))),
            "audits": await session.scalar(audits.where(AuditRow.target.in_(ids))),
        }


def main(database_url: str, folder: Path, query: str) -> None:
    httpd.configure_logging("ERROR")
    settings = settings_for(folder, database_url, "unix:/nonexistent/agent.sock")
    assert forked(settings, prepare) == (0, {})
    for number in range(1, 100):
        name = f"vm-{number}"

        async def send(runtime: Runtime, http: httpx.AsyncClient, name: str = name) -> Any:
            async with runtime.db.write() as session:
                fresh = {"state": "healthy", "last_seen_at": datetime.now(UTC)}
                await session.execute(update(HostRow).values(**fresh))
            body = {"name": name, "kernel": "tiny", "mem_mib": 16}
            return await http.post(f"/v1/vms{query}", json=body, headers={"idempotency-key": name})

        async def killed(
            runtime: Runtime, http: httpx.AsyncClient, number: int = number, send: Any = send
        ) -> dict[str, Any]:
            left = [number]

            def die(*_: object) -> None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            for what in ("before_cursor_execute", "commit"):
                event.listen(runtime.db.engine.sync_engine, what, die)
            await send(runtime, http)
            return {}

        async def again(
            runtime: Runtime, http: httpx.AsyncClient, name: str = name, send: Any = send
        ) -> dict[str, Any]:
            left = (await count(runtime, name))["vms"]
            answer = await send(runtime, http)
            # Without background work a VM does not come to run: the wait ends, the VM is there.
            assert answer.status_code == (504 if query else 201), answer.text
            replayed = answer.headers.get("idempotency-replayed") == "true"
            return {**await count(runtime, name), "left": left, "replayed": replayed}

        status, _ = forked(settings, killed)
        ended, after = forked(settings, again)
        assert ended == 0
        print(json.dumps({"killed": status == -signal.SIGKILL, **after}), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
