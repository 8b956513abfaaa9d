"""Container images made by hand of busybox, and a registry that serves them on loopback."""

import gzip
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DEADLINE_S = 60


class Image:
    """An OCI layout in the making: files by layer, then a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layers: list[bytes] = []
        (folder / "blobs" / "sha256").mkdir(parents=True)

    def layer(self, files: dict[str, bytes | str]) -> "Image":
        """Adds a layer: bytes are programs, text beginning with ``->`` is a link, other text a
        file, and an empty name's end ``/`` a folder."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name.rstrip("/"))
                entry.mode = 0o1777 if name == "tmp/" else 0o755
                if name.endswith("/"):
                    entry.type = tarfile.DIRTYPE
                    tar.addfile(entry)
                elif isinstance(content, str) and content.startswith("->"):
                    entry.type, entry.linkname = tarfile.SYMTYPE, content[2:]
                    tar.addfile(entry)
                else:
                    data = content.encode() if isinstance(content, str) else content
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        self.layers.append(out.getvalue())
        return self

    def write(self, *, architecture: str = "amd64", **config: Any) -> Path:
        """Writes the layout, tagged ``latest``."""
        packed = [gzip.compress(layer, mtime=0) for layer in self.layers]
        described = {
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(raw).hexdigest()}" for raw in self.layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._blob(CONFIG, json.dumps(described).encode()),
            "layers": [self._blob(LAYER, data) for data in packed],
        }
        entry = self._blob(MANIFEST, json.dumps(manifest).encode())
        entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self.folder / "index.json").write_text(json.dumps(index))
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return self.folder

    def _blob(self, kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def static_busybox() -> bytes:
    """The program of Debian's busybox-static, which set-up installs for tests."""
    found = shutil.which("busybox")
    assert found
    return Path(found).read_bytes()


def app(folder: Path) -> Path:
    """An image with a user, an environment, a working folder and a program that tells them."""
    script = (
        "#!/bin/busybox sh\n"
        'echo "service $(busybox id -u):$(busybox id -g) in $(busybox pwd) says $GREETING $*"\n'
        "busybox touch /outbox/here && echo could write\n"
        "busybox sleep 2\nexit 7\n"
    )
    base = {
        "usr/": "", "usr/bin/": "", "usr/sbin/": "", "bin": "->usr/bin", "sbin": "->usr/sbin",
        "usr/bin/busybox": static_busybox(), "etc/": "",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n",
        "etc/group": "root:x:0:\napp:x:2345:\n", "etc/inittab": "of the image\n",
        "old": "from below\n",
    }  # fmt: skip
    image = Image(folder).layer(base).layer({"usr/bin/tell": script, "outbox": "->/tmp"})
    image.layer({".wh.old": "", "tmp/": ""})
    return image.write(
        Entrypoint=["tell", "it's"],
        Cmd=['"quoted"', "$HOME", ""],
        Env=["PATH=/usr/bin:/bin", "GREETING=hello  'world'"],
        User="app",
        WorkingDir="/srv/work",
    )


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A real registry on a free port of loopback; gives ``HOST:PORT``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{folder / 'registry'}'}}}}\n"
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert process.poll() is None, (folder / "registry.log").read_text()
            assert time.monotonic() < deadline, "the registry does not listen"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


def copy(source: str, target: str) -> None:
    """Copies an image with skopeo, without TLS."""
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--quiet"),
            *("--src-tls-verify=false", "--dest-tls-verify=false", source, target),
        ],
        check=True,
        timeout=DEADLINE_S,
    )
