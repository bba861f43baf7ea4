"""The server as its clients meet it: OpenAI's own client, and plain HTTP for each misuse."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch

from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.evaluation.result import EvaluationResult, write_evaluation
from gpt_pipeline.serving.app import Limits
from gpt_pipeline.serving.engine import Engine
from gpt_pipeline.serving.models import Served
from gpt_pipeline.serving.server import place_of
from gpt_pipeline.serving.talk import KnownQuestion, is_right, known_questions
from gpt_pipeline_tests.servers import wait
from gpt_pipeline_tests.serving_models import CONTEXT, decided_model, endless_model, served, server
from gpt_pipeline_tests.synth_rows import prompt_text

TEXT_DATA = "data: {source: ./x.txt, format: text, num_samples: 300, max_length: 32}"
KEY = "a key that nobody guesses"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    root = tmp_path_factory.mktemp("served")
    return [
        served("first", decided_model(), root),
        served("endless", endless_model(), root),
        served("texts", decided_model(), root, data=TEXT_DATA),
    ]


@pytest.fixture(scope="module")
def running(models: list[Served]) -> Iterator[tuple[str, Engine]]:
    with server(models, limits=Limits(max_tokens=45)) as started:
        yield started


@pytest.fixture(scope="module")
def client(running: tuple[str, Engine]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running[0]}/v1", api_key="none", max_retries=0)


def ask(
    address: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], Any]:
    """POST JSON, or GET without a body; return status, headers and what came back."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    own = {} if body is None else {"content-type": "application/json"}
    connection.request("GET" if body is None else "POST", path, text, {**own, **(headers or {})})
    answer = connection.getresponse()
    content = answer.read().decode()
    is_json = "json" in answer.headers.get("content-type", "")
    found = {name: ", ".join(answer.headers.get_all(name, [])) for name in answer.headers}
    return answer.status, found, json.loads(content) if is_json else content


def alone(model: Served, prompt: str, limit: int) -> str:
    ids = [EOT_TOKEN, *gpt2().encode(prompt)]
    (written,) = generate(model.writer.model, [ids], max_new_tokens=limit, context_length=CONTEXT)
    return gpt2().decode(written.tokens)


def test_client_lists_the_models_with_their_steps(client: openai.OpenAI) -> None:
    found = {each.id: each for each in client.models.list()}
    assert [*found] == ["first", "endless", "texts"]
    assert found["first"].model_dump()["step"] == 7
    assert client.models.retrieve("endless").id == "endless"


def test_client_completion_is_what_the_evaluation_generates(client: openai.OpenAI, models: list[Served]) -> None:
    answer = client.completions.create(model="first", prompt=["Once", "So it was"], max_tokens=9, temperature=0)
    assert [choice.text for choice in answer.choices] == [alone(models[0], each, 9) for each in ("Once", "So it was")]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2 + len(gpt2().encode("Once")) + len(gpt2().encode("So it was"))
    assert answer.system_fingerprint == "fp_abababababab"


def test_client_stream_adds_up_to_the_answer_and_ends_with_the_usage(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "endless", "prompt": "Once", "max_tokens": 12, "seed": 5, "n": 2}
    whole = client.completions.create(**asked)
    chunks = [*client.completions.create(**asked, stream=True, stream_options={"include_usage": True})]
    texts = ["", ""]
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1]
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    assert {choice.finish_reason for choice in whole.choices} == {"length"}


def test_client_seed_writes_the_same_whatever_else_is_written(client: openai.OpenAI) -> None:
    def draw(seed: int) -> str:
        asked: dict[str, Any] = {"prompt": "Once", "max_tokens": 20, "temperature": 0.9, "top_p": 0.95, "seed": seed}
        return client.completions.create(model="first", **asked, extra_body={"top_k": 40}).choices[0].text

    seeds = [*range(6)] * 2
    with ThreadPoolExecutor(12) as pool:
        together = [*pool.map(draw, seeds)]
    assert together == [draw(seed) for seed in seeds]
    assert len(set(together)) > 1


def test_client_echo_scores_the_tokens_of_the_prompt(client: openai.OpenAI, models: list[Served]) -> None:
    ids = [EOT_TOKEN, *gpt2().encode("Once upon")]
    (choice,) = client.completions.create(
        model="first", prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1
    ).choices
    assert choice.text.startswith("Once upon")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.tokens[:3] == ["<|endoftext|>", "Once", " upon"]
    logs = models[0].writer.model(torch.tensor([ids]))[0].log_softmax(-1)
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[:1] == [None]
    assert choice.logprobs.token_logprobs[1:3] == pytest.approx([float(logs[0, ids[1]]), float(logs[1, ids[2]])], 1e-4)
    only = client.completions.create(model="first", prompt="Once upon", max_tokens=0, echo=True).choices[0]
    assert (only.text, only.finish_reason) == ("Once upon", "length")


