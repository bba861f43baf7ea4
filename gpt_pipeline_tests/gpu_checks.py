"""What holds on a GPU as it does on the CPU: functions of a device and an empty folder that raise where it does not.

`test_gpu.py` makes tests of them. `benchmarks.gpu_proof` runs the same functions on machines without pytest: they need
torch, numpy and filelock alone. Each returns a few words on what it found. On the device `cpu` they compare the CPU
with itself, which shows that they run.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_pipeline.checkpoints.load import load_checkpoint, load_model
from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.evaluation.generate import generate
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import Architecture, ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.prompts import Prompt
from gpt_pipeline.rl.rewards import Question
from gpt_pipeline.rl.rollouts import RolloutSampler, rows_of, target_log_probabilities
from gpt_pipeline.storage.atomic import read_json
from gpt_pipeline.training.config import AverageConfig, HardwareConfig, TrainingConfig, divisors, step_layout
from gpt_pipeline.training.device import Compute, choose_compute, peak_memory_bytes
from gpt_pipeline.training.feed import Batch, Rollout
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.micro_batch import RESERVE
from gpt_pipeline.training.ranks import Ranks, leave_process_group
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.update import NotFiniteError, Updater
from gpt_pipeline_tests.training_jobs import Listener, make_job, run, trainer_command, write_shards

Check = Callable[[str, Path], str]
"""Of a device's kind, such as `cuda`, and an empty folder."""

