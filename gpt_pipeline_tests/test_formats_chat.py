"""Conversations: from lists of messages to documents with several answers, shards and questions."""

from __future__ import annotations

import csv
import itertools
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.config import ColumnsConfig, DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.formats import format_of
from gpt_pipeline.data.formats.conversation import (
    Message,
    UnusableError,
    conversation_of,
    first_answer,
    first_answer_of,
    question_starts,
    rendered,
)
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import TokenStream, open_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.data.verification import verify_data
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.evaluation.questions import cached_questions, held_out_questions
from gpt_pipeline.orchestration.keys import data_group
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.test_formats_own import column, config_of, documents_of, write


def said(*parts: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in parts]


TWO_TURNS = said(
    ("system", "Be brief."), ("user", "1 + 1? ☃"), ("assistant", "2 ☃"), ("user", "+ 1?"), ("assistant", "3")
)


def made(messages: Any) -> Any:
    return conversation_of(json.dumps(messages))


def test_conversation_reads_as_questions_with_answers_and_knows_each_answer() -> None:
    found = made([*TWO_TURNS, {"role": "user", "content": "unanswered"}])
    assert found.text == "System: Be brief.\n\nQ: 1 + 1? ☃\n\nA: 2 ☃\n\nQ: + 1?\n\nA: 3"
    letters = found.text.encode()
    spans = [letters[begin:end].decode() for begin, end in zip(found.spans[::2], found.spans[1::2], strict=True)]
    assert spans == ["2 ☃\n\nQ:", "3"]
    assert found.text[found.query_start : found.query_end] == "1 + 1? ☃\n\nA: 2 ☃\n\nQ: + 1?"
    assert (found.text[found.answer_start :], found.answer_bytes) == ("3", 1)
    starts = question_starts(found.text, found.query_start, found.spans)
    assert [found.text[start:] for start in starts] == [found.text.partition("\n\n")[2], "Q: + 1?\n\nA: 3"]


def test_question_starts_of_a_long_conversation_take_memory_like_its_text() -> None:
    found = made(said(*[("user", "why ☃?"), ("assistant", "because " * 8)] * 1000))
    tracemalloc.start()
    try:
        starts = question_starts(found.text, found.query_start, found.spans)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(starts) == 1000
    assert all(found.text.startswith("Q: why", start) for start in starts)
    assert most < 10 * len(found.text)  # a copy of all that comes before each question would be 500 times its size


def test_conversation_of_one_turn_is_the_document_of_a_question_with_an_answer() -> None:
    found = made([{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}])
    assert (found.text, list(found.spans)) == ("Q: Why?\n\nA: So.", [12, 15])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "no_messages"),
        ([], "no_messages"),
        ({"role": "user"}, "odd_messages"),
        (["hello"], "odd_messages"),
        ([{"role": "user", "content": ["a"]}], "odd_messages"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "text_parts"),
        ([{"role": "user", "content": [{"type": "image_url", "text": "a"}]}], "odd_messages"),
        ([{"content": "a"}], "odd_messages"),
        (said(("user", "a"), ("tool", "b"), ("assistant", "c")), "other_role"),
        (said(("user", "a")), "no_answer"),
        (said(("user", "a"), ("assistant", None)), "no_answer"),
        (said(("user", " "), ("assistant", "c")), "no_question"),
        (said(("system", "a"), ("assistant", "c")), "no_question"),
        (said(("user", "\ud800"), ("assistant", "c")), "invalid_utf8"),
    ],
)
def test_conversation_that_is_none_says_why(messages: Any, reason: str) -> None:
    with pytest.raises(UnusableError, match=f"^{reason}$"):
        conversation_of(json.dumps(messages))


@pytest.mark.parametrize("cut", ['[{"role": "user", "content": "a"}, {"ro', "plain", "[" * 100_000])
def test_conversation_in_broken_json_says_so(cut: str) -> None:
    with pytest.raises(UnusableError, match=r"^odd_messages$"):
        conversation_of(cut)


