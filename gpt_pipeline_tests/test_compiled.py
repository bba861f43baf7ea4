"""What torch's compiler makes of a training: whole graphs of fixed shapes, each compiled once.

Dynamo, which finds the graphs, is the same on a CPU as on a GPU. A break in a graph or a shape of any size costs a GPU
its speed, and a graph for each batch costs minutes; none of them is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist

from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import Architecture, ModelConfig
from gpt_pipeline.training.config import TrainingConfig, step_layout
from gpt_pipeline.training.device import Compute
from gpt_pipeline.training.feed import Batch
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.ranks import Ranks, leave_process_group
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.update import Updater
from gpt_pipeline_tests.training_jobs import BATCH, Listener, T, make_job, write_shards

VOCABULARY = 100


@pytest.fixture
def graphs(monkeypatch) -> list[list[Any]]:
    """The inputs of each graph that is compiled in the test; the graphs run as they are."""
    found: list[list[Any]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(inputs)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return found


def _batch(step: int, *, rows: int = BATCH, weighed: bool, packed: bool) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCABULARY, (rows, T), generator=generator)
    starts = torch.where(torch.rand((rows, T), generator=generator) < 0.2, torch.arange(T), 0).cummax(1).values
    weights = torch.rand((rows, T), generator=generator)
    return Batch(ids, ids.roll(1), weights if weighed else None, starts if packed else None)


def _updater(*, ranks: Ranks, n_embd: int = 32, architecture: Architecture = "gpt2", **training: Any) -> Updater:
    """Return the updater of a small compiled model, with micro-batches of two sequences."""
    model = ModelConfig(
        architecture=architecture,
        n_layer=2,
        n_head=2,
        n_embd=n_embd,
        context_length=T,
        vocab_size=VOCABULARY,
        dropout=0.1,
    )
    config = TrainingConfig(batch_size=BATCH, micro_batch_size=2, max_steps=4, **training)
    precision = training.get("precision", "fp32")
    return Updater(
        make_model(model),
        config,
        layout=step_layout(config, max_length=T, steps_per_epoch=5, world_size=1),
        compute=Compute(device=torch.device("cpu"), precision=precision, compile=True, peak_flops=None),
        ranks=ranks,
        say=pytest.fail,
    )


@pytest.mark.parametrize(
    ("packed", "piece", "training"),
    [
        (True, None, {"precision": "bf16"}),
        pytest.param(False, None, {"precision": "fp32"}, marks=pytest.mark.slow),
        pytest.param(True, None, {"precision": "fp16", "gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(False, 8, {"precision": "bf16", "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_update_of_any_documents_is_one_graph_that_is_compiled_once(graphs, architecture, packed, piece, training):
    updater = _updater(architecture=architecture, ranks=Ranks(), **training)
    updater.model.loss_piece = piece
    for step in range(3):
        updater.update(step, _batch(step, weighed=packed, packed=packed))
    assert len(graphs) == 1


def test_update_of_several_processes_runs_the_pieces_that_its_rehearsal_compiled(tmp_path, graphs):
    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    try:
        updater = _updater(n_embd=256, ranks=Ranks(world_size=2))  # gradients of more than a first message
        updater.rehearse(_batch(0, rows=2, weighed=True, packed=True))
        rehearsed = len(graphs)
        updater.update(0, _batch(0, weighed=True, packed=True))
    finally:
        leave_process_group()
    assert rehearsed > 1 + 1  # an update in pieces, and an estimate
    assert len(graphs) == rehearsed


@pytest.mark.parametrize("rehearsed", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "training_on",
    ["documents", pytest.param("windows", marks=pytest.mark.slow), pytest.param("answers", marks=pytest.mark.slow)],
)
def test_compiled_training_compiles_its_update_and_two_estimates_for_fixed_shapes(
    tmp_path, monkeypatch, graphs, training_on, rehearsed
):
    monkeypatch.setattr(devices, "refuses_memory", lambda device: rehearsed)
    answers = training_on == "answers"
    write_shards(
        tmp_path / "shards",
        train_tokens=T * BATCH * 5 + 1,
        validation_tokens=T * BATCH * 3 - 5,  # the last window and its batch are not full
        document_length=None if training_on == "windows" else 9,
        question_length=3 if answers else 0,
        vocab_size=VOCABULARY,
    )
    losses = {}
    for compiled in (False, True):
        job = make_job(
            tmp_path,
            training={"compile": compiled, "max_steps": 6, **({"objective": "sft"} if answers else {})},
            cadence={"eval_iters": 3},
            packing="stream" if training_on == "windows" else "documents",
            model=ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=T, vocab_size=VOCABULARY, dropout=0.0),
            experiment_folder=str(tmp_path / f"compiled {compiled}"),
        )
        run_job(job, Listener())
        kept = ("train_loss", "val_loss", "document_loss", "completion_loss")
        losses[compiled] = [line[key] for line in read_metrics(job.folder.metrics) for key in kept if key in line]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert len(graphs) == 3
    assert not [each for inputs in graphs for each in inputs if isinstance(each, torch.SymInt)]
