"""Exports for llama.cpp: what is in the file, and what llama.cpp makes of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from gpt_pipeline.checkpoints.load import load_checkpoint, load_model
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, VOCAB_SIZE, Tokenizer, gpt2, read_tokenizer, with_turns
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.chat_template import chat_template
from gpt_pipeline.exchange.export import export_gguf
from gpt_pipeline.exchange.gguf import Dtype
from gpt_pipeline.exchange.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from gpt_pipeline.exchange.ollama import modelfile
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline_tests.llama_server import LlamaServer, llama_server
from gpt_pipeline_tests.test_exchange import LLAMA, checkpoint, experiment, own_tokenizer

GPT2 = {"qkv_bias": True, "n_layer": 2, "n_head": 2, "n_embd": 32}
HEADS = {**LLAMA, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "tie_weights": False}
SHAPES = [{"n_embd": 32}, GPT2, {"tie_weights": False, "mlp_width": 12}, LLAMA, HEADS]
OWN = own_tokenizer()
TEXTS = [
    "It's 12,345.6 \t\r\n\n  naïve — 日本語 \U0001f642",
    "Q: What's the capital of France?\n\nReasoning:\nParis  is\n\n\nA: Paris",
    "def f(x):\n    return x  # 'quoted' they'll we've\n\n\n   \t trailing   ",
    "x" * 70 + " ½²٣ ́combining \x00\x01 <|endoftext|> </s>",
]


def exported(
    folder: Path, *, dtype: Dtype = "f32", tokenizer: Tokenizer | None = None, **model: Any
) -> tuple[Experiment, CheckpointInfo, Path]:
    if tokenizer is not None:
        (folder / "own.json").write_text(tokenizer.file or "", encoding="utf-8")
    one = experiment(folder, tokenizer="gpt2" if tokenizer is None else "./own.json", **model)
    info = checkpoint(one, tokenizer=tokenizer)
    export_gguf(one, info.path, folder / "gguf", dtype=dtype)
    return one, info, folder / "gguf" / "model.gguf"


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def facts_of(tokenizer: GgufTokenizer, *, ids: int) -> dict[str, Any]:
    """Return what is written of a tokenizer; `gguf`'s reader takes minutes for a list of 50,000."""
    writer = gguf.GGUFWriter(None, arch="gpt2")
    tokenizer.add_to(writer, ids=ids)
    return {key.removeprefix("tokenizer."): value.value for key, value in writer.kv_data[0].items()}


def test_export_gguf_writes_file_modelfile_card_and_record(tmp_path: Path) -> None:
    _, info, path = exported(tmp_path, dtype="f16")
    assert {each.name for each in path.parent.iterdir()} == {"model.gguf", "Modelfile", "README.md", "export.json"}
    record = json.loads((path.parent / "export.json").read_text(encoding="utf-8"))
    assert (record["format"], record["dtype"], record["weights_sha256"]) == ("gguf", "f16", info.weights_sha256)
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert "ollama create" in card
    assert "library_name" not in card
    assert "AutoTokenizer" not in card


def test_export_gguf_again_gives_the_same_bytes(tmp_path: Path) -> None:
    one, info, path = exported(tmp_path, dtype="q8_0", tokenizer=OWN, **GPT2)
    first = path.read_bytes()
    export_gguf(one, info.path, tmp_path / "gguf", dtype="q8_0")
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("dtype", "kind", "error"),
    [("f32", "F32", 0.0), ("f16", "F16", 1e-3), ("bf16", "BF16", 8e-3), ("q8_0", "Q8_0", 0.02)],
)
def test_export_gguf_keeps_matrices_as_asked_and_vectors_as_they_are(
    tmp_path: Path, dtype: Dtype, kind: str, error: float
) -> None:
    _, info, path = exported(tmp_path, dtype=dtype, tokenizer=OWN, **GPT2)
    found, ours = tensors_of(path), load_checkpoint(info.path).model
    assert found["blk.0.attn_norm.weight"].tensor_type.name == found["position_embd.weight"].tensor_type.name == "F32"
    matrix, wanted = found["blk.1.ffn_up.weight"], ours["transformer.h.1.mlp.c_fc.weight"].numpy()
    assert matrix.tensor_type.name == kind
    assert (
        np.abs(gguf.quants.dequantize(matrix.data, matrix.tensor_type) - wanted).max() <= error * np.abs(wanted).max()
    )
    assert np.array_equal(found["blk.1.ffn_up.bias"].data, ours["transformer.h.1.mlp.c_fc.bias"].numpy())


def test_export_gguf_of_narrow_rows_in_q8_0_falls_back_to_float16(tmp_path: Path) -> None:
    _, _, path = exported(tmp_path, dtype="q8_0", tokenizer=OWN, n_embd=8)
    assert tensors_of(path)["token_embd.weight"].tensor_type.name == "F16"


