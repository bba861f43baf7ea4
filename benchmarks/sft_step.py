"""A step of fine-tuning on answers against transformers' model in the usual loop: `python -m benchmarks.sft_step`.

The same documents in each update, whose lengths are drawn from a log-normal distribution (median 180 tokens, at most a
sequence); the last three fifths of each are its answer. We pack them into sequences. The usual loop, as transformers'
`Trainer` runs it with a padding collator, gives each document a row, eight rows at a time, padded to the longest, and
labels of -100 where nothing counts. GPT-2 124M, dropout 0.1, fused AdamW and clipping in both. About three minutes on
two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contest import Contestant, Step, compete, describe_machine, print_table
from benchmarks.peers import their_model
from benchmarks.steps import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, StepSettings, make_updater
from gpt_pipeline.data.tokens.batches import Rows
from gpt_pipeline.data.tokens.packing import DocumentSampler
from gpt_pipeline.data.tokens.stream import EOT_TOKEN, TokenStream, new_shard, spans_name, starts_name
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.training.feed import batch_of

OURS = "gpt_pipeline"
_SHARD = "train_000001.bin"
_DOCUMENTS = 2_000
_AT_ONCE = 8  # rows of the usual loop in one forward pass: the default of transformers' `Trainer`


def write_documents(folder: Path, longest: int, vocabulary: int) -> None:
    """Write random documents as a shard with their answers."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(180), 0.7, _DOCUMENTS), 10, longest).astype(np.int64)
    ends = np.cumsum(lengths)
    tokens = random.integers(0, min(vocabulary, EOT_TOKEN), ends[-1]).astype(np.uint16)
    tokens[ends - lengths] = EOT_TOKEN
    with new_shard(folder / _SHARD) as shard:
        shard.append(tokens)
    np.save(folder / starts_name(_SHARD), ends - lengths)
    np.save(folder / spans_name(_SHARD), np.stack((ends - lengths * 3 // 5, ends), axis=1))


def _sampler(settings: StepSettings, folder: Path) -> DocumentSampler:
    return DocumentSampler(
        stream=TokenStream(folder, (_SHARD,)),
        sequence_length=settings.length,
        batch_size=settings.sequences,
        seed=0,
        answers_only=True,
    )


def make_ours(settings: tuple[StepSettings, Path]) -> Step:
    """Return a step of our trainer on packed documents."""
    updater, sampler, step = make_updater(settings[0]), _sampler(*settings), 0

    def update() -> float:
        nonlocal step
        step += 1
        return updater.update(step, batch_of(sampler.rows_at(step), torch.device("cpu"))).result().train_loss

    return update


def make_usual(settings: tuple[StepSettings, Path]) -> Step:
    """Return a step of transformers' model on padded documents."""
    from transformers import logging

    logging.set_verbosity_error()
    shared, sampler, step = settings[0], _sampler(*settings), 0
    shared.use_threads()
    torch.manual_seed(0)
    model = their_model(shared.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def update() -> float:
        nonlocal step
        step += 1
        rows = sampler.rows_at(step)
        count, total = int(np.count_nonzero(np.asarray(rows.weights))), 0.0
        for ids, labels, is_text in _padded(rows):
            loss = model(ids, attention_mask=is_text, labels=labels, num_items_in_batch=count).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return update


def _padded(rows: Rows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the documents of packed rows, each in a row of its own: ids, labels and which are no padding."""
    documents = list(_documents(rows))
    for first in range(0, len(documents), _AT_ONCE):
        some = documents[first : first + _AT_ONCE]
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence([each[part] for each in some], batch_first=True, padding_value=padding)
            for part, padding in ((0, EOT_TOKEN), (1, -100))
        )
        lengths = torch.tensor([len(each[0]) for each in some])
        yield ids, labels, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def _documents(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each document with what follows it, and its labels: -100, or the token where it counts."""
    inputs, targets, weights, starts = batch_of(rows, torch.device("cpu")).tensors
    assert inputs is not None
    assert targets is not None
    assert weights is not None
    assert starts is not None
    for row in range(len(inputs)):
        for start in starts[row].unique():
            own = starts[row] == start
            counted = weights[row][own] > 0
            if counted.any():  # no padding
                following = targets[row][own]
                labels = torch.where(counted, following, -100)
                yield torch.cat((inputs[row][own], following[-1:])), torch.cat((labels.new_tensor([-100]), labels))


def main() -> None:
    options = _options()
    model = ModelConfig(
        qkv_bias=True, n_layer=options.layers, n_embd=options.width, context_length=max(1024, options.length + 1)
    )
    settings = StepSettings(
        model=model, sequences=options.sequences, length=options.length, precision="fp32", threads=options.threads
    )
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder), options.length, model.vocab_size)
        sampler = _sampler(settings, Path(folder))
        updates = [list(_padded(sampler.rows_at(step))) for step in range(20)]
        positions = sum(ids.numel() for update in updates for ids, *_ in update) / len(updates)
        print(
            f"{describe_machine()}; {options.layers} layers, {settings.sequences} x {settings.length} positions in an "
            f"update ({sampler.packing.padding:.1%} padding), {positions:,.0f} with each document in a padded row"
        )
        given = (settings, Path(folder))
        contestants = [
            Contestant(name=OURS, make=make_ours, settings=given),
            Contestant(name="transformers, padded", make=make_usual, settings=given),
        ]
        times = compete(contestants, turns=options.turns, steps=options.steps)
    print_table(times, tokens=settings.tokens, ours=OURS)
    usual = times["transformers, padded"]
    print(f"\nRATIO to the usual loop: {usual.median / times[OURS].median:.2f} (target: at least 1.5)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft_step")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="in a turn")
    parser.add_argument("--threads", type=int, help="of each contestant; default: torch's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
