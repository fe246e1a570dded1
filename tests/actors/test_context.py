"""What of a long session the model is sent: bounded, and cut between turns only."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.context import CHARACTERS_PER_TOKEN, LEFT_OUT, Context
from protocol.canonical import canonical_json
from store.sessions import HistoryRow
from tests.support.daemon import orphans

Message = dict[str, Any]


def said(text: str) -> list[Message]:
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]


def with_tools(name: str, calls: int, size: int) -> list[Message]:
    """Return a turn that calls tools one after the other."""
    messages: list[Message] = [{"role": "user", "content": f"do {name}"}]
    for number in range(calls):
        call_id = f"{name}-{number}"
        messages += [
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": call_id, "name": "read_file", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call_id, "content": "x" * size}],
            },
        ]
    return [*messages, {"role": "assistant", "content": [{"type": "text", "text": "done"}]}]


def rows(*turns: list[Message]) -> list[HistoryRow]:
    found: list[HistoryRow] = []
    for number, turn in enumerate(turns):
        found += [
            HistoryRow(f"turn-{number}", len(found) + at, one["role"], one["content"], "")
            for at, one in enumerate(turn)
        ]
    return found


def characters(messages: list[Message]) -> int:
    return len(canonical_json(messages))


def test_what_fits_is_sent_whole_and_in_order():
    turns = [said("one"), with_tools("two", 2, 10), said("three")]
    assert Context(rows(*turns)).messages(10_000) == [message for turn in turns for message in turn]
    assert Context().messages(10) == []


def test_the_oldest_turns_are_left_out_behind_a_marker():
    context = Context(rows(said("a" * 400), said("b" * 400), said("c" * 400)))
    sent = context.messages(500)
    assert sent[0] == {"role": "user", "content": LEFT_OUT}
    assert [message["content"] for message in sent[1:] if message["role"] == "user"] == ["b" * 400, "c" * 400]
    # What was left out stays out, so that the beginning of the prompt does not change back and forth.
    assert context.messages(100_000) == sent


def test_a_turn_too_long_for_the_bound_is_left_out_whole():
    context = Context(rows(said("short"), with_tools("long", 50, 1_000)))
    assert context.messages(1_000) == [{"role": "user", "content": LEFT_OUT}]


def test_a_turn_that_lost_its_beginning_in_the_store_is_not_sent():
    torn = with_tools("torn", 3, 10)[2:]
    sent = Context(rows(torn, said("whole")), shortened=True).messages(10_000)
    assert sent == [{"role": "user", "content": LEFT_OUT}, *said("whole")]


def test_a_message_of_thinking_alone_is_not_sent():
    cut_off = [
        {"role": "user", "content": "think"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
    ]
    context = Context()
    context.append(cut_off)
    context.append(said("next"))
    assert context.messages(1_000) == [cut_off[0], *said("next")]


turns_of_any_kind = st.lists(
    st.one_of(
        st.builds(said, st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)),
        st.builds(with_tools, st.uuids().map(str), st.integers(0, 5), st.integers(0, 200)),
    ),
    max_size=12,
)


@given(turns_of_any_kind, st.integers(1, 1_000), st.booleans())
def test_what_is_sent_is_bounded_whole_turns_and_the_newest(
    turns: list[list[Message]], tokens_max: int, reread: bool
):
    context = Context(rows(*turns)) if reread else Context()
    if not reread:
        for turn in turns:
            context.append(turn)
    sent = context.messages(tokens_max)
    body = sent[1:] if sent and sent[0]["content"] == LEFT_OUT else sent
    assert characters(body) <= tokens_max * CHARACTERS_PER_TOKEN
    assert orphans(body) == []
    kept = next(
        number for number in range(len(turns) + 1) if [one for turn in turns[number:] for one in turn] == body
    )
    assert (kept > 0) == (len(body) != len(sent))
    if kept > 0:  # one more would not have fitted
        one_more = sum(characters(turn) // CHARACTERS_PER_TOKEN + 1 for turn in turns[kept - 1 :])
        assert one_more > tokens_max
