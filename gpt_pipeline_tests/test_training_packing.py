"""Trainings on rows of whole documents, and the loss on whole documents of any training."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.experiment.config import ExperimentConfig, StorageConfig
from gpt_pipeline.experiment.identity import training_identity
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.training.config import LearningRateFactors
from gpt_pipeline.training.decision import settings_before
from gpt_pipeline.training.job import TrainingJob, find_changes, settings_of
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline_tests.training_jobs import first_update, make_job, run, write_shards


@pytest.fixture
def job(tmp_path) -> TrainingJob:
    """Documents of seven tokens, of which two fit a row of 16."""
    write_shards(tmp_path / "shards", document_length=7)
    return make_job(tmp_path, packing="documents", fingerprint="d" * 64)


def test_training_on_documents_stopped_and_resumed_equals_an_undisturbed_one(job: TrainingJob, tmp_path) -> None:
    run(job)
    stopped = dataclasses.replace(job, experiment_folder=str(tmp_path / "stopped"))
    run(stopped, stop_at=5)
    run(stopped)
    weights = [load_checkpoint(list_checkpoints(each.folder.checkpoints)[-1].path).model for each in (job, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    losses = [
        [
            (each["step"], each.get("train_loss"), each.get("document_loss"))
            for each in read_metrics(one.folder.metrics)
            if each["kind"] in ("train", "validation")
        ]
        for one in (job, stopped)
    ]
    assert set(losses[0]) == set(losses[1])


def test_training_on_documents_tells_the_share_of_padding(job: TrainingJob) -> None:
    messages = run(job).messages  # 45 documents of 7 and one of 6 make 23 rows
    assert any("sequences of whole documents (12.8% padding)" in message for message in messages)


def test_job_of_the_stream_is_read_by_a_version_that_knows_no_packing(job: TrainingJob) -> None:
    stream = dataclasses.replace(job, packing="stream")
    assert "packing" not in stream.to_json()
    assert TrainingJob.from_json(stream.to_json()) == stream
    assert TrainingJob.from_json(job.to_json()) == job
    assert [(each.key, each.effect) for each in find_changes(settings_of(stream), job)] == [("data.packing", "warned")]


def test_checkpoint_from_before_keys_had_their_neutral_values_and_changes_of_them_are_told(job: TrainingJob) -> None:
    stream = dataclasses.replace(job, packing="stream")
    run(stream)
    info = list_checkpoints(stream.folder.checkpoints)[-1]
    later = (
        "packing",
        "learning_rate_factors",
        "training.muon",
        "decay_share",
        "gradient_checkpointing",
        "architecture",
    )
    old = {key: value for key, value in info.settings.items() if not any(part in key for part in later)}
    factors = LearningRateFactors(vectors=3.0)
    training = dataclasses.replace(job.training, learning_rate_factors=factors, gradient_checkpointing=True)
    changes = find_changes(
        settings_before(dataclasses.replace(info, settings=old)), dataclasses.replace(job, training=training)
    )
    assert {each.key: each.effect for each in changes} == {
        "data.packing": "warned",
        "training.learning_rate_factors.vectors": "warned",
        "training.gradient_checkpointing": "free",
    }


def test_best_is_counted_anew_where_another_loss_decides_from_now_on(job: TrainingJob) -> None:
    stream = dataclasses.replace(job, packing="stream", fingerprint="e" * 64)
    run(stream, stop_at=8)
    name = list_checkpoints(stream.folder.checkpoints)[-1].path.name
    run(dataclasses.replace(job, resume=name))
    best = best_checkpoint(job.folder.checkpoints)
    assert best is not None
    assert best.fingerprint == job.fingerprint
    losses = {
        each["step"]: each["document_loss"] for each in read_metrics(job.folder.metrics) if "document_loss" in each
    }
    assert best.step == min((step for step in losses if step >= 8), key=losses.__getitem__)


def test_identity_has_the_packing_only_where_it_is_not_the_stream(tmp_path) -> None:
    data, storage = DataConfig(num_samples=10), StorageConfig(base_folder=str(tmp_path))
    stream = ExperimentConfig(experiment_name="a", data=data, storage=storage)
    packed = dataclasses.replace(stream, data=dataclasses.replace(data, packing="documents"))
    assert training_identity(packed) == {**training_identity(stream), "packing": "documents"}


def test_update_on_documents_is_the_mean_over_their_tokens_whatever_the_micro_batches(job: TrainingJob) -> None:
    results = [first_update(job, micro_batch_size=size) for size in (1, 2, 4)]
    for each in results[1:]:
        assert each.train_loss == pytest.approx(results[0].train_loss, rel=1e-6)
        assert each.gradient_norm == pytest.approx(results[0].gradient_norm, rel=1e-4)
    assert 5.8 < results[0].train_loss < 6.7  # ln 500 is 6.2: padding is no part of the mean


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_both_losses_are_estimated_whatever_the_packing_and_that_of_its_own_decides(
    job: TrainingJob, packing: str
) -> None:
    job = dataclasses.replace(job, packing=packing)
    run(job)
    estimates = {each["step"]: each for each in read_metrics(job.folder.metrics) if each["kind"] == "validation"}
    deciding = "document_loss" if packing == "documents" else "val_loss"
    best = best_checkpoint(job.folder.checkpoints)
    assert best is not None
    assert best.step == min((step for step in estimates if step), key=lambda step: estimates[step][deciding])
    last = load_checkpoint(list_checkpoints(job.folder.checkpoints)[-1].path)
    model = make_model(job.model)
    model.load_state_dict(dict(last.model))
    model.eval()
    stream = open_shards(job.folder.root.parent / "shards").validation
    assert estimates[12]["document_loss"] == pytest.approx(plain_document_loss(model, stream), rel=1e-5)


def plain_document_loss(model, stream) -> float:
    """Of the documents in the first 32 of 64 tokens: four of seven."""
    nats, count = 0.0, 0
    for begin, end in itertools.islice(itertools.pairwise(stream.document_bounds.tolist()), 4):
        ids = np.append(stream.read(begin, end - begin), stream.eot_token).astype(np.int64)
        ids[-1] = stream.read(end, 1)[0]  # these documents begin with any token, not with <|endoftext|>
        ids = torch.from_numpy(ids)[None]
        nats += float(model(ids[:, :-1], ids[:, 1:]).detach())
        count += end - begin
    return nats / count
