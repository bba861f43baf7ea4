"""Experiments that somebody thought through, as values with the reason for each. `experiments/` ships them as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Values to start from, by key path, each with a reason, or an empty text where the value speaks for itself."""

    title: str
    """The experiment's name."""

    about: str
    """Sentences for the head of the file; a line of it is a line there."""

    values: Mapping[str, tuple[Scalar, str]]
    """In the order in which they are written."""


_STORAGE: dict[str, tuple[Scalar, str]] = {
    "storage.base_folder": ("../storage", "starts at this file's folder; an absolute path leads anywhere"),
    "storage.checkpoint_to_resume": (None, "null: continue from the newest; a file name; or scratch"),
}

DEMO = Recipe(
    title="Demo",
    about="""\
The demo: a small GPT that learns on a CPU within minutes, from documents that the project generates itself.
`make demo` runs it. The recipes beside it train on PleIAs/SYNTH.""",
    values={
        "data.source": ("sample", "made by the project; without this line: PleIAs/SYNTH, from the hub"),
        "data.num_samples": (16_000, "English documents"),
        "data.max_length": (96, "tokens in a training sequence"),
        "data.validation_fraction": (0.05, "share of seed articles held out, for validation and for the questions"),
        "model.n_layer": (1, "one block is enough to look things up, and learns it from the fewest documents"),
        "model.n_head": (4, ""),
        "model.n_embd": (128, ""),
        "model.context_length": (128, ""),
        "model.dropout": (0.0, "one pass over the documents: nothing to overfit to"),
        "training.batch_size": (10, "960 tokens in an update"),
        "training.num_epochs": (1, ""),
        "training.optimizer": ("muon", ""),
        "training.learning_rate": (0.01, ""),
        "training.warmup_steps": (30, ""),
        "evaluation.eval_freq": (61, "steps between two estimates of the validation loss"),
        "evaluation.eval_iters": (10, ""),
        "evaluation.save_every_n_iterations": (105, "7 checkpoints, with the one at the end"),
        "evaluation.num_questions": (84, "enough that shares mean something"),
        "evaluation.max_new_tokens": (60, ""),
        "evaluation.max_validation_tokens": (20_000, ""),
        **_STORAGE,
        "hardware.device": ("cpu", ""),
    },
)

GPT2_124M = Recipe(
    title="GPT-2 124M on one GPU",
    about="""\
GPT-2 124M on one modern GPU with 24 GB or more: twice through 2,000,000 documents, some 3.2 billion tokens, which is
26 for each parameter (Hoffmann et al. 2022 find about 20 the best use of compute).
The values follow the reasons beside them and smaller trainings; they were not searched for at this size.""",
    values={
        "data.num_samples": (2_000_000, "16 files of PleIAs/SYNTH, 7.6 GB, about 1.6 billion tokens"),
        "data.max_length": (1024, "a document of SYNTH has about 800 tokens: most fit whole, with their answer"),
        "model.dropout": (0.0, "each document is seen twice at most: noise would cost more than it guards from"),
        "model.context_length": (1024, ""),
        "training.num_epochs": (2, ""),
        "training.tokens_per_step": (524_288, "0.5 million, as GPT-3's paper has it for this size"),
        "training.micro_batch_size": (16, "16,384 tokens at a time; raise it to 64 on 80 GB; changes no result"),
        "training.optimizer": ("muon", "reached a loss 0.46 nats lower than AdamW at equal tokens in a small training"),
        "training.learning_rate": (
            0.002,
            "4 layers of 128 channels were best at 0.016; a wider model wants less",
        ),
        "training.lr_schedule": (
            "wsd",
            "stable until the last fifth: lengthen the run later from a checkpoint before it",
        ),
        "training.min_learning_rate": (0.0, "the last fifth decays to nothing"),
        "training.warmup_steps": (200, "3 % of some 6,100 updates"),
        "training.precision": ("bf16", "tensor cores at full speed, half the activations; weights stay in fp32"),
        "evaluation.eval_freq": (100, ""),
        "evaluation.save_every_n_iterations": (500, "13 checkpoints, with the one at the end"),
        "evaluation.num_questions": (100, "a share of 100 is known to five points"),
        **_STORAGE,
        "hardware.device": ("cuda", ""),
        "hardware.num_gpus": (1, "8 for a whole node: the same batches in the same order"),
    },
)

GPU_8GB = Recipe(
    title="GPT-2 124M on an 8 GB GPU",
    about="""\
GPT-2 124M on a GPU with 8 GB: the same model as on a large one, in shorter sequences and smaller pieces.
One pass over 500,000 documents is some 400 million tokens: enough to see it write and reason in SYNTH's manner.""",
    values={
        "data.num_samples": (500_000, "4 files of PleIAs/SYNTH, 1.9 GB"),
        "data.max_length": (512, "half the activations of 1,024"),
        "model.dropout": (0.0, "one pass over the documents"),
        "training.tokens_per_step": (131_072, "fewer tokens in all, so more and smaller updates"),
        "training.micro_batch_size": (8, "4,096 tokens at a time; halve it when memory does not suffice"),
        "training.optimizer": ("muon", "one number of state for each weight of the blocks, AdamW keeps two"),
        "training.learning_rate": (0.002, "as in gpt2-124m.yaml"),
        "training.lr_schedule": ("wsd", ""),
        "training.warmup_steps": (150, "5 % of some 3,000 updates"),
        "training.precision": ("bf16", "half the memory of activations; Ampere (RTX 30) or newer"),
        "evaluation.eval_freq": (100, ""),
        "evaluation.save_every_n_iterations": (250, "13 checkpoints, with the one at the end"),
        "evaluation.num_questions": (40, ""),
        **_STORAGE,
        "hardware.device": ("cuda", ""),
    },
)

CPU = Recipe(
    title="Small GPT on a CPU",
    about="""\
A GPT of 17 million parameters on SYNTH, for a machine without a GPU: hours rather than minutes.
`gpt-pipeline plan` measures what it takes on yours.""",
    values={
        "data.num_samples": (50_000, "one file of PleIAs/SYNTH, some 470 MB; about 40 million tokens"),
        "data.max_length": (256, ""),
        "data.validation_fraction": (0.02, "a larger share than of millions, so that questions can be drawn from it"),
        "model.n_layer": (6, ""),
        "model.n_head": (4, ""),
        "model.n_embd": (256, "three quarters of the parameters are the vocabulary's"),
        "model.context_length": (512, "room for an answer beyond the 256 of training"),
        "model.dropout": (0.0, "one pass over the documents"),
        "training.batch_size": (16, "4,096 tokens in an update"),
        "training.optimizer": ("muon", ""),
        "training.learning_rate": (0.008, "4 layers of 128 channels were best at 0.016; a wider model wants less"),
        "training.warmup_steps": (200, ""),
        "evaluation.eval_freq": (250, ""),
        "evaluation.save_every_n_iterations": (1_000, ""),
        "evaluation.num_questions": (20, ""),
        "evaluation.max_validation_tokens": (100_000, ""),
        **_STORAGE,
        "hardware.device": ("cpu", ""),
    },
)

RECIPES: Mapping[str, Recipe] = {"demo": DEMO, "gpt2-124m": GPT2_124M, "gpu-8gb": GPU_8GB, "cpu": CPU}
"""By name; the name is also the stem of the file in `experiments/`."""
