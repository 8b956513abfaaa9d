"""The page about conformance says what the suite checks."""

from collections import Counter
from pathlib import Path

from tests.vmm import cases
from tests.vmm.differences import DIFFERENCES

PAGE = "docs/conformance.md"
BEGIN = "<!-- differences: from tests/vmm/differences.py -->\n"
END = "<!-- end -->"

TABLES = (
    cases.FRESH,
    cases.BEFORE_BOOT,
    cases.ACCEPTED_BEFORE_BOOT,
    cases.WHILE_RUNNING,
    cases.ACCEPTED_WHILE_RUNNING,
    cases.WHILE_PAUSED,
)


def table() -> str:
    by_name = {case.name: case for rows in TABLES for case in rows}
    lines = [
        "| request | case | Firecracker | nexus-qemu | why |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, difference in DIFFERENCES.items():
        case = by_name[name]
        lines.append(
            f"| `{case.request}` | {name} | {case.status} | {difference.status} "
            f"| {difference.why} |"
        )
    return "\n".join(lines) + "\n"


def test_every_case_has_its_own_name() -> None:
    counted = Counter(case.name for rows in TABLES for case in rows)
    assert [name for name, times in counted.items() if times > 1] == []


def test_differences_name_cases() -> None:
    names = {case.name for rows in TABLES for case in rows}
    assert set(DIFFERENCES) <= names


def test_page_shows_the_table(repo: Path) -> None:
    page = (repo / PAGE).read_text()
    shown = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]
    assert shown == table(), f"the table in {PAGE} must read:\n{table()}"