ROOT = Path(__file__).resolve().parents[1]
RESUME_TOLERANCE = 0.01  # nats per token; docs/training.md states it: sums on a GPU have no fixed order
T, BATCH, VOCABULARY = 32, 4, 500
_OPTIMIZERS = ("adamw", "muon")
_ARCHITECTURES: Sequence[Architecture] = get_args(Architecture)
_RESUMED: Mapping[str, Mapping[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "fp16": {"precision": "fp16"},
    "with a mean of the weights": {"average_weights": AverageConfig(decay=0.9)},
}
_BEGUN: Mapping[str, Mapping[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "fp16": {"precision": "fp16"},
}
_LITTLE_MEMORY = 1.5e9  # bytes, in which `_large_job` does not make its update at once


class NotHereError(Exception):
    """The device cannot do what the check is about."""


# What is computed


def step_is_that_of_the_cpu(device: str, folder: Path, *, architecture: Architecture, optimizer: str) -> str:
    """Three updates in float32 come to the same losses, norms and weights."""
    ours, theirs = (_updater(_model(architecture), where, optimizer=optimizer) for where in (device, "cpu"))
    start = _weights(ours)
    near = 1e-4 if optimizer == "adamw" else 1e-3  # Muon's products are in 16 bits on either device
    with _float32_products():
        for step in range(3):
            found, wanted = (each.update(step, _batch(step, each)).result() for each in (ours, theirs))
            _require_near("train_loss", found.train_loss, wanted.train_loss, relative=near)
            _require_near("gradient_norm", found.gradient_norm, wanted.gradient_norm, relative=10 * near)
    return _require_same_move(_weights(ours), _weights(theirs), start, at_most=0.02 if optimizer == "adamw" else 0.1)


def update_in_half_is_that_of_float32(device: str, folder: Path, *, precision: str, optimizer: str) -> str:
    """Three updates in bf16 or fp16 are those of float32 but for rounding; fp16 with its scale."""
    half = _updater(_model("gpt2"), device, optimizer=optimizer, precision=precision)
    whole = _updater(_model("gpt2"), device, optimizer=optimizer, precision="fp32")
    differences = []
    for step in range(3):
        found, wanted = (each.update(step, _batch(step, each)).result() for each in (half, whole))
        _require_near("train_loss", found.train_loss, wanted.train_loss, relative=5e-3)
        _require_near("gradient_norm", found.gradient_norm, wanted.gradient_norm, relative=0.05)
        _require(found.loss_scale == (2.0**16 if precision == "fp16" else None), f"loss_scale {found.loss_scale}")
        differences.append(abs(found.train_loss - wanted.train_loss))
    return f"losses differ by at most {max(differences):.1e} nats"


def packed_rows_are_their_documents_alone(device: str, folder: Path, *, architecture: Architecture) -> str:
    """Loss and gradients of rows of several documents are the sums over the documents by themselves."""
    model = _model(architecture).to(device)
    lengths = [[5, 1, 20], [T]]
    starts = torch.tensor([_starts(each) for each in lengths], device=device)
    weights = torch.tensor([[float(place < sum(each)) for place in range(T)] for each in lengths], device=device)
    ids, targets = _ids(2 * len(lengths), device).chunk(2)
    compute = _compute(device, "auto")
    with _float32_products():
        packed = model(ids, targets, weights, starts)
        found = _gradients(model, packed)
        alone = torch.zeros((), device=device)
        for row, own in enumerate(lengths):
            for end, length in zip(itertools.accumulate(own), own, strict=True):
                part = slice(end - length, end)
                alone = alone + model(ids[row : row + 1, part], targets[row : row + 1, part])
        wanted = _gradients(model, alone)
    _require_near("loss", packed, alone, relative=1e-4)
    difference = _distance(found, wanted) / _size(wanted)
    _require(difference < 1e-3, f"gradients differ by {difference:.1e} of their norm")
    with compute.autocast(), torch.no_grad():
        _require_near(f"loss in {compute.precision}", model(ids, targets, weights, starts), alone, relative=0.01)
    return f"gradients differ by {difference:.1e} of their norm; the loss in {compute.precision} too"


def loss_in_pieces_is_the_whole(device: str, folder: Path, *, architecture: Architecture) -> str:
    """The loss, and gradients, from pieces of the tokens are those from all logits at once."""
    model = _model(architecture).to(device)
    ids, targets = _ids(2 * BATCH, device).chunk(2)
    found = []
    with _float32_products():
        for piece in (None, 24):  # 128 tokens are no multiple of it
            model.loss_piece = piece
            loss = model(ids, targets)
            found.append((loss.detach(), _gradients(model, loss)))
    (whole, wanted), (pieces, gradients) = found
    _require_near("loss", pieces, whole, relative=1e-5)
    difference = _distance(gradients, wanted) / _size(wanted)
    _require(difference < 1e-4, f"gradients differ by {difference:.1e} of their norm")
    return f"gradients differ by {difference:.1e} of their norm"


def recomputed_blocks_are_kept_ones(device: str, folder: Path) -> str:
    """With dropout, gradient checkpointing draws the same masks again: the same updates."""
    found = []
    for recompute in (False, True):
        updater = _updater(_model("gpt2", dropout=0.2), device, gradient_checkpointing=recompute)
        with _float32_products():
            found.append([updater.update(step, _batch(step, updater)).result().train_loss for step in range(3)])
    for kept, computed in zip(*found, strict=True):
        _require_near("train_loss", computed, kept, relative=1e-4)
    return f"losses {', '.join(f'{loss:.4f}' for loss in found[1])} both ways"


def compiled_step_is_the_eager_one(device: str, folder: Path, *, architecture: Architecture) -> str:
    """Updates of the compiled model, of packed rows too, are those of the model as it is."""
    said: list[str] = []
    eager, compiled = (
        _updater(_model(architecture), device, compile=wanted, say=said.append) for wanted in (False, True)
    )
    start = _weights(eager)
    with _float32_products():
        for step in range(3):
            batches = (_batch(step, each, packed=step == 2) for each in (eager, compiled))
            wanted, found = (
                each.update(step, own).result() for each, own in zip((eager, compiled), batches, strict=True)
            )
            _require_near("train_loss", found.train_loss, wanted.train_loss, relative=1e-4)
    _require(not said, "; ".join(said))
    return _require_same_move(_weights(compiled), _weights(eager), start, at_most=0.02)


# When it is looked at


def update_that_is_not_finite_holds_later_ones(device: str, folder: Path, *, optimizer: str) -> str:
    """An update that is NaN changes nothing, and neither does one begun before anybody looked at it."""
    updater = _updater(_model("gpt2"), device, optimizer=optimizer)
    updater.update(0, _batch(0, updater)).result()
    before = _weights(updater)
    with _spoilt(updater, math.nan):
        spoilt = updater.update(1, _batch(1, updater))
    updater.update(2, _batch(2, updater)).result()  # finite by itself, and without effect
    try:
        spoilt.result()
    except NotFiniteError:
        _require(_distance(_weights(updater), before) == 0, "the weights have changed")
    else:
        raise AssertionError("an update that is NaN was taken for a good one")
    return "two updates in flight, no weight changed"


def overflow_is_skipped_and_halves_the_scale(device: str, folder: Path, *, optimizer: str) -> str:
    """In fp16 an infinite gradient skips its update alone; the next one was begun before anybody looked."""
    updater = _updater(_model("gpt2"), device, optimizer=optimizer, precision="fp16")
    updater.update(0, _batch(0, updater)).result()
    before = _weights(updater)
    with _spoilt(updater, math.inf):
        beyond = updater.update(1, _batch(1, updater))
    between = _weights(updater)
    after = updater.update(2, _batch(2, updater)).result()
    skipped = beyond.result()
    _require(skipped.skipped and not after.skipped, f"skipped: {skipped.skipped}, then {after.skipped}")
    _require(after.loss_scale == 2.0**15, f"loss_scale {after.loss_scale} after an overflow, need 32768")
    _require(_distance(between, before) == 0, "the skipped update changed weights")
    _require(_distance(_weights(updater), before) > 0, "the update after it changed nothing")
    return "skipped, the scale halved, the next update made"


def updates_begin_without_a_wait(device: str, folder: Path, *, training: Mapping[str, Any]) -> str:
    """The host begins updates without a wait for the device, as far as torch notices one."""
    average = AverageConfig(decay=0.9)
    updater = _updater(_model("gpt2", dropout=0.2), device, average_weights=average, **training)
    packed = device in devices.GPUS  # on a CPU documents are told apart by the host
    batches = [_batch(step, updater, packed=packed and step % 2 == 1) for step in range(4)]
    for step in (0, 1):  # which make the optimizer's state
        updater.update(step, batches[step]).result()
    with _waits_refused(device):
        begun = [updater.update(step, batches[step]) for step in (2, 3)]
    return f"losses {', '.join(f'{each.result().train_loss:.4f}' for each in begun)}, begun before either was there"


# What is kept


def checkpoint_of_the_device_goes_on_on_the_cpu(device: str, folder: Path) -> str:
    """A checkpoint written there holds tensors of the host; the CPU computes its loss and trains on from it."""
    job = _job(folder, device)
    run(job, stop_at=6)
    newest = list_checkpoints(job.folder.checkpoints)[-1]
    snapshot = load_checkpoint(newest.path)
    places = {tensor.device.type for tensor in snapshot.model.values()}
    _require(places == {"cpu"}, f"weights lie on {places}")
    here, there = (load_model(newest.path, device=where)[0].eval() for where in ("cpu", device))
    ids = _ids(BATCH, "cpu", vocabulary=job.model.vocab_size)[:, : job.max_length]
    with torch.no_grad(), _float32_products():
        difference = float((here(ids) - there(ids.to(device)).cpu()).abs().max())
    _require(difference < 1e-3, f"logits differ by {difference:.1e}")
    run(dataclasses.replace(job, hardware=HardwareConfig(device="cpu")))
    return f"logits differ by {difference:.1e}; trained to its end on the CPU"


def resumed_training_has_the_losses_of_a_whole_one(device: str, folder: Path, *, training: Mapping[str, Any]) -> str:
    """Stopped after five of twelve updates and resumed: the same batches, losses within the tolerance."""
    whole = _job(folder, device, **training)
    run(whole)
    parts = dataclasses.replace(whole, experiment_folder=str(folder / "parts"))
    run(parts, stop_at=5)
    run(parts)
    found, wanted = losses(parts), losses(whole)
    _require(found.keys() == wanted.keys(), f"lines {sorted(found)}, need {sorted(wanted)}")
    difference = max(abs(found[line] - loss) for line, loss in wanted.items())
    _require(difference <= RESUME_TOLERANCE, f"losses differ by {difference:.1e} nats, need {RESUME_TOLERANCE}")
    return f"losses differ by at most {difference:.1e} nats"


def deterministic_training_is_the_same_to_the_bit(device: str, folder: Path, *, compiled: bool) -> str:
    """Two trainings with dropout, in processes of their own, end with the same weights."""
    ends = []
    for name in ("one", "other"):
        job = _job(folder, device, deterministic=True, precision="auto", compile="auto" if compiled else False)
        job = dataclasses.replace(job, experiment_folder=str(folder / name))
        train_in_a_process(job)
        ends.append(list_checkpoints(job.folder.checkpoints)[-1].weights_sha256)
    _require(ends[0] == ends[1], f"weights {ends[0][:12]} and {ends[1][:12]}")
    return f"weights {ends[0][:12]} twice"


# Generation and sampling


def cached_generation_is_the_full_pass(device: str, folder: Path, *, architecture: Architecture) -> str:
    """Logits behind cached, padded prompts of several lengths are those of the whole texts, each by itself."""
    model = _model(architecture).to(device).eval()
    prompts = [list(range(2, 2 + length)) for length in (3, 9, 5)]
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(each) for each in prompts], device=device)
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts], device=device)
    cache, differences = KVCache(model.config, capacity=T, padding=padding), []
    with torch.inference_mode(), _float32_products():
        for _ in range(6):
            cached = model.forward_cached(ids, cache)
            full = torch.cat([model(torch.tensor([each], device=device))[:, -1] for each in prompts])
            differences.append(float((cached - full).abs().max()))
            ids = full.argmax(-1)[:, None]
            prompts = [[*each, token] for each, token in zip(prompts, ids[:, 0].tolist(), strict=True)]
    _require(max(differences) < 1e-3, f"logits differ by {max(differences):.1e}")
    with _compute(device, "auto").autocast():
        written = generate(model, prompts, max_new_tokens=4, context_length=T, ends=())
    _require([len(each.tokens) for each in written] == [4, 4, 4], "texts of other lengths")
    return f"logits differ by at most {max(differences):.1e}"


