"""A plain loop in the manner of nanoGPT, written here from what is publicly known of the technique.

One file's worth of model with `F.scaled_dot_product_attention`, padded vocabulary, bf16 autocast, TF32,
`torch.compile`, fused AdamW, gradient accumulation, clipping, and `loss.item()` once an update: a tuned PyTorch script.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.contest import Step
from benchmarks.steps import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, StepSettings
from gpt_pipeline.model.config import ModelConfig


class _Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.n_head, self.dropout = config.n_head, config.dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (p.view(B, T, self.n_head, -1).transpose(1, 2) for p in self.qkv(self.ln_1(x)).split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(B, T, C)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh")))


class _Model(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.size(1), device=ids.device)))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def make_nanogpt_style(settings: StepSettings) -> Step:
    """Return a step of the plain loop."""
    settings.use_threads()
    torch.manual_seed(0)
    cuda = settings.device == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")
    model = _Model(settings.model).to(settings.device).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas=BETAS, fused=True)
    run = torch.compile(model) if settings.compile else model
    layout = settings.layout()
    step = 0

    def update() -> float:
        nonlocal step
        step += 1
        inputs, targets = settings.batch(step)
        if cuda:
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        loss = torch.zeros(())
        for number in range(layout.grad_accum_steps):
            part = slice(number * layout.micro_batch_size, (number + 1) * layout.micro_batch_size)
            ids = inputs[part].to(settings.device, non_blocking=True)
            wanted = targets[part].to(settings.device, non_blocking=True)
            with torch.autocast(settings.device, dtype=torch.bfloat16) if cuda else nullcontext():
                loss = run(ids, wanted) / layout.grad_accum_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() * layout.grad_accum_steps

    return update