def test_export_gguf_in_float16_of_a_weight_beyond_it_is_refused(tmp_path: Path) -> None:
    from gpt_pipeline.checkpoints.save import save_checkpoint

    one = experiment(tmp_path)
    snapshot = load_checkpoint(checkpoint(one).path)
    snapshot.model["transformer.wte.weight"][0, 0] = 7e4
    info = save_checkpoint(one.folder.checkpoints, snapshot)
    with pytest.raises(UserError, match=r"transformer.wte.weight: found a weight of 7e\+04.*use --dtype bf16 or f32"):
        export_gguf(one, info.path, tmp_path / "gguf", dtype="f16")
    assert not (tmp_path / "gguf").exists()


def test_export_gguf_of_nanochat_says_that_llama_cpp_does_not_know_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found model.architecture: nanochat, need gpt2 or llama.*use --format hf"):
        exported(tmp_path, architecture="nanochat")


def test_export_gguf_without_the_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[gguf\]'"):
        exported(tmp_path)


def test_export_gguf_of_llama_orders_the_channels_of_queries_and_keys_by_plane(tmp_path: Path) -> None:
    _, info, path = exported(tmp_path, tokenizer=OWN, **HEADS)
    found = tensors_of(path)["blk.0.attn_k.weight"].data.reshape(2, 8, 32)  # two heads of eight channels
    ours = load_checkpoint(info.path).model["model.layers.0.self_attn.k_proj.weight"].numpy().reshape(2, 8, 32)
    assert np.array_equal(found[:, 0::2], ours[:, :4])
    assert np.array_equal(found[:, 1::2], ours[:, 4:])


def test_tokenizer_of_gpt2_has_the_tokens_and_ends_of_training() -> None:
    facts = facts_of(gguf_tokenizer(gpt2(), max_length=16, chat_template="the template"), ids=VOCAB_SIZE)
    tokens, kinds = facts["ggml.tokens"], facts["ggml.token_type"]
    assert (len(tokens), tokens[15496], tokens[995], tokens[EOT_TOKEN]) == (
        VOCAB_SIZE,
        "Hello",
        "Ġworld",
        "<|endoftext|>",
    )
    assert (kinds[0], kinds[EOT_TOKEN]) == (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    assert len(facts["ggml.merges"]) == 50_000
    names = ("pre", "bos_token_id", "eos_token_id", "add_bos_token")
    assert [facts[f"ggml.{name}"] for name in names] == ["gpt-2", EOT_TOKEN, EOT_TOKEN, True]
    assert facts["chat_template"] == "the template"


def test_tokenizer_of_its_own_marks_special_added_and_unused_ids(tmp_path: Path) -> None:
    file = json.loads(own_tokenizer().file or "")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    file["added_tokens"].append({"id": 305, "content": "[tool]", **flags})
    own = read_tokenizer(json.dumps(file), source="x")
    found = gguf_tokenizer(own, max_length=16, chat_template=None)
    facts = facts_of(found, ids=310)
    kinds = facts["ggml.token_type"]
    assert [kinds[id_] for id_ in (0, 305, 309)] == [
        gguf.TokenType.CONTROL,
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.UNUSED,
    ]
    assert facts["ggml.tokens"][305] == "[tool]"
    assert found.bos == found.eos == own.eot_token


@pytest.mark.parametrize(
    ("steps", "ignores_merges", "pre"),
    [
        ([{"type": "Digits", "individual_digits": True}], False, "smollm"),
        ([{"type": "Digits", "individual_digits": False}], False, None),
        ([], True, None),
    ],
)
def test_tokenizer_is_named_by_how_it_cuts_texts_or_refused(
    steps: list[dict[str, Any]], ignores_merges: bool, pre: str | None
) -> None:
    file = json.loads(own_tokenizer().file or "")
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, file["pre_tokenizer"]]}
    file["model"]["ignore_merges"] = ignores_merges
    own = read_tokenizer(json.dumps(file), source="x")
    if pre is None:
        with pytest.raises(UserError, match=r"found a tokenizer whose texts are cut by .*use --format hf"):
            gguf_tokenizer(own, max_length=16, chat_template=None)
    else:
        assert gguf_tokenizer(own, max_length=16, chat_template=None).pre == pre


def test_modelfile_writes_conversations_as_the_chat_template_does() -> None:
    data = DataConfig(num_samples=10, source="./x.jsonl", format="chat")
    text = modelfile("model.gguf", chat_template=chat_template(data, gpt2()), max_length=512)
    parted = "{{ if $index }}\n\n{{ end }}"
    choices = "{{ else }}".join(
        f'{{{{ if eq $message.Role "{role}" }}}}{parted}{mark} {{{{ $message.Content }}}}'
        for role, mark in (("system", "System:"), ("user", "Q:"), ("assistant", "A:"))
    )
    loop = f"{{{{ range $index, $message := .Messages }}}}{choices}{'{{ end }}' * 4}"
    assert text == (
        f'FROM ./model.gguf\nTEMPLATE """{loop}\n\nA:"""\nPARAMETER stop """\n\nQ:"""\n'
        "PARAMETER num_ctx 512\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n"
    )


