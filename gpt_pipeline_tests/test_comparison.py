"""Several experiments beside each other."""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from gpt_pipeline.comparison.compare import compare_experiments
from gpt_pipeline.comparison.show import as_json, losses_svg, markdown, pictures, ranking, sheets
from gpt_pipeline.comparison.standings import Comparison
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.result import EvaluationResult, evaluation_path, read_evaluations, write_evaluation
from gpt_pipeline.experiment.differences import config_differences
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.comparison_log import mlflow_experiment
from gpt_pipeline.orchestration.comparison_step import COMPARISON, comparison_fingerprint
from gpt_pipeline.orchestration.dead_runs import close_dead_runs, process_tag
from gpt_pipeline.project import Project
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import plain_text
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.process import ProcessId
from gpt_pipeline.tracking.store import open_client
from gpt_pipeline_tests.projects import TinyProject, default_tracking_uri
from gpt_pipeline_tests.test_exchange import own_tokenizer
from gpt_pipeline_tests.test_formats_text import texts, write_texts
from gpt_pipeline_tests.test_mixed_shards import made, mix_of

CONFIG = {"num_questions": 1, "max_new_tokens": 4, "max_validation_tokens": 512, "seed": 0, "max_length": 32}


def trained(project: TinyProject, stem: str, losses: dict[int, float], **changes: Any) -> Experiment:
    """An experiment with the records of a training and an evaluation with `losses` by step."""
    settings = {
        name: changes.pop(name) for name in ("config", "shards", "question", "answers", "seconds") if name in changes
    }
    project.write_experiment(stem, **changes)
    experiment = project.experiment(stem)
    folder = experiment.folder
    folder.root.mkdir(parents=True)
    lines = []
    for step, val_loss in losses.items():
        common = {"step": step, "tokens_seen": step * 128, "seconds": step * settings.get("seconds", 1.0)}
        lines.append({"kind": "train", "train_loss": 3.0, "tokens_per_second": 128.0, "memory_gb": step, **common})
        lines.append({"kind": "validation", "val_loss": val_loss, **common})
        evaluate(folder, step, val_loss, **{name: settings[name] for name in settings if name != "seconds"})
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return experiment


def evaluate(
    folder: ExperimentFolder,
    step: int,
    val_loss: float,
    *,
    config: dict[str, Any] | None = None,
    shards: str = "d" * 64,
    question: str = "Why?",
    answers: Sequence[dict[str, Any]] = ({"correct": True},),
) -> None:
    key, identity = f"step_{step:08d}", f"{step}".ljust(64, "0")
    write_evaluation(
        EvaluationResult(
            fingerprint=identity,
            key=key,
            checkpoint={"step": step, "tokens_seen": step * 128, "weights_sha256": f"{step}", "metrics": {}},
            config={**CONFIG, **(config or {})},
            upstream={"shards": shards, "english": shards},
            metrics={
                "val_loss": val_loss,
                "val_bpb": val_loss / 2,
                "correct": _share(answers),
                "distinct_2": step / 100,
            },
            answers=tuple(
                {"synth_id": n, "question": question, "exercise": "x", **answer} for n, answer in enumerate(answers)
            ),
            started_at="2026-11-01T10:00:00Z",
            created_at=f"2026-11-01T10:{step // 60:02d}:{step % 60:02d}Z",
            seconds=2.0,
            device="cpu",
            versions={},
            path=evaluation_path(folder.evaluations, key, identity),
            reused=False,
        )
    )


def add_metrics(experiment: Experiment, **metrics: float) -> None:
    """Add to what the only evaluation of the experiment measured."""
    [result] = read_evaluations(experiment.folder.evaluations)
    write_evaluation(replace(result, metrics={**result.metrics, **metrics}))


def _share(answers: Sequence[dict[str, Any]]) -> float:
    return sum(answer["correct"] for answer in answers) / len(answers)


def ranks(comparison: Comparison) -> list[tuple[str, int | None]]:
    return [(standing.name, standing.rank) for standing in comparison.standings]


