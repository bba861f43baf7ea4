from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpt_pipeline.data.config import DataConfig, PartConfig
from gpt_pipeline.evaluation.result import EvaluationResult, evaluation_path, write_evaluation
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress.outcome import outcome_sheet, result_text
from gpt_pipeline.progress.report import report_fingerprint
from gpt_pipeline.sheet import plain_text
from gpt_pipeline.storage.atomic import write_text
from gpt_pipeline_tests.projects import TinyProject


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    return project.experiment("tiny")


def _evaluated(
    experiment: Experiment, step: int, loss: float, *, right: int = 33, of: int = 84, seed: int = 0
) -> EvaluationResult:
    key, identity = f"step_{step:08d}", f"{step}{seed}".ljust(64, "0")
    result = EvaluationResult(
        fingerprint=identity,
        key=key,
        checkpoint={"file": f"checkpoint_step_{step}.pt", "step": step, "weights_sha256": f"{step}"},
        config={"seed": seed},
        upstream={"shards": "d" * 64},
        metrics={"val_loss": loss},
        answers=tuple({"correct": number < right} for number in range(of)),
        started_at="2026-11-01T10:00:00Z",
        created_at=f"2026-11-01T10:00:{seed:02d}Z",
        seconds=2.0,
        device="cpu",
        versions={},
        path=evaluation_path(experiment.folder.evaluations, key, identity),
        reused=False,
    )
    write_evaluation(result)
    return result


def _lines(experiment: Experiment) -> dict[str, str]:
    text = plain_text(
        [outcome_sheet(experiment, pages="gpt-pipeline ui", talk="gpt-pipeline generate", another="init")]
    )
    return {label.strip(): rest for label, rest in (line[2:].split("  ", 1) for line in text.splitlines()[1:])}


def test_result_text_has_loss_and_right_answers_with_their_interval(experiment: Experiment) -> None:
    assert result_text(_evaluated(experiment, 4, 0.5621)) == "val loss 0.562, 33 of 84 right (39 %, 30 to 50 %)"


def test_result_text_without_questions_is_the_loss(experiment: Experiment) -> None:
    assert result_text(_evaluated(experiment, 4, 0.5621, of=0)) == "val loss 0.562"


def test_result_text_of_a_mix_has_answers_and_continuations(experiment: Experiment) -> None:
    result = replace(_evaluated(experiment, 4, 0.5621), continuations=({},))
    assert result_text(result) == "val loss 0.562, 33 of 84 right (39 %, 30 to 50 %), 1 text continued"


def test_report_fingerprint_does_not_depend_on_where_data_and_tokenizer_lie(experiment: Experiment) -> None:
    def of(folder: str) -> str:
        parts = {
            "a": PartConfig(share=1, local_dataset_path=f"/{folder}/a"),
            "b": PartConfig(share=1, source=f"/{folder}/b"),
        }
        data = DataConfig(num_samples=9, max_length=16, tokenizer=f"/{folder}/tokenizer.json", mix=parts)
        return report_fingerprint(replace(experiment, config=replace(experiment.config, data=data)))

    assert of("here") == of("there")


def test_outcome_of_a_best_that_is_not_the_last_shows_both(experiment: Experiment) -> None:
    _evaluated(experiment, 4, 2.0)
    _evaluated(experiment, 8, 3.0)
    lines = _lines(experiment)
    assert lines["last"].strip().startswith("checkpoint_step_8.pt: val loss 3.000")
    assert lines["best"].strip().startswith("checkpoint_step_4.pt: val loss 2.000")


def test_outcome_takes_no_best_from_other_questions(experiment: Experiment) -> None:
    _evaluated(experiment, 4, 2.0)
    _evaluated(experiment, 8, 3.0, seed=1)
    assert "checkpoint_step_8.pt" in _lines(experiment)["best = last"]


def test_outcome_before_anything_is_trained_says_so_and_leads_to_the_pages(experiment: Experiment) -> None:
    lines = _lines(experiment)
    assert lines["training"].strip().startswith("to do")
    assert lines["web pages"].strip() == "gpt-pipeline ui"
    assert "report" not in lines
    experiment.folder.root.mkdir(parents=True)
    write_text(experiment.folder.report, "")
    assert lines.keys() | {"report"} == _lines(experiment).keys()
