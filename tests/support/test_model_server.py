"""The model server of the tests is held to the protocol itself: the official client must accept it."""

import json
import pathlib
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import anthropic
import httpx
import pytest
import trio

from tests.support.model_server import (
    Cut,
    Response,
    calls,
    event,
    message_end,
    message_start,
    raw,
    says,
    serve,
    status,
    text_block,
    thinking_block,
    tool_block,
)

ROOT = pathlib.Path(__file__).parents[2]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "anthropic"
QUESTION = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


def official(url: str, retries: int = 0) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="test", base_url=url, max_retries=retries)


def final_message(url: str, retries: int = 0) -> anthropic.types.Message:
    with official(url, retries) as client, client.messages.stream(**QUESTION) as stream:
        return stream.get_final_message()


async def in_thread(function, *arguments):
    return await trio.to_thread.run_sync(function, *arguments)


@pytest.fixture
async def server():
    async with serve() as running:
        yield running


async def test_official_client_reads_text_as_it_streams(server):
    server.script(says("Hel", "lo"))

    def pieces():
        with official(server.url) as client, client.messages.stream(**QUESTION) as stream:
            return list(stream.text_stream)

    assert await in_thread(pieces) == ["Hel", "lo"]
    assert server.requests[0].path == "/v1/messages"
    assert server.requests[0].body["stream"] is True


async def test_official_asynchronous_client_reads_it_under_trio(server):
    server.script(says("Hel", "lo"))
    async with (
        anthropic.AsyncAnthropic(api_key="test", base_url=server.url, max_retries=0) as client,
        client.messages.stream(**QUESTION) as stream,
    ):
        message = await stream.get_final_message()
    assert (message.content[0].text, message.stop_reason, message.usage.output_tokens) == (
        "Hello",
        "end_turn",
        5,
    )


async def test_official_client_reads_thinking_and_calls(server):
    server.script(
        Response(
            (
                message_start(),
                *thinking_block(0, "hm", "sig"),
                *text_block(1, "I look."),
                *tool_block(2, "toolu_1", "read_file", '{"pa', 'th": "a"}'),
                *message_end("tool_use"),
            )
        )
    )
    message = await in_thread(final_message, server.url)
    thinking, text, call = message.content
    assert (thinking.thinking, thinking.signature, text.text) == ("hm", "sig", "I look.")
    assert (call.name, call.input, message.stop_reason) == ("read_file", {"path": "a"}, "tool_use")


async def test_official_client_understands_the_errors(server):
    server.script(status(429, error_type="rate_limit_error"), status(529, error_type="overloaded_error"))
    with pytest.raises(anthropic.RateLimitError, match="scripted 429"):
        await in_thread(final_message, server.url)
    with pytest.raises(anthropic.APIStatusError, match="scripted 529"):
        await in_thread(final_message, server.url)


async def test_official_client_asks_again_after_retry_after(server):
    server.script(status(429, {"retry-after": "0.01"}), says("at last"))
    message = await in_thread(final_message, server.url, 2)
    assert message.content[0].text == "at last"


async def test_official_client_sees_an_error_in_mid_stream(server):
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    server.script(Response((message_start(), error)))
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        await in_thread(final_message, server.url)


async def test_cut_is_a_broken_connection(server):
    server.script(Response((message_start(), Cut())))
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.TransportError):
            await client.post(f"{server.url}/v1/messages", json=QUESTION)


async def test_script_runs_out_into_the_fallback(server):
    server.script(says("first"))
    texts = [(await in_thread(final_message, server.url)).content[0].text for _ in range(2)]
    assert texts == ["first", "Hello from the model server."]


async def test_other_paths_are_not_found(server):
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{server.url}/v2/nothing")).status_code == 404
    assert server.requests == []


async def test_answer_can_depend_on_the_request():
    def echo(received):
        return calls(received.body["tools"][0]["name"], {}) if "tools" in received.body else says("no tools")

    async with serve(fallback=echo) as server:
        assert (await in_thread(final_message, server.url)).content[0].text == "no tools"


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recorded streams lie beside the project only")
@pytest.mark.parametrize("name", ["basic", "tool_use", "message_delta_fields"])
async def test_official_client_reads_the_recorded_streams_from_it(server, name):
    server.script(raw((FIXTURES / f"{name}.sse").read_bytes(), 50))
    message = await in_thread(final_message, server.url)
    assert message.stop_reason in ("end_turn", "tool_use")


async def test_process_prints_its_url_answers_from_its_script_and_gives_its_requests_back(tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"text": ["one", "!"]}, {"tool": "read_file", "input": {"path": "a"}}]))
    command = [sys.executable, "-m", "tests.support.model_server", "--port", "0", "--script", str(script)]
    async with running(command) as url:
        assert (await in_thread(final_message, url)).content[0].text == "one!"
        assert (await in_thread(final_message, url)).content[0].input == {"path": "a"}
        async with httpx.AsyncClient(base_url=url) as client:
            more = [{"sse": says("raw").chunks[0].decode(), "chunk_size": 9}, {"status": 503}, {"text": "x"}]
            await client.post("/_script", json=more)
            raw_answer = await client.post("/v1/messages", json=QUESTION)
            assert raw_answer.content == says("raw").chunks[0]
            assert (await client.post("/v1/messages", json=QUESTION)).status_code == 503
            received = (await client.get("/_requests")).json()
            assert [one["body"]["model"] for one in received] == ["claude-sonnet-5-5"] * 4
            await client.post("/_reset")
            assert (await client.get("/_requests")).json() == []


@asynccontextmanager
async def running(command):
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
        process = await nursery.start(start)
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some()
        yield line.decode().strip()
        process.terminate()