def rollouts_are_those_of_the_cpu_and_train(device: str, folder: Path) -> str:
    """Answers drawn by the same numbers are the CPU's but for rounding, as likely as noted, and train the model."""
    updater = _updater(_model("gpt2"), device, precision="fp32")
    model = updater.model
    with _float32_products():
        groups = _sampled(model)
        theirs = _sampled(_model("gpt2"))
    answers = [(prompt, each, 0.5 - place % 2) for prompt, own in groups for place, each in enumerate(own)]
    wanted = [each.tokens for _, own in theirs for each in own]
    same = sum(own.tokens == other for (_, own, _), other in zip(answers, wanted, strict=True)) / len(wanted)
    _require(same >= 0.9, f"{same:.0%} of the answers are the CPU's")
    inputs, targets, weights = (torch.from_numpy(part).to(device) for part in rows_of(answers))
    with _float32_products():
        probable = target_log_probabilities(model, inputs, targets, at_once=64).cpu()
    for row, (prompt, own, _) in enumerate(answers):
        begin = len(prompt.tokens) - 1
        found = probable[row, begin : begin + len(own.tokens)]
        _require_near("log-probability", found, torch.from_numpy(own.log_probabilities), absolute=1e-3)
    tokens = sum(len(own.tokens) for _, own, _ in answers)
    before = _weights(updater)
    updater.update(0, Batch(inputs, targets, weights, rollout=Rollout(tokens, tokens, {}))).result()
    _require(_distance(_weights(updater), before) > 0, "the update changed nothing")
    return f"{same:.0%} of {len(wanted)} answers are the CPU's, {tokens} tokens"


