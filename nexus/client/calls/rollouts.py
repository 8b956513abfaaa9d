"""The calls of ``/v1/rollouts``."""

from nexus.api.common import Created, Item, Page
from nexus.api.rollouts import Rollout, RolloutAction, RolloutCreate, RolloutState, RolloutVm
from nexus.client.calls.call import Call, created, item, nothing, one

PATH = "/v1/rollouts"


def create_rollout(template: str, request: RolloutCreate) -> Call[Rollout]:
    path = one("/v1/templates", template, "rollouts")
    return Call("POST", path, created(Created[Rollout]), body=request)


def list_rollouts(
    template: str | None, state: RolloutState | None, limit: int | None, cursor: str | None
) -> Call[Page[Rollout]]:
    query = {"template": template, "state": state, "limit": limit, "cursor": cursor}
    return Call("GET", PATH, Page[Rollout].model_validate_json, query)


def get_rollout(rollout_id: str) -> Call[Rollout]:
    return Call("GET", one(PATH, rollout_id), item(Item[Rollout]))


def list_members(rollout_id: str, limit: int | None, cursor: str | None) -> Call[Page[RolloutVm]]:
    query = {"limit": limit, "cursor": cursor}
    read = Page[RolloutVm].model_validate_json
    return Call("GET", one(PATH, rollout_id, "vms"), read, query)


def act_on_rollout(rollout_id: str, action: RolloutAction) -> Call[None]:
    return Call("POST", one(PATH, rollout_id, action), nothing)
