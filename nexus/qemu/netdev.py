"""Interface counters of this process's network namespace."""

import msgspec


class Counters(msgspec.Struct, frozen=True):
    """As the host sees the interface."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


def interface_counters() -> dict[str, Counters]:
    """All interfaces by name, from ``/proc/net/dev`` (sysfs may show another namespace's)."""
    with open("/proc/self/net/dev") as file:  # noqa: PTH123 - pathlib is not imported otherwise
        return parse(file.read())


def parse(text: str) -> dict[str, Counters]:
    """Reads the table: two lines of head, then ``name: rx… tx…``."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        columns = [int(column) for column in rest.split()]
        found[name.strip()] = Counters(columns[0], columns[1], columns[8], columns[9])
    return found
