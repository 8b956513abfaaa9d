"""Every endpoint, happy path and mistakes: the same requests to Firecracker and to nexus-qemu."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.vmm import cases
from tests.vmm.cases import Case
from tests.vmm.lab import Lab, ask, expected, must_accept
from tests.vmm.vmm_process import Engine, VmmProcess

pytestmark = pytest.mark.root


def rows(table: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(row, id=row.name) for row in table])


def complaint(vmm: VmmProcess, engine: Engine, case: Case) -> str:
    """What is wrong with the answer to a request; nothing if all is as expected."""
    status, answer = ask(vmm, case)
    want_status, want_fault = expected(engine, case)
    if status != want_status:
        return f"{case.name}: {status} {answer}, not {want_status}"
    if status == 400:
        # Firecracker's HTTP server answers with `error` and a bare line feed in a string.
        body = json.loads(answer, strict=False)
        said = body.get("fault_message") or body["error"]
        return "" if re.fullmatch(want_fault, said) else f"{case.name}: {said}, not {want_fault}"
    if status == 204 and answer:
        return f"{case.name}: 204 with a body: {answer}"
    return ""


def state(vmm: VmmProcess) -> str:
    return str(json.loads(vmm.request("GET", "/")[1])["state"])


@pytest.fixture
def paused(running: VmmProcess) -> Iterator[VmmProcess]:
    must_accept(running, "PATCH /vm", {"state": "Paused"})
    yield running
    must_accept(running, "PATCH /vm", {"state": "Resumed"})


@rows(cases.FRESH)
def test_refused_when_nothing_is_configured(lab: Lab, case: Case) -> None:
    assert not complaint(lab.with_api(), lab.engine, case)


@rows(cases.BEFORE_BOOT)
def test_refused_before_boot(configured: VmmProcess, engine: Engine, case: Case) -> None:
    before = configured.request("GET", "/vm/config")
    assert not complaint(configured, engine, case)
    assert configured.request("GET", "/vm/config") == before
    assert state(configured) == "Not started"


def test_accepted_before_boot(lab: Lab) -> None:
    vmm = lab.with_api()
    found = [complaint(vmm, lab.engine, case) for case in cases.ACCEPTED_BEFORE_BOOT]
    assert not [text for text in found if text]


@rows(cases.WHILE_RUNNING)
def test_refused_while_running(running: VmmProcess, engine: Engine, case: Case) -> None:
    before = running.request("GET", "/vm/config")
    assert not complaint(running, engine, case)
    if expected(engine, case)[0] == 400:
        assert running.request("GET", "/vm/config") == before
    assert state(running) == "Running"


def test_accepted_while_running(running: VmmProcess, engine: Engine) -> None:
    found = [complaint(running, engine, case) for case in cases.ACCEPTED_WHILE_RUNNING]
    assert not [text for text in found if text]
    assert state(running) == "Running"


@rows(cases.WHILE_PAUSED)
def test_refused_while_paused(paused: VmmProcess, engine: Engine, case: Case) -> None:
    assert not complaint(paused, engine, case)
    assert state(paused) == "Paused"
