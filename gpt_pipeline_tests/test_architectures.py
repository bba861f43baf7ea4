"""LLaMA and nanochat against transformers' own classes, and every architecture against its promises."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpt_pipeline.experiment.load import ExperimentFileError, load_experiment
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.attention import KVCache
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline.model.loss import soft_capped

_TINY = ModelConfig(n_layer=2, n_head=4, n_embd=32, context_length=32, vocab_size=200, dropout=0.0)
_LLAMA = dataclasses.replace(_TINY, architecture="llama")
_NANOCHAT = dataclasses.replace(_TINY, architecture="nanochat")
_NEW = [
    pytest.param(_LLAMA, id="llama"),
    pytest.param(dataclasses.replace(_LLAMA, tie_weights=False, n_kv_head=2, mlp_width=40), id="llama-untied-grouped"),
    pytest.param(dataclasses.replace(_LLAMA, rope_theta=500.0, norm_eps=1e-3, n_kv_head=1), id="llama-one-kv-head"),
    pytest.param(_NANOCHAT, id="nanochat"),
    pytest.param(dataclasses.replace(_NANOCHAT, tie_weights=False, n_kv_head=2), id="nanochat-untied-grouped"),
    pytest.param(dataclasses.replace(_NANOCHAT, logit_soft_cap=0.0, norm_eps=1e-3, mlp_width=48), id="nanochat-no-cap"),
]
_ALL = [pytest.param(dataclasses.replace(_TINY, qkv_bias=True), id="gpt2"), *_NEW]


def _model(config: ModelConfig) -> LanguageModel:
    """Return a model whose weights are all away from their initial values, so that comparisons see each."""
    torch.manual_seed(1)
    model = make_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _ids(B: int = 3, T: int = 17) -> Tensor:
    return torch.randint(0, _TINY.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


def _reference(model: LanguageModel) -> nn.Module:
    """Return transformers' model of the same weights."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_channels,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_weights,
        "pad_token_id": None,
    }
    if config.architecture == "llama":
        reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    else:
        values |= {"final_logit_softcapping": config.soft_cap, "bos_token_id": None, "eos_token_id": None}
        reference = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**values))
    weights = {"lm_head.weight": model.head_weight, **model.state_dict()}
    reference.load_state_dict(weights, strict=True)
    found: nn.Module = reference.eval()
    return found


