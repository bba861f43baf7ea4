from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Collection, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.evaluation.result import EvaluationResult, evaluation_path, write_evaluation
from gpt_pipeline.experiment.differences import Difference
from gpt_pipeline.report.build import OtherExperiment, TrainingStatus, build_report
from gpt_pipeline.report.contents import Contents, read_contents
from gpt_pipeline.report.cost import cost_of, seconds_at
from gpt_pipeline.report.page import page_script
from gpt_pipeline.report.tables import kind_table
from gpt_pipeline.report.wording import count, decimal, duration, number, percent, size
from gpt_pipeline.storage.layout import ExperimentFolder

STATUS = TrainingStatus(word="stopped", detail="at step 30")
CONFIG = {"experiment_name": "x", "training": {"learning_rate": 3e-4, "max_steps": None}}
FACTS = {
    "english_parquet": {
        "documents": 12_345,
        "text_bytes": 7_100_000_000,
        "languages": {"en": 5, "de": 2},
        "dropped": {},
        "examples": ["Q: <img src=x onerror=alert(1)>"],
    }
}
VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """Checks that elements close in order; collects text, elements and what they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        else:
            self.text += data


def digest_of(script: str) -> str:
    """The hash by which a Content-Security-Policy names a script."""
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def folder(tmp_path: Path) -> ExperimentFolder:
    root = tmp_path / "experiment"
    root.mkdir()
    return ExperimentFolder(root=root)


def write_metrics(target: ExperimentFolder, steps: int) -> None:
    lines = []
    for step in range(1, steps + 1):
        common = {"step": step, "tokens_seen": step * 64, "seconds": step * 2.0}
        lines.append(
            {"kind": "train", "train_loss": 10 / step, "learning_rate": 1e-3, "tokens_per_second": 32, **common}
            | {"memory_gb": 2.5}
        )
        if step % 10 == 0:
            lines.append({"kind": "validation", "val_loss": 11 / step, **common})
            lines.append({"kind": "checkpoint", "train_loss": 10 / step, "val_loss": 11 / step, **common})
    target.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_result(
    target: ExperimentFolder,
    step: int,
    *,
    val_loss: float,
    questions: int = 2,
    continuations: tuple[Any, ...] = (),
    metrics: Mapping[str, float] = {},
    lacking: Collection[str] = (),
    **answer: Any,
) -> None:
    key, fingerprint = f"step_{step:08d}", f"{step}-{questions}".ljust(64, "0")
    answers = [
        {
            "synth_id": f"s{n}",
            "exercise": "math exercise",
            "question": f"Question {n} <script>alert(1)</script>?",
            "expected": "42",
            "reasoning": f"thought at {step}",
            "answer": f"answer at {step}",
            "ended": True,
            "well_formed": True,
            "correct": step > 20,
            **answer,
        }
        for n in range(questions)
    ]
    shares = {"well_formed": 1.0, "correct": float(step > 20), "token_f1": 0.5, "num_questions": float(questions)}
    found = {"val_loss": val_loss, "perplexity": 2.0, "val_bpb": 1.0, **(shares if questions else {}), **metrics}
    write_evaluation(
        EvaluationResult(
            fingerprint=fingerprint,
            key=key,
            checkpoint={
                "file": f"checkpoint_step_{step}.pt",
                "step": step,
                "tokens_seen": step * 64,
                "sha256": "a" * 64,
                "weights_sha256": "b" * 64,
                "training_fingerprint": "c" * 64,
                "created_at": "2026-11-01T09:00:00Z",
                "metrics": {"train_loss": 1.5, "val_loss": None},
            },
            config={"num_questions": questions},
            upstream={"shards": "d" * 64, "english": "e" * 64},
            metrics={name: value for name, value in found.items() if name not in lacking},
            answers=tuple(answers),
            continuations=continuations,
            started_at="2026-11-01T10:00:00Z",
            created_at=f"2026-11-01T10:00:{step % 60:02d}Z",
            seconds=1.0,
            device="cpu",
            versions={"torch": "2.13.0"},
            path=evaluation_path(target.evaluations, key, fingerprint),
            reused=False,
        )
    )


def build(target: ExperimentFolder, **changes: Any) -> Page:
    path = build_report(
        target, **{"title": "My <GPT> & me", "status": STATUS, "config": CONFIG, "facts": FACTS, **changes}
    )
    assert path == target.report
    return Page(path.read_text(encoding="utf-8"))


def contents_of_steps(target: ExperimentFolder, losses: dict[int, float]) -> Contents:
    for step, val_loss in losses.items():
        write_result(target, step, val_loss=val_loss)
    return read_contents(target)


def test_report_of_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    page = build(ExperimentFolder(root=tmp_path / "none"), config={}, facts={})
    assert "svg" not in page.tags
    for missing in ("not started", "No loss yet", "No checkpoint yet", "No evaluation yet", "No configuration"):
        assert missing in page.text


def test_report_of_a_training_without_evaluations_shows_curves_and_checkpoints(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    page = build(target)
    assert page.tags.count("svg") == 7  # loss by steps, tokens, time and whole; learning rate, speed, memory
    assert "None is evaluated yet" in page.text
    assert "stopped" in page.text


def test_report_shows_answers_first_and_some_of_them_folded(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    write_result(target, 30, val_loss=2.0, questions=5)
    page = build(target)
    sections = [each for each in page.ids if not each.startswith("axis-")]
    assert sections == ["answers", "loss", "checkpoints", "data", "cost", "configuration", "made"]
    assert "2 more questions" in page.text


def test_report_says_how_it_was_made(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    versions = {"machine": "EPYC, 2 logical CPUs", "commit": "f" * 40, "device": "CPU, 1 thread, fp32"}
    target.training.write_text(json.dumps({"step": 60, "fingerprint": "c" * 64, "versions": versions}))
    page = build(target, command="gpt-pipeline run experiments/x.yaml")
    made = page.text[page.text.index("How it was made", page.text.index("Configuration") + 200) :]
    for shown in (*versions.values(), "gpt-pipeline run experiments/x.yaml", "2 min, on the CPU"):
        assert shown in made


def test_report_of_a_training_that_recorded_no_machine_shows_what_it_said_first(tmp_path: Path) -> None:
    target = folder(tmp_path)
    event = {"kind": "event", "event": "started", "step": 0, "message": "Training starts: CPU, 1 thread, fp32."}
    target.metrics.write_text(json.dumps(event) + "\n", encoding="utf-8")
    assert "Training starts: CPU, 1 thread, fp32." in build(target).text


def test_report_loads_nothing_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    write_result(target, 30, val_loss=2.0, answer="<script>alert(2)</script><img src=//evil>")
    page = build(target)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert "<script>alert(2)</script>" in page.text
    *data, script = page.scripts
    assert all(json.loads(each)["series"] for each in data)
    assert script == page_script()
    assert f"script-src &#39;sha256-{digest_of(script)}&#39;;" in target.report.read_text(encoding="utf-8")
    assert "@import" not in target.report.read_text(encoding="utf-8")
    assert "url(" not in target.report.read_text(encoding="utf-8")


def test_report_of_a_training_on_rewards_draws_them_and_ranks_by_right_answers(tmp_path: Path) -> None:
    target = folder(tmp_path)
    lines = []
    for step in range(1, 41):
        common = {"step": step, "tokens_seen": step * 64, "seconds": step * 2.0}
        lines.append({"kind": "train", "train_loss": -77.0, "reward": step / 40, **common})
        if step % 20 == 0:
            lines.append({"kind": "validation", "val_loss": 2.0, "pass_at_1": 0.25, "pass_at_k": 0.5, **common})
    target.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    target.job.write_text(json.dumps({"training": {"objective": "rl"}}), encoding="utf-8")
    write_result(target, 20, val_loss=1.0)
    write_result(target, 40, val_loss=2.0)  # which answers right
    page = build(target)
    for told in (
        "training, mean reward",
        "held out, pass@1",
        "held out, pass@k",
        "with the most right answers is gold",
    ):
        assert told in page.text
    assert "-77" not in page.text  # no measure of a model
    assert "Best share of right answers" in page.text
    assert "train loss" not in page.text
    tabs = [text for text in ("rewards", "by steps", "by tokens", "by time") if text in page.text]
    assert sorted(tabs, key=page.text.index) == ["rewards", "by steps", "by tokens", "by time"]


def test_report_of_a_training_on_rewards_whose_start_is_best_says_so(tmp_path: Path) -> None:
    target = folder(tmp_path)
    target.job.write_text(json.dumps({"training": {"objective": "rl"}}), encoding="utf-8")
    write_result(target, 0, val_loss=2.0, metrics={"pass_at_1": 0.75})
    write_result(target, 40, val_loss=1.0, metrics={"pass_at_1": 0.5})
    page = build(target)
    assert "step 0, the weights it began with" in page.text
    assert "The row of the checkpoint with the highest pass@1 is gold" in page.text


def test_report_of_evaluations_that_lack_a_figure_draws_the_others(tmp_path: Path) -> None:
    target = folder(tmp_path)
    for step in (20, 40):
        write_result(target, step, val_loss=1.0, lacking=("token_f1", "well_formed"))
    page = build(target)
    assert "Answers to held-out questions" in page.text
    assert "word F1" not in page.text


def test_page_shows_the_figure_of_each_of_its_tabs(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 200)
    rewarded = {"kind": "train", "train_loss": -1.0, "reward": 0.5, "step": 201, "tokens_seen": 1, "seconds": 1.0}
    with target.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rewarded) + "\n")
    html = build_report(target, title="x", status=STATUS, config={}, facts={}).read_text(encoding="utf-8")
    tabs = html.count('<input type="radio"')
    assert tabs == 5
    for tab in range(1, tabs + 1):
        assert f".tabs > input:nth-of-type({tab}):checked ~ figure:nth-of-type({tab}) {{ display: block; }}" in html


def test_report_of_a_finished_training_shows_facts_and_figures(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    for step, val_loss in ((10, 4.0), (30, 2.125), (60, 2.5)):
        write_result(target, step, val_loss=val_loss)
    target.training.write_text(json.dumps({"step": 60, "fingerprint": "c" * 64, "versions": {"torch": "9.9"}}))
    page = build(target)
    for shown in ("finished", "My <GPT> & me", "2.125", "7.1 GB", "12,345", "9.9", "c" * 64, "answer at 60", "0.0003"):
        assert shown in page.text


def test_report_written_again_replaces_the_page(tmp_path: Path) -> None:
    target = folder(tmp_path)
    build(target)
    build(target, title="Second")
    assert "Second" in target.report.read_text(encoding="utf-8")
    assert [path.name for path in target.root.iterdir() if "report" in path.name] == ["report.html"]


def test_contents_mark_the_lowest_validation_loss_as_best(tmp_path: Path) -> None:
    contents = contents_of_steps(folder(tmp_path), {10: 4.0, 30: 2.0, 50: 2.5})
    assert [(row.step, row.best) for row in contents.rows] == [(10, False), (30, True), (50, False)]
    assert contents.newest is not None
    assert contents.newest.step == 50


def test_contents_compare_losses_but_no_answers_to_other_questions(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_result(target, 10, val_loss=0.5, questions=1)
    contents = contents_of_steps(target, {20: 4.0, 30: 3.0})
    assert [(row.step, row.comparable, row.same_questions, row.best) for row in contents.rows] == [
        (10, True, False, True),
        (20, True, True, False),
        (30, True, True, False),
    ]
    assert {column.step for question in contents.questions for column in question.columns} == {20, 30}


def test_contents_do_not_compare_evaluations_of_other_data(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_result(target, 10, val_loss=0.5)
    path = next(target.evaluations.glob("*.json"))
    path.write_text(path.read_text(encoding="utf-8").replace("d" * 64, "f" * 64), encoding="utf-8")
    contents = contents_of_steps(target, {20: 4.0, 30: 3.0})
    assert [(row.step, row.comparable, row.best) for row in contents.rows] == [
        (10, False, False),
        (20, True, False),
        (30, True, True),
    ]


def test_report_counts_the_answers_of_one_set_of_questions_with_their_interval(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_result(target, 10, val_loss=4.0, questions=84)
    write_result(target, 30, val_loss=3.0, questions=20)
    page = build(target)
    assert "20 of 20 at step 30 · 95 % interval 84 to 100 %" in page.text
    assert "of 84" not in page.text


def test_report_of_texts_shows_continuations_once_and_speaks_of_no_questions(tmp_path: Path) -> None:
    target = folder(tmp_path)
    for step in (10, 30):
        text = {"document": 7, "kind": "unknown", "beginning": "Once <b>upon", "original": " a midnight"}
        write_result(target, step, val_loss=4.0, questions=0, continuations=({**text, "generated": f" at {step}"},))
    page = build(target)
    html = target.report.read_text(encoding="utf-8")
    assert [page.text.count(part) for part in ("Once <b>upon", " a midnight", " at 10", " at 30")] == [1, 1, 1, 1]
    assert 'id="continuations"' in html
    for generated, shown in (("\n\n", "only blanks"), ("", "nothing: it ended there")):
        write_result(target, 30, val_loss=4.0, questions=0, continuations=({**text, "generated": generated},))
        assert shown in build(target).text
    assert not [
        word
        for word in ("question", "answer", "article", "unknown")
        if word in page.text.lower().partition("training report")[2]
    ]


def test_report_calls_nothing_best_that_is_within_noise(tmp_path: Path) -> None:
    """Of five questions the later checkpoint answers five, the earlier none: chance does as much in 6 of 100 cases."""
    target = folder(tmp_path)
    for questions, near in ((5, True), (6, False)):
        for step in (10, 30):
            write_result(target, step, val_loss=4.0 - step / 100, questions=questions)
        build(target)
        html = target.report.read_text(encoding="utf-8")
        assert ('<td class="near">~ 0 %' in html, '<td class="near">~ 100 %' in html) == (near, near)
        assert ('<td class="top">100 %' in html) is not near


@pytest.mark.parametrize("best", range(1, 12))
def test_contents_put_first_best_and_last_side_by_side(tmp_path: Path, best: int) -> None:
    losses = {step: 1.0 if step == best else 2.0 + step for step in range(1, 12)}
    contents = contents_of_steps(folder(tmp_path), losses)
    steps = [column.step for column in contents.questions[0].columns]
    assert len(steps) == 4
    assert steps == sorted(steps)
    assert {1, best, 11} <= set(steps)
    answers = [column.written["answer"] for column in contents.questions[0].columns if column.written]
    assert answers == [f"answer at {step}" for step in steps]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (number(1234567), "1,234,567"),
        (number(None), "–"),
        (count(1_612_345_678), "1.61 B"),
        (count(99_999), "99,999"),
        (decimal(3.14159), "3.142"),
        (decimal(float("inf")), "–"),
        (decimal(50257.0), "50,257"),
        (percent(0.125), "12.5 %"),
        (percent(1.0), "100 %"),
        (duration(59), "59 s"),
        (duration(5025), "1 h 24 min"),
        (duration(90_000), "1 d 1 h"),
        (size(1_234_567), "1.23 MB"),
        (size(12), "12 bytes"),
    ],
)
def test_wording_reads_as_people_write(found: str, wanted: str) -> None:
    assert found == wanted


def test_report_without_another_experiment_shows_no_difference(tmp_path: Path) -> None:
    assert "Differences from" not in build(folder(tmp_path)).text


def test_report_beside_another_experiment_shows_the_keys_that_differ(tmp_path: Path) -> None:
    target = folder(tmp_path)
    differences = [Difference(key="training.max_steps", values=(None, 700))]
    page = build(target, other=OtherExperiment(display_name="Other <one>", differences=differences))
    for shown in ("Differences from", "Other <one>", "training.max_steps", "700"):
        assert shown in page.text
    page = build(target, other=OtherExperiment(display_name="Twin", differences=[]))
    assert "Twin, has the same configuration" in page.text


def test_report_shows_speed_and_cost(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    write_result(target, 30, val_loss=2.0)
    page = build(target)
    for shown in ("2 min", "8 h 41 min", "32", "checkpoints written"):  # 120 s for 3,840 tokens
        assert shown in page.text
    assert "GPU hours" not in page.text
    assert "No cost yet" in build(ExperimentFolder(root=tmp_path / "none")).text


def test_cost_of_a_gpu_training_counts_each_gpu_and_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_step_2.pt").write_bytes(b"x" * 100)
    (tmp_path / "best_model.pt").hardlink_to(tmp_path / "checkpoint_step_2.pt")
    line = {"kind": "train", "tokens_seen": 500, "tokens_per_second": 10.0, "mfu": 0.4, "peak_flops": 1e15}
    records = [
        {**line, "step": 1, "seconds": 1800.0, "memory_gb": 3.0},
        {**line, "step": 2, "seconds": 3600.0, "memory_gb": 2.0, "tokens_seen": 1000, "mfu": 0.2},
        {"kind": "checkpoint", "step": 2, "seconds": 3600.0, "tokens_seen": 1000, "stall_seconds": 0.5},
    ]
    cost = cost_of(records, checkpoints=tmp_path, hardware={"num_gpus": 4}, evaluation_seconds=7.0)
    assert cost.gpu_hours == 4.0
    assert (cost.memory_gb, cost.disk_bytes, cost.stall_seconds, cost.checkpoints) == (3.0, 100, 0.5, 1)
    assert cost.mfu == pytest.approx(0.3)
    assert cost.seconds_per_million_tokens == pytest.approx(3.6e6)
    assert [seconds_at(records, step) for step in (1, 2, 3)] == [1800.0, 3600.0, None]


@pytest.mark.parametrize(
    ("begun", "gpus"),
    [
        ({"device": "cuda", "message": "..."}, 16),
        ({"device": "cpu", "message": "..."}, 0),
        ({"message": "Training starts at step 0 of 2: 128 tokens a step, NVIDIA GeForce GTX 1080, fp32, eager."}, 16),
        ({"message": "Training starts at step 0 of 2: 128 tokens a step, CPU, 4 threads, fp32, eager."}, 0),
    ],
)
def test_cost_of_a_device_of_unknown_peak_goes_by_what_the_training_began_on(
    tmp_path: Path, begun: dict[str, Any], gpus: int
) -> None:
    records = [
        {"kind": "event", "step": 0, "event": "started", **begun},
        {"kind": "train", "step": 1, "seconds": 1800.0, "peak_flops": None},
        {"kind": "event", "step": 1, "event": "stopped", "message": "Training stopped."},
    ]
    hardware = {"num_gpus": 8, "launcher": "slurm", "slurm": {"nodes": 2}}
    cost = cost_of(records, checkpoints=tmp_path, hardware=hardware, evaluation_seconds=0.0)
    assert cost.gpus == gpus
    assert cost.gpu_hours == (8.0 if gpus else None)


def test_report_shows_losses_by_exercise_of_checkpoints_side_by_side(tmp_path: Path) -> None:
    target = folder(tmp_path)
    for step, val_loss in ((10, 4.0), (30, 2.0)):
        write_result(target, step, val_loss=val_loss)
        path = next(target.evaluations.glob(f"step_{step:08d}-*.json"))
        value = json.loads(path.read_text(encoding="utf-8"))
        value["metrics"] |= {"val_loss/math_exercise": val_loss + 0.125, "val_loss/rag": 1.0}
        value["metrics"]["correct/math_exercise"] = 0.5
        path.write_text(json.dumps(value), encoding="utf-8")
    table = kind_table(read_contents(target).evaluated)
    assert table is not None
    assert table.steps == (10, 30)
    assert [name for name, _ in table.rows] == ["math exercise", "rag"]
    page = build(target)
    for shown in ("By kind", "math exercise", "4.125", "2.125", "100 % (34–100 %) right"):
        assert shown in page.text


def test_report_shows_speed_memory_and_learning_rate_along_the_steps_of_the_loss(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    drawn = {each["title"]: each for each in map(json.loads, build(target).scripts[:-1])}
    for name, value in (("Speed", 32), ("Memory", 2.5), ("Learning rate", 0.001)):
        (curve,) = drawn[f"{name} against step"]["series"]
        assert (curve["xs"], set(curve["ys"])) == ([*range(1, 61)], {value})
    assert "Loss in nats per token against step" in drawn


def test_report_draws_evaluations_against_time_too(tmp_path: Path) -> None:
    target = folder(tmp_path)
    write_metrics(target, 60)
    write_result(target, 30, val_loss=2.0)
    build(target)
    figures = target.report.read_text(encoding="utf-8").split("<figure>")
    by_time = next(figure for figure in figures if "against training time" in figure)
    assert by_time.count('<circle class="dots"') == 2  # the point and its mark in the legend