# Memory


def micro_batch_auto_finds_what_the_memory_holds(device: str, folder: Path) -> str:
    """In a memory that holds no whole update `auto` trains in parts; a fixed size is refused with its remedy."""
    if not devices.refuses_memory(torch.device(device)):
        raise NotHereError("where memory is full, the system kills rather than refuses")
    job = _large_job(folder, device)
    where, share = torch.device(device), job.training.batch_size
    with _memory_filled(where, but=_LITTLE_MEMORY):
        fixed = dataclasses.replace(job, training=dataclasses.replace(job.training, micro_batch_size=share))
        try:
            run_job(fixed, Listener())
        except UserError as error:
            refused = str(error)
        else:
            raise AssertionError(f"{share} sequences fit; the check needs a larger update")
    _require(f"micro_batch_size: {share // 2}" in refused, refused)
    with _memory_filled(where, but=_LITTLE_MEMORY + RESERVE * devices.memory_of(where)[1]) as taken:
        run(job)
        peak = (peak_memory_bytes(where) or taken) - taken
    found = read_json(job.folder.micro_batch)["micro_batch_size"]
    _require(found in divisors(share) and found < share, f"found {found} of {share}")
    return f"{share} sequences refused with a remedy, {found} found and trained, peak {peak / 1e9:.1f} GB"


