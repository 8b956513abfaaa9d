"""Our tables as the kernel holds them, beside what they should be. Nothing is changed by it."""

import ctypes
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nexus.agent import nft
from nexus.agent.errors import NetworkFailed

_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


@dataclass
class Ruleset:
    """The parts of two tables: ``bridge chain from_vm`` has its rules in order, ``bridge set taps``
    its elements."""

    parts: dict[str, list[str]] = field(default_factory=dict)

    def holds(self, part: str, *words: object) -> bool:
        """Whether a set has an element of these words, as nftables writes them."""
        return _text({"concat": list(words)}) in self.parts.get(part, [])

    def leads(self, part: str, key: Sequence[object], value: Sequence[object]) -> bool:
        """Whether a map has this value for this key."""
        element = [{"concat": list(key)}, {"concat": list(value)}]
        return _text(element) in self.parts.get(part, [])


def parsed(listing: Sequence[dict[str, Any]], table: str) -> Ruleset:
    """What a listing in JSON says of the tables of this name, without what differs each time."""
    found = Ruleset()
    for entry in listing:
        ((what, about),) = entry.items()
        if about.get("table", about.get("name") if what == "table" else None) != table:
            continue
        family = about["family"]
        if what == "table":
            found.parts[f"{family} table"] = []
        elif what == "rule":
            chain = found.parts.setdefault(f"{family} chain {about['chain']}", [])
            chain.append(_text(about["expr"]))
        elif what == "chain":
            hook = [_text({key: about[key] for key in ("hook", "prio", "policy") if key in about})]
            found.parts.setdefault(f"{family} chain {about['name']}", [])[:0] = hook
        elif what in ("set", "map"):
            elements = sorted(_text(element) for element in about.get("elem", ()))
            found.parts[f"{family} {what} {about['name']}"] = elements
    return found


def differences(wanted: Ruleset, held: Ruleset) -> list[str]:
    """What the kernel lacks or has besides, in words."""
    said = []
    for part, lines in wanted.parts.items():
        if part not in held.parts:
            said.append(f"{part} is missing")
            continue
        missing, more = Counter(lines), Counter(held.parts[part])
        what = "rule" if " chain " in part else "element"
        for verb, rest in (("lacks", missing - more), ("has besides", more - missing)):
            for line, _ in zip(rest, range(3), strict=False):
                said.append(f"{part} {verb} the {what} {line[:200]}")
        if missing == more and lines != held.parts[part]:
            said.append(f"{part} has its rules in another order")
    said += [f"{part} is not ours" for part in held.parts if part not in wanted.parts]
    return said


def held(table: str) -> Ruleset:
    """What the kernel has of ours now. Blocks; raises NetworkFailed."""
    return parsed(nft.listing(), table)


def as_held(text: str, table: str) -> Ruleset:
    """What the kernel would have of a text of rules: it is given it in a network namespace that
    nobody is in and that is gone when this returns. Blocks some 50 ms; raises NetworkFailed."""

    def apart() -> Ruleset:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise NetworkFailed(
                f"no network namespace to compare rules in: {os.strerror(ctypes.get_errno())}",
                suggestion="run the agent as root (it needs CAP_SYS_ADMIN)",
            )
        return parsed(nft.listing(after=text), table)

    return _in_a_thread_of_its_own(apart)


def _in_a_thread_of_its_own(work: Callable[[], T]) -> T:
    """A thread that left the namespace must not serve anything else afterwards."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below, where it was asked for
            errors.append(error)

    thread = threading.Thread(target=run, name="ruleset")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
