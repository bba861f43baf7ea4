"""The mean of the weights that a training keeps beside them."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint, load_trained, load_weights
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Snapshot, tensor_bytes, weights_sha256
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.costs import checkpoint_bytes
from gpt_pipeline.training.average import WeightAverage, begins_after, newest_share
from gpt_pipeline.training.config import AverageConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline_tests.training_jobs import Listener, make_job

_RUN = torch.tensor(0.0)
_SKIP = torch.tensor(1.0)


def _job(folder: Path, average: AverageConfig | None = None, **training: Any) -> TrainingJob:
    config = {} if average is None else {"average_weights": average}
    return make_job(folder, training={**config, **training}, cadence={"eval_freq": 12})


def _train(job: TrainingJob, *, stop_at: int | None = None) -> None:
    stop = StopFlag()
    listener = Listener(lambda step: stop.request(signal.SIGTERM) if step == stop_at else None)
    assert run_job(job, listener, stop=stop).finished == (stop_at is None)


def _snapshots(job: TrainingJob) -> dict[int, Snapshot]:
    return {info.step: load_checkpoint(info.path) for info in list_checkpoints(job.folder.checkpoints)}


@pytest.mark.parametrize("config", [AverageConfig(decay=0.9), AverageConfig(last=0.5)])
def test_average_is_the_mean_that_was_asked_for(config: AverageConfig) -> None:
    model = make_model(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=20))
    [name, weight] = next(iter(model.named_parameters()))
    average = WeightAverage(model, config, max_steps=8)
    seen = []
    for done in range(1, 9):
        with torch.no_grad():
            weight.normal_()
        seen.append(weight.detach().double().clone())
        average.update(done, skip=_RUN)
    shares = [0.9 ** (8 - done) for done in range(1, 9)] if config.decay else [0.0] * 4 + [1.0] * 4
    expected = sum(share * each for share, each in zip(shares, seen, strict=True)) / sum(shares)
    found = average.state()
    assert found is not None
    torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_average_does_not_count_an_update_that_was_skipped() -> None:
    model = make_model(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=20))
    average = WeightAverage(model, AverageConfig(decay=0.5), max_steps=8)
    average.update(1, skip=_RUN)
    before = {name: mean.clone() for name, mean in (average.state() or {}).items()}
    with torch.no_grad():
        model.embedding.weight.add_(1.0)
    average.update(2, skip=_SKIP)
    found = average.state()
    assert found is not None
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_average_over_the_last_updates_begins_with_them() -> None:
    assert begins_after(AverageConfig(last=0.3), max_steps=10) == 7
    assert [newest_share(number, AverageConfig(last=0.3)) for number in (1, 2, 3)] == [1.0, 1 / 2, 1 / 3]


@pytest.mark.parametrize(
    ("average", "stop_at"),
    [(AverageConfig(decay=0.9), 5), (AverageConfig(last=0.5), 3), (AverageConfig(last=0.5), 9)],
    ids=["decay", "before-the-window", "inside-the-window"],
)
@pytest.mark.slow
def test_average_of_a_training_stopped_and_resumed_equals_that_of_an_undisturbed_one(
    average: AverageConfig, stop_at: int, tmp_path: Path
) -> None:
    job = _job(tmp_path, average, micro_batch_size=None)
    _train(job)
    stopped = dataclasses.replace(job, experiment_folder=str(tmp_path / "stopped"))
    _train(stopped, stop_at=stop_at)
    _train(stopped)
    found, expected = (_snapshots(each)[12].average for each in (stopped, job))
    assert found is not None
    assert expected is not None
    assert found.keys() == expected.keys() == _snapshots(job)[12].model.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(expected[name], weight) for name, weight in _snapshots(job)[12].model.items())


def test_average_changes_nothing_of_the_training_and_is_written_from_its_beginning_on(tmp_path: Path) -> None:
    plain = _job(tmp_path)
    averaged = dataclasses.replace(
        _job(tmp_path, AverageConfig(last=0.5)), experiment_folder=str(tmp_path / "averaged")
    )
    _train(plain)
    _train(averaged)
    weights = [_snapshots(each)[12].model for each in (plain, averaged)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {step: each.average is not None for step, each in _snapshots(averaged).items()} == {
        4: False,
        8: True,
        12: True,
    }
    assert all("average" not in each.payload() for each in _snapshots(plain).values())


def test_checkpoint_with_an_average_has_the_bytes_that_were_planned(tmp_path: Path) -> None:
    job = _job(tmp_path, AverageConfig(decay=0.9))
    _train(job)
    payload = _snapshots(job)[12].payload()
    tensors = tensor_bytes([payload["model"], payload["average"], payload["optimizer"]])
    assert math.isclose(tensors, checkpoint_bytes(job.model, "adamw", averaged=True), rel_tol=1e-3)


def test_job_with_an_average_is_read_as_it_was_written(tmp_path: Path) -> None:
    job = _job(tmp_path, AverageConfig(decay=0.9))
    assert TrainingJob.from_json(job.to_json()) == job


@pytest.mark.parametrize(
    ("keys", "need"),
    [
        ({"decay": 1.0}, "decay: found 1.0, need a number between 0 and 1"),
        ({"last": 0.0}, "last: found 0.0, need a number above 0, up to 1"),
        ({"decay": 0.9, "last": 0.1}, "one of the two"),
    ],
)
def test_average_that_is_none_is_refused(keys: dict[str, float], need: str) -> None:
    with pytest.raises(ConfigError, match=need):
        AverageConfig(**keys)


def test_weights_of_a_checkpoint_are_its_own_or_their_mean(tmp_path: Path) -> None:
    job = _job(tmp_path, AverageConfig(last=0.5))
    _train(job)
    paths = {info.step: info.path for info in list_checkpoints(job.folder.checkpoints)}
    kept = load_checkpoint(paths[12])
    assert kept.average is not None
    found = load_trained(paths[12], weights="average")
    assert all(torch.equal(weight, kept.average[name]) for name, weight in found.model.named_parameters())
    assert found.info.weights_sha256 == weights_sha256(kept.average) != weights_sha256(kept.model)
    raw = load_trained(paths[12]).model
    assert all(torch.equal(weight, kept.model[name]) for name, weight in raw.named_parameters())
    with pytest.raises(UserError, match="choose a later checkpoint"):
        load_weights(paths[4], "average")


def test_weights_of_a_training_without_a_mean_are_refused_with_the_remedy(tmp_path: Path) -> None:
    job = _job(tmp_path)
    _train(job)
    [*_, last] = list_checkpoints(job.folder.checkpoints)
    with pytest.raises(UserError, match=r"--weights average: found .*leave --weights out, or train with"):
        load_weights(last.path, "average")


def test_average_of_a_continued_training_is_none_until_its_own_begins(tmp_path: Path) -> None:
    _train(_job(tmp_path, AverageConfig(last=0.5), max_steps=8))
    longer = _job(tmp_path, AverageConfig(last=0.1), max_steps=20)
    longer = dataclasses.replace(longer, fingerprint="b" * 64, resume="checkpoint_step_8.pt")
    every = dataclasses.replace(longer.cadence, save_every_n_iterations=1, keep_last=20)
    _train(dataclasses.replace(longer, cadence=every))
    found = _snapshots(longer)
    assert [step for step, each in found.items() if step > 8 and each.average is not None] == [19, 20]
    average = found[20].average
    assert average is not None
    for name, mean in average.items():
        torch.testing.assert_close(mean, (found[19].model[name] + found[20].model[name]) / 2)


def test_average_of_a_training_that_goes_on_without_one_is_dropped(tmp_path: Path) -> None:
    _train(_job(tmp_path, AverageConfig(decay=0.9), max_steps=8))
    plain = dataclasses.replace(_job(tmp_path), fingerprint="b" * 64, resume="checkpoint_step_8.pt")
    _train(plain)
    assert [step for step, each in _snapshots(plain).items() if each.average is not None] == [4, 8]
    with pytest.raises(UserError, match="holds no mean of the weights"):
        load_weights(list_checkpoints(plain.folder.checkpoints)[-1].path, "average")


_PLAIN_OF_FOUR = {9: 1 / 4, 10: 1 / 4, 11: 1 / 4, 12: 1 / 4}
_PLAIN_OF_SIX = dict.fromkeys(range(7, 13), 1 / 6)
_DECAYED = {step: 0.9 ** (12 - step) * 0.1 / (1 - 0.9**4) for step in range(9, 13)}


@pytest.mark.parametrize(
    ("before", "after", "shares"),
    [
        (None, AverageConfig(last=0.5), _PLAIN_OF_FOUR),
        (None, AverageConfig(decay=0.9), _DECAYED),
        (AverageConfig(last=0.5), AverageConfig(last=0.8), _PLAIN_OF_SIX),
        (AverageConfig(decay=0.9), AverageConfig(last=0.5), _PLAIN_OF_FOUR),
    ],
    ids=["plain-added", "decay-added", "longer-window", "plain-instead-of-decay"],
)
def test_average_of_a_key_given_inside_its_window_is_of_the_weights_since(
    before: AverageConfig | None, after: AverageConfig, shares: dict[int, float], tmp_path: Path
) -> None:
    every = {"eval_freq": 12, "save_every_n_iterations": 1, "keep_last": 20}
    first = make_job(tmp_path, training={} if before is None else {"average_weights": before}, cadence=every)
    _train(first, stop_at=8)
    given = make_job(tmp_path, training={"average_weights": after}, cadence=every)
    _train(given, stop_at=10)  # and goes on from its own checkpoint
    _train(given)
    found = _snapshots(given)
    average = found[12].average
    assert average is not None
    for name, mean in average.items():
        expected = sum(share * found[step].model[name].double() for step, share in shares.items())
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("average", [AverageConfig(last=0.5), AverageConfig(decay=0.9)], ids=["plain", "decay"])
def test_average_of_a_checkpoint_that_does_not_note_its_beginning_goes_on_as_configured(
    average: AverageConfig, tmp_path: Path
) -> None:
    job = _job(tmp_path, average)
    _train(job)
    earlier = dataclasses.replace(job, experiment_folder=str(tmp_path / "earlier"))
    noted = _snapshots(job)[8]
    assert noted.average_since is not None
    save_checkpoint(earlier.folder.checkpoints, dataclasses.replace(noted, average_since=None))
    _train(earlier)
    wanted, found = (_snapshots(each)[12].average for each in (job, earlier))
    assert wanted is not None
    assert found is not None
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_average_continued_with_a_mean_that_is_under_way_goes_on(tmp_path: Path) -> None:
    _train(_job(tmp_path, AverageConfig(decay=0.9), max_steps=8))
    longer = _job(tmp_path, AverageConfig(decay=0.9), max_steps=9)
    _train(dataclasses.replace(longer, fingerprint="b" * 64, resume="checkpoint_step_8.pt"))
    found = _snapshots(longer)
    share = newest_share(9, AverageConfig(decay=0.9))
    before, after = found[8].average, found[9].average
    assert before is not None
    assert after is not None
    assert all(torch.equal(after[name], before[name].lerp(found[9].model[name], share)) for name in after)
