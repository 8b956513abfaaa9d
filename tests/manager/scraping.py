"""A manager's ``/metrics``, and tokens to read it with."""

from datetime import UTC, datetime

from nexus.ids import new_id
from nexus.manager.db.tables import RoleName, TokenRow
from nexus.manager.verify import hash_secret, make_token, parse
from tests.manager.core import Manager
from tests.scraping import Scrape, read


async def scrape(manager: Manager, token: str | None = None) -> Scrape:
    """With the admin's token or another one."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return read(await manager.http.get("/metrics", headers=headers))


async def token_of(manager: Manager, project: str, role: RoleName) -> str:
    """A new token."""
    token = make_token()
    lookup_id, secret = parse(token) or ("", "")
    async with manager.runtime.db.write() as session:
        session.add(
            TokenRow(
                id=new_id(),
                project=project,
                name=f"{role} of {project}",
                lookup_id=lookup_id,
                secret_hash=hash_secret(secret),
                role=role,
                created_at=datetime.now(UTC),
            )
        )
    return token
