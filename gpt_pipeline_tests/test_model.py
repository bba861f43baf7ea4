"""GPT against transformers' GPT-2 and against its own promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel

TINY = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=32, dropout=0.0)
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps them as [in, out]


def _model(config: ModelConfig = TINY) -> LanguageModel:
    torch.manual_seed(1)
    model = make_model(config).eval()
    with torch.no_grad():  # biases and gains away from 0 and 1, so that the comparison sees them
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _reference(model: LanguageModel):
    transformers = pytest.importorskip("transformers")
    config = model.config
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.tie_weights,
        )
    ).eval()
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            value = ours.get(name)
            if value is None:
                assert name.endswith("c_attn.bias")
                parameter.zero_()
            else:
                parameter.copy_(value.T if name.endswith(_TRANSPOSED) else value)
    return reference


def _ids(B: int = 3, T: int = 17) -> Tensor:
    return torch.randint(0, 50257, (B, T), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("qkv_bias", "tie_weights", "count"),
    [(False, True, 124_412_160), (True, True, 124_439_808), (False, False, 163_009_536)],
)
def test_model_in_gpt2_size_has_the_published_number_of_parameters(qkv_bias, tie_weights, count):
    with torch.device("meta"):
        assert make_model(ModelConfig(qkv_bias=qkv_bias, tie_weights=tie_weights)).num_parameters == count


@pytest.mark.parametrize(("qkv_bias", "tie_weights"), [(False, True), (True, True), (True, False)])
def test_model_with_the_same_weights_equals_transformers(qkv_bias, tie_weights):
    config = ModelConfig(
        n_layer=2, n_head=2, n_embd=32, context_length=32, dropout=0.0, qkv_bias=qkv_bias, tie_weights=tie_weights
    )
    model = _model(config)
    reference = _reference(model)
    ids = _ids()

    torch.testing.assert_close(model(ids), reference(ids).logits, rtol=1e-4, atol=1e-5)

    expected = reference(ids, labels=ids).loss
    loss = model(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)

    loss.backward()
    expected.backward()
    gradients = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        want = gradients.pop(name).grad
        torch.testing.assert_close(
            parameter.grad, want.T if name.endswith(_TRANSPOSED) else want, rtol=1e-3, atol=1e-6, msg=name
        )
    assert all(name.endswith("c_attn.bias") for name in gradients)
    assert bool(gradients) != qkv_bias


def test_model_at_initialisation_follows_gpt2s_scales():
    torch.manual_seed(0)
    model = make_model(ModelConfig(n_layer=8, n_head=4, n_embd=128, context_length=64))
    block = model.transformer.h[3]
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.03)
    assert model.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not block.mlp.c_fc.bias.any()
    assert bool((block.ln_1.weight == 1).all())


def test_model_at_step_0_knows_nothing():
    torch.manual_seed(0)
    model = make_model(TINY).eval()
    ids = _ids(8, 33)
    loss = model(ids[:, :-1], ids[:, 1:]).item() / ids[:, 1:].numel()
    assert loss == pytest.approx(math.log(50257), abs=0.05)


def test_model_is_causal_no_gradient_flows_back_from_the_future():
    model = _model()
    embedded: list[Tensor] = []
    model.transformer.drop.register_forward_hook(lambda module, args, out: embedded.append(out) or out.retain_grad())
    logits = model(_ids(1, 12))
    logits[0, 5].square().sum().backward()
    reach = embedded[0].grad[0].abs().sum(dim=1)
    assert bool((reach[:6] > 0).all())
    assert bool((reach[6:] == 0).all())


def test_model_dropout_acts_in_training_only():
    model = _model(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=32, dropout=0.5))
    ids = _ids()
    torch.testing.assert_close(model(ids), model(ids), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_model_given_too_many_tokens_says_how_many_fit():
    with pytest.raises(ValueError, match="found 33 tokens, need at most context_length=32"):
        _model()(_ids(1, 33))


@torch.no_grad()
def test_cached_generation_gives_the_same_logits_as_the_whole_sequence():
    model = _model()
    ids = _ids(2, 20)
    cache = KVCache(TINY, capacity=20)
    logits = model.forward_cached(ids[:, :7], cache)
    for t in range(7, 20):
        torch.testing.assert_close(logits, model(ids[:, :t])[:, -1], rtol=1e-4, atol=1e-5)
        logits = model.forward_cached(ids[:, t : t + 1], cache)
    torch.testing.assert_close(logits, model(ids)[:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cached_generation_of_left_padded_prompts_equals_each_prompt_alone():
    model = _model()
    lengths = [3, 9, 1]
    prompts = [_ids(1, n)[0] + i for i, n in enumerate(lengths)]
    padded = torch.full((3, 9), 50256)
    for row, prompt in zip(padded, prompts, strict=True):
        row[9 - len(prompt) :] = prompt
    cache = KVCache(TINY, capacity=20, padding=torch.tensor([9 - n for n in lengths]))
    logits = model.forward_cached(padded, cache)
    for _ in range(10):
        for i, prompt in enumerate(prompts):
            torch.testing.assert_close(logits[i], model(prompt[None])[0, -1], rtol=1e-4, atol=1e-5)
        chosen = logits.argmax(dim=1)
        prompts = [torch.cat([prompt, token[None]]) for prompt, token in zip(prompts, chosen, strict=True)]
        logits = model.forward_cached(chosen[:, None], cache)


def test_cache_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="capacity=33 must be at most context_length=32"):
        KVCache(TINY, capacity=33)
    cache = KVCache(TINY, capacity=4)
    with pytest.raises(ValueError, match="5 positions do not fit in a cache of 4"), torch.no_grad():
        _model().forward_cached(_ids(1, 5), cache)
