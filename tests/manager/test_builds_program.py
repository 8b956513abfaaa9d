"""Running a build as a program: its words are bounded and its end is always certain."""

import json
import os
import sys
from pathlib import Path

import anyio
import pytest

from nexus.api.images import ImageBuildOptions
from nexus.manager.pipelines.builder import BuildFailed, Built, build_command, run_build

pytestmark = pytest.mark.anyio

Steps = list[tuple[float, str]]


async def build(script: str, *arguments: str, timeout_s: float = 30) -> tuple[list[Built], Steps]:
    steps: Steps = []
    argv = [sys.executable, "-c", script, *arguments]
    built = await run_build(argv, lambda *step: steps.append(step), timeout_s=timeout_s)
    return built, steps


def lines(*values: object) -> str:
    return "\n".join(f"print({json.dumps(json.dumps(value))}, flush=True)" for value in values)


DONE = {"artifacts": [{"kind": "rootfs", "name": "busybox", "path": "/x"}]}


async def test_progress_and_artifacts_are_read() -> None:
    built, steps = await build(lines({"progress": 0.5, "step": "half"}, DONE))
    assert built == [Built(kind="rootfs", name="busybox", path=Path("/x"))]
    assert steps == [(0.5, "half")]


async def test_words_of_other_programs_do_no_harm() -> None:
    built, _ = await build(f"print('hello'); print('[1]')\n{lines(DONE)}")
    assert len(built) == 1


async def test_an_error_is_told_with_its_cure() -> None:
    script = lines({"error": "no gcc", "suggestion": "apt-get install gcc"}) + "\nexit(1)"
    with pytest.raises(BuildFailed, match="no gcc; apt-get install gcc"):
        await build(script)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit(3)", "status 3"),
        ("import sys; sys.stderr.write('x' * 9999 + 'the reason'); exit(1)", "the reason"),
        (lines(DONE) + "\nexit(1)", "status 1"),
        (lines({"artifacts": []}), "status 0"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("print('x' * 10_000_000)", "too much in one line"),
        (lines({"artifacts": [{"kind": "virus", "name": "x", "path": "/x"}]}), "status 0"),
    ],
)
async def test_a_build_that_makes_nothing_failed(script: str, why: str) -> None:
    with pytest.raises(BuildFailed, match=why) as caught:
        await build(script)
    assert len(str(caught.value)) < 3000


async def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match="nexus-no-such"):
        await run_build(["nexus-no-such-program"], lambda *_: None, timeout_s=5)


SPAWNS = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[1], "w").write(str(child.pid))
print('{"progress": 0.1, "step": "spawned"}', flush=True)
time.sleep(600)
"""


async def gone(pid: int) -> None:
    with anyio.fail_after(20):
        while is_alive(pid):  # noqa: ASYNC110 # another process's end is no event here
            await anyio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_slow_build_is_killed_with_all_its_programs(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="longer than"):
        await build(SPAWNS, str(tmp_path / "pid"), timeout_s=5)
    await gone(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_build_is_killed_with_all_its_programs(tmp_path: Path) -> None:
    spawned = anyio.Event()
    argv = [sys.executable, "-c", SPAWNS, str(tmp_path / "pid")]
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await run_build(argv, lambda *_: spawned.set(), timeout_s=60)

        tasks.start_soon(run)
        with anyio.fail_after(20):
            await spawned.wait()
        tasks.cancel_scope.cancel()
    await gone(int((tmp_path / "pid").read_text()))


async def test_secrets_stay_out_of_the_builds_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@host/db")
    monkeypatch.setenv("NEXUS_CACHE_DIR", "/cache")
    told = tmp_path / "environment"
    script = "import os, sys; open(sys.argv[1], 'w').write(repr(dict(os.environ)))"
    with pytest.raises(BuildFailed):
        await build(script, str(told))
    assert "hunter2" not in told.read_text()
    assert "NEXUS_CACHE_DIR" in told.read_text()


async def test_a_build_ends_with_its_manager(tmp_path: Path) -> None:
    """The real prefix of a build's command, under a parent that is killed."""
    prefix = build_command("busybox", ImageBuildOptions(), tmp_path)[:4]
    argv = [*prefix, "sleep", "600"]
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({argv!r}, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await anyio.open_process([sys.executable, "-c", parent])
    assert process.stdout is not None
    child = int(await process.stdout.receive())
    with anyio.fail_after(20):
        while not Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep"):  # noqa: ASYNC110 # as above
            await anyio.sleep(0.01)
    os.kill(process.pid, 9)
    await process.wait()
    await process.aclose()
    await gone(child)


def test_options_become_arguments_that_cannot_be_options(tmp_path: Path) -> None:
    options = ImageBuildOptions(name="deb:12", packages=["nginx", "g++"], size_mib=2048)
    assert build_command("debian", options, tmp_path)[-5:] == [
        str(tmp_path),
        "--name=deb:12",
        "--size-mib=2048",
        "--package=nginx",
        "--package=g++",
    ]
