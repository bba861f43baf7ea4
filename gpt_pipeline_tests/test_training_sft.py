"""Supervised fine-tuning: only answers count, and what a document cannot fit is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gpt_pipeline.checkpoints.load import load_checkpoint, load_model
from gpt_pipeline.checkpoints.manifest import best_checkpoint, find_checkpoint, list_checkpoints
from gpt_pipeline.data.config import ColumnsConfig, DataConfig
from gpt_pipeline.data.tokens.packing import Answers, DocumentSampler, begin, count_answers, pack
from gpt_pipeline.data.tokens.stream import EOT_TOKEN, TokenStream, new_shard, open_shards, spans_name, starts_name
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.evaluation.validation import packed_losses
from gpt_pipeline.exchange.hugging_face import hugging_face_weights
from gpt_pipeline.experiment.config import ExperimentConfig, StorageConfig, contradictions
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.problems import ExperimentFileError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.config import TrainingConfig, step_layout
from gpt_pipeline.training.feed import Batch, batch_of
from gpt_pipeline.training.job import StartWeights, TrainingJob, find_changes, settings_of
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.ranks import Ranks
from gpt_pipeline.training.update import Updater
from gpt_pipeline_tests.training_jobs import BATCH, CPU, T, first_update, make_job, run, write_shards

SFT = {"objective": "sft"}


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    """Documents of seven tokens, three of them the answer."""
    write_shards(tmp_path / "shards", document_length=7, question_length=3)
    return make_job(tmp_path, packing="documents", fingerprint="d" * 64, training=SFT)


def documents(folder: Path, questions: list[int], answers: list[int]) -> TokenStream:
    """Documents of so many tokens of question and answer, the second half of them in a shard of their own."""
    names = []
    for number, half in enumerate((slice(0, len(answers) // 2), slice(len(answers) // 2, None)), start=1):
        lengths = 1 + np.array(questions[half], np.int64) + np.array(answers[half], np.int64)
        if not len(lengths):
            continue
        names.append(f"train_{number:06}.bin")
        ends = np.cumsum(lengths)
        tokens = np.arange(100, 100 + ends[-1])
        tokens[ends - lengths] = EOT_TOKEN
        with new_shard(folder / names[-1]) as shard:
            shard.append(tokens.astype(np.uint16))
        np.save(folder / starts_name(names[-1]), ends - lengths)
        np.save(folder / spans_name(names[-1]), np.stack([ends - np.array(answers[half]), ends], axis=1))
    return TokenStream(folder, tuple(names))


SIZES = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES)
def test_answers_that_fit_count_once_and_whole_each_behind_its_question(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]
) -> None:
    questions, answers = ([each[side] for each in sizes] for side in (0, 1))
    stream = documents(tmp_path_factory.mktemp("sft"), questions, answers)
    sampler = DocumentSampler(stream=stream, sequence_length=24, batch_size=1, seed=0, answers_only=True)
    rows = sampler.read(np.arange(sampler.sequences_per_epoch), epoch=0)
    assert rows.weights is not None
    assert rows.starts is not None
    # As many targets count as answers have tokens, with the <|endoftext|> behind them, in the first 24 of a document.
    wanted = [max(0, min(24, question + answer + 1) - question) for question, answer in sizes]
    assert rows.weights.sum() == sum(wanted)
    assert (rows.inputs == EOT_TOKEN).sum() >= len(sizes)
    for row, place in zip(*np.nonzero(rows.weights), strict=True):
        assert rows.inputs[row, rows.starts[row, place]] == EOT_TOKEN  # its document begins in the same row
    is_cut = [1 + question + answer > 24 for question, answer in sizes]
    left_out = sum(answer + 1 for _, answer in sizes) - sum(wanted)
    shortest = min(questions) + 1
    held = Answers(documents=len(sizes), cut=sum(is_cut), tokens=sum(wanted), left_out=left_out, shortest_row=shortest)
    assert count_answers(stream, 24) == held


def test_pack_of_beginnings_has_a_piece_of_each_document() -> None:
    packing = pack([np.array([0, 5, 40, 42])], 8, begin)
    assert sorted(packing.starts.tolist()) == [0, 5, 40]
    assert np.flatnonzero(packing.counts).tolist() == [2, 5, 8]


def of_transformers(config: ModelConfig) -> torch.nn.Module:
    if config.architecture == "gpt2":
        off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=T, **off))
    assert config.architecture == "llama"
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    values = {"intermediate_size": config.mlp_channels, "vocab_size": config.vocab_size, "rms_norm_eps": config.eps}
    return LlamaForCausalLM(LlamaConfig(**shape, **values, tie_word_embeddings=True))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradients_are_those_of_transformers_with_labels_of_minus_100(job: TrainingJob, architecture: Any) -> None:
    torch.manual_seed(0)
    shape = ModelConfig(architecture=architecture, n_layer=1, n_head=2, n_embd=16, context_length=T, dropout=0.0)
    config = dataclasses.replace(shape, qkv_bias=architecture == "gpt2")
    ours, theirs = make_model(config), of_transformers(config)
    theirs.load_state_dict(hugging_face_weights(ours.state_dict(), config), strict=False)
    stream = open_shards(job.folder.root.parent / "shards").train
    rows = DocumentSampler(stream=stream, sequence_length=T, batch_size=2, seed=0, answers_only=True).rows_at(0)
    batch = batch_of(rows, CPU.device)
    assert batch.weights is not None
    assert batch.starts is not None
    count = batch.weights.sum()
    (ours(*batch.tensors) / count).backward()
    for row, starts in enumerate(batch.starts):
        for start in starts.unique():
            ids, targets, weights = (
                part[row][starts == start] for part in (batch.inputs, batch.targets, batch.weights)
            )
            labels = torch.where(weights > 0, targets, -100)
            logits = theirs(input_ids=ids[None]).logits[0]
            (torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / count).backward()
    own = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    gradients = hugging_face_weights(own, config)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients.pop(name), parameter.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_fine_tuning_stopped_and_resumed_equals_an_undisturbed_one(job: TrainingJob, tmp_path: Path) -> None:
    run(job)
    stopped = dataclasses.replace(job, experiment_folder=str(tmp_path / "stopped"))
    run(stopped, stop_at=5)
    run(stopped)
    weights = [load_checkpoint(list_checkpoints(each.folder.checkpoints)[-1].path).model for each in (job, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_fine_tuning_ranks_its_checkpoints_by_the_loss_on_answers_and_tells_all_three(job: TrainingJob) -> None:
    listener = run(job)
    losses = [each for each in read_metrics(job.folder.metrics) if each["kind"] == "validation"]
    assert all({"val_loss", "document_loss", "completion_loss"} <= set(each) for each in losses)
    best = best_checkpoint(job.folder.checkpoints)
    assert best is not None
    assert best.step == min(losses[1:], key=lambda each: each["completion_loss"])["step"]
    counted = "where answers alone count (183 tokens of answers count)"  # 45 documents with 3 and the end, one with 2
    assert any(counted in message for message in listener.messages)


def test_fine_tuning_tells_which_share_of_the_answers_its_sequences_leave_out(job: TrainingJob) -> None:
    messages = " ".join(run(dataclasses.replace(job, max_length=5)).messages)
    assert "92 tokens of answers count; 46 of 46 documents are cut at data.max_length=5" in messages
    assert "leaves out 49.7% of such tokens" in messages


def test_fine_tuning_whose_sequences_hold_no_answer_is_refused_before_anything_is_moved(job: TrainingJob) -> None:
    run(job, stop_at=4)
    before = sorted(job.folder.root.rglob("*"))
    need = r"data\.max_length: found 3, need at least 4, where the first answer begins"
    with pytest.raises(ConfigError, match=need):
        run(dataclasses.replace(job, max_length=3, fingerprint="e" * 64))
    assert set(before) <= set(job.folder.root.rglob("*"))
    run(dataclasses.replace(job, max_length=4, fingerprint="e" * 64), stop_at=1)


def test_estimate_without_an_answer_within_a_sequence_is_refused(job: TrainingJob) -> None:
    spans = job.folder.root.parent / "shards" / spans_name("validation_000001.bin")
    np.save(spans, np.load(spans) + np.array([2, 0]))
    with pytest.raises(UserError, match=r"no answer lies within the first 5 tokens .* raise data\.max_length"):
        run(dataclasses.replace(job, max_length=5))


def test_fine_tuning_on_shards_that_do_not_say_where_answers_are_is_refused(job: TrainingJob) -> None:
    for path in (job.folder.root.parent / "shards").glob("*.spans.npy"):
        path.unlink()
    with pytest.raises(UserError, match="materializing token_shards with `force`"):
        run(job)


def test_change_of_the_objective_is_told_and_the_best_is_counted_anew(job: TrainingJob) -> None:
    training = dataclasses.replace(job.training, objective="pretrain")
    before = dataclasses.replace(job, training=training, fingerprint="e" * 64)
    run(before, stop_at=8)
    after = dataclasses.replace(job, resume=list_checkpoints(job.folder.checkpoints)[-1].path.name)
    assert [str(each) for each in find_changes(settings_of(before), after)] == ["training.objective: pretrain -> sft"]
    assert any("training.objective: pretrain -> sft" in message for message in run(after).messages)
    best = best_checkpoint(job.folder.checkpoints)
    assert best is not None
    assert best.fingerprint == job.fingerprint


def test_completion_loss_is_the_mean_over_the_targets_that_count(job: TrainingJob) -> None:
    run(job)
    checkpoint = list_checkpoints(job.folder.checkpoints)[-1]
    snapshot = load_checkpoint(checkpoint.path)
    model = make_model(dataclasses.replace(job.model, dropout=0.0))
    model.load_state_dict(dict(snapshot.model))
    stream = open_shards(job.folder.root.parent / "shards").validation
    nats, count = 0.0, 0
    # Half as many tokens as the windows of one batch of four, in whole documents of seven tokens.
    for start in stream.document_starts[: BATCH * T // 2 // 7].tolist():
        ids = torch.from_numpy(stream.read(start, min(8, stream.n_tokens - start)).astype(np.int64))
        losses = torch.nn.functional.cross_entropy(
            model.logits(model.hidden(ids[None, :-1]))[0], ids[1:], reduction="none"
        )
        answer = losses[3:]  # behind the <|endoftext|> and three tokens of question
        nats, count = nats + float(answer.detach().double().sum()), count + len(answer)
    found = [each for each in read_metrics(job.folder.metrics) if each["kind"] == "validation"][-1]
    assert found["completion_loss"] == pytest.approx(nats / count, rel=1e-5)


def test_evaluation_of_documents_measures_what_the_trainer_estimates(job: TrainingJob) -> None:
    run(job)
    model, _ = load_model(list_checkpoints(job.folder.checkpoints)[-1].path)
    found = [each for each in read_metrics(job.folder.metrics) if each["kind"] == "validation"][-1]
    stream = open_shards(job.folder.root.parent / "shards").validation
    losses = packed_losses(model, stream, row_length=T, max_tokens=BATCH * T // 2, batch_size=3, answers_too=True)
    assert set(losses) == {"document_loss", "completion_loss"}
    for name, loss in losses.items():
        assert loss == pytest.approx(found[name], rel=1e-6)
    of_questions = packed_losses(model, stream, row_length=2, max_tokens=7, answers_too=True)
    assert "completion_loss" not in of_questions  # questions are longer


def test_update_on_answers_is_the_same_whatever_the_micro_batches(job: TrainingJob) -> None:
    norms = [first_update(job, micro_batch_size=size).gradient_norm for size in (1, 2, 4)]
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_update_in_which_nothing_counts_changes_neither_weights_nor_moments(
    tmp_path: Path, optimizer: Any, precision: Any
) -> None:
    config = make_job(tmp_path, training={**SFT, "optimizer": optimizer, "weight_decay": 0.5}).training
    model = make_model(ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=T, vocab_size=500, dropout=0.0))
    layout = step_layout(config, max_length=T, steps_per_epoch=5, world_size=1)
    compute = dataclasses.replace(CPU, precision=precision)
    updater = Updater(model, config, layout=layout, compute=compute, ranks=Ranks())
    ids = torch.randint(0, 500, (2, BATCH, T), generator=torch.Generator().manual_seed(0))
    one = torch.zeros((BATCH, T))
    one[0, 0] = 1.0

    def state() -> list[torch.Tensor]:
        states = [each["state"] for each in updater.optimizer.state()["states"]]
        moments = [value for each in states for own in each.values() for value in own.values()]
        return [value.detach().clone() for value in (*model.parameters(), *moments)]

    assert updater.update(0, Batch(*ids, one)).result().train_loss > 0
    before = state()
    result = updater.update(1, Batch(*ids, torch.zeros_like(one))).result()
    assert (result.train_loss, result.gradient_norm, result.skipped) == (0.0, 0.0, False)
    assert all(torch.equal(*pair) for pair in zip(state(), before, strict=True))
    updater.update(2, Batch(*ids, one)).result()  # one target is enough
    assert not any(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=False))


def test_fine_tuning_of_other_weights_keeps_them_as_step_0(job: TrainingJob, tmp_path: Path) -> None:
    base = dataclasses.replace(
        job,
        training=dataclasses.replace(job.training, objective="pretrain"),
        packing="stream",
        experiment_folder=str(tmp_path / "base"),
    )
    run(base)
    last = list_checkpoints(base.folder.checkpoints)[-1]
    assert find_checkpoint(base.folder.checkpoints, 0) is None
    start = StartWeights(file=str(last.path), weights_sha256=last.weights_sha256, source="base.yaml")
    tuned = dataclasses.replace(job, start_from=start)
    listener = run(tuned, stop_at=3)
    assert [info.step for info in listener.checkpoints] == [0, 3]
    first = find_checkpoint(tuned.folder.checkpoints, 0)
    assert first is not None
    assert first.weights_sha256 == last.weights_sha256
    list_checkpoints(tuned.folder.checkpoints)[-1].path.unlink()
    again = run(tuned)  # from step 0
    assert [info.step for info in again.checkpoints] == [4, 8, 12]


@pytest.mark.parametrize(
    ("changes", "key", "need"),
    [
        ({"packing": "stream"}, "data.packing", "set data.packing: documents"),
        ({"format": "text", "columns": ColumnsConfig(text="body")}, "data.format", "synth, question_answer or chat"),
    ],
)
def test_fine_tuning_on_what_has_no_answers_behind_questions_is_refused(
    tmp_path: Path, changes: dict[str, object], key: str, need: str
) -> None:
    data = DataConfig(**{"num_samples": 10, "packing": "documents", "source": "./x.parquet", **changes})  # type: ignore[arg-type]
    config = ExperimentConfig(
        experiment_name="a",
        data=data,
        storage=StorageConfig(base_folder=str(tmp_path)),
        training=TrainingConfig(objective="sft"),
    )
    [problem] = [each for each in contradictions(config) if isinstance(each, ConfigError)]
    assert key in str(problem)
    assert need in str(problem)


def test_experiment_file_that_trains_on_answers_and_names_no_packing_has_rows_of_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    text = "experiment_name: a\ndata: {num_samples: 10%s}\ntraining: {objective: %s}\nstorage: {base_folder: x}\n"
    for packing, objective, wanted in (("", "sft", "documents"), ("", "pretrain", "stream")):
        path.write_text(text % (packing, objective))
        assert load_experiment(path).config.data.packing == wanted
    path.write_text(text % (", packing: stream", "sft"))
    with pytest.raises(ExperimentFileError, match=r"a\.yaml:2: data\.packing: found 'stream', need documents"):
        load_experiment(path)