def test_client_offsets_count_a_character_of_several_tokens_once(client: openai.OpenAI) -> None:
    prompt = "\u00e9\U0001f642\u65e5 x"
    (choice,) = client.completions.create(
        model="first", prompt=prompt, max_tokens=2, temperature=0, echo=True, logprobs=0
    ).choices
    assert choice.logprobs is not None
    offsets, tokens = choice.logprobs.text_offset or [], choice.logprobs.tokens or []
    whole = [(offset, token) for offset, token in zip(offsets, tokens, strict=True) if token[:6] != "bytes:"]
    assert 4 <= len(whole) < len(tokens)
    assert [choice.text[offset : offset + len(token)] for offset, token in whole] == [token for _, token in whole]


def test_client_stop_string_ends_a_text_and_is_not_part_of_it(client: openai.OpenAI, models: list[Served]) -> None:
    text = alone(models[1], "Once", 20)
    stop = text[8:11]
    answer = client.completions.create(model="endless", prompt="Once", max_tokens=20, temperature=0, stop=stop)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens < 20


def test_client_chat_puts_the_question_as_the_evaluation_does(client: openai.OpenAI, models: list[Served]) -> None:
    asked: Any = {"model": "first", "messages": [{"role": "user", "content": "Why?"}], "temperature": 0}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    (choice,) = answer.choices
    room = CONTEXT - len([EOT_TOKEN, *gpt2().encode(prompt_text("Why?"))])
    text = alone(models[0], prompt_text("Why?"), room)
    reasoning, _, content = text.partition("\n\nA:")
    assert (choice.message.role, choice.message.content) == ("assistant", content.strip())
    assert choice.message.model_dump().get("reasoning_content", "") == reasoning.strip()
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content).decode(errors="replace") == text
    assert all(len(each.top_logprobs) == 2 for each in choice.logprobs.content)
    said, role = "", None
    for chunk in client.chat.completions.create(**asked, stream=True, reasoning_effort="none"):
        role = role or chunk.choices[0].delta.role
        said += chunk.choices[0].delta.content or ""
    assert role == "assistant"
    assert said == alone(models[0], "Q: Why?\n\nA:", CONTEXT - len(gpt2().encode("Q: Why?\n\nA:")) - 1).strip()