def test_compare_same_test_ranks_by_the_lowest_validation_loss_of_any_checkpoint(project: TinyProject) -> None:
    one = trained(project, "one", {4: 3.0, 8: 2.5, 12: 2.75})
    two = trained(project, "two", {4: 2.25, 8: 9.0}, learning_rate=0.01)
    found = compare_experiments([one, two])
    assert ranks(found) == [("two", 1), ("one", 2)]
    assert len(found.groups) == 1
    assert not found.obstacles
    assert not found.groups[0].answer_obstacles
    best, last = found.standings[1].best, found.standings[1].last
    assert best is not None
    assert last is not None
    assert (best.step, best.tokens_seen, best.seconds, best.metrics["val_loss"]) == (8, 1024, 8.0, 2.5)
    assert (last.step, last.metrics["val_loss"]) == (12, 2.75)
    assert found.standings[1].cost.memory_gb == 12
    assert found.standings[1].cost.tokens_per_second == 128


def test_compare_a_base_with_its_fine_tuning_ranks_by_right_answers(project: TinyProject) -> None:
    answers = [{"correct": n < 3} for n in range(8)]
    base = trained(project, "base", {4: 2.0}, answers=[{"correct": False}] * 8)
    trained(project, "tuned", {4: 2.5}, answers=answers)
    path = project.root / "experiments" / "tuned.yaml"
    path.write_text(path.read_text().replace("training: {", "training: {objective: sft, "))
    found = compare_experiments([base, project.experiment("tuned")])
    assert ranks(found) == [("tuned", 1), ("base", 2)]
    assert found.groups[0].ranked_by == "correct"
    assert "37.5 % right" in ranking(found)
    assert "Ranked by the share of right answers" in plain_text(sheets(found))


def test_compare_says_of_which_the_start_is_best(project: TinyProject) -> None:
    experiments = [trained(project, "further", {0: 2.0, 4: 2.5}), trained(project, "scratch", {4: 3.0, 8: 2.5})]
    said = plain_text(sheets(compare_experiments(experiments)))
    assert "Best at step 0, the weights that it began with, and no better at a later step: further." in said
    assert "step 0" not in plain_text(sheets(compare_experiments(experiments[1:])))


def test_compare_equal_losses_share_a_rank(project: TinyProject) -> None:
    experiments = [trained(project, name, {4: loss}) for name, loss in (("a", 2.0), ("b", 2.0), ("c", 3.0))]
    assert ranks(compare_experiments(experiments)) == [("a", 1), ("b", 1), ("c", 3)]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            {"shards": "e" * 64},
            "validation split of other documents (300 documents of sample, by other files or settings)",
        ),
        ({"config": {"max_length": 64}}, "data.max_length is 32 and 64"),
        ({"config": {"max_validation_tokens": 9}}, "evaluation.max_validation_tokens is 512 and 9"),
    ],
)
def test_compare_another_test_ranks_in_a_group_of_its_own_and_says_why(
    project: TinyProject, other: dict[str, Any], told: str
) -> None:
    one, two = trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0}, **other)
    three, four = trained(project, "three", {4: 2.5}), trained(project, "four", {4: 1.5}, **other)
    found = compare_experiments([one, two, three, four])
    assert ranks(found) == [("three", 1), ("one", 2), ("four", 1), ("two", 2)]
    assert [group.apart for group in found.groups] == [(), (f"three and four: {told}",)]
    for text in (plain_text(sheets(found)), markdown(found)):
        assert f"Not comparable with group 1, so ranked apart: three and four: {told}" in text
        heads = [line for line in text.splitlines() if "three" in line and "one" in line and "roup" not in line]
        assert ["four" in line for line in heads] == [False, True]  # a group's own table, and that of costs
    shown = pictures(found, [one, two, three, four])
    assert [("three" in svg, "four" in svg) for svg in shown.values()] == [(True, False), (False, True)]
    assert ranking(found) == "group 1: 1. three 2.500, 2. one 3.000; group 2: 1. four 1.500, 2. two 2.000"
    values = as_json(found)
    assert values["comparable"] is False
    assert [group["experiments"] for group in values["groups"]] == [["three", "one"], ["four", "two"]]


def test_compare_experiment_alone_in_its_group_has_no_rank_and_no_best(project: TinyProject) -> None:
    one, two = trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0}, shards="e" * 64)
    found = compare_experiments([one, two])
    assert ranks(found) == [("one", None), ("two", None)]
    for text in (plain_text(sheets(found)), markdown(found)):
        assert not any(mark in text for mark in ("**", "*2.0", "Ranked by", "| rank", "~"))


