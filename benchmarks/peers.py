"""What a person would otherwise run: transformers' own classes in the usual loop."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.contest import Step
from benchmarks.steps import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, StepSettings
from gpt_pipeline.model.config import ModelConfig


def make_transformers(settings: StepSettings) -> Step:
    """Return a step of transformers' class for the architecture: SDPA attention, fused AdamW, its own loss.

    It is given the fastest of what its documentation offers; `settings.compile` decides whether it is compiled.
    """
    from transformers import logging

    logging.set_verbosity_error()
    settings.use_threads()
    torch.manual_seed(0)
    cuda = settings.device == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")
    model = their_model(settings.model).to(settings.device).train()
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


def their_model(shape: ModelConfig) -> nn.Module:
    """Return transformers' model of this architecture and shape."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tie_weights,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
    if shape.architecture == "gpt2":
        config = transformers.GPT2Config(
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            n_positions=shape.context_length,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            **common,
        )
        return transformers.GPT2LMHeadModel(config)
    common |= {
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.kv_heads,
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.mlp_channels,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.eps,
        "attention_dropout": shape.dropout,
        "pad_token_id": None,
    }
    if shape.architecture == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    common["final_logit_softcapping"] = shape.soft_cap
    return transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**common))
