"""Continuations of held-out texts: what a model is given, what is kept, and where it is shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.evaluation.continuations import continue_documents
from gpt_pipeline.evaluation.evaluate import EvaluatedPart, EvaluationTask, evaluate_checkpoint
from gpt_pipeline.evaluation.held_out import NO_DOCUMENTS, HeldOutChoice, HeldOutDocument
from gpt_pipeline.evaluation.result import read_evaluations, summarize_evaluations
from gpt_pipeline.evaluation.verdicts import output_verdict
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.tracking.tables import continuations_as_markdown, continuations_as_table
from gpt_pipeline_tests.test_evaluate import CONFIG, save
from gpt_pipeline_tests.test_formats_text import config_of, texts, write_texts

CONTEXT = 16


class Split:
    """Documents of a split, held in memory."""

    def __init__(self, *documents: str) -> None:
        encoded = [[EOT_TOKEN, *gpt2().encode(text)] for text in documents]
        self.tokens = np.array([token for tokens in encoded for token in tokens], np.uint16)
        self.document_starts = np.cumsum([0, *map(len, encoded[:-1])])
        self.answer_starts = self.document_starts + 1
        self.n_tokens = len(self.tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.tokens[start : start + length]


def choice_of(split: Split) -> HeldOutChoice:
    documents = tuple(HeldOutDocument(number=n, exercise="unknown") for n in range(len(split.document_starts)))
    return HeldOutChoice(documents=documents, available=len(documents))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return make_model(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=CONTEXT))


def continued(model: LanguageModel, *documents: str, max_new_tokens: int = 4) -> list[dict[str, object]]:
    split = Split(*documents)
    return continue_documents(
        model, split, choice_of(split), gpt2(), max_new_tokens=max_new_tokens, context_length=CONTEXT
    )


def test_continue_documents_gives_half_of_a_document_at_most_half_of_the_context(model: LanguageModel) -> None:
    short, long, least = continued(model, "one two three four", "one " * 40, "one")
    assert (short["beginning"], short["original"], short["reference_tokens"]) == ("one two", " three four", 2)
    assert (long["beginning"], long["original"]) == ("one" + " one" * 6, " one" * 4)
    assert (least["beginning"], least["original"], least["reference_tokens"]) == ("one", "", 0)
    assert all(each["new_tokens"] == 4 for each in (short, long, least))


def test_continue_documents_cuts_no_character_in_two(model: LanguageModel) -> None:
    (each,) = continued(model, "日本語の文章です", max_new_tokens=2)
    assert str(each["beginning"]) + str(each["original"]) in "日本語の文章です"
    assert "�" not in str(each["beginning"]) + str(each["original"])


def test_continue_documents_is_the_greedy_text_after_the_beginning(model: LanguageModel) -> None:
    (each,) = continued(model, "one two three four")
    ids = torch.tensor([[EOT_TOKEN, *gpt2().encode("one two")]])
    for _ in range(4):
        with torch.inference_mode():
            ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
    assert each["generated"] == gpt2().decode(ids[0, 3:].tolist())


def test_continue_documents_on_other_shards_than_those_of_the_documents_is_refused(model: LanguageModel) -> None:
    split = Split("one two", "three four")
    fewer = dataclasses.replace(choice_of(split), available=1)
    with pytest.raises(DamagedFileError, match="found 2 documents"):
        continue_documents(model, split, fewer, gpt2(), max_new_tokens=2, context_length=CONTEXT)
    assert continue_documents(model, split, NO_DOCUMENTS, gpt2(), max_new_tokens=2, context_length=CONTEXT) == []


def task_of(folder: Path, checkpoint: CheckpointInfo, **changed: object) -> EvaluationTask:
    data: DataConfig = config_of(folder / "mine", **changed)
    documents = prepare_documents(data, prepare_raw(data, folder), folder)
    shards = prepare_shards(data, documents, folder)
    return EvaluationTask(
        checkpoint=checkpoint,
        shards=shards,
        parts=(EvaluatedPart(name="", share=1.0, shards=shards, documents=documents, data=data),),
        config=CONFIG,
        max_length=data.max_length,
        device="cpu",
        folder=folder / "evaluations",
    )


def test_evaluation_of_texts_keeps_continuations_and_asks_nothing(tmp_path: Path) -> None:
    write_texts(tmp_path / "mine" / "a.parquet", texts(60))
    task = task_of(tmp_path, save(tmp_path / "checkpoints", 50), kind="area")
    result = evaluate_checkpoint(task)
    assert result.answers == ()
    assert len(result.continuations) == CONFIG.num_questions
    assert {each["kind"] for each in result.continuations} == {"a"}
    assert "correct" not in result.metrics
    assert read_evaluations(task.folder)[0].continuations == result.continuations
    assert summarize_evaluations(task.folder)[0].continuations == ()
    # As a version before continuations left it: nothing is evaluated again for their sake.
    value = json.loads(result.path.read_text(encoding="utf-8"))
    del value["continuations"]
    result.path.write_text(json.dumps(value), encoding="utf-8")
    again = evaluate_checkpoint(task)
    assert (again.reused, again.continuations) == (True, ())


RECORD = {
    "document": 3,
    "kind": "unknown",
    "beginning": "Once upon",
    "generated": " a time\n# no heading",
    "original": " a midnight",
    "reference_tokens": 2,
    "ended": True,
    "distinct_2": 1.0,
    "new_tokens": 3,
}


def test_continuations_as_tables_show_each_text_once_and_judge_nothing() -> None:
    text = continuations_as_markdown([RECORD], title="step 5")
    assert [text.count(part) for part in ("Once upon", "a time", "a midnight")] == [1, 1, 1]
    assert "\n# no heading" not in text
    table = json.loads(continuations_as_table([RECORD]))
    assert dict(zip(table["columns"], table["data"][0], strict=True))["continuation"] == RECORD["generated"]
    for shown in (text, *table["columns"]):
        assert not [word for word in ("question", "answer", "correct", "unknown") if word in shown]


def test_output_verdict_judges_continuations_as_it_does_answers(tmp_path: Path) -> None:
    from gpt_pipeline_tests.test_mlflow_tracker import make_result

    def judged(*records: dict[str, object]) -> bool:
        result = dataclasses.replace(make_result(tmp_path), answers=(), continuations=records)
        finding = output_verdict(result)
        assert f"of {len(records)} continuations" in finding.text
        assert "answers" not in finding.text
        return finding.passed

    empty = {**RECORD, "generated": " ", "distinct_2": None}
    assert judged(RECORD, empty)
    assert not judged(RECORD, empty, empty)