@pytest.mark.parametrize("other", [{"config": {"num_questions": 7}}, {"question": "Who?"}])
def test_compare_other_questions_rank_losses_and_set_answers_apart(project: TinyProject, other: dict[str, Any]) -> None:
    one, two = trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0}, **other)
    found = compare_experiments([one, two])
    assert ranks(found) == [("two", 1), ("one", 2)]
    assert len(found.groups[0].answer_obstacles) == 1
    lines = [line.split() for line in plain_text(sheets(found)).splitlines()]
    shares = [line[3:] for line in lines if line[3:4] == ["right,"]]
    assert [line[3:] for line in shares] == [["100", "%", "(21–100", "%)", "–"], ["–", "100", "%", "(21–100", "%)"]]
    assert as_json(found)["answers_comparable"] is False


def test_compare_with_answers_drawn_or_not_ranks_the_likeliest_ones_together(project: TinyProject) -> None:
    """And sets those apart that were drawn otherwise."""
    base = trained(project, "base", {4: 2.0}, answers=[{"correct": False}] * 8)
    more = {"a": 2, "b": 3}
    for name, count in more.items():
        answers = [{"correct": n < count, "pass_at_1": 0.5, "pass_at_k": True} for n in range(8)]
        one = trained(project, name, {4: 2.5}, config={"samples_per_question": count}, answers=answers)
        add_metrics(one, pass_at_1=0.5, pass_at_k=1.0)
        one.file.write_text(one.file.read_text().replace("training: {", "training: {objective: sft, "))
    found = compare_experiments([base, *(project.experiment(name) for name in more)])
    assert ranks(found) == [("b", 1), ("a", 2), ("base", 3)]
    assert as_json(found)["answers_comparable"] is True
    lines = [line.split() for line in plain_text(sheets(found)).splitlines()]
    assert [line[4:] for line in lines if line[3:4] == ["pass@1,"]] == [
        ["3", "drawn", "0.50", "–", "–"],
        ["2", "drawn", "–", "0.50", "–"],
    ]
    assert len([line for line in lines if line[3:4] == ["right"]]) == 1


@pytest.mark.parametrize(
    ("config", "count", "told"),
    [
        ({"sample_temperature": 0.5}, 8, ["temperature 1", "temperature 0.5"]),
        ({"num_questions": 4}, 4, ["8 questions", "4 questions"]),
        ({"samples_per_question": 2, "num_questions": 4}, 4, ["8 questions, 4 drawn", "4 questions, 2 drawn"]),
    ],
)
def test_compare_drawn_answers_set_apart_are_told_by_what_differs(
    project: TinyProject, config: dict[str, Any], count: int, told: list[str]
) -> None:
    right = {"correct": True, "pass_at_1": 1.0}
    drawn = {"samples_per_question": 4}
    one = trained(project, "one", {4: 2.0}, config=drawn, answers=[right] * 8)
    two = trained(project, "two", {4: 3.0}, config=drawn | config, answers=[right] * count)
    for each in (one, two):
        add_metrics(each, pass_at_1=1.0)
    table = markdown(compare_experiments([one, two]))
    assert re.findall(r"pass@1, (.*?) \|", table) == told


def test_compare_answers_within_noise_are_marked_and_none_is_best(project: TinyProject) -> None:
    right, wrong = {"correct": True}, {"correct": False}
    one = trained(project, "one", {4: 3.0}, answers=[right] * 6 + [wrong])
    two = trained(project, "two", {4: 2.0}, answers=[wrong] * 6 + [right])
    three = trained(project, "three", {4: 2.5}, answers=[wrong] * 7)
    lines = plain_text(sheets(compare_experiments([one, two, three]))).splitlines()
    [shown] = [line for line in lines if "  right" in line]
    assert [cell.strip() for cell in shown.split("  ") if "%" in cell] == [
        "~14 % (3–51 %)",  # two: six questions lost to one, one won
        "0 % (0–35 %)",
        "~86 % (49–97 %)",
    ]
    assert any(line.startswith("~ marks the best of a row") for line in lines)


def test_compare_names_the_local_files_that_are_used_instead_of_the_source(project: TinyProject) -> None:
    one, two = trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0}, shards="e" * 64)
    two.file.write_text(two.file.read_text().replace("source: sample", "local_dataset_path: my texts"))
    found = compare_experiments([one, project.experiment("two")])
    values = {each.key: each.values for each in found.differences}
    assert values["data.source"] == ("sample", "local files")
    assert values["data.local_dataset_path"] == (None, "my texts")
    assert "300 documents of sample and 300 documents of local files my texts" in markdown(found)

    config = DataConfig(num_samples=1, source="./my.parquet", format="text")
    assert config.origin == "local files ./my.parquet"


