"""Small models that are served without a training, and the server of them on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, VOCAB_SIZE, gpt2
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.serving.app import Limits, make_app
from gpt_pipeline.serving.chat import ChatForm
from gpt_pipeline.serving.engine import Engine
from gpt_pipeline.serving.models import Served
from gpt_pipeline.writing import Writer
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import free_port

CONTEXT = 48


def decided_model(architecture: str = "gpt2", *, vocab_size: int = VOCAB_SIZE) -> LanguageModel:
    """A model whose weights are large, so that its choices are clear; it ends some texts.

    With a small vocabulary, rounding hardly ever decides which token is drawn.
    """
    torch.manual_seed(3)
    shape: Any = {"architecture": architecture, "vocab_size": vocab_size}
    model = make_model(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=CONTEXT, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.requires_grad_(False)


def endless_model() -> LanguageModel:
    """A model that never ends a text."""
    model = decided_model()
    with torch.no_grad():
        model.head_weight[EOT_TOKEN] = 0.0
        model.transformer.ln_f.bias.fill_(1.0)
        model.head_weight[1:40] += 1.0
    return model


def served(name: str, model: LanguageModel, root: Path, *, data: str | None = None) -> Served:
    """A model as if a training had made it; `data` replaces that of its experiment file."""
    project = TinyProject(root=root)
    path = project.write_experiment(name)
    if data is not None:
        lines = path.read_text().splitlines()
        path.write_text("\n".join(data if line.startswith("data:") else line for line in lines))
    experiment = load_experiment(path)
    info = CheckpointInfo(
        path=Path("x.pt"), step=7, sha256="", weights_sha256="ab" * 32, size=0, fingerprint="", shards_fingerprint="",
        tokens_seen=0, metrics={}, model=model.config, created_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    writer = Writer(model=model, tokenizer=gpt2(), checkpoint=info, context_length=CONTEXT)
    chat = ChatForm.of(experiment.config.data, gpt2())
    return Served(name=name, experiment=experiment, writer=writer, chat=chat)


@contextmanager
def server(
    models: Sequence[Served], *, limits: Limits | None = None, key: str | None = None
) -> Iterator[tuple[str, Engine]]:
    """The server of `models` for the block: its address and its engine."""
    chosen = limits or Limits()
    engine = Engine(
        {each.name: each.writer.model for each in models}, batch_size=chosen.batch_size, queue_size=chosen.queue_size
    )
    port = free_port()
    app = make_app(models, engine, limits=chosen, key=key)
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    with engine:
        thread = threading.Thread(target=running.run, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", engine
        running.should_exit = True
        thread.join()