# Several processes


def collectives_of_one_process_change_nothing(device: str, folder: Path) -> str:
    """The library between GPUs starts, sums and broadcasts, and its reducer leaves the gradients as they are."""
    backends = devices.collective_backends() if device in devices.GPUS else "gloo"
    dist.init_process_group(backends, init_method=(folder / "meet").as_uri(), rank=0, world_size=1)
    try:
        model = _model("gpt2").to(device)
        ids, targets = _ids(2 * BATCH, device).chunk(2)
        with _float32_products():
            wanted = _gradients(model, model(ids, targets))
            spread = DistributedDataParallel(
                model, device_ids=[torch.device(device, 0)] if device in devices.GPUS else None
            )
            found = _gradients(model, spread(ids, targets))
        value = torch.ones(3, device=device)
        dist.all_reduce(value)
        box = ["plain values"]
        dist.broadcast_object_list(box, src=0)
    finally:
        leave_process_group()
    _require(value.tolist() == [1.0] * 3 and box == ["plain values"], f"{value.tolist()}, {box}")
    difference = _distance(found, wanted) / _size(wanted)
    _require(difference < 1e-5, f"gradients differ by {difference:.1e} of their norm")
    return f"{backends}: gradients differ by {difference:.1e} of their norm"


def losses(job: TrainingJob) -> dict[tuple[str, int], float]:
    """Return the losses in the job's metrics, by kind of line and step."""
    names = {"train": "train_loss", "validation": "val_loss"}
    lines = read_metrics(job.folder.metrics)
    return {(line["kind"], line["step"]): line[names[line["kind"]]] for line in lines if line["kind"] in names}


def train_in_a_process(job: TrainingJob) -> None:
    """Train the job to its end; raises AssertionError with the last lines of what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        trainer_command(job), cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    last = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
    _require(done.returncode == 0, f"the trainer ended with {done.returncode}: {last}")


def _sampled(model: LanguageModel) -> list[Any]:
    config = RlConfig(prompts_per_step=4, samples_per_prompt=8, max_new_tokens=6)
    question = Question(query="?", expected="1", with_reasoning=False, reward="number")
    prompts = [Prompt(id=str(each), tokens=tuple(range(1, each + 4)), question=question) for each in range(4)]
    sampler = RolloutSampler(config=config, tokenizer=_Letters(), context_length=T, batch_size=16)  # type: ignore[arg-type]
    return sampler.sample(model, prompts, [prompt.id for prompt in prompts])


class _Letters:
    """As much of a tokenizer as sampling asks for."""

    ends = (0,)

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token % 26) for token in tokens)


def _job(folder: Path, device: str, **training: Any) -> TrainingJob:
    """Return a job of 12 updates with dropout, whose attention has the head size of fused kernels."""
    if not (folder / "shards").is_dir():
        write_shards(folder / "shards", vocab_size=VOCABULARY)
    return make_job(
        folder,
        training={"compile": False, **training},
        model=ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=T, vocab_size=VOCABULARY, dropout=0.2),
        hardware=HardwareConfig(device=device),
    )


def _large_job(folder: Path, device: str) -> TrainingJob:
    """Return a job whose update of 64 sequences takes some 4 GB, and one sequence a sixtieth of that."""
    length, sequences, vocabulary = 1024, 64, 8192
    tokens = length * sequences * 2 + 1
    write_shards(folder / "shards", train_tokens=tokens, validation_tokens=2 * length, vocab_size=vocabulary)
    return make_job(
        folder,
        training={"batch_size": sequences, "micro_batch_size": "auto", "max_steps": 2, "compile": False},
        cadence={"eval_freq": 2, "save_every_n_iterations": 2},
        model=ModelConfig(n_layer=4, n_head=4, n_embd=256, context_length=length, vocab_size=vocabulary, dropout=0.0),
        max_length=length,
        hardware=HardwareConfig(device=device),
    )


@contextmanager
def _memory_filled(device: torch.device, *, but: float) -> Iterator[int]:
    """Take all of the GPU's memory but `but` bytes; yield how many are taken."""
    gc.collect()
    devices.release_memory(device)
    free, _ = devices.memory_of(device)
    ballast = torch.empty(max(0, free - round(but)), dtype=torch.uint8, device=device)
    try:
        yield ballast.numel()
    finally:
        del ballast
        devices.release_memory(device)


