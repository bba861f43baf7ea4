"""What a person would otherwise run: transformers' GPT-2 in the usual loop."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from benchmarks.contest import Step
from benchmarks.steps import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, StepSettings


def make_transformers(settings: StepSettings) -> Step:
    """Return a step of transformers' GPT2LMHeadModel: SDPA attention, fused AdamW, its own loss.

    It is given the fastest of what its documentation offers; `settings.compile` decides whether it is compiled.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    settings.use_threads()
    shape = settings.model
    config = GPT2Config(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_positions=shape.context_length,
        vocab_size=shape.vocab_size,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.manual_seed(0)
    cuda = settings.device == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")
    model = GPT2LMHeadModel(config).to(settings.device).train()
    parameters = list(model.parameters())
    run = torch.compile(model) if settings.compile else model
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and cuda)
    layout = settings.layout()
    step = 0

    def update() -> float:
        nonlocal step
        step += 1
        loss_sum = torch.zeros((), device=settings.device)
        # One token fewer is predicted than we do: the model shifts inputs to make its targets.
        for inputs in settings.batch(step)[0].to(settings.device, non_blocking=True).split(layout.micro_batch_size):
            with torch.autocast(settings.device, dtype=torch.bfloat16) if bf16 else nullcontext():
                loss = run(inputs, labels=inputs).loss / layout.grad_accum_steps
            loss.backward()
            loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss_sum)

    return update