MESSAGES = st.lists(
    st.builds(
        Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(min_size=1).filter(str.strip)
    ),
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(MESSAGES)
def test_spans_of_a_conversation_hold_each_answer_and_what_ends_it(before: Sequence[Message]) -> None:
    messages = [Message(role="user", content="Q"), *before, Message(role="assistant", content="ü")]
    found = rendered(messages)
    letters = found.text.encode()
    spans = [letters[begin:end].decode() for begin, end in zip(found.spans[::2], found.spans[1::2], strict=True)]
    marks = {"system": "System:", "user": "Q:", "assistant": "A:"}
    ends = [f"\n\n{marks[each.role]}" for each in messages[1:]] + [""]
    wanted = [each.content + end for each, end in zip(messages, ends, strict=True) if each.role == "assistant"]
    assert spans == wanted


def test_first_answer_ends_where_the_model_asks_by_itself() -> None:
    assert first_answer("3\n\nQ: and?\n\nA: 4") == ("3", True)
    assert first_answer("3 Q: no") == ("3 Q: no", False)


ROWS = [
    {
        "area": "ab"[n % 2],
        "talk": {
            "turns": said(
                ("user", f"{n} + 1?"), ("assistant", f"{n + 1} ☃"), ("user", "+ 1?"), ("assistant", f"{n + 2}")
            )
        },
    }
    for n in range(60)
]


@pytest.fixture(params=["parquet", "jsonl", "json", "arrow", "csv"])
def own(tmp_path: Path, request: pytest.FixtureRequest) -> DataConfig:
    path = tmp_path / "own" / f"a.{request.param}"
    path.parent.mkdir()
    flat = [{"area": row["area"], "turns": json.dumps(row["talk"]["turns"])} for row in ROWS]  # type: ignore[index]
    table = pa.Table.from_pylist(ROWS)
    if request.param == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    elif request.param == "csv":
        with path.open("w", newline="", encoding="utf-8") as text:
            rows = csv.DictWriter(text, ["area", "turns"])
            rows.writeheader()
            rows.writerows(flat)
    elif request.param == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        write(path, ROWS)
    name = "turns" if request.param == "csv" else "talk.turns"
    return config_of(tmp_path / "own", format="chat", columns=ColumnsConfig(messages=name), kind="area")


def test_conversations_are_the_same_documents_from_every_kind_of_file(own: DataConfig, tmp_path: Path) -> None:
    stage = documents_of(own, tmp_path / "data")
    wanted = [f"Q: {n} + 1?\n\nA: {n + 1} ☃\n\nQ: + 1?\n\nA: {n + 2}" for n in range(60)]
    assert column(stage, "text") == wanted
    assert stage.manifest.facts["kinds"] == {"a": 30, "b": 30}


def conversations(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> tuple[DataConfig, StageResult]:
    write(tmp_path / "own" / "a.jsonl", rows)
    config = config_of(tmp_path / "own", format="chat")
    return config, documents_of(config, tmp_path / "data")


def test_conversations_in_shards_train_on_every_answer_and_its_end(tmp_path: Path) -> None:
    config, stage = conversations(tmp_path, [{"messages": row["talk"]["turns"]} for row in ROWS])  # type: ignore[index]
    shards = open_shards(prepare_shards(config, stage, tmp_path / "data").folder)
    assert not any(each.is_damaged for each in verify_data(config, tmp_path / "data", say=lambda line: None))
    texts = [text for stream in (shards.train, shards.validation) for text in _trained_texts(stream)]
    assert sorted(texts) == sorted(f" {n + 1} ☃\n\nQ:| {n + 2}" for n in range(60))


def _trained_texts(stream: TokenStream) -> list[str]:
    bounds = [*stream.document_starts.tolist(), stream.n_tokens]
    found = []
    for begin, end in itertools.pairwise(bounds):
        tokens = stream.read(begin + 1, end - begin - 1)
        counts = stream.in_spans(np.arange(begin + 1, end))
        runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(counts)) + 1)
        found.append("|".join(gpt2().decode(tokens[run].tolist()) for run in runs if counts[run[0]]))
    return found


def test_conversations_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": TWO_TURNS},
        {"messages": TWO_TURNS},
        {"messages": None},
        {"messages": said(("user", "a"), ("tool", "b"), ("assistant", "c"))},
        {"messages": said(("user", "\ud800"), ("assistant", "c"))},
        {"messages": said(("user", "a" * (1 << 20)), ("assistant", "c"))},
        {"messages": said(("user", "a"), ("assistant", "c"))},
    ]
    _, stage = conversations(tmp_path, rows)
    assert len(column(stage, "text")) == 2
    reasons = {"repeated": 1, "no_messages": 1, "other_role": 1, "invalid_utf8": 1, "too_long": 1}
    assert stage.manifest.facts["dropped"] == reasons


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_contents_that_are_lists_of_text_parts_are_joined_if_that_is_said(tmp_path: Path, name: str) -> None:
    parts = [[{"type": "text", "text": text} for text in texts] for texts in (["What is ", "1 + 1?"], ["2"])]
    write(tmp_path / "own" / name, [{"messages": said(("user", parts[0]), ("assistant", parts[1]))}])
    with pytest.raises(ConfigError, match=r"\(text_parts: 1\); .*; set data\.join_parts: true"):
        prepare_raw(config_of(tmp_path / "own", format="chat"), tmp_path / "data")
    config = config_of(tmp_path / "own", format="chat", join_parts=True)
    assert column(documents_of(config, tmp_path / "data"), "text") == ["Q: What is 1 + 1?\n\nA: 2"]