def test_compare_split_of_the_same_documents_names_tokenizer_seed_and_share(copy: TinyProject) -> None:
    """As the manifests of real shards tell, which no evaluation says."""
    from gpt_pipeline.comparison.compare import _Entry, _split_differences

    one = copy.experiment("tiny")
    entry = _entry_of(one)
    other_stage = _shards_with(one, validation_fraction=0.2)
    assert entry.evaluation is not None
    evaluation = _with_shards(entry.evaluation, other_stage.fingerprint)
    experiment = _experiment_with(one, validation_fraction=0.2)
    other = _Entry(experiment=experiment, standing=entry.standing, evaluation=evaluation)
    assert _split_differences(entry, other) == ["another share held out (0.1 and 0.2)"]


def test_compare_other_tokenizers_on_the_same_held_out_text_by_bits_per_byte(copy: TinyProject) -> None:
    one = copy.experiment("tiny")
    text = one.file.read_text(encoding="utf-8").replace("experiment_name: tiny", "experiment_name: own")
    path = copy.root / "experiments" / "own.yaml"
    path.write_text(text.replace("source: sample", "source: sample, tokenizer: {train: 300}"), encoding="utf-8")
    own = copy.experiment("own")
    shards = _shards_with(own)
    found = read_evaluations(one.folder.evaluations)[-1]
    measured = found.metrics
    figures = {**measured, "val_loss": measured["val_loss"] / 2, "val_bpb": measured["val_bpb"] / 3}
    place = evaluation_path(own.folder.evaluations, found.key, found.fingerprint)
    write_evaluation(replace(_with_shards(found, shards.fingerprint), metrics=figures, path=place))
    comparison = compare_experiments([one, own])
    assert ranks(comparison) == [("tiny", None), ("own", None)]
    assert "another tokenizer (gpt2-bpe-1ce1664773c5 and tokenizer-" in comparison.obstacles[0]
    assert [[standing.name for standing in each] for each in comparison.across] == [["own", "tiny"]]
    assert as_json(comparison)["across_tokenizers"] == [["own", "tiny"]]
    assert f"in bits per byte: own {figures['val_bpb']:.3f}" in ranking(comparison)
    shown = plain_text(sheets(comparison))
    assert "Across tokenizers: own, tiny" in shown
    assert "the first evaluation.max_validation_tokens tokens" in shown
    assert f"*{figures['val_bpb']:.3f}" in shown
    other = _experiment_with(own, seed=1)
    moved = replace(_with_shards(found, _shards_with(other).fingerprint), metrics=figures, path=place)
    write_evaluation(moved)
    other.file.write_text(path.read_text(encoding="utf-8").replace("{train: 300}", "{train: 300}, seed: 1"))
    assert compare_experiments([one, copy.experiment("own")]).across == ()  # not the same held-out text


def test_compare_mixes_across_tokenizers_where_parts_and_shares_are_the_same(
    project: TinyProject, tmp_path: Path
) -> None:
    from gpt_pipeline.comparison.compare import _have_same_text, _split_differences

    for name, first in (("short", 0), ("long", 1000)):
        write_texts(tmp_path / name / "a.parquet", texts(60, first=first))
    path = tmp_path / "own.json"
    path.write_text(str(own_tokenizer().file), encoding="utf-8")
    one = mix_of(tmp_path, {"short": 3, "long": 1})
    mixes = [one, replace(one, tokenizer=str(path)), mix_of(tmp_path, {"short": 1, "long": 1})]
    first, other, shared = (_entry_of_mix(project, name, mix) for name, mix in zip("abc", mixes, strict=True))
    assert _have_same_text(first, other)
    assert "another tokenizer (gpt2-bpe-1ce1664773c5 and tokenizer-" in _split_differences(first, other)[0]
    assert not _have_same_text(other, shared)
    assert _split_differences(first, shared) == ["other shares of the parts of the mix"]


