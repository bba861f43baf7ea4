"""Documents on their way from the raw row to the tokens."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from gpt_pipeline.cli.preview import tell_previews, tell_sequences
from gpt_pipeline.data.config import ColumnsConfig, DataConfig, TokenizerConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.preview import Preview, previews
from gpt_pipeline.data.tokens.packing import DocumentSampler
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.data.tokens.tokenizer_stage import usable_tokenizer

ROWS = [
    {"q": "How many?", "why": "Two and one.", "a": "Three ☃", "area": "a"},
    {"q": "And now?", "why": "", "a": "\x1b[31mred", "area": "d"},
    {"q": "No answer", "why": "", "a": None, "area": "a"},
]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "own").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "own" / "a.jsonl").write_text(text, encoding="utf-8")
    columns = ColumnsConfig(question="q", reasoning="why", answer="a")
    settings = {"format": "question_answer", "columns": columns, "group": "area", "validation_fraction": 0.5}
    return DataConfig(num_samples="all", source=str(tmp_path / "own"), max_length=8, **settings)  # type: ignore[arg-type]


def shown(config: DataConfig, folder: Path, start: int = 0, count: int = 9) -> list[Preview]:
    return list(previews(config, folder, gpt2(), start=start, count=count, say=lambda line: None))


def test_previews_of_many_texts_name_the_file_of_each(tmp_path: Path) -> None:
    for name, text in (("a", "One."), ("b", " "), ("c", "Three.")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    config = DataConfig(num_samples="all", source=str(tmp_path), format="text")
    found = shown(config, tmp_path / "data")
    assert [each.values for each in found] == [{"text": "One.", "file": "a.txt"}, {"text": "Three.", "file": "c.txt"}]


def test_previews_are_what_the_shards_hold(config: DataConfig, tmp_path: Path) -> None:
    found = shown(config, tmp_path / "data")
    assert [each.dropped for each in found] == [None, None, "no_answer"]
    assert found[2].values == {"q": "No answer", "why": "", "a": None, "area": "a"}
    assert [each.held_out for each in found[:2]] == [is_held_out(area, seed=0, fraction=0.5) for area in "ad"]
    stage = prepare_documents(config, prepare_raw(config, tmp_path / "data"), tmp_path / "data")
    shards = open_shards(prepare_shards(config, stage, tmp_path / "data").folder)
    for each in found[:2]:
        stream = shards.validation if each.held_out else shards.train
        [start] = [
            start
            for start in stream.document_starts.tolist()
            if stream.read(start + 1, len(each.tokens)).tolist() == list(each.tokens)
        ]
        [(answer, _)] = each.spans
        first = start + 1 + answer
        assert stream.in_spans(np.array([first - 1, first])).tolist() == [False, True]
    assert gpt2().decode(list(found[0].tokens[slice(*found[0].spans[0])])).startswith("Two")


def test_previews_before_there_is_a_tokenizer_show_text_and_side_of_the_split(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = dataclasses.replace(config, tokenizer=TokenizerConfig(train=300))
    tokenizer = usable_tokenizer(own, tmp_path / "data")
    assert tokenizer is None
    found = list(previews(own, tmp_path / "data", tokenizer, start=0, count=1, say=lambda line: None))
    plain = dataclasses.replace(shown(config, tmp_path / "data")[0], tokens=None, spans=())
    assert found == [plain]
    tell_previews(found, tokenizer, has_turns=False)
    told = capsys.readouterr().out
    assert "not known yet: a run makes or fetches the tokenizer" in told
    assert "Q: How many?" in told


def test_previews_of_files_of_which_the_first_are_empty_are_those_of_the_next(tmp_path: Path) -> None:
    for name, lines in (("a", ""), ("b", "\n"), ("c", '{"text": "One."}\n'), ("d", '{"text": "Two."}\n')):
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = DataConfig(num_samples="all", source=str(tmp_path), format="text")
    assert [(each.file, each.row, each.text) for each in shown(config, tmp_path / "data")] == [("c.jsonl", 0, "One.")]
    assert shown(config, tmp_path / "data", start=1) == []


def test_previews_begin_at_the_row_asked_for(config: DataConfig, tmp_path: Path) -> None:
    assert [each.row for each in shown(config, tmp_path / "data", start=1, count=1)] == [1]
    assert shown(config, tmp_path / "data", start=3) == []


def test_previews_are_told_with_marks_between_tokens_and_nothing_that_a_terminal_obeys(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_previews(shown(config, tmp_path / "data"), gpt2(), has_turns=False)
    told = capsys.readouterr().out
    assert "a.jsonl, row 0" in told
    assert "Q|:| How| many|?|" in told
    assert "| Three| ☃]]" in told
    assert "\x1b" not in told
    assert "dropped" in told


@pytest.mark.parametrize("within", [8, 200])
def test_previews_where_answers_alone_are_trained_on_tell_how_many_tokens_of_them_count(
    config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], within: int
) -> None:
    [first] = shown(config, tmp_path / "data", count=1)
    [(begin, end)] = first.spans
    assert first.tokens is not None
    assert end == len(first.tokens) > 8
    tell_previews([first], gpt2(), has_turns=False, answers_within=within)
    wanted = {
        8: f"the {max(0, 8 - begin)} count that are in [[ ]] and among the first 8 (data.max_length)",
        200: f"the {end - begin} in [[ ]] and the end count",
    }
    assert wanted[within] in capsys.readouterr().out


def test_sequences_are_told_as_training_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own").mkdir()
    texts = "".join(json.dumps({"text": f"{number} " + "x " * number}) + "\n" for number in range(10, 40))
    (tmp_path / "own" / "a.jsonl").write_text(texts, encoding="utf-8")
    settings = {"format": "text", "max_length": 48, "validation_fraction": 0.2}
    config = DataConfig(num_samples="all", source=str(tmp_path / "own"), **settings)  # type: ignore[arg-type]
    stage = prepare_documents(config, prepare_raw(config, tmp_path / "data"), tmp_path / "data")
    stream = open_shards(prepare_shards(config, stage, tmp_path / "data").folder).train
    one, four = (DocumentSampler(stream=stream, sequence_length=48, batch_size=size, seed=3) for size in (1, 4))
    tell_sequences(one, gpt2(), count=2)
    told = capsys.readouterr().out.split("  sequence ")
    assert f"{one.packing.n_rows} sequences of 48 positions an epoch" in told[0]
    trained = four.rows_at(0)
    for number, lines in enumerate(told[1:]):
        places = re.findall(r"(\d+) to +(\d+) +(\d+) count  (\d+) x", lines)
        begins = np.unique(trained.starts[number])
        assert [int(first) for first, *_ in places] == begins[: len(places)].tolist()
        for first, last, counted, document in places:
            tokens = trained.inputs[number, int(first) : int(last) + 1].tolist()
            assert gpt2().decode(tokens).startswith(f"{document} x")
            assert int(counted) == len(tokens)
        padding = 47 - int(places[-1][1])
        assert ("padding" in lines) is (padding > 0)
        assert np.count_nonzero(trained.weights[number]) == 48 - padding
