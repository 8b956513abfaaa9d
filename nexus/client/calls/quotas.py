"""The calls of ``/v1/projects/{project}/quota``."""

from nexus.api.common import Item
from nexus.api.quotas import ProjectQuota, Quota
from nexus.client.calls.call import Call, item, one


def get_quota(project: str) -> Call[ProjectQuota]:
    return Call("GET", one("/v1/projects", project, "quota"), item(Item[ProjectQuota]))


def set_quota(project: str, limits: Quota) -> Call[ProjectQuota]:
    path = one("/v1/projects", project, "quota")
    return Call("PUT", path, item(Item[ProjectQuota]), body=limits)