MESSAGES = [{"role": "user", "content": "Why?"}]
MISUSES: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown model": ({"model": "frist"}, 404, "did you mean 'first'"),
    "no model": ({"model": None}, 400, "model: missing"),
    "prompt of another type": ({"prompt": 5}, 400, "prompt: found 5: need a string"),
    "empty prompt of ids": ({"prompt": [[]]}, 400, "prompt: found [[]]"),
    "no such token": ({"prompt": [50257]}, 400, "need token ids from 0 to 50256"),
    "number as text": ({"temperature": "1"}, 400, "temperature: found '1'"),
    "too hot": ({"temperature": 3}, 400, "temperature: found 3"),
    "beyond all of the mass": ({"top_p": 1.5}, 400, "top_p: found 1.5: need less than or equal to 1"),
    "fewer than no tokens": ({"top_k": -5}, 400, "top_k: found -5: need at least 1, or 0 or -1, for no limit"),
    "nearly cold": ({"temperature": 1e-9}, 400, "at least 0.001"),
    "flag as number": ({"n": True}, 400, "n: found True"),
    "too many choices": ({"n": 129}, 400, "n: found 129"),
    "too many texts": ({"n": 128, "prompt": ["a", "b", "c"]}, 400, "found 384 texts (3 prompts, n=128)"),
    "too many tokens": ({"max_tokens": 46}, 400, "need at most 45, the limit of this server"),
    "too long": ({"prompt": "a " * 40, "max_tokens": 20}, 400, "the context of this model is 48 tokens"),
    "unsupported": ({"tools": [{"type": "function"}]}, 400, "tools: this server does not know or support it"),
    "unsupported value": ({"frequency_penalty": 0.5}, 400, "frequency_penalty: this server does not know"),
    "too many logprobs": ({"logprobs": 21}, 400, "logprobs: found 21"),
    "empty stop string": ({"stop": ""}, 400, "stop: found ''"),
    "usage without a stream": ({"stream_options": {"include_usage": True}}, 400, "need stream: true"),
    "nothing": ({"max_tokens": 0}, 400, "or echo: true"),
    "tool message": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: found 'tool'"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "reads text alone"),
    "part without text": ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, 400, "text"),
    "no message": ({"messages": []}, 400, "messages: found []: need at least one"),
    "messages as text": ({"messages": "hi"}, 400, "messages: found 'hi': need a list"),
    "message as text": ({"messages": ["hi"]}, 400, "messages.0: found 'hi': need a JSON object"),
    "answer last": (
        {"messages": [*MESSAGES, {"role": "assistant", "content": "So."}]},
        400,
        "found the role 'assistant'",
    ),
    "chat with texts": ({"model": "texts", "messages": MESSAGES}, 400, "ask /v1/completions"),
    "effort": ({"messages": MESSAGES, "reasoning_effort": "high"}, 400, "reasoning_effort: found 'high'"),
    "both limits": ({"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 1}, 400, "not both"),
    "logprobs by number": ({"messages": MESSAGES, "logprobs": 2}, 400, "logprobs: found 2"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_server_refuses_a_misuse_with_its_reason(running: tuple[str, Engine], name: str) -> None:
    given, status, reason = MISUSES[name]
    path = "/v1/chat/completions" if "messages" in given else "/v1/completions"
    body = {"model": "first", **({} if "messages" in given else {"prompt": "a"}), **given}
    found, _, answer = ask(running[0], path, body)
    assert found == status
    assert reason in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_server_names_the_parameter_that_is_above_its_limit(running: tuple[str, Engine]) -> None:
    _, _, answer = ask(running[0], "/v1/completions", {"model": "first", "prompt": "a", "max_tokens": 46})
    assert answer["error"]["param"] == "max_tokens"
    body = {"model": "first", "messages": MESSAGES, "max_completion_tokens": 46}
    _, _, answer = ask(running[0], "/v1/chat/completions", body)
    assert answer["error"]["param"] == "max_completion_tokens"


def test_server_names_the_parameter_that_another_one_forbids(running: tuple[str, Engine]) -> None:
    _, _, answer = ask(running[0], "/v1/completions", {"model": "first", "prompt": "a", "max_tokens": 0})
    assert (answer["error"]["param"], answer["error"]["code"]) == ("max_tokens", "invalid_value")


def test_server_takes_parameters_that_ask_for_nothing(running: tuple[str, Engine]) -> None:
    neutral = {
        "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "logit_bias": None, "top_p": 1, "top_k": -1,
        "suffix": None, "user": "me", "stop": None, "seed": None,
    }  # fmt: skip
    assert ask(running[0], "/v1/completions", {"model": "first", "prompt": "a", **neutral})[0] == 200


def test_server_takes_parameters_of_chat_that_ask_for_nothing(running: tuple[str, Engine]) -> None:
    neutral = {"tools": [], "tool_choice": "none", "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True}
    said = {"role": "assistant", "content": "So.", "tool_calls": [], "annotations": [], "refusal": None}
    body = {"model": "first", "messages": [*MESSAGES, said, *MESSAGES], "max_tokens": 2, **neutral}
    assert ask(running[0], "/v1/chat/completions", body)[0] == 200


@pytest.mark.parametrize("body", [b'{"model": "\xff"}', b"[" * 100_000, b'{"seed": 1' + b"0" * 5000 + b"}"])
def test_server_refuses_a_body_that_cannot_be_read_with_its_reason(running: tuple[str, Engine], body: bytes) -> None:
    connection = http.client.HTTPConnection(urlsplit(running[0]).netloc)
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert (response.status, error["message"][:37]) == (400, "the body cannot be read, need JSON in")


def test_server_refuses_what_is_no_json_and_unknown_addresses_in_openais_form(running: tuple[str, Engine]) -> None:
    status, _, answer = ask(running[0], "/v1/completions", '{"model":')
    assert (status, answer["error"]["message"][:19]) == (400, "the body is no JSON")
    status, _, answer = ask(running[0], "/v1/completions", "[1]")
    assert (status, answer["error"]["message"]) == (400, "the body: found [1]: need a JSON object")
    assert ask(running[0], "/v1/embeddings", {})[0] == 404
    assert ask(running[0], "/v1/completions")[0] == 405
    client = openai.OpenAI(base_url=f"{running[0]}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="need one of first, endless, texts"):
        client.completions.create(model="gpt-4", prompt="a")


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/v1/models", "/v1/models/first", "/v1/completions"])
def test_server_answers_head_as_get_without_the_body(running: tuple[str, Engine], path: str) -> None:
    status, headers, _ = ask(running[0], path)
    connection = http.client.HTTPConnection(urlsplit(running[0]).netloc, timeout=60)
    for _ in range(2):  # over one connection: what a body left there would be the second answer
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (status, b"")
        assert answer.headers.get("content-length") == headers.get("content-length")


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}],
)
def test_server_answers_no_other_website(running: tuple[str, Engine], headers: dict[str, str]) -> None:
    body = {"model": "first", "prompt": "a"}
    assert ask(running[0], "/v1/completions", body, headers)[0] == 403
    assert ask(running[0], "/talk/questions", None, headers)[0] == 403
    status, _, text = ask(running[0], "/", None, {"host": "evil.example"})
    assert (status, "gpt-pipeline serve --allow-host NAME" in text) == (403, True)


def test_server_with_a_key_answers_those_who_have_it(models: list[Served]) -> None:
    with server(models[:1], key=KEY) as (address, _):
        for path in ("/v1/models", "/talk/questions"):
            status, headers, answer = ask(address, path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert answer["error"]["code"] == "invalid_api_key"
            assert ask(address, path, None, {"authorization": f"Bearer {KEY}x"})[0] == 401
            assert ask(address, path, None, {"authorization": f"Bearer {KEY}"})[0] == 200
        assert ask(address, "/")[0] == 200
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY)
        assert client.completions.create(model="first", prompt="a").choices


@pytest.mark.parametrize("path", ["/v1/completions", "/talk/mark", "/elsewhere"])
def test_server_with_a_key_reads_nothing_of_those_who_lack_it(models: list[Served], path: str) -> None:
    with server(models[:1], key=KEY) as (address, _):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        connection.putrequest("POST", path)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "1000000")
        connection.endheaders(b"no json")  # and the rest never comes
        assert connection.getresponse().status == 401
        connection.close()


def slow_down(engine: Engine) -> None:
    """Have each step take a while, so that a request is under way for some time."""
    advance = engine._advance

    def slowly(*given: Any) -> None:
        time.sleep(0.05)
        advance(*given)

    engine._advance = slowly  # type: ignore[method-assign]


def test_server_full_queue_tells_when_to_come_back_and_a_client_that_leaves_frees_its_place(
    models: list[Served],
) -> None:
    with server(models, limits=Limits(batch_size=1, queue_size=1)) as (address, engine):
        slow_down(engine)
        body = {"model": "endless", "prompt": "a", "max_tokens": 45}
        connections = []
        for stream in (False, True):
            connection = http.client.HTTPConnection(urlsplit(address).netloc)
            sent = json.dumps({**body, "stream": stream})
            connection.request("POST", "/v1/completions", sent, {"content-type": "application/json"})
            connections.append(connection)
            wait(lambda: engine.writing == 1, seconds=30, what="the first text")
        wait(lambda: engine.waiting == 1, seconds=30, what="the second text in the queue")
        status, headers, answer = ask(address, "/v1/completions", body)
        assert (status, headers["retry-after"]) == (429, "1")
        assert answer["error"]["code"] == "rate_limit_exceeded"
        for connection in connections:
            connection.close()
        wait(lambda: engine.writing == engine.waiting == 0, seconds=30, what="both places to be free")


def test_server_request_that_takes_too_long_ends_with_the_reason(models: list[Served]) -> None:
    with server(models, limits=Limits(seconds=0.3)) as (address, engine):
        slow_down(engine)
        body = {"model": "endless", "prompt": "a", "max_tokens": 40}
        status, headers, answer = ask(address, "/v1/completions", body)
        assert (status, headers["x-should-retry"], answer["error"]["code"]) == (504, "false", "timeout")
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match=r"not finished within 0.3 s"):
            [*client.completions.create(model="endless", prompt="a", max_tokens=40, stream=True)]
        wait(lambda: engine.writing == 0, seconds=30, what="the place to be free")


