import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BackendError
from protocol.sse import EventStreamParser, ServerSentEvent


def events_of(*chunks: bytes, limit: int = 1_000_000) -> list[ServerSentEvent]:
    parser = EventStreamParser(limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def pairs(*chunks: bytes) -> list[tuple[str, bytes]]:
    return [(event.type, event.data) for event in events_of(*chunks)]


def test_event_has_its_name_and_data():
    assert pairs(b"event: ping\ndata: {}\n\n") == [("ping", b"{}")]


def test_event_without_a_name_is_a_message():
    assert pairs(b"data: a\n\n") == [("message", b"a")]


def test_name_of_an_event_does_not_stay_for_the_next():
    assert pairs(b"event: x\ndata: 1\n\ndata: 2\n\n") == [("x", b"1"), ("message", b"2")]


def test_name_of_an_event_without_data_does_not_stay_for_the_next():
    assert pairs(b"event: x\n\ndata: 2\n\n") == [("message", b"2")]


def test_lines_of_data_are_joined_with_a_line_feed():
    assert pairs(b"data: a\ndata:\ndata: b\n\n") == [("message", b"a\n\nb")]


@pytest.mark.parametrize("line", [b"data\n\n", b"data:\n\n", b"data: \n\n"])
def test_data_may_be_empty(line):
    assert pairs(line) == [("message", b"")]


def test_exactly_one_space_after_the_colon_is_dropped():
    assert pairs(b"data:  a\n\ndata:b\n\n") == [("message", b" a"), ("message", b"b")]


def test_comments_and_unknown_fields_are_passed_over():
    assert pairs(b": keep-alive\n\n:\nretry: 10\ncolour: red\nnothing\ndata: a\n\n") == [("message", b"a")]


def test_id_stays_until_another_and_a_nul_in_it_is_refused():
    stream = b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\nid\ndata: d\n\n"
    assert [event.id for event in events_of(stream)] == ["1", "1", "1", ""]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_kind_of_line_end_ends_a_line(end):
    assert pairs(end.join([b"event: x", b"data: 1", b"", b"data: 2", b"", b""])) == [
        ("x", b"1"),
        ("message", b"2"),
    ]


def test_cr_ends_a_line_at_once_and_its_lf_in_the_next_chunk_ends_no_other():
    assert pairs(b"data: a\r\n\r") == [("message", b"a")]
    assert pairs(b"event: x\r", b"\ndata: a\r", b"\ndata: b\r\n\r", b"\n") == [("x", b"a\nb")]


def test_byte_order_mark_is_dropped_at_the_start_and_only_there():
    assert pairs(b"\xef\xbb", b"\xbfdata: a\n\n") == [("message", b"a")]
    assert pairs(b"data: a\n\n\xef\xbb\xbfdata: b\n\n") == [("message", b"a")]


def test_bytes_that_are_not_utf_8_become_the_replacement_character():
    (event,) = events_of(b"data: a\xff\n\n")
    assert event.text == "a\ufffd"


def test_character_cut_between_chunks_is_whole():
    whole = "data: h\u00e9 \U0001f600\n\n".encode()
    for cut in range(len(whole)):
        (event,) = events_of(whole[:cut], whole[cut:])
        assert event.text == "h\u00e9 \U0001f600"


def test_event_is_given_as_soon_as_its_empty_line_is_there():
    parser = EventStreamParser()
    assert parser.feed(b"data: a\n") == []
    assert len(parser.feed(b"\n")) == 1


def test_end_completes_an_event_that_lacks_only_its_empty_line():
    parser = EventStreamParser()
    assert parser.feed(b"event: x\ndata: a") == []
    assert [(event.type, event.data) for event in parser.finish()] == [("x", b"a")]


def test_end_after_a_complete_event_gives_nothing():
    parser = EventStreamParser()
    parser.feed(b"data: a\n\n")
    assert parser.finish() == []


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 200 + b"\n\n"],
        [b"x"] * 200,
        [b"data: " + b"x" * 40 + b"\n"] * 3,
        [b": " + b"x" * 40 + b"\n"] * 3,
        [b"data: " + b"x" * 60 + b"\n", b"y" * 60],
    ],
)
def test_event_over_the_limit_is_refused(chunks):
    with pytest.raises(BackendError, match="more than 100 bytes"):
        events_of(*chunks, limit=100)


def test_limit_is_for_one_event_and_not_for_the_stream():
    one = b"data: " + b"x" * 80 + b"\n\n"
    assert len(events_of(*[one] * 50, limit=100)) == 50
    assert len(events_of(*[one[:50], one[50:]] * 50, limit=100)) == 50


def test_event_of_many_small_pieces_within_the_limit_is_read():
    line = b"data: " + b"x" * 80 + b"\n\n"
    assert len(events_of(*(line[place : place + 1] for place in range(len(line))), limit=100)) == 1


LINES = st.lists(
    st.sampled_from(
        [
            b"data: a",
            b"data:",
            b"event: x",
            b": c",
            b"",
            b"",
            b"id: 7",
            "data: \u20ac".encode(),
            b"data: b: c",
        ]
    ),
    max_size=12,
)


@settings(max_examples=100)
@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 200), max_size=6))
def test_how_a_stream_is_cut_changes_nothing(lines, end, cuts):
    stream = end.join(lines) + end
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    chunks = [stream[start:stop] for start, stop in itertools.pairwise(places)]
    in_pieces, whole = EventStreamParser(), EventStreamParser()
    given_in_pieces = [event for chunk in chunks for event in in_pieces.feed(chunk)] + in_pieces.finish()
    bytewise = EventStreamParser()
    one_by_one = [event for byte in stream for event in bytewise.feed(bytes([byte]))] + bytewise.finish()
    assert given_in_pieces == one_by_one == whole.feed(b"\n".join(lines) + b"\n") + whole.finish()
