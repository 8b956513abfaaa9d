"""A small root file system of busybox, dropbear and the guest's own files; nothing is mounted."""

import os
from pathlib import Path

from nexus.images import dropbear, guestagent, skeleton, tools, workplace
from nexus.images.debs import Packages
from nexus.images.progress import Progress, quiet

SIZE_MIB = 64
FOLDERS = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr/bin": 0o755,
    "usr/local/bin": 0o755,
    "usr/sbin": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
}
UUID = "6e657875-7300-4000-8000-6275737962ff"
"""The file system's UUID, fixed so that the same packages give the same image."""

FEATURES = (
    "64bit",
    "dir_index",
    "dir_nlink",
    "ext_attr",
    "extent",
    "extra_isize",
    "filetype",
    "flex_bg",
    "has_journal",
    "huge_file",
    "large_file",
    "metadata_csum",
    "resize_inode",
    "sparse_super",
)
"""What ext4 is here, named so that the machine's mke2fs.conf does not matter."""


def build(out: Path, *, packages: Packages, progress: Progress = quiet) -> Path:
    """Builds ``rootfs.ext4`` in ``out``, a sparse file of 64 MiB, and returns its path.

    Raises ToolMissing or BuildError.
    """
    tools.find("mke2fs")
    with workplace.folder(out) as work:
        progress(0.0, "fetching busybox")
        packages.unpack("busybox-static", work / "packages")
        progress(0.2, "laying out the files")
        tree = work / "tree"
        lay_out(tree, (work / "packages" / "bin" / "busybox").read_bytes())
        guestagent.build(tree / guestagent.NAME)
        progress(0.3, "fetching dropbear, the ssh server")
        dropbear.add(tree, work / "packages", packages)
        reset_times(tree)
        progress(0.7, "making the file system")
        image = work / "rootfs.ext4"
        make_ext4(tree, image, SIZE_MIB)
        made = out / "rootfs.ext4"
        image.replace(made)
    progress(1.0, "done")
    return made


def lay_out(tree: Path, busybox: bytes) -> None:
    """Writes the files of the root under ``tree``."""
    for name, mode in FOLDERS.items():
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name).chmod(mode)
    program = tree / "bin" / "busybox"
    program.write_bytes(busybox)
    program.chmod(0o755)
    for item in skeleton.files("busybox"):
        path = tree / item.name
        if item.is_folder:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(item.data)
        path.chmod(item.permissions)
    for name, target in skeleton.LINKS.items():
        (tree / name).symlink_to(target)
    for applet in tools.run([str(program), "--list-full"]).decode().split():
        path = tree / applet
        if applet != "linuxrc" and not path.exists() and not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to("/bin/busybox")


def reset_times(tree: Path) -> None:
    """Sets the times of all files to zero, so that two builds are alike."""
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (0, 0), follow_symlinks=False)


def make_ext4(tree: Path, image: Path, size_mib: int, *, alike: bool = True) -> None:
    """Makes an ext4 image of a folder. All files belong to root, also when nobody here is root.

    ``alike`` makes the same folder give the same image. It names every file to debugfs: not for
    names that strangers chose.
    """
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    image.chmod(0o644)
    # The library's own clock, so that two builds are alike.
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": "1", "MKE2FS_CONFIG": os.devnull}
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    tools.run(
        [
            *as_root,
            tools.find("mke2fs"),
            *("-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"),
            *("-L", "nexus-root", "-U", UUID, "-O", ",".join(("none", *FEATURES))),
            *("-E", f"root_owner=0:0,hash_seed={UUID},assume_storage_prezeroed=1,nodiscard"),
            *("-d", str(tree), str(image)),
        ],
        environment=environment,
    )
    if not alike:
        return
    # mke2fs takes over the time at which each file was changed here, which nobody can set.
    names = ["/", *(f"/{path.relative_to(tree)}" for path in tree.rglob("*"))]
    commands = "".join(f'set_inode_field "{name}" ctime 0\n' for name in names)
    tools.run(
        ["debugfs", "-w", "-f", "-", str(image)], stdin=commands.encode(), environment=environment
    )