def test_place_beyond_this_machine_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--host: found 0\.0\.0\.0.*--api-key-env NAME"):
        place_of(host="0.0.0.0", port=None, key_variable=None, names=())
    monkeypatch.setenv("OWN_KEY", "short")
    with pytest.raises(UserError, match="found 5 characters in OWN_KEY, need a key of at least 16"):
        place_of(host="0.0.0.0", port=None, key_variable="OWN_KEY", names=())
    monkeypatch.setenv("OWN_KEY", KEY)
    place = place_of(host="0.0.0.0", port=None, key_variable="OWN_KEY", names=["gpu.example.org"])
    assert (place.key, place.names) == (KEY, ["gpu.example.org"])
    assert place.address == f"http://127.0.0.1:{place.port}"  # 0.0.0.0 is no name that the guard answers to
    assert place_of(host="127.0.0.1", port=None, key_variable=None, names=()).key is None


def test_place_with_a_key_that_no_header_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "schlüssel-für-alle")
    with pytest.raises(UserError, match="a character in OWN_KEY that is not printable ASCII"):
        place_of(host="127.0.0.1", port=None, key_variable="OWN_KEY", names=())
    monkeypatch.setenv("OWN_KEY", "a whole sentence is a key, too")
    assert place_of(host="127.0.0.1", port=None, key_variable="OWN_KEY", names=()).key is not None


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
@pytest.mark.parametrize("port", [None, 8123])
def test_place_at_an_address_that_is_not_of_this_machine_says_so(
    monkeypatch: pytest.MonkeyPatch, host: str, port: int | None
) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    with pytest.raises(UserError, match=r"which the system refuses \(.+\)") as refused:
        place_of(host=host, port=port, key_variable="OWN_KEY", names=())
    assert "another program" not in str(refused.value)


