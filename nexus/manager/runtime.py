"""What one manager process holds: one object, made at start, reached from every route."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from nexus.manager.config import Settings
from nexus.manager.db.session import Database
from nexus.manager.pipelines.builds import BuildPipeline
from nexus.manager.security import Principal
from nexus.manager.services.images import Images
from nexus.manager.uow import Caller
from nexus.manager.verify import Verifier


@dataclass(slots=True)
class Runtime:
    """The parts of a running manager."""

    settings: Settings
    db: Database
    instance: str
    """This process's id: the owner of its leases."""
    verifier: Verifier
    images: Images
    builds: BuildPipeline


def runtime_of(connection: HTTPConnection) -> Runtime:
    """The runtime behind a request or a WebSocket."""
    runtime = connection.app.state.runtime
    if not isinstance(runtime, Runtime):
        raise TypeError("the application has no runtime")
    return runtime


Nexus = Annotated[Runtime, Depends(runtime_of)]
"""A route's parameter: the runtime."""


def caller_of(connection: HTTPConnection, principal: Principal, permission: str) -> Caller:
    """Who a unit of work acts for, from a request and its token's owner."""
    return Caller(
        actor=principal.actor,
        project=principal.project,
        request_id=connection.scope["state"]["request_id"],
        permission=permission,
    )