@pytest.mark.parametrize("piece", [None, 16])
@pytest.mark.parametrize("config", _NEW)
def test_logits_loss_and_every_gradient_equal_those_of_transformers(config: ModelConfig, piece: int | None) -> None:
    model = _model(config)
    model.loss_piece = piece
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
        torch.testing.assert_close(parameter.grad, gradients.pop(name).grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not gradients


@pytest.mark.parametrize("cap", [15.0, 7.3])
def test_soft_cap_gives_logits_and_gradients_of_torchs_own_functions_to_the_bit(cap: float) -> None:
    x, head = torch.randn(17, 8, requires_grad=True), torch.randn(200, 8, requires_grad=True)
    found = []
    for capped in (lambda logits: cap * torch.tanh(logits / cap), lambda logits: soft_capped(logits, cap)):
        logits = capped(9 * (x @ head.t()))
        gradients = torch.autograd.grad(logits.log_softmax(-1).square().sum(), (x, head))
        with torch.no_grad():
            found.append((logits, *gradients, capped(x @ head.t())))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("piece", [None, 16])
def test_capped_loss_of_weighted_targets_is_that_of_transformers_logits(piece: int | None) -> None:
    model = _model(_NANOCHAT)
    model.loss_piece = piece
    ids = _ids()
    weights = torch.rand(ids[:, 1:].shape, generator=torch.Generator().manual_seed(3))
    logits = _reference(model)(ids[:, :-1]).logits.flatten(0, 1)
    expected = (nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none") * weights.flatten()).sum()
    torch.testing.assert_close(model(ids[:, :-1], ids[:, 1:], weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", _ALL)
def test_every_architecture_is_causal_no_gradient_flows_back_from_the_future(config: ModelConfig) -> None:
    model = _model(config)
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda module, args, out: embedded.append(out) or out.retain_grad())
    model(_ids(1, 12))[0, 5].square().sum().backward()
    reach = embedded[0].grad[0].abs().sum(dim=1)
    assert bool((reach[:6] > 0).all())
    assert bool((reach[6:] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("config", _NEW)
def test_cached_generation_of_padded_prompts_equals_each_prompt_alone(config: ModelConfig) -> None:
    model = _model(config)
    lengths = [3, 9, 1]
    prompts = [_ids(1, n)[0] for n in lengths]
    padded = torch.zeros((3, 9), dtype=torch.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[9 - len(prompt) :] = prompt
    cache = KVCache(config, capacity=20, padding=torch.tensor([9 - n for n in lengths]))
    logits = model.forward_cached(padded, cache)
    for _ in range(10):
        alone = torch.stack([model(prompt[None])[0, -1] for prompt in prompts])
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
        chosen = logits.argmax(dim=1)
        prompts = [torch.cat([prompt, token[None]]) for prompt, token in zip(prompts, chosen, strict=True)]
        logits = model.forward_cached(chosen[:, None], cache)


@torch.no_grad()
def test_bf16_logits_of_the_new_architectures_are_near_those_of_fp32() -> None:
    for config in (_LLAMA, _NANOCHAT):
        model = _model(config)
        exact = model(_ids())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(_ids())
        assert (rounded.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_initial_nanochat_knows_nothing_and_changes_nothing_on_the_way() -> None:
    torch.manual_seed(0)
    model = make_model(dataclasses.replace(_NANOCHAT, tie_weights=False))
    ids = _ids(8, 32)
    assert model(ids[:, :-1], ids[:, 1:]).item() / ids[:, 1:].numel() == pytest.approx(math.log(200), rel=1e-6)
    zero = {name.rsplit(".", 2)[-2] for name, parameter in model.named_parameters() if not parameter.any()}
    assert zero == {"o_proj", "fc2", "lm_head"}
    scale = model.get_parameter("model.layers.0.self_attn.q_proj.weight").std().item()
    assert scale == pytest.approx(32**-0.5, rel=0.1)


def test_initial_llama_scales_what_writes_into_the_residual_stream() -> None:
    torch.manual_seed(0)
    model = make_model(dataclasses.replace(_LLAMA, n_layer=8, n_embd=128))
    block = model.get_submodule("model.layers.3")
    assert block.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
    for matrix in (block.self_attn.o_proj, block.mlp.down_proj):
        assert matrix.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.03)


@pytest.mark.parametrize("config", _ALL)
def test_recomputed_blocks_give_the_same_gradients_to_the_bit_with_dropout_too(config: ModelConfig) -> None:
    gradients = []
    for recompute in (False, True):
        model = _model(dataclasses.replace(config, dropout=0.2)).train()
        model.recompute_blocks(recompute)
        torch.manual_seed(3)
        ids = _ids()
        model(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(kept, again) for kept, again in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("architecture: lama", "found 'lama', need `gpt2`, `llama` or `nanochat`; did you mean 'llama'?"),
        ("n_kv_head: 2", "model.n_kv_head: found 2, need no value: it belongs to llama and nanochat"),
        ("architecture: llama, n_kv_head: 3", "model.n_kv_head: found 3, need a divisor of n_head=4"),
        ("architecture: llama, n_head: 32", "model.n_head: found 32, need an even number of channels for each head"),
        ("architecture: llama, qkv_bias: true", "model.qkv_bias: found 'true', need false: llama has no biases"),
        ("architecture: llama, logit_soft_cap: 30", "model.logit_soft_cap: found 30, need no value"),
        ("architecture: nanochat, mlp_width: 0", "model.mlp_width: found 0, need a whole number above 0, or null"),
        ("architecture: nanochat, logit_soft_cap: -1", "model.logit_soft_cap: found -1, need a number, 0 or above"),
    ],
)
def test_model_block_that_makes_no_sense_is_refused_with_what_is_needed(tmp_path: Path, keys: str, told: str) -> None:
    heads = "" if "n_head" in keys else "n_head: 4, "
    (tmp_path / "it.yaml").write_text(
        "experiment_name: it\ndata: {num_samples: 9, source: sample, max_length: 8}\nstorage: {base_folder: .}\n"
        f"model: {{n_layer: 1, {heads}n_embd: 32, context_length: 8, {keys}}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ExperimentFileError) as refused:
        load_experiment(tmp_path / "it.yaml")
    assert told in str(refused.value)
    assert "it.yaml:4" in str(refused.value)


def test_dropout_that_is_not_given_is_gpt2s_or_none() -> None:
    assert ModelConfig().dropout == 0.1
    assert ModelConfig(architecture="llama").dropout == 0