def evaluated(model: Served, *answers: Mapping[str, Any]) -> None:
    folder = model.experiment.folder.evaluations
    folder.mkdir(parents=True)
    write_evaluation(
        EvaluationResult(
            fingerprint="f", key="step_00000007", checkpoint={"step": 7, "weights_sha256": ""}, config={}, upstream={},
            metrics={}, answers=answers, started_at="", created_at="", seconds=1.0, device="cpu", versions={},
            path=folder / "step_00000007-f.json", reused=False,
        )
    )  # fmt: skip


def test_talk_marks_answers_to_held_out_questions_as_an_evaluation_does(tmp_path: Path) -> None:
    model = served("asked", decided_model(), tmp_path)
    one = {"question": "What is 2 and 2?", "expected": "4", "reference_reasoning": "2 and 2."}
    other = {"question": "Which is it?\nA) a cat\nB) a dog", "expected": "B", "reference_reasoning": ""}
    evaluated(model, one, other)
    questions = known_questions([model.experiment, model.experiment])
    assert [(each.question, each.reasons) for each in questions] == [
        (one["question"], True),
        (other["question"], False),
    ]
    with server([model]) as (address, _):
        assert [each["reasons"] for each in ask(address, "/talk/questions")[2]] == [True, False]
        marks = [
            ask(address, "/talk/mark", {"question": place, "answer": answer})[2]
            for place, answer in ((0, "It is 4."), (0, "5"), (1, "B"), (1, "A"))
        ]
        assert [mark["is_right"] for mark in marks] == [True, False, True, False]
        assert marks[1]["expected"] == "4"
        assert ask(address, "/talk/mark", {"question": 2, "answer": ""})[0] == 400
        assert ask(address, "/talk/mark", {"question": 0})[0] == 400


def test_is_right_does_not_count_a_number_of_the_question() -> None:
    known = KnownQuestion(experiment="x", question="2 and 2?", expected="4", reasons=False)
    assert is_right("2 and 2 is 4", known)
    assert not is_right("", known)


def test_talk_page_loads_nothing_from_elsewhere_and_runs_no_script_of_its_text(running: tuple[str, Engine]) -> None:
    status, headers, page = ask(running[0], "/")
    assert status == 200
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in headers["content-security-policy"]
    assert "<script>" not in page
    assert "style=" not in page
    assert re.findall(r'(?:src|href)="(?!/)[^"]*"', page) == []
    for path in re.findall(r'(?:src|href)="(/[^"]*)"', page):
        assert ask(running[0], path)[0] == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["told", "in chunks"])
def test_body_that_is_too_large_is_refused_and_the_server_goes_on(running: tuple[str, Engine], chunked: bool) -> None:
    address = urlsplit(running[0]).netloc
    body = b'{"model": "first", "prompt": "' + b"a" * (9 << 20) + b'"}'
    connection = http.client.HTTPConnection(address, timeout=60)
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read what it refuses
        connection.request(
            "POST", "/v1/completions", pieces, {"content-type": "application/json"}, encode_chunked=chunked
        )
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "request_too_large")
    assert ask(running[0], "/v1/models")[0] == 200
