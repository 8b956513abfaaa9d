"""Writes NoCloud config drives: how a guest learns its name, ssh keys and user data.

Source: cloud-init's NoCloud data source: an ISO 9660 file system labelled ``cidata`` with the files
``meta-data``, ``user-data``, ``vendor-data`` and ``network-config`` (version 2), here with Joliet
and Rock Ridge names. See docs/config-drive.md.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pycdlib

from nexus.images import workplace
from nexus.images.errors import ImageError

LABEL = "cidata"


class ConfigDriveError(ImageError):
    """What a config drive should hold cannot be written to one."""


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC as a guest is told of it."""

    iface: str
    mac: str
    address: str
    """``10.77.0.5/20``"""
    gateway: str | None
    dns: Sequence[str] = ()


def network_config(nics: Sequence[Nic]) -> str:
    """The text of ``network-config``: YAML, found by MAC so that no other name of a link matters.

    ``0.0.0.0/0`` and not ``default``, which older versions of cloud-init do not know.
    """
    lines = ["version: 2", "ethernets:" if nics else "ethernets: {}"]
    for nic in nics:
        lines += [
            f"  {nic.iface}:",
            "    match:",
            f"      macaddress: {_quoted(nic.mac)}",
            f"    set-name: {nic.iface}",
            "    dhcp4: false",
            "    addresses:",
            f"      - {_quoted(nic.address)}",
        ]
        if nic.gateway is not None:
            lines += [
                "    routes:",
                '      - to: "0.0.0.0/0"',
                f"        via: {_quoted(nic.gateway)}",
            ]
        if nic.dns:
            servers = ", ".join(map(_quoted, nic.dns))
            lines += ["    nameservers:", f"      addresses: [{servers}]"]
    return "\n".join(lines) + "\n"


def meta_data(*, instance_id: str, hostname: str, ssh_keys: Sequence[str]) -> str:
    """The text of ``meta-data``: YAML, one value a line, every value in double quotes.

    Raises ConfigDriveError if a value would not stay on its line.
    """
    for value in (instance_id, hostname, *ssh_keys):
        if not value.isprintable():
            raise ConfigDriveError(
                f"not on one line: {value[:40]!r}", "give each name and each ssh key as one line"
            )
    lines = [f"instance-id: {_quoted(instance_id)}", f"local-hostname: {_quoted(hostname)}"]
    if ssh_keys:
        lines.append("public-keys:")
        lines += [f"  - {_quoted(key)}" for key in ssh_keys]
    return "\n".join(lines) + "\n"


def write(
    dest: Path,
    *,
    instance_id: str,
    hostname: str,
    ssh_keys: Sequence[str] = (),
    user_data: str | None = None,
    vendor_data: str | None = None,
    nics: Sequence[Nic] = (),
) -> None:
    """Writes the drive to ``dest`` whole, mode 0600 since user data may hold secrets.

    Raises ConfigDriveError if a value does not fit.
    """
    files = {
        "meta-data": meta_data(instance_id=instance_id, hostname=hostname, ssh_keys=ssh_keys),
        "user-data": user_data or "",
        "vendor-data": vendor_data or "",
        "network-config": network_config(nics),
    }
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    try:
        for name, text in files.items():
            data = text.encode()
            iso.add_fp(
                io.BytesIO(data),
                len(data),
                iso_path=f"/{name.replace('-', '_').upper()}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        with workplace.file(dest.parent) as (descriptor, path):
            with open(descriptor, "wb", closefd=False) as out:
                iso.write_fp(out)
            path.replace(dest)
    finally:
        iso.close()


def _quoted(value: str) -> str:
    """A YAML scalar; JSON's strings are YAML's double-quoted ones."""
    return json.dumps(value, ensure_ascii=False)
