"""Every call that is sent has its result right behind it, and every result its call, whatever a client sent."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.messages_loop import ModelSettings, build_payload
from actors.runtime.pairing import NO_RESULT, paired
from tests.support.daemon import orphans
from tests.support.turns import request, session

IDS = st.sampled_from(["a", "b", "c"])
TEXT = st.builds(lambda: {"type": "text", "text": "hello"})
CALL = st.builds(lambda call: {"type": "tool_use", "id": call, "name": "read_file", "input": {}}, IDS)
RESULT = st.builds(
    lambda call, content: {"type": "tool_result", "tool_use_id": call, "content": content, "is_error": False},
    IDS,
    st.sampled_from(["", "text", [{"type": "text", "text": "block"}]]),
)


def message(role: str, *kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    content = st.lists(
        st.one_of(*kinds), min_size=1, max_size=4, unique_by=lambda block: block.get("id", id(block))
    )
    return st.builds(lambda blocks: {"role": role, "content": blocks}, content)


CONVERSATION = st.lists(
    st.one_of(message("assistant", TEXT, CALL), message("user", TEXT, RESULT)), max_size=8
)
LAST = {"role": "user", "content": "go on"}


@given(CONVERSATION)
def test_whatever_was_sent_is_in_pairs_and_what_is_in_pairs_stays_as_it_is(messages):
    mended = list(paired([*messages, LAST]))
    assert orphans(mended) == []
    assert all(one["content"] for one in mended)
    assert mended[-1]["role"] == "user"
    assert list(paired(mended)) == mended
    for one in mended:  # results come first in a message
        types = [
            block["type"] == "tool_result" for block in one["content"] if isinstance(one["content"], list)
        ]
        assert types == sorted(types, reverse=True)


def test_a_call_without_a_result_gets_one_and_a_result_without_a_call_is_text():
    call = {"type": "tool_use", "id": "a", "name": "read_file", "input": {}}
    stray = {"type": "tool_result", "tool_use_id": "b", "content": "found", "is_error": False}
    messages = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [stray]}]
    payload = build_payload(session(), request(*messages), messages, ModelSettings(model="scripted"))
    [_, last] = payload["messages"]
    result, *rest = last["content"]
    assert (result["tool_use_id"], result["content"], result["is_error"]) == ("a", NO_RESULT, True)
    assert [block["text"] for block in rest] == ["[the result of a call that is not here, b]", "found"]
