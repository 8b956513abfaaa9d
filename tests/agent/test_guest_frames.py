"""The channel's codec: whatever is encoded comes back, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.agent.guest_frames import (
    MAX_PAYLOAD_BYTES,
    BadFrame,
    Decoder,
    Frame,
    decode_fields,
    encode_fields,
    split,
)

frames = st.builds(
    Frame, st.binary(min_size=1, max_size=1), st.binary(max_size=300).map(lambda b: b * 7)
)
keys = st.text(st.characters(blacklist_characters="=\x00", blacklist_categories=["Cs"]), min_size=1)
values = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]))


@given(st.lists(frames), st.lists(st.integers(1, 400), min_size=1))
def test_frames_come_back_however_the_bytes_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(frame.encode() for frame in sent)
    decoder, seen, at, turn = Decoder(), [], 0, 0
    while at < len(wire):
        size = cuts[turn % len(cuts)]
        seen += decoder.feed(wire[at : at + size])
        at, turn = at + size, turn + 1
    assert seen == sent
    assert decoder.empty


@given(st.binary())
def test_any_bytes_are_frames_or_a_bad_frame_and_nothing_is_held_beyond_one(data: bytes) -> None:
    decoder = Decoder()
    try:
        seen = list(decoder.feed(data))
    except BadFrame:
        return
    assert (
        b"".join(frame.encode() for frame in seen) == data[: sum(5 + len(f.payload) for f in seen)]
    )


def test_a_frame_longer_than_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadFrame):
        list(Decoder().feed(b"O" + (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big")))
    with pytest.raises(ValueError):
        Frame(b"I", bytes(MAX_PAYLOAD_BYTES + 1)).encode()


@given(st.binary(max_size=1000).map(lambda b: b * 200))
def test_bytes_of_any_length_are_split_into_frames(data: bytes) -> None:
    pieces = list(split(b"I", data))
    assert b"".join(piece.payload for piece in pieces) == data
    assert all(0 < len(piece.payload) <= MAX_PAYLOAD_BYTES for piece in pieces)


@given(st.lists(st.tuples(keys, values)))
def test_fields_come_back_in_their_order(fields: list[tuple[str, str]]) -> None:
    assert decode_fields(encode_fields(fields)) == fields


@pytest.mark.parametrize("field", [("", "x"), ("a=b", "x"), ("a", "x\x00b=y"), ("a\x00b", "x")])
def test_what_would_smuggle_in_another_field_is_refused(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        encode_fields([field])


@given(st.binary())
def test_any_payload_is_fields_or_a_bad_frame(payload: bytes) -> None:
    try:
        fields = decode_fields(payload)
    except BadFrame:
        return
    assert all(key and "\x00" not in key + value for key, value in fields)