def test_modelfile_of_chatml_ends_each_turn_by_its_mark() -> None:
    data = DataConfig(num_samples=10, source="./x.jsonl", format="chat", template="chatml")
    text = modelfile("model.gguf", chat_template=chat_template(data, with_turns(gpt2())), max_length=512)
    turns = "{{ else }}".join(
        f'{{{{ if eq $message.Role "{role}" }}}}<|im_start|>{role}\n{{{{ $message.Content }}}}<|im_end|>\n'
        for role in ("system", "user", "assistant")
    )
    assert f"{turns}{'{{ end }}' * 4}<|im_start|>assistant\n" in text


def test_tokenizer_of_chatml_ends_at_the_end_of_a_turn() -> None:
    tokenizer = with_turns(gpt2())
    found = gguf_tokenizer(tokenizer, max_length=16, chat_template=None)
    assert (found.tokens[found.bos], found.tokens[found.eos]) == ("<|endoftext|>", "<|im_end|>")
    assert {found.tokens[id_] for id_ in found.special} == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_modelfile_of_texts_passes_the_prompt_on() -> None:
    assert modelfile("model.gguf", chat_template=None, max_length=8).startswith(
        'FROM ./model.gguf\nTEMPLATE "{{ .Prompt }}"\nPARAMETER num_ctx 8\n'
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", SHAPES, ids=str)
def test_llama_cpp_gives_the_same_log_probabilities(tmp_path: Path, model: dict[str, Any]) -> None:
    _, info, path = exported(tmp_path, **model)
    ours, _ = load_model(info.path)
    ids = torch.randint(0, VOCAB_SIZE, (20,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        needed = ours(ids[None])[0].log_softmax(-1)
    with llama_server(path) as theirs:
        for length in (1, 2, 11, 20):
            found = log_probabilities(theirs, ids[:length].tolist())
            # llama.cpp looks GELU up in a table of float16.
            assert (found - needed[length - 1, : len(found)]).abs().max() < 5e-3
    assert needed.std() > 0.5


def log_probabilities(server: LlamaServer, ids: list[int]) -> Tensor:
    """Return those of each token that may follow `ids`, as the server gives them: [V]."""
    wanted = {"n_predict": 1, "n_probs": VOCAB_SIZE, "temperature": 0, "cache_prompt": False}
    (answer,) = server.ask("/completion", {"prompt": ids, **wanted})["completion_probabilities"]
    found = {each["id"]: each["logprob"] for each in answer["top_logprobs"]}
    return torch.tensor([found[token] for token in range(len(found))])


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, OWN], ids=["gpt2", "own"])
def test_llama_cpp_gives_the_ids_of_training(tmp_path: Path, own: Tokenizer | None) -> None:
    tokenizer = own or gpt2()
    _, _, path = exported(tmp_path, tokenizer=own)
    with llama_server(path) as theirs:

        def ids_of(text: str, **options: bool) -> list[int]:
            answer = theirs.ask("/tokenize", {"content": text, "parse_special": False, **options})
            return [int(token) for token in answer["tokens"]]

        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ids_of(text) == ids
            assert ids_of(text, add_special=True) == [tokenizer.eot_token, *ids]
        assert ids_of(tokenizer.eot, parse_special=True) == [tokenizer.eot_token]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "chatml"])
def test_llama_cpp_asks_for_the_reasoning_that_documents_have(tmp_path: Path, form: str) -> None:
    tokenizer = gpt2() if form == "plain" else with_turns(gpt2())
    one = experiment(tmp_path, tokenizer=f"gpt2, template: {form}")
    export_gguf(one, checkpoint(one, tokenizer=tokenizer).path, tmp_path / "gguf", dtype="f32")
    asked = {"messages": [{"role": "user", "content": "Why?"}]}
    prompt = {
        "plain": "Q: Why?\n\nReasoning:\n",
        "chatml": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n",
    }[form]
    with llama_server(tmp_path / "gguf/model.gguf") as theirs:
        assert theirs.ask("/apply-template", asked)["prompt"] == prompt
        at_once = {**asked, "chat_template_kwargs": {"enable_thinking": False}}
        assert theirs.ask("/apply-template", at_once)["prompt"] == prompt.removesuffix("<think>\n")
        answer = theirs.ask("/v1/chat/completions", {**asked, "max_tokens": 3, "temperature": 0})
    for mark, name in zip(tokenizer.marks, ("<|im_start|>", "<|im_end|>"), strict=False):
        prompt = prompt.replace(name, mark)
    assert answer["usage"]["prompt_tokens"] == 1 + len(tokenizer.encode(prompt))
