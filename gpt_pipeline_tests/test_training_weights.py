"""Targets that count differently, and trainings that begin with the weights of another."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  # its usual name

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints
from gpt_pipeline.errors import UserError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.loss import summed_loss
from gpt_pipeline.training.config import step_layout
from gpt_pipeline.training.decision import decide_start
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.job import StartWeights, TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline.training.update import Updater
from gpt_pipeline_tests.training_jobs import BATCH, VOCABULARY, Listener, T, make_job

CPU = Compute(device=torch.device("cpu"), compile=False, peak_flops=None)


def _inputs(tokens: int, *, channels: int = 8, vocab_size: int = 50) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, channels, generator=generator, requires_grad=True)
    head = torch.randn(vocab_size, channels, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator)
    counts = torch.rand(tokens, generator=generator).round(decimals=1)
    return x, head, targets, counts


@pytest.mark.parametrize("piece", [None, 7, 16])
def test_weighted_loss_and_gradients_are_those_of_a_plain_cross_entropy(piece: int | None) -> None:
    x, head, targets, counts = _inputs(40)
    expected = (F.cross_entropy(x @ head.T, targets, reduction="none") * counts).sum()
    gradients = torch.autograd.grad(expected, (x, head))
    found = summed_loss(x, head, targets, counts, padded_vocab_size=64, piece=piece)
    torch.testing.assert_close(found, expected)
    for own, wanted in zip(torch.autograd.grad(found, (x, head)), gradients, strict=True):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("piece", [None, 7])
def test_targets_of_weight_0_are_those_that_cross_entropy_ignores(piece: int | None) -> None:
    x, head, targets, counts = _inputs(40)
    counts = (counts > 0.5).float()
    ignored = torch.where(counts > 0, targets, torch.full_like(targets, -100))
    expected = F.cross_entropy(x @ head.T, ignored, reduction="sum")
    found = summed_loss(x, head, targets, counts, padded_vocab_size=64, piece=piece)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, (x, head)) for loss in (found, expected)]
    for own, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("piece", [None, 7])
@torch.no_grad()
def test_estimate_of_targets_beside_some_that_overflow_and_do_not_count_is_finite(piece: int | None) -> None:
    x, head, targets, counts = _inputs(40)
    weights = torch.stack([torch.ones(40), (counts > 0.5).float()])
    weights[:, 30:] = 0
    expected = [F.cross_entropy(x @ head.T, targets, reduction="none")[each > 0].sum() for each in weights]
    x[30:] = torch.inf
    found = summed_loss(x, head, targets, weights, padded_vocab_size=64, piece=piece)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_update_divides_by_the_targets_that_count_whatever_the_micro_batches(tmp_path, micro_batch_size: int) -> None:
    job = make_job(tmp_path, training={"micro_batch_size": micro_batch_size})
    model = dataclasses.replace(job.model, dropout=0.0)
    torch.manual_seed(0)
    gpt = make_model(model)
    reference = make_model(model)
    reference.load_state_dict(gpt.state_dict())
    generator = torch.Generator().manual_seed(2)
    inputs, targets = (torch.randint(0, VOCABULARY, (BATCH, T), generator=generator) for _ in range(2))
    weights = torch.zeros(BATCH, T)
    weights[0, 3:9] = weights[3, :2] = 1.0  # two sequences have no target that counts
    layout = step_layout(job.training, max_length=T, steps_per_epoch=5, world_size=1)
    updater = Updater(gpt, job.training, layout=layout, compute=CPU, ranks=Ranks())
    result = updater.update(0, Batch(inputs, targets, weights)).result()

    ignored = torch.where(weights > 0, targets, torch.full_like(targets, -100))
    loss = F.cross_entropy(reference(inputs).flatten(0, 1), ignored.flatten())  # the mean over those that count
    loss.backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in reference.parameters()])
    assert result.train_loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_update_without_a_target_that_counts_has_no_loss_and_stays_finite(tmp_path) -> None:
    job = make_job(tmp_path)
    layout = step_layout(job.training, max_length=T, steps_per_epoch=5, world_size=1)
    updater = Updater(make_model(job.model), job.training, layout=layout, compute=CPU, ranks=Ranks())
    ids = torch.zeros(BATCH, T, dtype=torch.int64)
    result = updater.update(0, Batch(ids, ids, torch.zeros(BATCH, T))).result()
    assert (result.train_loss, result.gradient_norm) == (0.0, 0.0)


@pytest.fixture
def base(tmp_path) -> TrainingJob:
    """A finished training of 12 updates."""
    job = make_job(tmp_path / "base")
    assert run_job(job, Listener()).finished
    return job


def _weights_of(job: TrainingJob) -> StartWeights:
    info = list_checkpoints(job.folder.checkpoints)[-1]
    return StartWeights(file=str(info.path), weights_sha256=info.weights_sha256, source="base, step 12")


def _later(base: TrainingJob, tmp_path, **changes) -> TrainingJob:
    start_from = changes.pop("start_from", _weights_of(base))
    return make_job(tmp_path / "later", fingerprint="c" * 64, start_from=start_from, **changes)


def _run(job: TrainingJob, *, stop_at: int | None = None):
    stop = StopFlag()
    return run_job(job, Listener(lambda step: stop.request(signal.SIGTERM) if step == stop_at else None), stop=stop)


def test_training_from_weights_begins_where_they_were(base: TrainingJob, tmp_path) -> None:
    later = _later(base, tmp_path)
    assert decide_start(later).kind == "weights"
    _run(later)
    first = next(record for record in read_metrics(later.folder.metrics) if record["kind"] == "validation")
    last = [record for record in read_metrics(base.folder.metrics) if record["kind"] == "validation"][-1]
    assert (first["step"], first["val_loss"]) == (0, last["val_loss"])  # the same shards, the same weights
    checkpoint = load_checkpoint(list_checkpoints(later.folder.checkpoints)[-1].path)
    assert checkpoint.settings["start_from"] == later.start_from.weights_sha256


def test_training_from_weights_stopped_and_resumed_equals_an_undisturbed_one(base: TrainingJob, tmp_path) -> None:
    undisturbed = _later(base, tmp_path)
    _run(undisturbed)
    stopped = dataclasses.replace(undisturbed, experiment_folder=str(tmp_path / "stopped"))
    assert not _run(stopped, stop_at=6).finished
    assert decide_start(stopped).kind == "continue"
    assert _run(stopped).finished
    ends = [list_checkpoints(job.folder.checkpoints)[-1].weights_sha256 for job in (undisturbed, stopped)]
    assert ends[0] == ends[1]


def test_training_from_other_weights_than_it_was_made_for_is_refused_and_moves_nothing(
    base: TrainingJob, tmp_path
) -> None:
    _run(_later(base, tmp_path))
    wrong = dataclasses.replace(_weights_of(base), weights_sha256="0" * 64)
    changed = _later(base, tmp_path, start_from=wrong)
    changed = dataclasses.replace(changed, fingerprint="d" * 64)
    before = sorted(path.name for path in changed.folder.checkpoints.iterdir())
    with pytest.raises(UserError, match=r"start_from: .* need 0{64}"):
        _run(changed)
    assert sorted(path.name for path in changed.folder.checkpoints.iterdir()) == before
    assert best_checkpoint(changed.folder.checkpoints) is not None


def test_training_from_weights_of_another_shape_is_refused(base: TrainingJob, tmp_path) -> None:
    other = ModelConfig(n_layer=2, n_head=2, n_embd=8, context_length=T, vocab_size=VOCABULARY)
    with pytest.raises(UserError, match=r"start_from: .*model.n_layer=1.*model.n_layer=2"):
        _run(_later(base, tmp_path, model=other))


def test_training_from_a_file_cut_short_is_refused_in_one_line(base: TrainingJob, tmp_path) -> None:
    start_from = _weights_of(base)
    with Path(start_from.file).open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match="damaged"):
        _run(_later(base, tmp_path, start_from=start_from))
