"""Small trainings on sampled answers: a model that writes `1`, `2` or the end, whatever it is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME, new_shard, starts_name
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.prompts import HELD_OUT, TRAINING, Prompt, write_prompts
from gpt_pipeline.rl.rewards import Question
from gpt_pipeline.storage.manifest import Manifest, record_file
from gpt_pipeline.training.job import Rollouts, StartWeights, TrainingJob
from gpt_pipeline_tests.training_jobs import SHARDS_FINGERPRINT, make_job

PROMPTS_FINGERPRINT = "b" * 64
VOCAB_SIZE = 258
MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=16, vocab_size=VOCAB_SIZE, tie_weights=False)
RL = RlConfig(prompts_per_step=4, samples_per_prompt=6, max_new_tokens=4, candidates=8)


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte, one for two of them, and the end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary["ab"] = len(letters)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def write_byte_shards(folder: Path) -> Path:
    """Write a finished token_shards stage of random bytes, with its tokenizer."""
    folder.mkdir(parents=True)
    bytes_tokenizer().save(str(folder / TOKENIZER_NAME))
    files = {TOKENIZER_NAME: record_file(folder / TOKENIZER_NAME)}
    for split in ("train", "validation"):
        name = f"{split}_000001.bin"
        with new_shard(folder / name) as shard:
            shard.append(np.random.default_rng(0).integers(0, VOCAB_SIZE, 70).astype(np.uint16))
        np.save(folder / starts_name(name), np.arange(0, 70, 70))
        files |= {file: record_file(folder / file) for file in (name, starts_name(name))}
    facts = {"train_tokens": 70, "validation_tokens": 70, "eot_token": VOCAB_SIZE - 1}
    Manifest(stage="token_shards", fingerprint=SHARDS_FINGERPRINT, config={}, files=files, facts=facts).write(folder)
    return folder


def prompt(number: int, *, expected: str = "1") -> Prompt:
    """Return a question of one or two letters, which `expected` answers."""
    tokens = (VOCAB_SIZE - 1, *range(number, number + 1 + number % 2))
    question = Question(query=f"{number}?", expected=expected, with_reasoning=False, reward="number")
    return Prompt(id=str(number), tokens=tokens, question=question, pass_rate=0.5)


def write_prompts_stage(folder: Path, *, expected: str = "1", count: int = 6) -> Path:
    """Write a finished rl_prompts stage."""
    folder.mkdir(parents=True)
    prompts = [prompt(number, expected=expected) for number in range(count)]
    write_prompts(folder / TRAINING, prompts)
    write_prompts(folder / HELD_OUT, prompts[:4])
    files = {name: record_file(folder / name) for name in (TRAINING, HELD_OUT)}
    Manifest(stage="rl_prompts", fingerprint=PROMPTS_FINGERPRINT, config={}, files=files).write(folder)
    return folder


def undecided_model() -> torch.nn.Module:
    """A model to which `1`, `2` and the end are about as likely, and nothing else."""
    torch.manual_seed(1)
    model = make_model(dataclasses.replace(MODEL, dropout=0.0))
    likely = [bytes_tokenizer().token_to_id("1"), bytes_tokenizer().token_to_id("2"), VOCAB_SIZE - 1]
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 5.0
        model.lm_head.weight[:, 0] = -2.0
        model.lm_head.weight[likely, 0] = 2.0
    return model


def write_start(folder: Path) -> StartWeights:
    """Write a checkpoint of the undecided model; return it as what a training begins with."""
    snapshot = Snapshot(
        model=undecided_model().state_dict(),
        model_config=MODEL,
        optimizer={"name": "adamw", "states": []},
        random={},
        progress=Progress(step=1),
        fingerprint="c" * 64,
        shards_fingerprint=SHARDS_FINGERPRINT,
    )
    info = save_checkpoint(folder, snapshot)
    return StartWeights(file=str(info.path), weights_sha256=info.weights_sha256, source="the undecided")


def make_rl_job(folder: Path, *, training: dict | None = None, rl: dict | None = None, **changes: Any) -> TrainingJob:
    """Return a job of 12 updates in `folder`/experiment; what it needs is written where it is not there yet."""
    if not (folder / "shards").is_dir():
        write_byte_shards(folder / "shards")
    prompts = folder / "prompts"
    if not prompts.is_dir():
        write_prompts_stage(prompts)
    start = changes.pop("start_from", None) or write_start(folder / "start")
    config = dataclasses.replace(RL, **(rl or {}))
    wanted = {"objective": "rl", "batch_size": 8, "micro_batch_size": None, "lr_schedule": "constant"}
    return make_job(
        folder,
        training={**wanted, "learning_rate": 0.01, "weight_decay": 0.0, **(training or {})},
        **{
            "model": MODEL,
            "start_from": start,
            "rollouts": Rollouts(config=config, prompts_folder=str(prompts), prompts_fingerprint=PROMPTS_FINGERPRINT),
            **changes,
        },
    )