def _model(architecture: Architecture, **changes: Any) -> LanguageModel:
    """Return a small model on the CPU, the same each time, whose projections are not zero as nanochat's begin."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": T, "vocab_size": VOCABULARY, "dropout": 0.0}
    model = make_model(ModelConfig(architecture=architecture, **{**shape, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _compute(device: str, precision: str, *, compiled: bool = False) -> Compute:
    training = TrainingConfig(precision=precision, compile=compiled)  # type: ignore[arg-type]
    try:
        return choose_compute(HardwareConfig(device=device), training, ranks=Ranks(), say=lambda _: None)  # type: ignore[arg-type]
    except ConfigError as error:
        raise NotHereError(str(error)) from error


def _updater(
    model: LanguageModel, device: str, *, say: Callable[[str], None] = lambda _: None, **training: Any
) -> Updater:
    settings = {"precision": "fp32", "compile": False, **training}
    config = TrainingConfig(
        batch_size=BATCH, micro_batch_size=2, max_steps=12, warmup_steps=2, learning_rate=1e-2, **settings
    )
    compute = _compute(device, settings["precision"], compiled=settings["compile"])
    layout = step_layout(config, max_length=T, steps_per_epoch=5, world_size=1)
    return Updater(model.to(compute.device), config, layout=layout, compute=compute, ranks=Ranks(), say=say)


def _batch(step: int, updater: Updater, *, packed: bool = False) -> Batch:
    device = updater.model.head_weight.device
    inputs, targets = _ids(2 * BATCH, device, seed=step).chunk(2)
    if not packed:
        return Batch(inputs, targets)
    starts = torch.tensor([_starts([3, 20]), _starts([T])] * (BATCH // 2), device=device)
    return Batch(inputs, targets, torch.ones_like(inputs, dtype=torch.float32), starts)


def _ids(rows: int, device: torch.device | str, *, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    """int64 [rows, T], the same on each device."""
    return torch.randint(0, vocabulary, (rows, T), generator=torch.Generator().manual_seed(seed)).to(device)


def _starts(lengths: Sequence[int]) -> list[int]:
    """Return where the document of each of T positions begins; behind the last one is padding."""
    bounds = [0, *itertools.accumulate(lengths)]
    row = [begin for begin, end in itertools.pairwise(bounds) for _ in range(begin, end)]
    return row + [len(row)] * (T - len(row))


@contextmanager
def _float32_products() -> Iterator[None]:
    """Have products of float32 numbers read all their bits, where a GPU would take TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _NothingRead(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by the type checker
    """Refuses operations whose result the host has to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _require(func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero"), f"{func} waits")
        return func(*args, **(kwargs or {}))


@contextmanager
def _waits_refused(device: str) -> Iterator[None]:
    """Have torch raise an error where the host waits for the device."""
    if device != "cuda":
        with _NothingRead():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def _spoilt(updater: Updater, factor: float) -> Iterator[None]:
    """Multiply one parameter's gradient by `factor`."""
    parameter = updater.model.transformer.ln_f.weight
    handle = parameter.register_hook(lambda gradient: gradient * factor)
    try:
        yield
    finally:
        handle.remove()


def _gradients(model: LanguageModel, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {name: each.grad.detach().cpu().clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _weights(updater: Updater) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in updater.model.state_dict().items()}


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return math.sqrt(math.fsum(float((value - other[name]).double().square().sum()) for name, value in one.items()))


def _size(tensors: Mapping[str, Tensor]) -> float:
    return _distance(tensors, {name: torch.zeros_like(value) for name, value in tensors.items()})


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise AssertionError(found)


def _require_near(
    name: str, found: Tensor | float, wanted: Tensor | float, *, relative: float = 0.0, absolute: float = 0.0
) -> None:
    found, wanted = (torch.as_tensor(each).detach().cpu() for each in (found, wanted))
    _require(
        torch.allclose(found.double(), wanted.double(), rtol=relative, atol=absolute),
        f"{name}: found {found.tolist()}, need {wanted.tolist()} within {relative or absolute}",
    )


def _require_same_move(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], start: Mapping[str, Tensor], *, at_most: float
) -> str:
    """Compare how far the weights have come from `start`."""
    difference = _distance(found, wanted) / _distance(wanted, start)
    _require(difference <= at_most, f"weights differ by {difference:.1e} of their way, need {at_most}")
    return f"weights differ by {difference:.1e} of their way"


def _cases() -> Iterator[tuple[str, Check]]:
    """Yield the checks, what is most basic first, each with a name for people."""
    for architecture, optimizer in itertools.product(_ARCHITECTURES, _OPTIMIZERS):
        made = partial(step_is_that_of_the_cpu, architecture=architecture, optimizer=optimizer)
        yield f"step is that of the CPU: {architecture}, {optimizer}", made
    for precision, optimizer in itertools.product(("bf16", "fp16"), _OPTIMIZERS):
        made = partial(update_in_half_is_that_of_float32, precision=precision, optimizer=optimizer)
        yield f"update in {precision} is that of float32: {optimizer}", made
    for architecture in _ARCHITECTURES:
        named = partial(packed_rows_are_their_documents_alone, architecture=architecture)
        yield f"packed rows are their documents alone: {architecture}", named
        yield (
            f"loss in pieces is the whole: {architecture}",
            partial(loss_in_pieces_is_the_whole, architecture=architecture),
        )
        yield (
            f"cached generation is the full pass: {architecture}",
            partial(cached_generation_is_the_full_pass, architecture=architecture),
        )
    yield "recomputed blocks are kept ones", recomputed_blocks_are_kept_ones
    for optimizer in _OPTIMIZERS:
        held = partial(update_that_is_not_finite_holds_later_ones, optimizer=optimizer)
        yield f"update that is not finite holds later ones: {optimizer}", held
        skipped = partial(overflow_is_skipped_and_halves_the_scale, optimizer=optimizer)
        yield f"overflow is skipped and halves the scale: {optimizer}", skipped
    for name, settings in _BEGUN.items():
        yield f"updates begin without a wait: {name}", partial(updates_begin_without_a_wait, training=settings)
    yield "checkpoint of the device goes on on the CPU", checkpoint_of_the_device_goes_on_on_the_cpu
    for name, training in _RESUMED.items():
        whole = partial(resumed_training_has_the_losses_of_a_whole_one, training=training)
        yield f"resumed training has the losses of a whole one: {name}", whole
    yield "rollouts are those of the CPU and train", rollouts_are_those_of_the_cpu_and_train
    yield "micro_batch_size: auto finds what the memory holds", micro_batch_auto_finds_what_the_memory_holds
    yield "collectives of one process change nothing", collectives_of_one_process_change_nothing
    for compiled in (False, True):
        same = partial(deterministic_training_is_the_same_to_the_bit, compiled=compiled)
        yield f"deterministic training is the same to the bit{', compiled' if compiled else ''}", same
    for architecture in _ARCHITECTURES:
        fused = partial(compiled_step_is_the_eager_one, architecture=architecture)
        yield f"compiled step is the eager one: {architecture}", fused


CHECKS: Mapping[str, Check] = dict(_cases())
"""By name, in the order in which to run them."""