def test_key_to_join_parts_that_is_left_out_is_part_of_no_fingerprint() -> None:
    plain, joined = (config_of("./x", format="chat", **changed) for changed in ({}, {"join_parts": True}))
    assert format_of(plain).identity == {"format": "chat", "columns": {"messages": "messages"}}
    assert format_of(joined).identity != format_of(plain).identity
    assert data_group(joined) != data_group(plain)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_messages_that_are_no_list_stop_with_what_is_needed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "own" / name, [{"messages": {"role": "user", "content": "a"}}])
    config = config_of(tmp_path / "own", format="chat")
    with pytest.raises(
        DataError, match=r"messages is (an object|struct<.*>)(, need a list)?; set data.columns.messages"
    ):
        prepare_raw(config, tmp_path / "data")


def test_messages_in_parquet_with_text_that_is_no_utf8_are_counted(tmp_path: Path) -> None:
    letters = pa.py_buffer(b"a\xffbb")
    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), letters])
    roles = pa.array(["user", "assistant"])
    messages = pa.StructArray.from_arrays([roles, bad], names=["role", "content"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), messages)
    good = pa.array([TWO_TURNS], lists.type)
    (tmp_path / "own").mkdir()
    pq.write_table(pa.table({"messages": pa.chunked_array([lists, good])}), tmp_path / "own" / "a.parquet")
    stage = documents_of(config_of(tmp_path / "own", format="chat"), tmp_path / "data")
    assert stage.manifest.facts["dropped"] == {"invalid_utf8": 1}
    assert len(column(stage, "text")) == 1


def test_messages_in_parquet_with_text_kept_as_bytes_are_that_text(tmp_path: Path) -> None:
    said = [{"role": each["role"].encode(), "content": each["content"].encode()} for each in TWO_TURNS]
    (tmp_path / "own").mkdir()
    pq.write_table(pa.table({"messages": [[{"role": b"user", "content": b"\xff"}], said]}), tmp_path / "own/a.parquet")
    stage = documents_of(config_of(tmp_path / "own", format="chat"), tmp_path / "data")
    assert column(stage, "text") == [conversation_of(json.dumps(TWO_TURNS)).text]
    assert stage.manifest.facts["dropped"] == {"invalid_utf8": 1}


def test_held_out_conversations_are_asked_up_to_their_last_question(tmp_path: Path) -> None:
    config, stage = conversations(tmp_path, [{"messages": row["talk"]["turns"]} for row in ROWS])  # type: ignore[index]
    questions = held_out_questions(stage, config, count=4, seed=0)
    assert len(questions) == 4
    for each in questions:
        number = int(each.query.split()[0])
        assert each.prompt == f"Q: {number} + 1?\n\nA: {number + 1} ☃\n\nQ: + 1?\n\nA:"
        assert [each.prompt[start:] for start in each.turns] == [each.prompt, "Q: + 1?\n\nA:"]
        assert (each.answer, each.expected, each.with_reasoning) == (str(number + 2), str(number + 2), False)
    for _ in range(2):  # written, and read
        assert cached_questions(tmp_path / "kept", stage, config, count=4, seed=0) == questions


@given(
    text=st.text(st.sampled_from("\nQA:S ystem"), max_size=40).map(lambda text: f"one{text}"),
    cuts=st.lists(st.integers(1, 5), max_size=60),
)
def test_first_answer_in_pieces_is_that_of_the_whole_text(text: str, cuts: list[int]) -> None:
    bounds = [0, *itertools.accumulate(cuts), len(text) + 300]
    pieces = [text[first:last] for first, last in itertools.pairwise(bounds)]
    assert "".join(first_answer_of(pieces)) == first_answer(text)[0]


def test_first_answer_in_pieces_asks_for_no_piece_behind_its_end() -> None:
    pieces = iter([" 4.", "\n", "\nQ: And", " then", " more"])
    assert "".join(first_answer_of(pieces)) == " 4."
    assert next(pieces) == " then"
