"""Checkpoints of the original scripts: same logits, same moments, resumed, never changed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gpt_pipeline.checkpoints.load import load_checkpoint, load_model
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.job import SCRATCH, TrainingJob
from gpt_pipeline.training.original import read_original
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline_tests.crashing import Killed
from gpt_pipeline_tests.training_jobs import VOCABULARY, Listener, T, make_job

# The architecture of those scripts, from its description: pre-LN blocks, layer norms with scale and shift, GELU by
# its tanh formula, separate query, key and value matrices without bias, an output projection with one, a free head.


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.shift = nn.Parameter(torch.randn(width))

    def forward(self, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class _Gelu(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.W_query = nn.Linear(width, width, bias=False)
        self.W_key = nn.Linear(width, width, bias=False)
        self.W_value = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.triu(torch.ones(positions, positions), diagonal=1))

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = (w(x).view(rows, length, self.heads, -1).transpose(1, 2) for w in self._matrices())
        scores = (q @ k.transpose(2, 3)).masked_fill(self.mask.bool()[:length, :length], -torch.inf)
        mixed = torch.softmax(scores / k.size(-1) ** 0.5, dim=-1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(rows, length, width))

    def _matrices(self):
        return self.W_query, self.W_key, self.W_value


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), _Gelu(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.layers(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.att = _Attention(width, heads, positions)
        self.ff = _FeedForward(width)
        self.norm1 = _Norm(width)
        self.norm2 = _Norm(width)

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class _OriginalGPT(nn.Module):
    def __init__(self, *, vocabulary=VOCABULARY, width=8, heads=2, layers=2, positions=T) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = nn.Embedding(positions, width)
        self.trf_blocks = nn.Sequential(*(_Block(width, heads, positions) for _ in range(layers)))
        self.final_norm = _Norm(width)
        self.out_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.size(1)))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


STEP = 6
NAME = "checkpoint_step_6.pt"
SHAPE = {"n_layer": 2, "dropout": 0.0, "tie_weights": False}


@pytest.fixture(scope="module")
def original() -> tuple[_OriginalGPT, torch.optim.AdamW]:
    """A model of that architecture after three updates by AdamW, and its optimizer."""
    torch.manual_seed(0)
    model = _OriginalGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        ids = torch.randint(0, VOCABULARY, (2, T))
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def _payload(original, **changes):
    model, optimizer = original
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "global_step": STEP,
        "epoch": 1,
        "val_loss": 4.5,
        "best_val_loss": 4.25,
        **changes,
    }


def _place(folder: Path, payload, **changes) -> TrainingJob:
    """Put an original checkpoint into the checkpoints folder of a job that names it; return the job."""
    job = make_job(folder, resume=NAME)
    job = dataclasses.replace(job, model=dataclasses.replace(job.model, **{**SHAPE, **changes}))
    job.folder.checkpoints.mkdir(parents=True)
    torch.save(payload, job.folder.checkpoints / NAME)
    return job


def test_original_weights_give_the_logits_of_the_original_model(tmp_path, original):
    torch.save(_payload(original), tmp_path / NAME)
    found = read_original(tmp_path / NAME)
    model = make_model(
        ModelConfig(
            n_layer=2, n_head=2, n_embd=8, context_length=T, vocab_size=VOCABULARY, dropout=0.0, tie_weights=False
        )
    )
    model.load_state_dict(dict(found.model))
    ids = torch.randint(0, VOCABULARY, (3, T))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), original[0](ids), rtol=1e-5, atol=1e-5)
    assert sum(tensor.numel() for tensor in found.model.values()) == sum(p.numel() for p in original[0].parameters())


def test_original_gpt2_has_163_009_536_parameters_under_our_names():
    with torch.device("meta"):
        theirs = _OriginalGPT(vocabulary=50257, width=768, heads=12, layers=12, positions=1024)
        ours = make_model(ModelConfig(tie_weights=False))
    assert sum(p.numel() for p in theirs.parameters()) == ours.num_parameters == 163_009_536


def test_original_checkpoint_resumes_at_its_step_and_stays_as_it_is(tmp_path, original):
    job = _place(tmp_path, _payload(original))
    file = job.folder.checkpoints / NAME
    before = (sha256_of(file), file.stat().st_mtime_ns)
    listener = Listener()
    outcome = run_job(job, listener)
    assert (outcome.finished, outcome.step) == (True, 12)
    steps = [record["step"] for record in listener.records if record["kind"] == "train"]
    assert steps == [7, 8, 9, 10, 11, 12]
    assert (sha256_of(file), file.stat().st_mtime_ns) == before
    assert [info.step for info in list_checkpoints(job.folder.checkpoints)] == [8, 12]
    said = "\n".join(listener.messages)
    assert "global_step 6 (epoch 1, val_loss 4.5, best_val_loss 4.25)" in said
    assert "AdamW's moments come along" in said
    # Its validation loss was measured on other documents: it is no record that ours would have to beat.
    assert load_checkpoint(outcome.checkpoint.path).progress.best_step >= 6


def test_original_moments_and_weights_continue_as_in_torchs_own_optimizer(tmp_path, original):
    """One update from the file equals one by AdamW with the loaded state, from the same gradient."""
    training = {"weight_decay": 0.0, "gradient_clip": 1e9, "lr_schedule": "constant", "warmup_steps": 0, "max_steps": 7}
    job = _place(tmp_path, _payload(original))
    job = dataclasses.replace(job, training=dataclasses.replace(job.training, **training, micro_batch_size=None))
    outcome = run_job(job, Listener())

    reference = _OriginalGPT()
    reference.load_state_dict(original[0].state_dict())
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95))
    state = {**original[1].state_dict(), "param_groups": optimizer.state_dict()["param_groups"]}
    optimizer.load_state_dict(state)
    from gpt_pipeline.data.tokens.batches import BatchSampler
    from gpt_pipeline.data.tokens.stream import open_shards

    stream = open_shards(Path(job.shards_folder)).train
    inputs, targets = BatchSampler(stream=stream, sequence_length=T, batch_size=4, seed=0).batch_at(STEP)
    logits = reference(torch.from_numpy(inputs))
    nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()
    optimizer.step()

    ours, _ = load_model(outcome.checkpoint.path)
    ids = torch.randint(0, VOCABULARY, (2, T))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), reference(ids), rtol=1e-4, atol=1e-4)


def test_original_checkpoint_started_again_goes_on_with_what_came_of_it(tmp_path, original):
    job = _place(tmp_path, _payload(original))
    stop = StopFlag()
    run_job(job, Listener(lambda step: stop.request(15) if step == 9 else None), stop=stop)
    listener = Listener()
    assert run_job(job, listener).finished
    assert next(record["step"] for record in listener.records if record["kind"] == "train") == 10
    assert (job.folder.checkpoints / NAME).is_file()
    assert not (job.folder.root / "previous").exists()


def test_original_checkpoint_killed_before_its_first_successor_is_resumed_again(tmp_path, original):
    job = _place(tmp_path, _payload(original))

    def die(step: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        run_job(job, Listener(die))
    assert run_job(job, Listener()).finished
    assert (job.folder.checkpoints / NAME).is_file()


def test_original_checkpoint_saved_by_a_compiled_model_reads_the_same(tmp_path, original):
    state = {f"_orig_mod.{name}": tensor for name, tensor in original[0].state_dict().items()}
    torch.save(_payload(original), tmp_path / "plain.pt")
    torch.save(_payload(original, model_state_dict=state), tmp_path / "compiled.pt")
    plain, compiled = (read_original(tmp_path / f"{name}.pt") for name in ("plain", "compiled"))
    assert all(torch.equal(compiled.model[name], tensor) for name, tensor in plain.model.items())
    assert compiled.moments is not None


@pytest.mark.parametrize("state", ["none", "two groups", "sgd", "shapes"])
def test_original_optimizer_state_that_is_not_adamws_in_order_is_left_out(tmp_path, original, state):
    given = original[1].state_dict()
    first, *rest = range(len(given["state"]))
    states = {
        "none": None,
        "two groups": {**given, "param_groups": [{"params": [first]}, {"params": rest}]},
        "sgd": {"state": {number: {"momentum_buffer": None} for number in given["state"]}, "param_groups": [{}]},
        "shapes": {**given, "state": {**given["state"], 0: given["state"][1], 1: given["state"][0]}},
    }
    job = _place(tmp_path, _payload(original, optimizer_state_dict=states[state]))
    assert read_original(job.folder.checkpoints / NAME).moments is None
    listener = Listener()
    assert run_job(job, listener).finished
    assert any("moments start at zero" in message for message in listener.messages)


def test_original_checkpoint_that_the_model_block_does_not_fit_names_the_keys(tmp_path, original):
    job = _place(tmp_path, _payload(original), tie_weights=True, n_layer=3)
    wanted = r"does not fit the experiment \(model.n_layer: 2 -> 3; model.tie_weights: False -> True\)"
    with pytest.raises(UserError, match=wanted):
        run_job(job, Listener())
    assert (job.folder.checkpoints / NAME).is_file()


def test_original_checkpoint_in_an_experiment_of_another_architecture_is_said_to_be_gpt2(tmp_path, original):
    job = _place(tmp_path, _payload(original), architecture="llama", rope_theta=5000.0)
    with pytest.raises(UserError, match=r"model\.architecture: gpt2 -> llama.*model\.rope_theta: 10000\.0 -> 5000\.0"):
        run_job(job, Listener())
    assert (job.folder.checkpoints / NAME).is_file()


def test_original_checkpoint_needs_adamw_and_steps_to_go(tmp_path, original):
    job = _place(tmp_path, _payload(original))
    muon = dataclasses.replace(job.training, optimizer="muon")
    with pytest.raises(UserError, match=r"training\.optimizer: adamw -> muon"):
        run_job(dataclasses.replace(job, training=muon), Listener())
    short = dataclasses.replace(job.training, max_steps=STEP)
    with pytest.raises(UserError, match="is at step 6, and this training ends at step 6"):
        run_job(dataclasses.replace(job, training=short), Listener())


def test_original_checkpoint_with_foreign_weights_is_refused_by_name(tmp_path, original):
    state = {**original[0].state_dict(), "value_head.weight": torch.zeros(2)}
    job = _place(tmp_path, _payload(original, model_state_dict=state))
    with pytest.raises(DamagedFileError, match=r"found 'value_head\.weight' besides"):
        run_job(job, Listener())


def test_own_checkpoint_without_its_manifest_is_still_no_checkpoint(tmp_path, original):
    job = _place(tmp_path, {"format": 1})
    with pytest.raises(UserError, match=r"its manifest checkpoint_step_6\.json is missing"):
        run_job(job, Listener())


def test_original_checkpoint_moves_aside_with_the_rest_when_starting_from_scratch(tmp_path, original):
    job = dataclasses.replace(_place(tmp_path, _payload(original)), resume=SCRATCH)
    content = (job.folder.checkpoints / NAME).read_bytes()
    assert run_job(job, Listener()).finished
    (aside,) = (job.folder.root / "previous").iterdir()
    assert (aside / "checkpoints" / NAME).read_bytes() == content
    assert TrainingConfig().optimizer == "adamw"