def _entry_of_mix(project: TinyProject, stem: str, data: DataConfig) -> Any:
    """An experiment on a mix whose shards are made, with an evaluation on them."""
    experiment = trained(project, stem, {4: 3.0})
    experiment = replace(experiment, config=replace(experiment.config, data=data))
    tokenizer = TokenizerStage(config=data, data_folder=experiment.data_folder)
    if tokenizer.is_made:
        prepare(tokenizer, say=lambda line: None)
    entry = _entry_of(experiment)
    return replace(entry, evaluation=_with_shards(entry.evaluation, made(data, experiment.data_folder).fingerprint))


def _entry_of(experiment: Experiment) -> Any:
    from gpt_pipeline.comparison.compare import _entry

    return _entry(experiment)


def _experiment_with(experiment: Experiment, **data: Any) -> Experiment:
    return replace(experiment, config=replace(experiment.config, data=replace(experiment.config.data, **data)))


def _shards_with(experiment: Experiment, **data: Any) -> Any:
    from gpt_pipeline.data.documents.stage import find_documents
    from gpt_pipeline.data.tokens.shards import prepare_shards

    config: DataConfig = _experiment_with(experiment, **data).data
    english = find_documents(config, experiment.data_folder)
    assert english is not None
    return prepare_shards(config, english, experiment.data_folder)


def _with_shards(result: EvaluationResult, fingerprint: str) -> EvaluationResult:
    return replace(result, upstream={**result.upstream, "shards": fingerprint})


def test_compare_without_evaluation_or_folder_is_shown_last(project: TinyProject) -> None:
    project.write_experiment("new")
    one = trained(project, "one", {4: 3.0})
    found = compare_experiments([project.experiment("new"), one])
    assert ranks(found) == [("one", None), ("new", None)]
    assert found.standings[1].status == "not started"
    assert "Without an evaluation, so not ranked: new." in plain_text(sheets(found))


def test_config_differences_are_the_keys_that_differ_and_no_others(project: TinyProject) -> None:
    project.write_experiment("one")
    path = project.write_experiment("two", learning_rate=0.01)
    path.write_text(path.read_text().replace("../storage", "../elsewhere").replace("n_layer: 1", "n_layer: 2"))
    found = config_differences([project.experiment(stem).config for stem in ("one", "two", "one")])
    assert [(each.key, each.values) for each in found] == [
        ("model.n_layer", (1, 2, 1)),
        ("training.learning_rate", (0.001, 0.01, 0.001)),
    ]


def test_setting_of_several_values_is_shown_as_in_the_file() -> None:
    assert wording.setting(("en", None, True)) == "[en, null, true]"


def test_plain_text_marks_the_best_of_each_row_that_has_one(project: TinyProject) -> None:
    one = trained(project, "one", {4: 3.0})
    two = trained(project, "two", {8: 2.0}, learning_rate=0.01)
    lines = plain_text(sheets(compare_experiments([one, two]))).splitlines()
    assert [line.split() for line in lines if line.startswith("best = last  val loss")] == [
        ["best", "=", "last", "val", "loss", "*2.000", "3.000"]
    ]
    assert any(
        line.split() == ["best", "=", "last", "distinct", "0.080", "0.040"] for line in lines
    )  # more is no better
    assert any(line.split() == ["config", "training.learning_rate", "0.01", "0.001"] for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_plain_text_shows_best_and_last_apart_where_they_differ(project: TinyProject) -> None:
    one, two = trained(project, "one", {4: 3.0, 8: 5.0}), trained(project, "two", {4: 2.0})
    lines = [line.split() for line in plain_text(sheets(compare_experiments([one, two]))).splitlines()]
    assert ["best", "val", "loss", "*2.000", "3.000"] in lines
    assert ["last", "val", "loss", "*2.000", "5.000"] in lines


def test_markdown_has_the_best_of_a_row_in_bold(project: TinyProject) -> None:
    one, two = trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0})
    found = compare_experiments([one, two])
    assert "| best = last · val loss | **2.000** | 3.000 |" in markdown(found)


def test_losses_picture_draws_four_experiments_at_most(project: TinyProject) -> None:
    experiments = [trained(project, f"e{number}", {4: 3.0, 8: 2.0}) for number in range(5)]
    picture = losses_svg(experiments)
    assert picture.count("<polyline") == 4
    assert "e0" in picture
    assert "e4" not in picture


