"""Into guests from outside, through everything: SDK, manager, agent, VMM, the guest's agent."""

import os
from pathlib import Path

import httpx
import pytest

from nexus.client import Client, NexusApiError
from tests.integration.installation import Installation, wait_for

pytestmark = [pytest.mark.root, pytest.mark.firecracker, pytest.mark.qemu]


def create(http: httpx.Client, name: str, **fields: object) -> None:
    answer = http.post("/v1/vms?wait=running", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text


def client_of(http: httpx.Client) -> Client:
    return Client(str(http.base_url), http.headers["authorization"].removeprefix("Bearer "))


def test_programs_and_files_in_linux(qemu_installation: Installation) -> None:
    with qemu_installation.http() as http, client_of(http) as client:
        create(http, "inside", rootfs="busybox", mem_mib=128)

        def is_ready() -> bool:
            try:
                return client.vms.guest("inside").ready
            except NexusApiError as error:
                if error.code != "guest_agent_missing":  # it still boots
                    raise
                return False

        wait_for("the guest's agent answers", is_ready)
        said = client.vms.guest("inside")
        vm = http.get("/v1/vms/inside").json()["item"]
        assert said.hostname == "inside"
        assert [a.mac for a in said.addresses] == [nic["mac"] for nic in vm["nics"]]

        done = client.vms.exec("inside", ["sh", "-c", "cat; id -u >&2; exit 7"], stdin="in")
        assert (done.exit_code, done.stdout, done.stderr) == (7, "in", "0\n")
        with client.vms.process("inside", ["sh"], tty=True, rows=33, cols=77) as process:
            process.send(b"stty size; exit 5\n")
            shown = b"".join(piece.data for piece in process)
            assert (process.exit_code, b"33 77" in shown) == (5, True)

        content = os.urandom(3 << 20)
        assert client.vms.put_file("inside", "/root/file", content, mode=0o600) == len(content)
        with client.vms.get_file("inside", "/root/file") as file:
            assert (file.mode, file.read()) == (0o600, content)
        assert "file" in [entry.name for entry in client.vms.list_files("inside", "/root")]
        assert http.delete("/v1/vms/inside?wait=deleted&force=true").json() == {"ok": True}


def test_a_guest_without_an_agent_is_said_to_have_none(
    firecracker_installation: Installation,
) -> None:
    with firecracker_installation.http() as http, client_of(http) as client:
        create(http, "tiny", rootfs="busybox", kernel="tiny", mem_mib=32)
        with pytest.raises(NexusApiError) as missing:
            client.vms.exec("tiny", ["true"])
        assert missing.value.code == "guest_agent_missing"
        assert missing.value.suggestion
        assert http.delete("/v1/vms/tiny?wait=deleted").json() == {"ok": True}


def test_the_command_line_in_linux(qemu_installation: Installation, tmp_path: Path) -> None:
    cli = qemu_installation.cli
    cli("run", "busybox", "--name", "shell", "--mem", "128", "--wait")
    # It boots still: the command waits for it.
    assert cli("exec", "-n", "shell", "--", "uname", "-s") == "Linux\n"
    cli("exec", "-n", "shell", "--", "sh", "-c", "exit 42", code=42)
    cli("exec", "-n", "shell", "--", "no-such-program", code=127)
    cli("exec", "-n", "shell", "--", "/root", code=126)
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "data").write_bytes(os.urandom(2 << 20))
    cli("cp", "-r", str(tmp_path / "tree"), "shell:/root")
    cli("cp", "-r", "shell:/root/tree", str(tmp_path / "back"))
    sent, back = (tmp_path / top / "sub" / "data" for top in ("tree", "back"))
    assert back.read_bytes() == sent.read_bytes()
    assert cli("cp", "shell:/proc/sys/kernel/hostname", "-") == "shell\n"
    assert cli("cp", "shell:/root/none", str(tmp_path), code=3) == ""
    with qemu_installation.http() as http, client_of(http) as client:

        def sleeps() -> bool:
            script = "cat /proc/[0-9]*/comm | grep -qx sleep"
            return client.vms.exec("shell", ["sh", "-c", script]).exit_code == 0

        with client.vms.process("shell", ["sleep", "600"]):
            wait_for("the program runs", sleeps)
        wait_for("leaving ended the program", lambda: not sleeps())
    cli("rm", "-f", "shell")
