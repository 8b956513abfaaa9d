"""The parser of server-sent events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.client.sse import Message, Parser

PLAIN = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=20)


def parse(text: bytes) -> list[Message]:
    return Parser().feed(text)


def test_events_comments_and_positions() -> None:
    text = (
        b"retry: 5\n\n: hi\nid: 7\n\nid: 8\nevent: vm\ndata: a\ndata:b\nnonsense\n\ndata: cut off"
    )
    assert parse(text) == [
        Message("", "", None),
        Message("", "", "7"),
        Message("vm", "a\nb", "8"),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_three_ways(end: bytes) -> None:
    assert parse(end.join([b"event: x", b"data: y", b"", b""]) + b":")[0] == Message("x", "y", None)


@given(st.lists(st.tuples(st.integers(0, 99), PLAIN), max_size=5), st.lists(st.integers(0, 60)))
def test_pieces_do_not_matter(told: list[tuple[int, str]], cuts: list[int]) -> None:
    text = "".join(f"id: {number}\r\nevent: e\r\ndata: {data}\r\n\r\n" for number, data in told)
    parser, found, rest = Parser(), [], text.encode() + b":"
    for cut in cuts:
        found += parser.feed(rest[:cut])
        rest = rest[cut:]
    found += parser.feed(rest)
    assert found == [Message("e", data, str(number)) for number, data in told]
