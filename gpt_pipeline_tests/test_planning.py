"""Plans against what is then really made: models, files, starts, updates."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.checkpoints.retention import kept_checkpoints
from gpt_pipeline.checkpoints.save import DiskFullError
from gpt_pipeline.cli import main
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.packing import Answers
from gpt_pipeline.data.tokens.stream import spans_name, starts_name
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.sizes import training_size
from gpt_pipeline.experiment.training import training_job
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.costs import MemoryNeed, Precision, checkpoint_bytes, memory_need
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.planning.device import Device, choose_device
from gpt_pipeline.planning.disk import Disk, DiskNeed
from gpt_pipeline.planning.findings import Known, findings, mixed_splits
from gpt_pipeline.planning.host import HostMemory, _limited, host_memory
from gpt_pipeline.planning.outline import outline
from gpt_pipeline.planning.plan import Plan, count_estimates, make_plan
from gpt_pipeline.planning.probe import Request, carry_out, sizes_of
from gpt_pipeline.planning.show import as_json, sheets
from gpt_pipeline.planning.speed import (
    Duration,
    Sampling,
    Speed,
    TooSlowError,
    Work,
    duration,
    measure,
    speed_of_lines,
    update_seconds,
)
from gpt_pipeline.planning.tokens import SYNTH_TOKENS_PER_DOCUMENT, TokenCount, count_tokens
from gpt_pipeline.progress.at_work import RunAtWork
from gpt_pipeline.progress.evaluations import pending_evaluations
from gpt_pipeline.progress.failures import Failure
from gpt_pipeline.progress.stages import StageProgress, data_progress
from gpt_pipeline.progress.status import Best, CheckpointStatus, Status
from gpt_pipeline.progress.training import TrainingProgress
from gpt_pipeline.report import wording
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.sheet import plain_text
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.room import free_bytes
from gpt_pipeline.training.config import HardwareConfig, StepLayout, TrainingConfig
from gpt_pipeline.training.decision import decide_start
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.observer import SilentObserver
from gpt_pipeline.training.saver import Saver
from gpt_pipeline.training.start import prepare_start
from gpt_pipeline_tests.projects import TinyProject, make_data, train
from gpt_pipeline_tests.servers import free_port
from gpt_pipeline_tests.synth_rows import rows, write_synth
from gpt_pipeline_tests.training_jobs import make_job, run


def _quiet(text: str) -> None: ...


def _job(experiment: Experiment) -> TrainingJob:
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    return training_job(experiment, shards)


def _plan(experiment: Experiment) -> Plan:
    return make_plan(experiment, measured=False, say=_quiet)


@pytest.fixture
def project(tmp_path: Path) -> TinyProject:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny")
    return project


@pytest.fixture
def with_data(project: TinyProject, tiny_at: Callable[[int], Path]) -> TinyProject:
    shutil.copytree(tiny_at(0), project.root / "storage")
    return project


def _train(project: TinyProject, *, stop_at: int | None = None) -> TrainingJob:
    return train(project.experiment("tiny"), stop_at=stop_at)


def test_host_memory_of_this_machine_is_plausible_and_less_in_a_container(tmp_path: Path) -> None:
    memory = host_memory()
    assert memory is not None
    assert memory.available is None or 0 < memory.available <= memory.total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 50000\nactive_file 50000\n")
    limited = _limited(HostMemory(total=8_000_000, available=7_000_000), tmp_path)
    assert limited == HostMemory(total=1_000_000, available=700_000)


# Tokens, steps, disk


def test_plan_tokens_of_finished_shards_are_counted_and_steps_are_the_trainers(with_data: TinyProject) -> None:
    experiment = with_data.experiment("tiny")
    facts = find_shards(experiment.data, experiment.data_folder).manifest.facts
    plan = _plan(experiment)
    assert plan.tokens.exact
    assert (plan.tokens.train_tokens, plan.tokens.documents) == (facts["train_tokens"], 300)
    assert plan.length.tokens_per_step == 128
    assert plan.length.steps == 12
    assert plan.length.steps_per_epoch == (facts["train_tokens"] - 1) // 32 // 4
    assert plan.parameters == make_model(experiment.config.model).num_parameters


def test_plan_tokens_of_synth_are_estimated_with_the_constants_source(project: TinyProject) -> None:
    path = project.write_experiment("synth", num_samples=2_000_000)
    path.write_text(path.read_text().replace("source: sample, ", ""))
    tokens = count_tokens(load_experiment(path))
    assert not tokens.exact
    assert tokens.tokens == 2_000_000 * SYNTH_TOKENS_PER_DOCUMENT
    assert "PleIAs/SYNTH" in tokens.source


def test_plan_tokens_of_own_files_that_cannot_be_read_are_a_guess_without_synth(project: TinyProject) -> None:
    path = project.write_experiment("own")
    source = "source: ./none, format: text, "
    path.write_text(path.read_text().replace("source: sample, ", source))
    assert "SYNTH" not in count_tokens(load_experiment(path)).source


def test_plan_tokens_of_a_small_vocabulary_are_more(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "one.txt").write_text("A sentence of the text. " * 400)
    counts = {}
    for tokenizer in ("gpt2", "{train: 1024}"):
        path = tmp_path / "x.yaml"
        path.write_text(
            f"experiment_name: x\nstorage: {{base_folder: s}}\n"
            f"data: {{source: ./mine, format: text, num_samples: all, tokenizer: {tokenizer}}}\n"
        )
        counts[tokenizer] = count_tokens(load_experiment(path))
    assert counts["{train: 1024}"].tokens == pytest.approx(4.5 / 2.3 * counts["gpt2"].tokens, rel=0.01)
    assert "with a tokenizer of 1,024 ids" in counts["{train: 1024}"].source
    assert "ids" not in counts["gpt2"].source


def test_plan_tokens_of_a_larger_set_go_by_what_was_counted_of_the_same_source(with_data: TinyProject) -> None:
    with_data.write_experiment("more", num_samples=3000)
    counted, estimated = (count_tokens(with_data.experiment(name)) for name in ("tiny", "more"))
    assert not estimated.exact
    assert "as counted in 300 of the same source" in estimated.source
    assert estimated.tokens == pytest.approx(10 * counted.tokens, rel=0.001)


def test_plan_sample_estimates_are_near_what_is_then_made(project: TinyProject) -> None:
    project.write_experiment("sample", num_samples=8000)
    experiment = project.experiment("sample")
    before = _plan(experiment)
    make_data(experiment)
    after = _plan(experiment)
    assert before.tokens.tokens == pytest.approx(after.tokens.tokens, rel=0.1)
    for planned, made in zip(before.disks[0].needs, after.disks[0].needs[-3:], strict=False):
        if planned.what == made.what:
            assert planned.size == pytest.approx(made.size, rel=0.25)
    on_disk = sum(path.stat().st_size for path in _distinct_files(experiment.data_folder))
    planned = sum(need.size for need in before.disks[0].needs if "checkpoints" not in need.what)
    assert planned == pytest.approx(on_disk, rel=0.25)
    assert after.disks[0].to_write == before.disks[0].needs[-1].size  # the checkpoints alone are left


def _distinct_files(folder: Path) -> list[Path]:
    files = {path.stat().st_ino: path for path in folder.rglob("*") if path.is_file()}
    return list(files.values())


def test_plan_of_near_duplicates_has_room_for_their_signatures(project: TinyProject) -> None:
    path = project.write_experiment("near", num_samples=1000)
    without = _plan(load_experiment(path)).disks[0]
    path.write_text(path.read_text().replace("source: sample, ", "source: sample, near_duplicates: 0.8, "))
    disk = _plan(load_experiment(path)).disks[0]
    assert {need.what: need.size for need in disk.needs}["signatures of near duplicates"] == 1000 * 448
    assert disk.to_write == without.to_write + 1000 * 448


def test_plan_checkpoint_size_is_that_of_the_file(with_data: TinyProject) -> None:
    job = _train(with_data, stop_at=4)
    saved = with_data.checkpoints("tiny")[-1]
    assert checkpoint_bytes(job.model, "adamw") == pytest.approx(saved.size, rel=0.02)


def test_plan_counts_as_many_checkpoints_as_the_trainer_wants_room_for(tmp_path: Path) -> None:
    job = make_job(tmp_path, cadence={"keep_last": 7})
    saver = Saver(job, SilentObserver())
    share = free_bytes(tmp_path) // kept_checkpoints(7)
    saver.require_room(int(0.9 * share))
    with pytest.raises(DiskFullError):
        saver.require_room(int(1.1 * share))
    saver.close()


def test_plan_of_a_short_training_counts_no_more_checkpoints_than_it_writes(project: TinyProject) -> None:
    path = project.root / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("keep_last: 3", "keep_last: 9"))
    need = _plan(load_experiment(path)).disks[0].needs[-1]
    assert need.what == "4 checkpoints"  # of steps 4, 8, 12, and the best
    path.write_text(path.read_text().replace("keep_last: 9", "keep_last: 1"))
    assert _plan(load_experiment(path)).disks[0].needs[-1].what == "3 checkpoints"


def test_disk_room_that_downloads_leave_free_is_needed_but_not_written(tmp_path: Path) -> None:
    download = DiskNeed(what="download", folder=tmp_path, size=1000, present=100)
    spare = DiskNeed(what="left free by downloads", folder=tmp_path, size=300, present=0, is_written=False)
    disk = Disk(folder=tmp_path, free=1000, needs=(download, spare))
    assert (disk.to_write, disk.needed) == (900, 1200)


# What is used again


def test_data_progress_tells_absent_partly_and_finished(project: TinyProject) -> None:
    project.write_experiment("two_files", num_samples=9000)
    experiment = project.experiment("two_files")
    assert [stage.state for stage in data_progress(experiment)] == ["absent", "absent", "absent"]
    raw = prepare_raw(experiment.data, experiment.data_folder, say=_quiet)
    english = DocumentsStage(config=experiment.data, data_folder=experiment.data_folder, given_raw=raw)
    english.make([english.parts()[0].raw.name], say=_quiet)
    found = data_progress(experiment)
    assert [stage.state for stage in found] == ["finished", "partly", "absent"]
    assert (found[1].files_done, found[1].files) == (1, 2)
    make_data(experiment)
    assert [stage.state for stage in data_progress(experiment)] == ["finished"] * 3


def test_outline_of_finished_data_of_ones_own_says_the_steps(project: TinyProject) -> None:
    texts = project.root / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"{number} " * 60, encoding="utf-8")
    path = project.write_experiment("own")
    sample = "source: sample, num_samples: 300"
    path.write_text(path.read_text().replace(sample, "source: ../texts, format: text, num_samples: all"))
    experiment = project.experiment("own")
    _, absent, *_ = outline(experiment)
    assert "known once the data is there" in absent
    make_data(experiment)
    ready, *_ = outline(experiment)
    assert "about 12 steps of " in ready


def test_outline_before_with_data_and_after_the_training(with_data: TinyProject) -> None:
    with_data.write_experiment("more", num_samples=6000)
    absent = [*outline(with_data.experiment("more"))]
    assert absent[0].startswith("data         english_parquet, token_shards: about ")  # the raw files are there
    ready = [*outline(with_data.experiment("tiny"))]
    steps = _plan(with_data.experiment("tiny")).length.steps
    assert f"about {steps} steps of " in ready[0]
    assert ready[0].startswith("training")
    _train(with_data)
    assert [*outline(with_data.experiment("tiny"))] == []
    anew = [*outline(with_data.experiment("tiny"), force=True)]
    assert anew[0] == ready[0]
    assert anew[1].endswith(
        f"anew; the training so far moves to {with_data.experiment('tiny').folder.root / 'previous'}"
    )


def test_plan_start_before_during_and_after_a_training(with_data: TinyProject) -> None:
    experiment = with_data.experiment("tiny")
    assert (_plan(experiment).start.kind, _plan(experiment).length.steps_left) == ("anew", 12)
    _train(with_data, stop_at=6)
    stopped = _plan(experiment)
    assert (stopped.start.kind, stopped.start.step, stopped.length.steps_left) == ("continue", 6, 6)
    _train(with_data)
    finished = _plan(experiment)
    assert (finished.start.kind, finished.length.steps_left) == ("finished", 0)
    assert finished.disks[0].to_write == 0
    with_data.write_experiment("tiny", learning_rate=0.002)
    changed = _plan(with_data.experiment("tiny"))
    assert (changed.start.kind, changed.start.moves_checkpoints) == ("anew", True)


def test_plan_of_a_running_training_takes_its_own_figures_and_does_not_compete(with_data: TinyProject) -> None:
    _train(with_data, stop_at=6)
    experiment = with_data.experiment("tiny")
    with folder_lock(experiment.folder.root, purpose="training"):
        plan = make_plan(experiment, measured=True, say=_quiet)
    assert plan.is_running
    assert (plan.speed.source, plan.start.step, plan.length.steps_left) == ("running", 6, 6)
    assert plan.duration.training_seconds > 0


_RESUMES = ["null", "scratch", "checkpoint_step_4.pt", "checkpoint_step_8.pt", "best_model.pt"]


@pytest.mark.parametrize("resume", _RESUMES)
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("learning_rate", [0.001, 0.002])
def test_decided_start_is_what_the_trainer_then_does(
    project: TinyProject, tiny_at: Callable[[int], Path], resume: str, repeated: bool, learning_rate: float
) -> None:
    shutil.copytree(tiny_at(9), project.root / "storage")
    path = project.write_experiment("tiny", learning_rate=learning_rate)
    path.write_text(path.read_text().replace("../storage}", f"../storage, checkpoint_to_resume: {resume}}}"))
    job = _job(project.experiment("tiny"))
    if repeated:
        prepare_start(job, max_steps=12, say=_quiet)
    before = len(list(job.folder.root.glob("previous/*")))
    expected = decide_start(job)
    start = prepare_start(job, max_steps=12, say=_quiet)
    assert expected.step == (0 if start.checkpoint is None else start.checkpoint.step)
    assert expected.checkpoint == (None if start.checkpoint is None else start.checkpoint.path)
    assert (expected.kind == "finished") == (start.finished is not None)
    moved = [path for path in job.folder.root.glob("previous/*") if list(path.rglob("*.pt"))]
    assert expected.moves_checkpoints == (len(moved) > before)


def test_device_of_one_thread_is_told_in_the_singular() -> None:
    before = torch.get_num_threads()
    told = []
    for count in (1, 2):
        torch.set_num_threads(count)
        told.append(choose_device(HardwareConfig(device="cpu"), TrainingConfig()).description)
    torch.set_num_threads(before)
    assert told == ["CPU, 1 thread, fp32, eager", "CPU, 2 threads, fp32, eager"]


# Speed and hours


def _request(**changes) -> Request:
    layout = StepLayout(batch_size=4, micro_batch_size=2, max_length=32, world_size=1, max_steps=100)
    values = {
        "model": ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=64),
        "training": TrainingConfig(batch_size=4, micro_batch_size=2, warmup_steps=2),
        "hardware": HardwareConfig(device="cpu"),
        "layout": layout,
        "answers": 2,
    }
    return Request(**{**values, **changes})


def test_measure_makes_real_updates_and_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    speed = measure(_request(samples=3), world_size=1, say=told.append)
    assert speed.updates >= 3
    assert speed.tokens_per_second == pytest.approx(128 / speed.update_seconds)
    assert speed.reading_tokens_per_second > 0
    assert speed.writing_tokens_per_second > 0
    assert speed.sampling_tokens_per_second > 0
    assert "CPU" in speed.device
    assert any("first update" in text for text in told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kl", "asked"), [(0.0, 0), (0.1, 64)])
def test_probe_of_rl_that_pays_for_distance_holds_and_asks_the_start_weights(kl: float, asked: int) -> None:
    rows: dict[weakref.ref[LanguageModel], int] = {}  # of the largest batch that each model sees

    def see(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, LanguageModel):
            model = weakref.ref(module)
            rows[model] = max(rows.get(model, 0), len(given[0]))

    class EnoughError(Exception):
        pass

    def emit(record: Mapping[str, Any]) -> None:
        if record["kind"] == "update":
            held.extend(sorted(rows[model] for model in rows if model() is not None))
            raise EnoughError

    held: list[int] = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(see)
    try:
        with pytest.raises(EnoughError):
            carry_out(_request(samples=2, rl=RlConfig(kl=kl)), emit)
    finally:
        handle.remove()
    assert held == [2, asked][: 1 + bool(asked)]  # sequences: 2,048 tokens of the start weights at once


def test_measure_beyond_its_time_says_so_and_ends_its_process() -> None:
    with pytest.raises(TooSlowError, match="no update finished in 0 s"):
        measure(_request(), world_size=1, say=_quiet, limit_seconds=0.2)
    assert all("planning.probe" not in _command_of(pid) for pid in _children())


def _children() -> list[int]:
    """The processes that this one has started and that are not ended; none where the system does not tell."""
    tables = Path("/proc/self/task").glob("*/children")
    return [int(pid) for table in tables for pid in table.read_text().split()]


def _command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_measure_on_a_device_that_is_not_there_is_refused_in_the_trainers_words() -> None:
    with pytest.raises(UserError, match=r"torch .* sees none"):
        measure(_request(hardware=HardwareConfig(device="cuda")), world_size=1, say=_quiet)


def test_probe_of_what_has_no_fixed_order_of_sums_is_refused_in_the_trainers_words(monkeypatch) -> None:
    gelu = torch.nn.functional.gelu

    def unordered(x: torch.Tensor, **how: Any) -> torch.Tensor:
        return gelu(x, **how).put_(torch.zeros(1, dtype=torch.int64), torch.zeros(1))

    monkeypatch.setattr(torch.nn.functional, "gelu", unordered)
    torch.use_deterministic_algorithms(True)
    records: list[Mapping[str, Any]] = []
    try:
        carry_out(_request(), records.append)
    finally:
        torch.use_deterministic_algorithms(False)
    assert records[-1]["kind"] == "refused"
    assert re.search(r"training\.deterministic: found put_.*deterministic: false", records[-1]["text"])


def test_update_seconds_of_many_micro_batches_follow_from_two_sizes() -> None:
    def of(size: int, seconds: float) -> dict:
        return {"micro_batches": size, "seconds": seconds}

    # 0.5 s beside the micro-batches, 0.25 s for each; the slow one is an outlier.
    updates = [of(1, 0.75), of(4, 1.5), of(1, 0.75), of(4, 1.5), of(1, 9.0), of(4, 1.5)]
    assert update_seconds(updates, micro_batches=128) == pytest.approx(0.5 + 0.25 * 128)
    assert update_seconds([of(2, 3.0)], micro_batches=2) == 3.0


def test_probe_makes_whole_updates_where_they_are_short() -> None:
    plan = StepLayout(batch_size=6, micro_batch_size=2, max_length=8, world_size=1, max_steps=1)
    assert sizes_of(plan) == (3,)
    assert sizes_of(dataclasses.replace(plan, batch_size=64)) == (1, 4)


def test_duration_of_a_known_speed_is_arithmetic() -> None:
    work = Work(
        steps=1000,
        tokens_per_step=4096,
        max_length=512,
        batch_size=8,
        validation_tokens=10**6,
        tokens_per_document=800,
        estimates=3,
        evaluations=4,
    )
    speed = Speed(
        tokens_per_second=1000.0,
        source="measured",
        reading_tokens_per_second=4000.0,
        writing_tokens_per_second=100.0,
    )
    config = EvaluationConfig(
        eval_freq=500, eval_iters=20, save_every_n_iterations=250, num_questions=5, max_new_tokens=100
    )
    found = duration(work, config, speed, [])
    assert found.validation_seconds == pytest.approx(3 * 1.5 * 20 * 8 * 512 / 4000)  # and half as many in documents
    assert found.training_seconds == pytest.approx(1000 * 4.096 + found.validation_seconds)
    assert found.evaluation_seconds == pytest.approx(4 * ((10**6 + 256 * 512) / 4000 + 5 * 100 / 100))
    drawn = duration(work, dataclasses.replace(config, samples_per_question=3), speed, [])
    assert drawn.evaluation_seconds - found.evaluation_seconds == pytest.approx(4 * 3 * 5 * 100 / 100)


REWARDED = Work(
    steps=10,
    tokens_per_step=1000,
    max_length=100,
    batch_size=1,
    validation_tokens=10**6,
    tokens_per_document=80,
    estimates=3,
    evaluations=0,
    sampling=Sampling(update=400, asked=2000, estimate=200, prompts=5000),
)


def test_duration_of_rewards_counts_the_answers_that_are_sampled() -> None:
    speed = Speed(
        tokens_per_second=1000.0,
        source="measured",
        reading_tokens_per_second=4000.0,
        sampling_tokens_per_second=100.0,
    )
    config = EvaluationConfig(eval_freq=5, eval_iters=4, save_every_n_iterations=10)
    found = duration(REWARDED, config, speed, [])
    assert found.sampling_seconds == pytest.approx(10 * 4 + 3 * 2)
    assert found.prompts_seconds == pytest.approx(50)
    assert found.training_seconds == pytest.approx(10 * (1 + 4 + 2000 / 4000) + found.validation_seconds)
    assert found.validation_seconds == pytest.approx(3 * (1.5 * 400 / 4000 + 2))
    unknown = duration(REWARDED, config, dataclasses.replace(speed, sampling_tokens_per_second=None), [])
    assert unknown.sampling_seconds is None


def test_duration_of_rewards_by_the_training_s_own_lines_has_its_sampling_in_it(tmp_path: Path) -> None:
    update = {"kind": "train", "tokens_per_second": 50.0, "answer_tokens": 10.0}
    lines = [
        {"kind": "validation", "step": 0, "seconds": 30.0},
        {**update, "step": 2, "seconds": 40.0},
        {"kind": "validation", "step": 2, "seconds": 49.0},
        {"kind": "checkpoint", "step": 2, "seconds": 52.0},
        {**update, "step": 3, "seconds": 53.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    speed = speed_of_lines(tmp_path / "metrics.jsonl", running=True, sequences=20)
    work = dataclasses.replace(REWARDED, steps=7, tokens_per_step=20 * 1000, max_length=1000, estimates=2)
    config = EvaluationConfig(eval_freq=5, save_every_n_iterations=5)
    found = duration(work, config, speed, [])
    assert found.validation_seconds == pytest.approx(2 * 9)
    assert found.training_seconds == pytest.approx(7 * 20 * 10 / 50 + 2 * 9)
    assert found.checkpoint_interval_seconds == pytest.approx(5 * 20 * 10 / 50 + 9)
    unknown = duration(work, config, dataclasses.replace(speed, estimate_seconds=None), [])
    assert unknown.validation_seconds is None
    assert unknown.training_seconds == pytest.approx(7 * 20 * 10 / 50)


def test_plan_of_a_fine_tuning_counts_the_checkpoint_that_it_starts_with_once(with_data: TinyProject) -> None:
    _train(with_data)
    path = with_data.write_experiment("later")
    text = path.read_text().replace("training: {", "start_from: {experiment: tiny.yaml}\ntraining: {objective: sft, ")
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("model:")))
    later = with_data.experiment("later")
    plan = _plan(later)
    assert "4 checkpoints" in "".join(outline(later))
    listener = run(_job(later))
    assert plan.length.checkpoints == plan.duration.evaluations == len(listener.checkpoints) == 4
    after = _plan(later)
    assert after.start.kind == "finished"
    assert after.duration.evaluations == len(pending_evaluations(later))


@pytest.mark.parametrize(
    ("steps", "done", "every", "estimates"),
    [(10, 0, 5, 3), (11, 0, 5, 4), (4, 0, 5, 2), (10, 5, 5, 1), (10, 7, 5, 1), (10, 10, 5, 0)],
)
def test_estimates_count_the_one_at_the_start(steps: int, done: int, every: int, estimates: int) -> None:
    # The steps at which the trainer estimates: those done are not made again.
    due = {steps, *range(0, steps, every)}
    assert estimates == len([step for step in due if step > done or (step == 0 == done)])
    assert count_estimates(steps, done=done, every=every) == estimates


# The command


def _run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0), capsys.readouterr().out


_PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
_PRINTED = (Status, StageProgress, TrainingProgress, CheckpointStatus, Best, Failure, RunAtWork, TokenCount, DiskNeed)


@pytest.mark.parametrize("printed", _PRINTED)
def test_page_names_every_key_that_is_printed_as_json(printed: type) -> None:
    documented = _PAGE.read_text(encoding="utf-8")
    assert [key.name for key in dataclasses.fields(printed) if f"`{key.name}`" not in documented] == []


def test_plan_command_measures_and_prints_json_in_full(with_data: TinyProject, capsys) -> None:
    path = str(with_data.root / "experiments" / "tiny.yaml")
    code, output = _run(capsys, "plan", path, "--json")
    plan = json.loads(output)
    assert code == 0
    assert plan["can_run"] is True
    assert plan["length"]["tokens"] == 12 * 128
    assert plan["length"]["flops"] == plan["length"]["tokens"] * plan["length"]["flops_per_token"]
    assert plan["speed"]["source"] == "measured"
    assert plan["speed"]["sampling_tokens_per_second"] is None
    assert plan["duration"]["training_seconds"] > 0
    assert not (with_data.root / "storage" / "tiny").exists()
    documented = _PAGE.read_text(encoding="utf-8")
    sections = ("length", "start", "memory", "speed", "duration", "device")
    keys = {*plan, *(key for section in sections for key in plan[section])}
    assert [key for key in sorted(keys) if f"`{key}`" not in documented] == []


def test_plan_command_names_what_would_fail_and_exits_with_1(with_data: TinyProject, capsys) -> None:
    path = with_data.root / "experiments" / "tiny.yaml"
    path.write_text(path.read_text().replace("../storage}", "../storage, checkpoint_to_resume: gone.pt}"))
    code, output = _run(capsys, "plan", str(path), "--no-measure")
    assert code == 1
    assert "storage.checkpoint_to_resume found 'gone.pt'" in " ".join(output.split())
    assert "1 problem to solve before it can run." in output


def _resume(path: Path, name: str) -> None:
    path.write_text(path.read_text().replace("../storage}", f"../storage, checkpoint_to_resume: {name}}}"))


def test_plan_names_a_checkpoint_to_resume_that_is_not_there_before_the_data_is_made(project: TinyProject) -> None:
    path = project.root / "experiments" / "tiny.yaml"
    _resume(path, "nosuch.pt")
    plan = _plan(load_experiment(path))
    assert [problem.key for problem in plan.problems] == ["storage.checkpoint_to_resume"]
    assert "found 'nosuch.pt', need one of those in" in plan.problems[0].text
    assert plan.problems[0].remedy == "set it to null"
    folder = load_experiment(path).folder.checkpoints
    folder.mkdir(parents=True)
    (folder / "nosuch.pt").write_bytes(b"of other scripts, so without a manifest")
    assert _plan(load_experiment(path)).problems == ()


def test_plan_of_a_resumed_checkpoint_that_has_made_room_since_goes_on_as_the_trainer_does(
    with_data: TinyProject,
) -> None:
    _train(with_data, stop_at=5)
    _resume(with_data.root / "experiments" / "tiny.yaml", "checkpoint_step_4.pt")
    job = _train(with_data, stop_at=9)
    (job.folder.checkpoints / "checkpoint_step_4.pt").unlink()
    expected = _plan(with_data.experiment("tiny"))
    assert (expected.problems, expected.start.step) == (
        (),
        prepare_start(job, max_steps=12, say=_quiet).checkpoint.step,
    )
    shutil.rmtree(with_data.experiment("tiny").data_folder)
    assert _plan(with_data.experiment("tiny")).problems == ()


def test_plan_of_too_little_data_is_a_problem_with_a_remedy(project: TinyProject) -> None:
    path = project.write_experiment("few", num_samples=2)
    path.write_text(path.read_text().replace("batch_size: 4", "batch_size: 400"))
    plan = _plan(load_experiment(path))
    assert plan.length is None
    assert any(each.key == "data.num_samples" and "raise data.num_samples" in each.remedy for each in plan.problems)


def test_plan_of_too_little_data_all_of_which_is_used_asks_for_more_documents(project: TinyProject) -> None:
    path = project.write_experiment("few")
    (project.root / "texts.jsonl").write_text('{"text": "a few words"}\n' * 3)
    text = path.read_text().replace("batch_size: 4", "batch_size: 400").replace("num_samples: 300", "num_samples: all")
    path.write_text(text.replace("source: sample", "source: ../texts.jsonl, format: text"))
    remedies = [each.remedy for each in _plan(load_experiment(path)).findings]
    assert any(remedy.startswith("add documents, or lower training.batch_size") for remedy in remedies)
    assert not [remedy for remedy in remedies if "num_samples" in remedy]


@pytest.mark.parametrize("amount", ["all", "2"])
@pytest.mark.parametrize("is_readable", [True, False])
@pytest.mark.parametrize("source", ["source: ../own, format: chat", "MIX"])
def test_plan_of_files_without_a_document_names_no_other_problem(
    project: TinyProject, source: str, amount: str, *, is_readable: bool
) -> None:
    (project.root / "own").mkdir()
    said = [{"role": role, "content": "Yes."} for role in ("customer", "bot")]
    line = json.dumps({"messages": said}) if is_readable else "{"
    (project.root / "own" / "a.jsonl").write_text(f"{line}\n" * 3)
    path = project.write_experiment("none")
    parts = "mix: {a: {source: sample, share: 1}, b: {source: ../own, format: chat, share: 9}}"
    text = path.read_text().replace("source: sample", source.replace("MIX", parts)).replace("300", amount, 1)
    path.write_text(text.replace("source: sample", "source: sample, num_samples: 300"))
    plan = _plan(load_experiment(path))
    [found] = plan.problems
    assert found.key in ("data.source", "data.mix.b.source")
    assert ("other_role: 3" in found.text, "user or human" in found.remedy) == (is_readable, is_readable)
    assert plan.tokens.documents == 0
    assert "data.validation_fraction" not in {each.key for each in plan.findings}
    assert as_json(plan)["can_run"] is False


@pytest.mark.parametrize("amount", ["all", "2"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_plan_of_files_without_a_row_says_that_it_cannot_run(project: TinyProject, name: str, amount: str) -> None:
    (project.root / "own").mkdir()
    (project.root / "own" / name).touch()
    path = project.write_experiment("none")
    text = path.read_text().replace("source: sample", "source: ../own, format: text").replace("300", amount, 1)
    path.write_text(text)
    [found] = _plan(load_experiment(path)).problems
    assert (found.key, found.text.startswith("no row in ")) == ("data.source", True)


def test_plan_of_a_single_document_says_how_it_becomes_several(project: TinyProject) -> None:
    (project.root / "own.txt").write_text("A line of text.\n" * 9_000)
    path = project.write_experiment("part")
    mix = "mix: {a: {source: sample, share: 1}, b: {source: ../own.txt, format: text, num_samples: all, share: 1}}"
    path.write_text(path.read_text().replace("source: sample", mix))
    [found] = _plan(load_experiment(path)).problems
    assert (found.key, "data.mix.b.split_text_at" in found.remedy) == ("data.mix.b.num_samples", True)
    path = project.write_experiment("alone")
    text = path.read_text().replace("source: sample", "source: ../own.txt, format: text").replace("300", "all", 1)
    path.write_text(text)
    [found] = _plan(load_experiment(path)).problems
    assert (found.key, "split_text_at: line" in found.remedy) == ("data.num_samples", True)
    with pytest.raises(UserError, match=r"data\.num_samples: found 1, need at least two documents, .*split_text_at"):
        make_data(load_experiment(path))


@pytest.mark.parametrize(("documents", "is_told"), [(40, True), (60, False)])
def test_plan_warns_where_perhaps_no_document_is_held_out(
    project: TinyProject, documents: int, *, is_told: bool
) -> None:
    path = project.write_experiment("few")
    parts = f"mix: {{a: {{source: sample, share: 1}}, b: {{source: sample, num_samples: {documents}, share: 1}}}}"
    path.write_text(path.read_text().replace("source: sample", parts))
    experiment = load_experiment(path)
    assert experiment.data.validation_fraction == 0.1
    found = [each for each in _plan(experiment).findings if "perhaps none" in each.text]
    assert [each.text for each in found] == ["4.0 of 40 documents of b are held out, perhaps none"] * is_told
    assert [each.remedy for each in found] == ["raise it from 0.1, or raise data.mix.b.num_samples"] * is_told


def test_plan_says_which_rows_are_lost_but_for_those_that_a_filter_leaves_out(project: TinyProject) -> None:
    (project.root / "own").mkdir()
    rows = [{"text": f"Row {number}.", "lang": "en"} for number in range(300)]
    rows += [{"text": None, "lang": "en"}] * 2 + [{"text": "Zeile.", "lang": "de"}] * 5
    (project.root / "own" / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = project.write_experiment("some")
    own = "source: ../own, format: text, filter: {lang: en}"
    path.write_text(path.read_text().replace("source: sample", own).replace("300", "all", 1))
    plan = _plan(load_experiment(path))
    [found] = [each for each in plan.findings if each.key == "data.source"]
    assert (found.severity, "2 of the first 307 rows" in found.text, "no_text: 2" in found.text) == ("note", True, True)
    assert "filter" not in found.text


@pytest.mark.parametrize(("texts", "is_told"), [(3, False), (4, True)])
def test_plan_says_that_many_files_of_another_kind_are_left_out(
    project: TinyProject, texts: int, *, is_told: bool
) -> None:
    (project.root / "own").mkdir()
    lines = "".join(f"{json.dumps({'text': f'Row {number}.'})}\n" for number in range(300))
    (project.root / "own" / "a.jsonl").write_text(lines)
    for number in range(texts):
        (project.root / "own" / f"{number}.txt").write_text("Some text.")
    path = project.write_experiment("beside")
    own = "source: ../own, format: text"
    path.write_text(path.read_text().replace("source: sample", own).replace("300", "all", 1))
    found = [each for each in _plan(load_experiment(path)).findings if each.key == "data.source"]
    assert len(found) == is_told
    if found:
        assert "1 file of jsonl to read, and 4 others that are left out, such as 0.txt" in found[0].text
        assert "own/**/*.txt" in found[0].remedy
        for text in (project.root / "own").glob("*.txt"):
            text.rename(text.with_suffix(".txt.gz"))
        assert any("own/**/*.txt.gz" in each.remedy for each in _plan(load_experiment(path)).findings)


def test_plan_warns_of_what_is_hardly_wanted_and_can_still_be_run(project: TinyProject) -> None:
    path = project.write_experiment("odd")
    text = path.read_text().replace("max_steps: 12", "num_epochs: 9").replace("warmup_steps: 2", "warmup_steps: 5000")
    path.write_text(text)
    plan = _plan(load_experiment(path))
    assert plan.problems == ()
    keys = {finding.key for finding in plan.findings}
    assert {"training.warmup_steps", "training.num_epochs", "evaluation.max_validation_tokens"} <= keys


def test_plan_of_a_mix_says_how_often_an_epoch_takes_each_part(project: TinyProject) -> None:
    path = project.write_experiment("mixed")
    parts = "mix: {a: {source: sample, share: 3}, b: {source: sample, share: 1}}"
    path.write_text(path.read_text().replace("source: sample", parts))
    rows = [text for sheet in sheets(_plan(load_experiment(path))) for _, _, text in sheet.rows]
    assert "a 1.00 times, b 0.33 times" in rows


def test_plan_of_a_mix_names_the_part_that_cannot_be_read(project: TinyProject) -> None:
    (project.root / "texts").mkdir()
    (project.root / "texts" / "a.jsonl").write_text('{"body": "One."}\n')
    path = project.write_experiment("mixed")
    parts = "mix: {a: {source: sample, share: 2}, b: {source: ../texts, format: text, num_samples: all, share: 1}}"
    path.write_text(path.read_text().replace("source: sample", parts))
    [found] = _plan(load_experiment(path)).problems
    assert (found.key, found.remedy) == (
        "data.mix.b.source",
        "set data.mix.b.columns.text to the column that holds the text",
    )


def test_plan_warns_of_a_revision_where_there_is_none(project: TinyProject) -> None:
    (project.root / "own.txt").write_text("A line of text.\n" * 9_000)
    path = project.write_experiment("mixed")
    own = "{source: ../own.txt, format: text, split_text_at: line, num_samples: all, revision: abc, share: 1}"
    path.write_text(path.read_text().replace("source: sample", f"mix: {{a: {{source: sample, share: 2}}, b: {own}}}"))
    [found] = [each for each in _plan(load_experiment(path)).findings if each.key == "data.mix.b.revision"]
    assert found.severity == "warning"
    alone = project.write_experiment("alone")
    alone.write_text(alone.read_text().replace("source: sample", "source: sample, revision: abc"))
    assert "data.revision" in [each.key for each in _plan(load_experiment(alone)).findings]


@pytest.mark.parametrize("end", ["jsonl", "txt"])
def test_plan_of_a_copy_of_a_dataset_says_that_files_of_all_splits_are_trained_on(
    project: TinyProject, end: str
) -> None:
    folder = project.root / f"copy-{end}"
    (folder / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        lines = "".join(json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(300))
        (folder / "data" / f"{name}.{end}").write_text(lines)
    path = project.write_experiment(end)
    text = path.read_text().replace("source: sample", f"source: ../{folder.name}, format: text, split_text_at: line")
    found = {}
    for key, source in (("all", folder.name), ("train", f"{folder.name}/data/train-*-of-*.{end}")):
        path.write_text(text.replace(f"../{folder.name}", f"../{source}").replace("300", "200"))
        plan = _plan(load_experiment(path))
        found[key] = [(each.text, each.remedy) for each in plan.findings if each.key == "data.source"]
    assert found["train"] == []
    if end == "txt":  # whose name may be its subject
        assert found["all"] == []
        return
    [(text, remedy)] = found["all"]
    assert text == "files of 2 splits are all trained on: test, train"
    assert remedy.endswith(f"{folder.name}/data/train-*-of-*.jsonl")


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (
            ("data/train-00000-of-00002-6f3d2c1b", "data/train-00001-of-00002-1b3d", "data/test-00000-of-00001"),
            "train*",
        ),
        (("train/a", "train/b", "test/c"), "train/*"),
        (("a", "b", "test"), "or move the others away"),
    ],
)
def test_mixed_splits_offer_a_pattern_only_where_it_names_the_training_files(
    tmp_path: Path, names: tuple[str, ...], remedy: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text('{"text": "A text."}\n')
    [finding] = mixed_splits(DataConfig(num_samples="all", source=str(tmp_path), format="text"))
    assert finding.remedy.removesuffix(".jsonl").endswith(remedy)


def test_plan_remedy_of_a_coarse_validation_raises_what_limits_it(project: TinyProject) -> None:
    path = project.write_experiment("coarse")
    limited = {finding.key: finding for finding in _plan(load_experiment(path)).findings}
    assert "raise it from 512" in limited["evaluation.max_validation_tokens"].remedy
    assert "data.validation_fraction" not in limited
    path.write_text(path.read_text().replace("max_validation_tokens: 512", "max_validation_tokens: 9000000"))
    few = {finding.key: finding for finding in _plan(load_experiment(path)).findings}
    assert "data.num_samples" in few["data.validation_fraction"].remedy
    assert "max_validation_tokens" not in few["data.validation_fraction"].remedy


def test_plan_of_one_pass_with_dropout_warns_and_without_does_not(project: TinyProject) -> None:
    path = project.write_experiment("once")
    assert "model.dropout" in {finding.key for finding in _plan(load_experiment(path)).findings}
    path.write_text(path.read_text().replace("n_embd: 16", "n_embd: 16, dropout: 0.0"))
    assert "model.dropout" not in {finding.key for finding in _plan(load_experiment(path)).findings}


def test_plan_of_a_folder_that_is_not_there_fails_and_one_that_is_there_is_not_copied(
    project: TinyProject, capsys
) -> None:
    path = project.write_experiment("local")
    text = path.read_text().replace("source: sample", "local_dataset_path: ../synth")
    path.write_text(text)
    code, output = _run(capsys, "plan", str(path), "--no-measure")
    assert code == 1
    assert "need a folder, a file or a pattern that exists" in " ".join(output.split())
    (project.root / "synth").mkdir()
    write_synth(project.root / "synth" / "synth_001.parquet", rows(2000))
    plan = _plan(load_experiment(path))
    assert plan.problems == ()
    assert not any("raw_synth" in need.what for disk in plan.disks for need in disk.needs)


def test_plan_of_local_files_that_cannot_work_says_why(project: TinyProject) -> None:
    path = project.write_experiment("local")
    path.write_text(path.read_text().replace("source: sample", "local_dataset_path: ../synth"))
    folder = project.root / "synth"
    folder.mkdir()

    def found() -> dict[str, str]:
        return {finding.key: finding.text for finding in _plan(load_experiment(path)).problems}

    assert "files to read: parquet" in found()["data.local_dataset_path"]
    write_synth(folder / "synth_001.parquet", rows(50))
    assert "the files in" in found()["data.num_samples"]
    assert "50 rows" in found()["data.num_samples"]
    pq.write_table(pa.table({"body": ["a", "b"]}), folder / "synth_002.parquet")
    assert "synth_002.parquet" in found()["data.local_dataset_path"]


def test_plan_of_more_documents_than_synth_has_says_so(project: TinyProject) -> None:
    path = project.write_experiment("much", num_samples=70_000_000)
    path.write_text(path.read_text().replace("source: sample", "source: PleIAs/SYNTH"))
    assert "data.num_samples" in {finding.key for finding in _plan(load_experiment(path)).problems}


@pytest.mark.parametrize(
    ("split", "named"),
    [
        ("validation_fraction: 0.1", False),
        ("validation_fraction: 0.05", False),
        ("validation_fraction: 0.2", True),
        ("validation_fraction: 0.1, seed: 3", True),
    ],
)
def test_plan_names_a_split_by_which_the_base_was_trained_on_what_is_held_out(
    project: TinyProject, split: str, named: bool
) -> None:
    project.write_experiment("base")
    path = project.write_experiment("later")
    text = re.sub(r"(?m)^model:.*\n", "start_from: {experiment: base.yaml}\n", path.read_text())
    path.write_text(text.replace("validation_fraction: 0.1", split))
    key, found = "data.validation_fraction", _plan(load_experiment(path)).findings
    told = [finding for finding in found if finding.key == key and "base.yaml" in finding.text]
    remedy = "set data.validation_fraction: 0.1 and data.seed: 0 here too"
    assert [finding.remedy for finding in told] == [remedy] * named


def test_plan_names_the_group_by_which_the_base_was_split(project: TinyProject) -> None:
    rows = [{"text": f"Page {number} of a book. " * 5, "book": f"{number // 10}"} for number in range(200)]
    (project.root / "pages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = "source: ../pages.jsonl, format: text, columns: {text: text}, num_samples: all"
    base, path = (project.write_experiment(name) for name in ("base", "later"))
    for file, group in ((base, ", group: book"), (path, "")):
        file.write_text(re.sub(r"source: sample, num_samples: \d+", source + group, file.read_text()))
    path.write_text(re.sub(r"(?m)^model:.*\n", "start_from: {experiment: base.yaml}\n", path.read_text()))
    (told,) = (each for each in _plan(load_experiment(path)).findings if "base.yaml has" in each.text)
    assert told.remedy == "set data.validation_fraction: 0.1, data.seed: 0 and data.group: book here too"


@pytest.mark.parametrize("cuda", [False, True])
def test_plan_of_too_large_a_micro_batch_names_one_that_fits(project: TinyProject, cuda: bool) -> None:
    path = project.write_experiment("wide")
    path.write_text(path.read_text().replace("batch_size: 4", "batch_size: 96"))
    experiment = load_experiment(path)
    precision = Precision(cuda=cuda, bf16=False, compiled=False, loss_piece=None)

    def need(size: int) -> MemoryNeed:
        config = experiment.config
        return memory_need(config.model, optimizer="adamw", micro_batch_size=size, max_length=32, precision=precision)

    memory = round(need(32).device / 0.95) + 1
    device = Device(description="", precision=precision, memory_total=memory, memory_free=memory)
    known = Known(
        experiment=experiment,
        tokens=count_tokens(experiment),
        stages=data_progress(experiment),
        size=training_size(experiment.config, train_tokens=100_000),
        disks=(),
        need=need(96),
        device=device,
        is_measured=False,
        duration=None,
    )
    (found,) = [finding for finding in findings(known) if finding.key == "memory"]
    assert "training.micro_batch_size: 32 " in found.remedy
    assert found.severity == ("warning" if cuda else "problem")
    assert not any(finding.key == "memory" for finding in findings(dataclasses.replace(known, need=need(32))))
    assert not any(finding.key == "memory" for finding in findings(dataclasses.replace(known, is_measured=True)))


def test_plan_of_a_mirror_whose_folder_is_not_there_fails_until_the_training_has_begun(project: TinyProject) -> None:
    path = project.write_experiment("tiny")
    mirror = project.root / "mirror"
    path.write_text(path.read_text().replace("../storage}", f"../storage, mirror: '{mirror.as_uri()}'}}"))
    (found,) = [each for each in _plan(load_experiment(path)).problems if each.key == "storage.mirror"]
    assert f"there is no folder {mirror}" in found.text
    assert "make it: mkdir" in found.remedy
    mirror.mkdir()
    (found,) = [each for each in _plan(load_experiment(path)).findings if each.key == "storage.mirror"]
    assert found.severity == "note"
    job = train(load_experiment(path), stop_at=4)
    shutil.rmtree(mirror)
    (found,) = [each for each in _plan(load_experiment(path)).findings if each.key == "storage.mirror"]
    assert (found.severity, list_checkpoints(job.folder.checkpoints)[-1].step) == ("warning", 4)


def test_plan_of_a_mirror_whose_library_is_missing_names_the_command_that_installs_it(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.write_experiment("tiny")
    path.write_text(path.read_text().replace("../storage}", "../storage, mirror: 's3://bucket/x'}"))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (found,) = [each for each in _plan(load_experiment(path)).problems if each.key == "storage.mirror"]
    assert found.remedy.startswith("pip install")


def test_plan_for_an_engine_that_takes_no_jobs_fails_and_for_one_that_does_not_answer_warns(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.write_experiment("tiny")
    text = path.read_text()
    path.write_text(text.replace("{device: cpu}", "{device: cpu, launcher: slurm}"))
    monkeypatch.setenv("PATH", "")
    (found,) = [each for each in _plan(load_experiment(path)).problems if each.key == "hardware.launcher"]
    assert "is not installed here" in found.text
    ray = f"{{device: cpu, launcher: ray, ray: {{address: 'http://127.0.0.1:{free_port()}'}}}}"
    path.write_text(text.replace("{device: cpu}", ray))
    (found,) = [each for each in _plan(load_experiment(path)).findings if each.key == "hardware.launcher"]
    assert found.severity == "warning"
    assert "does not answer" in found.text


def test_plan_of_a_fine_tuning_warns_of_random_weights_and_of_answers_beyond_their_sequence(
    project: TinyProject,
) -> None:
    path = project.write_experiment("sft")
    path.write_text(path.read_text().replace("training: {", "training: {objective: sft, "))
    experiment = load_experiment(path)
    size = training_size(experiment.config, train_tokens=100_000)
    known = Known(
        experiment=experiment,
        tokens=count_tokens(experiment),
        stages=data_progress(experiment),
        size=dataclasses.replace(size, answers=Answers(documents=20, cut=5, tokens=90, left_out=10, shortest_row=9)),
        disks=(),
        need=None,
        device=None,
        is_measured=False,
        duration=None,
    )
    by_key = {finding.key: finding for finding in findings(known)}
    assert "random weights" in by_key["start_from"].text
    assert "5 of 20 documents are cut" in by_key["data.max_length"].text
    assert "leaves out 10.0% of such tokens" in by_key["data.max_length"].text
    assert by_key["data.max_length"].remedy == "raise it (model.context_length=64)"
    longest = dataclasses.replace(experiment.config.data, max_length=64)
    longest_known = dataclasses.replace(
        known, experiment=dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, data=longest))
    )
    assert any("leave long documents out" in finding.remedy for finding in findings(longest_known))
    fits = dataclasses.replace(size, answers=Answers(documents=20, cut=1, tokens=999, left_out=1, shortest_row=9))
    assert not any(finding.key == "data.max_length" for finding in findings(dataclasses.replace(known, size=fits)))


def test_plan_of_a_fine_tuning_whose_sequences_hold_no_answer_says_what_the_trainer_does(project: TinyProject) -> None:
    path = project.write_experiment("sft")
    path.write_text(path.read_text().replace("training: {", "training: {objective: sft, "))
    whole = load_experiment(path)
    make_data(whole)
    assert not any(each.key == "data.max_length" for each in _plan(whole).problems)
    short = path.with_name("short.yaml")
    short.write_text(path.read_text().replace("max_length: 32", "max_length: 3"))
    (found,) = [each for each in _plan(load_experiment(short)).problems if each.key == "data.max_length"]
    with pytest.raises(ConfigError) as refused:
        train(load_experiment(short))
    assert str(refused.value) == f"data.max_length: {found.text}; {found.remedy}"


def test_plan_of_a_fine_tuning_without_a_held_out_answer_in_an_estimate_says_what_the_trainer_does(
    project: TinyProject,
) -> None:
    path = project.write_experiment("sft")
    path.write_text(path.read_text().replace("training: {", "training: {objective: sft, "))
    experiment = load_experiment(path)
    shards = make_data(experiment)
    spans, starts = (shards.folder / name("validation_000001.bin") for name in (spans_name, starts_name))
    np.save(spans, np.load(spans)[len(np.load(starts)) // 2 :])  # as if the first documents were questions alone
    (found,) = [each for each in _plan(experiment).problems if each.key == "data.max_length"]
    with pytest.raises(UserError) as refused:
        run(training_job(experiment, shards))
    assert str(refused.value) == f"{found.text}; {found.remedy}"
    np.save(spans, np.load(spans).astype(np.int32))
    (found,) = [each for each in _plan(experiment).problems if spans.name in each.text]
    assert found.key == "token_shards"


@pytest.mark.parametrize(
    ("schedule", "steps", "warned"),
    [("wsd", 5, True), ("wsd", 6, False), ("cosine", 3, True), ("cosine", 4, False), ("constant", 5, False)],
)
def test_plan_of_a_decay_of_one_update_warns_that_it_is_made_at_the_peak_rate(
    with_data: TinyProject, schedule: str, steps: int, warned: bool
) -> None:
    path = with_data.write_experiment("short", max_steps=steps)
    path.write_text(path.read_text().replace("training: {", f"training: {{lr_schedule: {schedule}, "))
    found = [each.key for each in _plan(load_experiment(path)).findings]
    assert ("training.lr_schedule" in found) == warned


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_plan_for_a_gpu_that_is_not_here_fails_and_tells_its_memory_all_the_same(project: TinyProject) -> None:
    path = project.write_experiment("elsewhere")
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    plan = make_plan(load_experiment(path), measured=True, say=_quiet)
    assert [problem.key for problem in plan.problems] == ["hardware.device"]
    assert plan.device is None
    assert not plan.memory.on_host
    assert plan.memory.device > plan.memory.state > 0


def test_plan_for_two_processes_shares_the_update_between_them(with_data: TinyProject) -> None:
    path = with_data.write_experiment("pair")
    path.write_text(path.read_text().replace("device: cpu", "device: cpu, num_gpus: 2"))
    plan = _plan(load_experiment(path))
    length = plan.length
    assert (length.world_size, length.sequences_per_step, length.micro_batch_size) == (2, 4, 2)
    (found,) = (each for each in plan.findings if each.key == "hardware.num_gpus")
    assert f"need {wording.size(2 * plan.memory.device)} together" in found.text
    assert "on each of 2 processes" in plain_text(sheets(plan))


@pytest.mark.slow
def test_plan_for_two_processes_on_a_cpu_measures_one_that_makes_the_whole_update(with_data: TinyProject) -> None:
    path = with_data.write_experiment("pair")
    path.write_text(path.read_text().replace("device: cpu", "device: cpu, num_gpus: 2"))
    plan = make_plan(load_experiment(path), measured=True, say=_quiet)
    assert not any("multiplied" in note for note in plan.speed.notes)


def test_plan_of_a_model_beyond_the_memory_is_not_tried_out(project: TinyProject) -> None:
    path = project.write_experiment("huge")
    text = path.read_text().replace("n_layer: 1, n_head: 2, n_embd: 16", "n_layer: 96, n_head: 96, n_embd: 12288")
    path.write_text(text)
    plan = make_plan(load_experiment(path), measured=True, say=_quiet)
    assert plan.speed is None
    assert any(problem.key == "memory" for problem in plan.problems)
    assert any(problem.key == "disk" for problem in plan.problems)


def test_plan_command_runs_as_a_program_without_a_terminal(project: TinyProject) -> None:
    printed = project.run("plan", "experiments/tiny.yaml", "--no-measure")
    assert "\x1b[" not in printed
    assert "Ready to run." in printed


@pytest.mark.parametrize(("days", "cuda", "warned"), [(8, False, True), (6, False, False), (8, True, False)])
def test_plan_of_more_than_a_week_on_a_cpu_warns_with_a_remedy(
    project: TinyProject, days: int, cuda: bool, warned: bool
) -> None:
    experiment = load_experiment(project.write_experiment("long"))
    precision = Precision(cuda=cuda, bf16=False, compiled=False, loss_piece=None)
    known = Known(
        experiment=experiment,
        tokens=count_tokens(experiment),
        stages=data_progress(experiment),
        size=None,
        disks=(),
        need=None,
        device=Device(description="", precision=precision, memory_total=None, memory_free=None),
        is_measured=True,
        duration=Duration(
            training_seconds=days * 86_400.0,
            validation_seconds=None,
            checkpoint_interval_seconds=None,
            evaluation_seconds=None,
            evaluations=0,
        ),
    )
    found = [finding for finding in findings(known) if finding.key == "time"]
    assert [finding.severity for finding in found] == ["warning"] * warned
    assert all("--recipe cpu" in finding.remedy for finding in found)
