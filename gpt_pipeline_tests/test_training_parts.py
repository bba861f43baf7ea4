"""The trainer's small parts: schedule, plan, job, metrics."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch

from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.training.config import HardwareConfig, TrainingConfig, sequences_per_step, step_layout, total_steps
from gpt_pipeline.training.device import choose_compute
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import MetricsLog, read_metrics, write_metrics_up_to
from gpt_pipeline.training.observer import describe
from gpt_pipeline.training.optimizer import learning_rate_at
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline_tests.training_jobs import make_job

# Schedule


def _rates(max_steps: int = 100, **changes) -> list[float]:
    config = TrainingConfig(**{"learning_rate": 1.0, "warmup_steps": 10, **changes})
    return [learning_rate_at(step, config, max_steps=max_steps) for step in range(max_steps)]


def test_schedule_warms_up_linearly_to_the_peak():
    rates = _rates()
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == max(rates) == 1.0
    steps = [b - a for a, b in itertools.pairwise(rates[:11])]
    assert steps == pytest.approx([1 / 11] * 10)


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.1), ("wsd", 0.1), ("constant", 1.0)])
def test_schedule_ends_at_its_last_rate(schedule, last):
    rates = _rates(lr_schedule=schedule)
    assert rates[-1] == pytest.approx(last)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_cosine_is_halfway_in_the_middle():
    assert _rates(max_steps=111, min_learning_rate=0.0)[60] == pytest.approx(0.5)


def test_schedule_wsd_is_stable_until_the_last_fifth():
    rates = _rates(lr_schedule="wsd", min_learning_rate=0.0)
    assert rates[10:81] == [1.0] * 71
    assert rates[81] < 1.0
    assert rates[-1] == 0.0


def test_schedule_wsd_decays_over_the_share_that_is_asked_for():
    rates = _rates(lr_schedule="wsd", decay_share=0.5, min_learning_rate=0.0)
    assert rates[10:51] == [1.0] * 41
    assert rates[51:] == pytest.approx([(99 - step) / 49 for step in range(51, 100)])
    rates = _rates(lr_schedule="wsd", decay_share=1.0, min_learning_rate=0.0)
    assert rates[10:] == pytest.approx([(99 - step) / 89 for step in range(10, 100)])  # linear from the peak to zero


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_decay_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match=r"decay_share: found .*, need a number above 0, up to 1"):
        TrainingConfig(lr_schedule="wsd", decay_share=share)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize(("max_steps", "warmup"), [(1, 0), (2, 0), (5, 10), (10, 10), (11, 10), (12, 10)])
def test_schedule_of_a_short_training_stays_between_zero_and_the_peak(schedule, max_steps, warmup):
    rates = _rates(max_steps=max_steps, lr_schedule=schedule, warmup_steps=warmup)
    assert all(0 < rate <= 1 for rate in rates)


# Plan


def _plan(world_size: int = 1, max_length: int = 512, **changes):
    return step_layout(TrainingConfig(**changes), max_length=max_length, steps_per_epoch=1000, world_size=world_size)


def test_plan_without_wishes_is_one_pass_of_the_batch():
    plan = _plan(batch_size=8, num_epochs=2)
    assert (plan.batch_size, plan.micro_batch_size, plan.grad_accum_steps) == (8, 8, 1)
    assert (plan.tokens_per_step, plan.max_steps) == (4096, 2000)


def test_plan_divides_the_batch_among_processes_and_micro_batches():
    plan = _plan(world_size=2, batch_size=64, micro_batch_size=8)
    assert (plan.batch_size, plan.micro_batch_size, plan.grad_accum_steps) == (64, 8, 4)


def test_plan_micro_batch_larger_than_a_share_is_the_share():
    assert _plan(world_size=4, batch_size=8, micro_batch_size=8).micro_batch_size == 2


def test_plan_tokens_per_step_overrides_the_batch_size():
    assert _plan(batch_size=8, tokens_per_step=524_288, micro_batch_size=64).grad_accum_steps == 16
    assert sequences_per_step(TrainingConfig(tokens_per_step=1024), max_length=512) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_step": 1000}, r"tokens_per_step: found 1000, need a multiple of 512 .*use 512 or 1024"),
        ({"tokens_per_step": 100}, r"use 512$"),
        (
            {"tokens_per_step": 100_352, "micro_batch_size": 8},
            r"multiple of 4096 \(micro_batch_size=8 .*use 98304 or 102400",
        ),
        ({"batch_size": 6, "micro_batch_size": 4}, r"batch_size: found 6, need a multiple of 4 .*use 4 or 8"),
        ({"batch_size": 3, "world_size": 2}, r"batch_size: found 3, need a multiple of 2 \(the 2 processes"),
    ],
)
def test_plan_that_does_not_divide_names_the_nearest_that_do(changes, message):
    with pytest.raises(ConfigError, match=message):
        _plan(**changes)


def test_plan_max_steps_overrides_epochs():
    assert total_steps(TrainingConfig(num_epochs=3, max_steps=7), steps_per_epoch=100) == 7
    assert total_steps(TrainingConfig(num_epochs=3), steps_per_epoch=100) == 300


# Job


def test_job_written_and_read_is_the_same(tmp_path):
    job = make_job(tmp_path, resume="checkpoint_step_5.pt", request="run")
    job.write(tmp_path / "job.json")
    assert TrainingJob.read(tmp_path / "job.json") == job


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"n_layer": "x"}}'])
def test_job_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError, match=r"job\.json is no job file"):
        TrainingJob.read(tmp_path / "job.json")


# Metrics


def test_metrics_of_repeated_steps_are_the_last_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for loss, step in ((3.0, 1), (2.0, 2), (1.0, 3), (2.5, 2)):
        log.write({"kind": "train", "step": step, "train_loss": loss})
    log.write({"kind": "validation", "step": 2, "val_loss": 9.0})
    log.write({"kind": "event", "step": 2, "event": "stopped"})
    log.write({"kind": "event", "step": 2, "event": "resumed"})
    log.close()
    found = [(line["kind"], line["step"], line.get("train_loss")) for line in read_metrics(path)]
    assert found == [
        ("train", 1, 3.0),
        ("train", 2, 2.5),
        ("validation", 2, None),
        ("event", 2, None),
        ("event", 2, None),
        ("train", 3, 1.0),
    ]


@pytest.mark.parametrize("torn", ['{"kind": "train", "st', "x" * 10_000])
def test_metrics_torn_last_line_is_left_out_and_removed_on_the_next_start(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n' + torn)
    assert [line["step"] for line in read_metrics(path)] == [1]
    log = MetricsLog(path)
    log.write({"kind": "train", "step": 2})
    log.close()
    assert path.read_text() == '{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n'


def test_metrics_that_are_all_torn_start_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind"')
    MetricsLog(path).close()
    assert path.read_bytes() == b""
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_metrics_refuse_numbers_that_are_not_json(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"kind": "train", "step": 1, "train_loss": float("nan")})


def test_metrics_up_to_a_step_leave_out_the_rest(tmp_path):
    lines = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    (tmp_path / "a").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_metrics_up_to(tmp_path / "a", tmp_path / "b", step=2)
    assert [line["step"] for line in read_metrics(tmp_path / "b")] == [1, 2]


# Speed


def test_line_of_training_names_speed_utilization_with_its_peak_memory_and_time_left():
    record = {
        "kind": "train",
        "train_loss": 3.25,
        "learning_rate": 6e-4,
        "gradient_norm": 0.5,
        "tokens_per_second": 480_000.0,
        "mfu": 0.415,
        "peak_flops": 989e12,
        "memory_gb": 61.25,
        "eta_seconds": 3723.0,
    }
    words = describe(record)
    for expected in ("480,000 tokens/s", "mfu 41.5% of 989 TFLOP/s", "61.2 GB", "1 h 2 min left"):
        assert expected in words
    unknown = describe({**record, "mfu": None, "peak_flops": None, "memory_gb": None})
    assert "mfu" not in unknown
    assert "GB" not in unknown


@pytest.mark.parametrize(
    ("capabilities", "precision", "advised"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "auto", True),
        ({"avx512_bf16": False, "amx_bf16": True}, "auto", True),
        ({"avx512_bf16": True}, "fp32", False),
        ({"avx512_bf16": True}, "bf16", False),
        ({"avx512_bf16": False, "amx_bf16": False}, "auto", False),
        ({}, "auto", False),  # not x86
    ],
)
def test_cpu_computes_in_fp32_unless_asked_and_is_told_where_bf16_would_be_faster(
    monkeypatch, capabilities, precision, advised
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    said: list[str] = []
    training = TrainingConfig(precision=precision)
    compute = choose_compute(HardwareConfig(device="cpu"), training, ranks=Ranks(), say=said.append)
    assert compute.precision == ("bf16" if precision == "bf16" else "fp32")
    assert ["training.precision: bf16" in text for text in said] == [True] * advised


def test_peak_memory_keeps_what_was_used_once():
    code = """
import torch
from gpt_pipeline.training.device import peak_memory_bytes
before = peak_memory_bytes(torch.device("cpu"))
torch.ones(100_000_000)
print(before, peak_memory_bytes(torch.device("cpu")))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, child.stdout.split())
    assert 300e6 < after - before < 500e6