def test_compare_command_prints_columns_json_and_clear_errors(project: TinyProject) -> None:
    trained(project, "one", {4: 3.0})
    trained(project, "two", {4: 2.0})
    names = ("experiments/one.yaml", "experiments/two.yaml")
    assert "*2.000" in project.run("compare", *names)
    values = json.loads(project.run("compare", *names, "--json"))
    assert [each["name"] for each in values["experiments"]] == ["two", "one"]
    assert "no such file" in project.run("compare", "experiments/none.yaml", expect=2)
    assert project.run("compare", expect=2)


def _definitions(project: TinyProject) -> dg.Definitions:
    return build_definitions(Project(root=project.root, experiments=project.root / "experiments"))


def _reported(experiment: Experiment, identity: str) -> None:
    write_json(experiment.folder.root / "report.json", {"fingerprint": identity})


def test_comparison_asset_is_there_once_for_two_experiments_and_depends_on_their_reports(project: TinyProject) -> None:
    project.write_experiment("one")
    assert COMPARISON not in _definitions(project).resolve_all_asset_keys()
    project.write_experiment("two")
    asset = _definitions(project).resolve_assets_def(COMPARISON)
    assert {key.to_user_string() for key in asset.dependency_keys} == {"one/report", "two/report"}
    assert asset.group_names_by_key[COMPARISON] == "comparison"


def test_comparison_asset_shows_table_picture_and_ranking(project: TinyProject, empty_store: bytes) -> None:
    (project.root / "mlflow.db").write_bytes(empty_store)
    experiments = [trained(project, "one", {4: 3.0, 8: 2.5}), trained(project, "two", {4: 2.0, 8: 1.5})]
    definitions = _definitions(project)
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_job_def(keys.COMPARISON_JOB)
        assert job.execute_in_process(instance=instance).success
        event = instance.get_latest_materialization_event(COMPARISON)
    assert event is not None
    shown = event.asset_materialization
    assert shown is not None
    assert shown.metadata["ranking"].value == "1. two 1.500, 2. one 2.500"
    assert "**1.500**" in str(shown.metadata["table"].value)
    assert "![validation losses](data:image/svg+xml;base64," in str(shown.metadata["losses"].value)
    assert shown.tags is not None
    assert shown.tags["dagster/data_version"] == comparison_fingerprint(experiments)


