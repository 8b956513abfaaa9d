"""Tables of measurements, and the machine they were made on."""

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    title: str
    rows: dict[str, list[float]]
    """The figure of every round, by what was measured."""
    against: str
    """The row that the others are compared with."""
    unit: str = "ms"


def markdown(table: Table) -> str:
    """p50, p99 and the ratio of p50s."""
    base = statistics.median(table.rows[table.against])
    lines = [
        f"### {table.title}",
        "",
        f"| what | n | p50 {table.unit} | p99 {table.unit} | × p50 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in table.rows.items():
        p50 = statistics.median(values)
        p99 = sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]
        lines.append(f"| {name} | {len(values)} | {p50:.1f} | {p99:.1f} | {p50 / base:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores, memory and kernel, in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    python = platform.python_version()
    return (
        f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {python}"
    )