def _compared(project: TinyProject) -> tuple[dg.AssetMaterialization, list[str]]:
    """Materialize the comparison; return it, and the warnings."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = _definitions(project).resolve_job_def(keys.COMPARISON_JOB).execute_in_process(instance=instance)
        event = instance.get_latest_materialization_event(COMPARISON)
        logged = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level >= logging.WARNING]
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization, logged


def test_comparison_is_one_finished_run_of_mlflow_with_ranks_table_and_picture(
    project: TinyProject, empty_store: bytes
) -> None:
    (project.root / "mlflow.db").write_bytes(empty_store)
    experiments = [trained(project, "one", {4: 3.0, 8: 2.5}), trained(project, "two", {4: 2.0, 8: 1.5})]
    before = dict(os.environ)
    shown, warned = _compared(project)
    assert warned == []
    client = open_client(default_tracking_uri(project.root))
    experiment = client.get_experiment_by_name(mlflow_experiment(experiments))
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("comparison", "FINISHED")
    assert {key: value for key, value in run.data.metrics.items() if key.startswith(("rank", "val_loss"))} == {
        "rank/one": 2.0,
        "rank/two": 1.0,
        "val_loss/one": 2.5,
        "val_loss/two": 1.5,
    }
    assert run.data.tags["mlflow.note.content"].startswith("1. two 1.500, 2. one 2.500")
    assert run.info.run_id in str(shown.metadata["mlflow_run"].value)
    kept = project.root / "mlflow_artifacts" / experiment.name / run.info.run_id / "artifacts"
    assert sorted(path.name for path in kept.iterdir()) == ["comparison.json", "comparison.md", "losses.svg"]
    table = json.loads((kept / "comparison.json").read_text())
    assert [row[:3] for row in table["data"]] == [["two", 1, 1], ["one", 1, 2]]
    added = {key for key in os.environ.keys() - before.keys() if key.startswith("MLFLOW")}
    assert not added & {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"}


@pytest.mark.parametrize("fails", ["store", "files"])
def test_comparison_with_an_mlflow_that_fails_is_made_and_says_so(
    project: TinyProject, empty_store: bytes, fails: str
) -> None:
    experiments = [trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0})]
    (project.root / "mlflow.db").write_bytes(empty_store if fails == "files" else b"this is no database" * 100)
    client = open_client(default_tracking_uri(project.root)) if fails == "files" else None
    if client is not None:
        client.create_experiment(mlflow_experiment(experiments), artifact_location="file:///proc/nowhere")
    shown, warned = _compared(project)
    assert shown.metadata["ranking"].value == "1. two 2.000, 2. one 3.000"
    assert "mlflow_run" not in shown.metadata
    (warning,) = warned
    assert "The comparison is not in MLflow" in warning
    if client is not None:
        experiment = client.get_experiment_by_name(mlflow_experiment(experiments))
        assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_comparison_of_two_projects_files_of_one_name_is_refused_and_names_both(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (trained(TinyProject(root=tmp_path / name), "x", {4: 3.0}) for name in ("a", "b"))
    with pytest.raises(UserError) as found:
        compare_experiments([one, other])
    assert str(one.file) in str(found.value)
    assert str(other.file) in str(found.value)
    (tmp_path / "b" / "experiments" / "x.yaml").rename(other.file.with_name("y.yaml"))
    renamed = load_experiment(other.file.with_name("y.yaml"))
    assert [each.best is not None for each in compare_experiments([one, renamed]).standings] == [True, True]


def test_comparison_sensor_acts_when_a_report_changed_and_nothing_trains(
    project: TinyProject, empty_store: bytes
) -> None:
    (project.root / "mlflow.db").write_bytes(empty_store)
    one, two = trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0})
    definitions = _definitions(project)
    sensor = definitions.resolve_sensor_def("new_comparison")
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> Any:
            return sensor(dg.build_sensor_context(instance=instance, definitions=definitions))

        assert isinstance(tick(), dg.SkipReason)
        _reported(one, "1")
        assert isinstance(tick(), dg.SkipReason)
        _reported(two, "1")
        with folder_lock(two.folder.root, purpose="training"):
            assert "two" in str(tick().skip_message)
        assert isinstance(tick(), dg.RunRequest)
        assert definitions.resolve_job_def(keys.COMPARISON_JOB).execute_in_process(instance=instance).success
        assert isinstance(tick(), dg.SkipReason)
        _reported(two, "2")
        assert isinstance(tick(), dg.RunRequest)


def test_comparison_whose_process_was_killed_is_closed_and_requested_again_but_not_for_ever(
    project: TinyProject,
) -> None:
    experiments = [trained(project, "one", {4: 3.0}), trained(project, "two", {4: 2.0})]
    for each in experiments:
        _reported(each, "1")
    definitions = _definitions(project)
    sensor, job = definitions.resolve_sensor_def("new_comparison"), definitions.resolve_job_def(keys.COMPARISON_JOB)
    dead, run_keys = replace(ProcessId.here(), boot="an earlier boot"), []
    with dg.DagsterInstance.ephemeral() as instance:
        for run_id in (str(uuid.uuid4()) for _ in range(4)):
            request = sensor(dg.build_sensor_context(instance=instance, definitions=definitions))
            assert isinstance(request, dg.RunRequest)
            run_keys.append(request.run_key)
            tags = {**request.tags, **process_tag(run_id, dead)}
            instance.create_run_for_job(job, run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags)
            assert close_dead_runs(instance, experiments[1:]) == [run_id]
    assert len({*run_keys}) == 3
    assert run_keys[2] == run_keys[3]  # which Dagster does not launch twice


def test_report_step_sets_an_experiment_apart_from_the_newest_other_that_was_started(copy: TinyProject) -> None:
    from gpt_pipeline.orchestration.report_step import _newest_other
    from gpt_pipeline.training.decision import MARKER_NAME

    one = copy.experiment("tiny")
    assert _newest_other(one) is None
    for stem, time in (("old", "2020-01-01T00:00:00Z"), ("newer", "2021-01-01T00:00:00Z"), ("unstarted", None)):
        copy.write_experiment(stem, learning_rate=0.5)
        if time:
            root = copy.experiment(stem).folder.root
            root.mkdir()
            write_json(root / MARKER_NAME, {"time": time})
    (copy.root / "experiments" / "broken.yaml").write_text("[]")
    other = _newest_other(one)
    assert other is not None
    assert other.display_name == "newer"
    assert [(each.key, each.values) for each in other.differences] == [("training.learning_rate", (0.001, 0.5))]
