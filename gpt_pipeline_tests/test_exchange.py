"""Models as folders for `transformers`, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gpt_pipeline.checkpoints.load import load_checkpoint, load_model
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, list_checkpoints, write_manifest
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.config import DataConfig, PartConfig
from gpt_pipeline.data.tokens.tokenizer import EOT, EOT_TOKEN, VOCAB_SIZE, Tokenizer, gpt2, read_tokenizer, with_turns
from gpt_pipeline.errors import DamagedFileError, LockedError, UserError
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.exchange.card import model_card
from gpt_pipeline.exchange.export import export_checkpoint
from gpt_pipeline.exchange.folder import new_folder
from gpt_pipeline.exchange.import_model import convert_start, import_folder
from gpt_pipeline.exchange.tokenizer_files import write_tokenizer
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.start_from import StartFromConfig, note_source
from gpt_pipeline.experiment.training import find_start
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.model.config_json import hugging_face_config, read_hugging_face_config
from gpt_pipeline.storage.lock import folder_lock, is_held
from gpt_pipeline.training.seeds import random_states
from gpt_pipeline_tests.projects import TinyProject


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded is here; nothing is asked of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


YAML = """\
experiment_name: given away
data: {{source: sample, num_samples: 300, max_length: 16, tokenizer: {tokenizer}}}
model: {model}
storage: {{base_folder: storage}}
"""
LLAMA = {"architecture": "llama", "n_kv_head": 1, "n_layer": 2, "rope_theta": 5000.0, "norm_eps": 1e-5}
NANOCHAT = {"architecture": "nanochat", "tie_weights": False, "mlp_width": 12}
SHAPES = [
    {},
    {"qkv_bias": True, "mlp_width": 12, "norm_eps": 1e-4},
    {"tie_weights": False},
    {"qkv_bias": True, "tie_weights": False, "n_layer": 2},
    LLAMA,
    {"architecture": "llama", "tie_weights": False},
    NANOCHAT,
    {"architecture": "nanochat", "n_kv_head": 1, "logit_soft_cap": 0.0},
]


def experiment(folder: Path, stem: str = "one", *, tokenizer: str = "gpt2", **model: Any) -> Experiment:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "context_length": 24, "dropout": 0.1, **model}
    path = folder / f"{stem}.yaml"
    path.write_text(
        YAML.format(model=json.dumps(shape), tokenizer=tokenizer).replace("given away", f"given away {stem}"),
        encoding="utf-8",
    )
    return load_experiment(path)


def checkpoint(of: Experiment, step: int = 3, *, tokenizer: Tokenizer | None = None) -> CheckpointInfo:
    """A checkpoint whose weights, biases and norms are all far from their initial values."""
    torch.manual_seed(step)
    model = make_model(of.config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = of.folder.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    snapshot = Snapshot(
        model={name: tensor.detach() for name, tensor in model.state_dict().items()},
        model_config=of.config.model,
        optimizer={"name": "adamw", "states": []},
        random=random_states(),
        progress=Progress(step=step, tokens_seen=step * 64, seconds=1.0, train_loss=2.5),
        fingerprint="f" * 64,
        shards_fingerprint="5" * 64,
        settings={
            "data.max_length": 16,
            "training.learning_rate": 0.001,
            **({} if tokenizer is None else {"data.tokenizer": tokenizer.identity}),
        },
        tokenizer=tokenizer.file if tokenizer else None,
    )
    return save_checkpoint(folder, snapshot)


def starting(of: Experiment, **start: str) -> Experiment:
    """The same experiment with `start_from: {start}`."""
    return dataclasses.replace(of, config=dataclasses.replace(of.config, start_from=StartFromConfig(**start)))


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_export_of_the_average_is_that_model_and_its_card_says_so(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    kept = load_checkpoint(checkpoint(one).path)
    mean = {name: tensor / 2 for name, tensor in kept.model.items()}
    info = save_checkpoint(one.folder.checkpoints, dataclasses.replace(kept, average=mean))
    facts = []
    for weights in ("average", "raw"):
        export_checkpoint(one, info.path, tmp_path / weights, weights=weights)
        facts.append(json.loads((tmp_path / weights / "export.json").read_text(encoding="utf-8")))
    found, raw = (load_file(tmp_path / weights / "model.safetensors") for weights in ("average", "raw"))
    assert all(torch.equal(found[name], raw[name] / 2) for name in raw if "attn.bias" not in name)
    assert facts[0]["weights"] == "average"
    assert facts[0]["weights_sha256"] != facts[1]["weights_sha256"] == info.weights_sha256
    cards = [(tmp_path / weights / "README.md").read_text(encoding="utf-8") for weights in ("average", "raw")]
    assert ["Its weights are the mean" in card for card in cards] == [True, False]
    assert "while training" not in cards[0]  # a loss of the other weights


@pytest.mark.parametrize("model", SHAPES, ids=str)
def test_export_transformers_gives_the_same_log_probabilities(tmp_path: Path, model: dict[str, Any]) -> None:
    one = experiment(tmp_path, **model)
    info = checkpoint(one)
    export_checkpoint(one, info.path, tmp_path / "hf")
    theirs, (ours, _) = loaded(tmp_path / "hf"), load_model(info.path)
    ids = torch.randint(0, VOCAB_SIZE, (2, 24))
    with torch.inference_mode():
        found, needed = theirs(ids).logits.log_softmax(-1), ours(ids).log_softmax(-1)
        assert found.shape == (2, 24, VOCAB_SIZE)
        assert (found - needed).abs().max() < 1e-5
        exact = theirs.double()(ids).logits.log_softmax(-1) - ours.double()(ids).log_softmax(-1)
    # In float64, transformers' norms of the others still compute in float32.
    assert exact.abs().max() < (1e-5 if "architecture" in model else 1e-11)
    assert theirs.get_input_embeddings().weight.shape[0] == 50257


@pytest.mark.parametrize("model", [{}, LLAMA, NANOCHAT], ids=str)
def test_export_transformers_generates_what_we_generate(tmp_path: Path, model: dict[str, Any]) -> None:
    from gpt_pipeline.evaluation.generate import generate

    one = experiment(tmp_path, **model)
    info = checkpoint(one)
    export_checkpoint(one, info.path, tmp_path / "hf")
    prompt = [EOT_TOKEN, *gpt2().encode("Q: What is it?")]
    (ours,) = generate(load_model(info.path)[0], [prompt], max_new_tokens=6, context_length=24)
    theirs = loaded(tmp_path / "hf").generate(torch.tensor([prompt]), max_new_tokens=6)[0, len(prompt) :].tolist()
    assert tuple(theirs[: len(ours.tokens)]) == ours.tokens


@pytest.fixture(scope="module")
def given_away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    one = experiment(folder)
    export_checkpoint(one, checkpoint(one).path, folder / "hf")
    return folder / "hf"


@pytest.fixture(scope="module")
def tokenizer(given_away: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(given_away)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_exported_tokenizer_gives_the_same_ids(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert ids == gpt2().encode(text)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_exported_tokenizer_knows_its_special_token_and_length(tokenizer: Any) -> None:
    assert tokenizer(f"{EOT}Q: it's")["input_ids"] == [EOT_TOKEN, *gpt2().encode("Q: it's")]
    assert (tokenizer.bos_token, tokenizer.eos_token) == (EOT, EOT)
    assert tokenizer.model_max_length == 16  # trained at, though the model has 24 positions
    assert len(tokenizer) == VOCAB_SIZE


def own_tokenizer(end: str = "</s>") -> Tokenizer:
    """A byte-level BPE with another name for the end of a document, as other models have it."""
    from tokenizers import Tokenizer as Encoding
    from tokenizers import decoders, models, pre_tokenizers, trainers

    encoding = Encoding(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", end], initial_alphabet=alphabet, show_progress=False
    )
    encoding.train_from_iterator(["the cat sat on the mat, that naïve cat"] * 9, trainer)
    return read_tokenizer(encoding.to_str(), source="a test")


def test_exported_tokenizer_of_ones_own_is_the_very_file_and_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    own = own_tokenizer()
    write_tokenizer(tmp_path, own, max_length=16)
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == own.file
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat", "  </s> naïve 日本語 🤷🏽\n\n\t x", "a\x00b <pad> it's 12"):
        ids = theirs(text, split_special_tokens=True)["input_ids"]
        assert ids == own.encode(text)
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    assert theirs("</s>the cat")["input_ids"] == [own.eot_token, *own.encode("the cat")]
    assert (theirs.bos_token, theirs.eos_token, theirs.eos_token_id) == ("</s>", "</s>", own.eot_token)
    assert (theirs.model_max_length, len(theirs)) == (16, own.vocab_size)


def test_exported_vocabulary_and_merges_load_without_the_fast_tokenizers_file(given_away: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    slow = ByteLevelBPETokenizer(str(given_away / "vocab.json"), str(given_away / "merges.txt"))
    for text in ("Hello world", "  naïve 日本語 🤷🏽\n\n\t x", "it's 1234 ..."):
        assert slow.encode(text).ids == gpt2().encode(text)


def test_export_card_tells_of_model_training_and_missing_evaluation(given_away: Path) -> None:
    card = (given_away / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: en\n")
    for told in ("given away one", "Step 3".lower(), "0.001", "2.5000 nats", "f" * 64, "not evaluated", "first 16"):
        assert told in card
    assert "{{" not in card
    assert "{%" not in card


@pytest.mark.parametrize(
    ("tokenizer", "positions", "trained"),
    [("gpt2", 24, 16), ("gpt2", 48, 40), ("gpt2, template: chatml", 24, 16), ("gpt2, template: chatml", 48, 40)],
)
def test_export_card_has_lines_that_run_and_stop_where_the_trained_positions_end(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tokenizer: str,
    positions: int,
    trained: int,
) -> None:
    is_chatml = "chatml" in tokenizer
    one = experiment(tmp_path, tokenizer=tokenizer, context_length=positions)
    info = checkpoint(one, tokenizer=with_turns(gpt2()) if is_chatml else None)
    info = dataclasses.replace(info, settings={**info.settings, "data.max_length": trained})
    write_manifest(info)
    export_checkpoint(one, info.path, tmp_path / "path" / "to" / "this" / "folder")
    card = (tmp_path / "path" / "to" / "this" / "folder" / "README.md").read_text(encoding="utf-8")
    lines = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    with chdir(tmp_path):
        exec(lines, names)
    assert ("user\n" if is_chatml else "Q:") in capsys.readouterr().out
    assert names["ids"]["input_ids"].shape[1] < names["model"].generate(**names["ids"]).shape[1] <= trained


def test_export_card_of_chatml_tells_its_form_and_ends_and_no_other(tmp_path: Path) -> None:
    one = experiment(tmp_path, tokenizer="gpt2, template: chatml")
    card = model_card(one, checkpoint(one), with_turns(gpt2()), max_length=16)
    form = (
        "<|endoftext|><|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n{reasoning}\n</think>\n\n"
        "{answer}<|im_end|>\n<|endoftext|>\n"
    )
    assert form in card
    assert "stops at `<\\|im_end\\|>` or `<\\|endoftext\\|>` |" in card  # in a table
    assert [told for told in ("Q:", "A:", "Reasoning:") if told in card] == []


HUB = "[someone/small](https://huggingface.co/someone/small)"


def write_start(of: Experiment, start: StartFromConfig) -> CheckpointInfo:
    """Put what the file's `start_from` stands for where the training has found it."""
    info = checkpoint(of, step=1)
    place = of.folder.start / "checkpoint_step_0.pt" if start.file is None else of.file.parent / start.file
    place.parent.mkdir(parents=True, exist_ok=True)
    info = dataclasses.replace(info, path=info.path.replace(place), step=0)
    write_manifest(info)
    note_source(of.folder, {"text": start.text, "files": None})
    return info


@pytest.mark.parametrize(
    ("objective", "start", "made", "base_model"),
    [
        ("pretrain", None, "trained from scratch by", None),
        ("pretrain", {"hugging_face": "someone/small"}, f"trained further from {HUB} by", "someone/small"),
        ("sft", {"hugging_face": "someone/small"}, f"fine-tuned from {HUB} by", "someone/small"),
        ("sft", {"file": "elsewhere/x.pt"}, "fine-tuned from weights of one's own (`x.pt`) by", None),
        ("rl", {"file": "elsewhere/x.pt"}, "trained by rewards from weights of one's own (`x.pt`) by", None),
        ("sft", "a file that was changed since", "fine-tuned from other weights by", None),
    ],
)  # fmt: skip
def test_export_card_says_whose_weights_the_training_began_with(
    tmp_path: Path, objective: str, start: dict[str, str] | str | None, made: str, base_model: str | None
) -> None:
    one = experiment(tmp_path)
    noted = start and "5" * 64
    if isinstance(start, dict):
        one = starting(one, **start)
        noted = write_start(one, StartFromConfig(**start)).weights_sha256
    info = checkpoint(one)
    info = dataclasses.replace(info, settings={**info.settings, "training.objective": objective, "start_from": noted})
    card = model_card(one, info, gpt2(), max_length=16)
    assert f"parameters, {made}" in card
    assert ("from scratch" in card, "tokens seen in this training" in card) == (start is None, start is not None)
    assert (f"\nbase_model: {base_model}\n" in card) == (base_model is not None)
    assert ("base_model" in card) == (base_model is not None)
    # What moves rewarded answers is no loss of a token.
    assert ("train loss while training" in card or "train_loss while training" in card) == (objective != "rl")
    assert str(tmp_path) not in card


def test_export_card_of_weights_of_unknown_origin_claims_none(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    info = checkpoint(one)
    imported = dataclasses.replace(info, fingerprint="", step=0)
    assert "taken from another program by gpt_pipeline" in model_card(one, imported, gpt2(), max_length=16)
    storage = dataclasses.replace(one.config.storage, checkpoint_to_resume="checkpoint_step_0.pt")
    resumed = dataclasses.replace(one, config=dataclasses.replace(one.config, storage=storage))
    assert "from scratch" not in model_card(resumed, info, gpt2(), max_length=16)


@pytest.mark.parametrize(
    ("named", "noted", "made"),
    [
        ("someone/small", None, f"taken from {HUB} by"),
        ("someone/small", "5" * 64, "taken from other weights by"),  # the file named others then
        ("openai/other", None, "taken from other weights by"),  # or these, under a name that it has no more
    ],
)
def test_export_card_names_a_base_only_where_its_weights_are_those_of_then(
    tmp_path: Path, named: str, noted: str | None, made: str
) -> None:
    one = starting(experiment(tmp_path), hugging_face="someone/small")
    start = write_start(one, one.config.start_from)
    info = dataclasses.replace(start, settings={**start.settings, "start_from": noted or start.weights_sha256})
    card = model_card(starting(one, hugging_face=named), info, gpt2(), max_length=16)
    assert made in card
    assert ("base_model" in card) == (HUB in made)


@pytest.mark.parametrize(
    ("model", "there", "absent"),
    [
        ({}, ("- gpt2\n", "A GPT-2 of 40", "matrices of the blocks are [in, out]", "query, key"), ("LLaMA",)),
        (
            LLAMA,
            ("- llama\n", "A LLaMA of 4", "`LlamaForCausalLM`", "| 2, 2, 8 |", "1, each", "5000"),
            ("A GPT-2", "cap"),
        ),
        (
            NANOCHAT,
            ("- nanochat\n", "A nanochat of 8", "`NanoChatForCausalLM`", "| 12 |", "15"),
            ("A GPT-2", "[in, out]"),
        ),
    ],
)
def test_export_card_names_the_architecture_and_its_shape(
    tmp_path: Path, model: dict[str, Any], there: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    one = experiment(tmp_path, **model)
    card = model_card(one, checkpoint(one), gpt2(), max_length=16)
    assert [told for told in there if told not in card] == []
    assert [told for told in absent if told in card] == []


@pytest.mark.parametrize(
    ("data", "there", "absent"),
    [
        ({"format": "text"}, "trained on texts with", ("Q:", "question", "SYNTH", "English", "language:")),
        ({"format": "chat"}, "next `Q: {question}`", ("Reasoning", "SYNTH", "English", "language:")),
        ({"format": "question_answer"}, "A: {answer}<|endoftext|>", ("Reasoning", "System:", "SYNTH", "English")),
        ({"languages": ("de", "no")}, "language: [de, 'no']", ("English documents",)),
    ],
)
def test_export_card_of_own_data_tells_of_its_form_alone(
    tmp_path: Path, data: dict[str, Any], there: str, absent: tuple[str, ...]
) -> None:
    one = experiment(tmp_path)
    config = dataclasses.replace(one.config.data, source=str(tmp_path), local_dataset_path=None, **data)
    own = dataclasses.replace(one, config=dataclasses.replace(one.config, data=config))
    card = model_card(own, checkpoint(one), gpt2(), max_length=40)
    assert there in card
    assert [word for word in absent if word in card] == []


def test_export_card_of_a_mix_has_a_form_for_each_part_and_no_language_if_any_part_has_all(tmp_path: Path) -> None:
    one = experiment(tmp_path)

    def card(**parts: PartConfig) -> str:
        data = DataConfig(num_samples=9, max_length=16, mix=parts)
        own = dataclasses.replace(one, config=dataclasses.replace(one.config, data=data))
        return model_card(own, checkpoint(one), gpt2(), max_length=40)

    mixed = card(
        web=PartConfig(share=1, source="./a", format="text"), talk=PartConfig(share=1, source="./b", format="chat")
    )
    assert "web:\n\nThe model was trained on texts with" in mixed
    assert "talk:\n\nThe model was trained on texts of this form" in mixed
    assert "one form of text" not in mixed
    english = PartConfig(share=1)
    assert "language:" not in card(en=english, every=PartConfig(share=1, languages="all"))
    assert "language: en\n" in card(en=english, also=english)


def test_export_card_shows_the_evaluation_of_exactly_these_weights(finished: TinyProject, tmp_path: Path) -> None:
    from gpt_pipeline.evaluation.result import read_evaluations

    of = finished.experiment("tiny")
    result = read_evaluations(of.folder.evaluations)[0]
    info = next(info for info in list_checkpoints(of.folder.checkpoints) if info.step == result.step)
    export_checkpoint(of, info.path, tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert f"{result.metrics['val_loss']:.4g}" in card
    assert f"| Right answers | {share_of(result.answers, 'correct')} |" in card
    assert "train tokens" in card
    assert "not evaluated" not in card


def test_export_again_replaces_an_unchanged_export_with_the_same_bytes(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    info = checkpoint(one)
    export_checkpoint(one, info.path, tmp_path / "hf")
    before = digests(tmp_path / "hf")
    export_checkpoint(one, info.path, tmp_path / "hf")
    assert digests(tmp_path / "hf") == before
    (tmp_path / "hf" / ".DS_Store").write_text("of a look at it on macOS")
    export_checkpoint(one, checkpoint(one, step=4).path, tmp_path / "hf")
    assert digests(tmp_path / "hf")["model.safetensors"] != before["model.safetensors"]
    assert ".DS_Store" not in digests(tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["a file", "notes of mine", "another file", "changed afterwards", "not readable"])
def test_export_to_anything_else_touches_nothing(tmp_path: Path, kind: str) -> None:
    one = experiment(tmp_path)
    info, target = checkpoint(one), tmp_path / "hf"
    if kind == "a file":
        target.write_text("mine")
    elif kind == "notes of mine":
        target.mkdir()
        (target / "notes of mine").write_text("mine")
    else:
        export_checkpoint(one, info.path, target)
        name = {"another file": "own.txt", "changed afterwards": "README.md", "not readable": "export.json"}[kind]
        (target / name).write_text("mine")
    before = target.read_text() if target.is_file() else digests(target)
    with pytest.raises(UserError, match=kind):
        export_checkpoint(one, info.path, target)
    assert (target.read_text() if target.is_file() else digests(target)) == before


def test_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    before = digests(tmp_path / "hf")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "hf", {}) as folder:
        (folder / "half").write_text(str(1 / 0))
    assert digests(tmp_path / "hf") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_export_after_one_that_was_killed_finds_what_was_there_and_removes_the_rest(tmp_path: Path) -> None:
    one, target = experiment(tmp_path), tmp_path / "hf"
    export_checkpoint(one, checkpoint(one).path, target)
    before = digests(target)
    target.rename(tmp_path / ".hf.gpt-pipeline-old")  # killed between its two last renames
    (tmp_path / ".hf.gpt-pipeline-new").mkdir()
    (tmp_path / ".hf.gpt-pipeline-new" / "model.safetensors").write_text("half of it")
    with pytest.raises(ZeroDivisionError), new_folder(target, {}) as folder:
        (folder / "half").write_text(str(1 / 0))
    assert digests(target) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_export_to_a_folder_that_another_process_is_writing_is_refused(tmp_path: Path) -> None:
    with new_folder(tmp_path / "hf", {}) as folder:
        (folder / "own").write_text("the first one's")
        with pytest.raises(UserError, match="another process is writing it"), new_folder(tmp_path / "hf", {}):
            pass
    assert (tmp_path / "hf" / "own").read_text() == "the first one's"


def test_export_removes_its_lock_file_while_it_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that has opened the file gets its lock, and the next one that of a new file: both are inside."""
    held, unlink = list[bool](), Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".hf.gpt-pipeline-lock":
            held.append(is_held(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    with new_folder(tmp_path / "hf", {}) as folder:
        (folder / "own").write_text("mine")
    assert held == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_export_where_what_a_killed_one_left_cannot_be_removed_names_it(tmp_path: Path) -> None:
    left = tmp_path / ".hf.gpt-pipeline-new"
    left.write_text("a file, which is not removed as a folder is")
    with pytest.raises(UserError, match=f"{left.name}, which cannot be removed"), new_folder(tmp_path / "hf", {}):
        pass


def test_export_of_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    info = checkpoint(one)
    content = bytearray(info.path.read_bytes())
    content[-2000] ^= 1
    info.path.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match="sha256"):
        export_checkpoint(one, info.path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_export_needs_no_transformers(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    info = checkpoint(one)
    code = (
        "import sys; sys.modules['transformers'] = None; sys.modules['tokenizers'] = None\n"
        "from gpt_pipeline.cli import main\n"
        f"main(['export', r'{one.file}', '--checkpoint', 'last', '--to', r'{tmp_path / 'hf'}'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "hf")
    assert (tmp_path / "hf" / info.path.with_name("model.safetensors").name).is_file()


def test_export_and_import_of_a_model_with_its_own_tokenizer_keep_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    own = own_tokenizer()
    (tmp_path / "own.json").write_text(own.file or "", encoding="utf-8")
    one, two = (experiment(tmp_path, stem, tokenizer="./own.json") for stem in ("one", "two"))
    assert one.config.model.vocab_size == own.vocab_size
    info = checkpoint(one, tokenizer=own)
    export_checkpoint(one, info.path, tmp_path / "hf")
    theirs, (ours, _) = loaded(tmp_path / "hf"), load_model(info.path)
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == own.eot_token
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "hf")("</s>the cat")["input_ids"]])
    with torch.inference_mode():
        assert (theirs(ids).logits.log_softmax(-1) - ours(ids).log_softmax(-1)).abs().max() < 1e-5
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert own.identity in card
    assert "</s>Q: {question}" in card
    assert "OpenAI" not in card
    taken = import_folder(tmp_path / "hf", two).checkpoint
    assert load_checkpoint(taken.path).tokenizer == own.file
    assert taken.settings["data.tokenizer"] == own.identity
    with pytest.raises(UserError, match=r"model\.vocab_size: found 278, the experiment says 50257.*by data\.tokenizer"):
        import_folder(tmp_path / "hf", experiment(tmp_path, "three"))


@pytest.mark.parametrize("model", SHAPES, ids=str)
def test_import_of_an_export_gives_the_same_weights(tmp_path: Path, model: dict[str, Any]) -> None:
    one, two = experiment(tmp_path, **model), experiment(tmp_path, "two", **model)
    info = checkpoint(one)
    export_checkpoint(one, info.path, tmp_path / "hf")
    taken = import_folder(tmp_path / "hf", two)
    assert taken.new
    assert (taken.checkpoint.step, taken.checkpoint.path.name) == (0, "checkpoint_step_0.pt")
    assert taken.checkpoint.weights_sha256 == info.weights_sha256
    assert load_checkpoint(taken.checkpoint.path).optimizer["name"] == "adamw"
    assert not import_folder(tmp_path / "hf", two).new


def test_import_of_what_transformers_saves_gives_the_same_function(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=24)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "hf")
    taken = import_folder(tmp_path / "hf", experiment(tmp_path, n_layer=2, qkv_bias=True))
    ids = torch.randint(0, VOCAB_SIZE, (2, 24))
    with torch.inference_mode():
        needed = theirs(ids).logits.log_softmax(-1)
        assert (load_model(taken.checkpoint.path)[0](ids).log_softmax(-1) - needed).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "nanochat"])
def test_import_of_a_random_llama_or_nanochat_in_bf16_and_several_files_gives_the_same_function(
    tmp_path: Path, architecture: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 24}
    more = {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 24, "vocab_size": VOCAB_SIZE}
    rope = {"rope_type": "default", "rope_theta": 3000.0}
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **sizes, **more, rope_parameters=rope, tie_word_embeddings=False)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.bfloat16().save_pretrained(tmp_path / "hf", max_shard_size="200KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 16, "mlp_width": 24, "n_kv_head": 2, "norm_eps": 1e-5}
    wanted = {**shape, "architecture": architecture, "rope_theta": 3000.0, "tie_weights": False}
    taken = import_folder(tmp_path / "hf", experiment(tmp_path, **wanted))
    ids = torch.randint(0, VOCAB_SIZE, (2, 24))
    with torch.inference_mode():
        found, needed = load_model(taken.checkpoint.path)[0](ids), loaded(tmp_path / "hf").float()(ids).logits
    assert found.dtype == torch.float32
    assert (found - needed).abs().max() < 1e-5


def test_import_reads_a_config_of_transformers_4_and_absent_keys_have_its_defaults() -> None:
    written = {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "rope_theta": 100000,
        "rope_scaling": None,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
    }
    shape = {"n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576, "context_length": 8192, "vocab_size": 49152}
    needed = ModelConfig(architecture="llama", **shape, rope_theta=100000.0, norm_eps=1e-5, mlp_width=1536)
    assert read_hugging_face_config(written, source="a test") == needed
    for key in ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings"):
        del written[key]
    shape["n_kv_head"] = 9
    plain = ModelConfig(architecture="llama", **shape, norm_eps=1e-6, mlp_width=1536, tie_weights=False)
    assert read_hugging_face_config(written, source="a test") == plain


@pytest.mark.parametrize(
    ("model", "change", "told"),
    [
        (LLAMA, {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters: found .*llama3"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: found .*linear.*without scaling"),
        (LLAMA, {"attention_bias": True}, "attention_bias: found True, need False"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias: found True, need False"),
        (LLAMA, {"head_dim": 64}, "head_dim: found 64, need hidden_size=8 / num_attention_heads=2"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act: found 'gelu', need 'silu'"),
        (NANOCHAT, {"hidden_act": "silu"}, "hidden_act: found 'silu', need 'relu2'"),
        (
            LLAMA,
            {"quantization_config": {"bits": 4}},
            "quantization_config: found {'bits': 4}.*before it was quantised",
        ),
        (LLAMA, {"vocab_size": 128256}, "vocab_size: found 128256, need a whole number from 1 to 65536"),
        (LLAMA, {"hidden_size": None}, "is not a config of LLaMA.*hidden_size"),
        (LLAMA, {"rope_parameters": [1]}, "is not a config of LLaMA"),
        (LLAMA, {"rms_norm_eps": "inf"}, "norm_eps: found inf, need a number"),
        (LLAMA, {"model_type": "mistral"}, "model_type: found 'mistral', need gpt2, llama, nanochat"),
        (LLAMA, {"model_type": ["llama"]}, r"model_type: found \['llama'\]"),
        (LLAMA, {"rms_norm_eps": 1e-6}, "model.norm_eps: found null, the experiment says 1e-05"),
        (LLAMA, {"model_type": "gpt2"}, "is not a config of GPT-2.*n_layer"),
    ],
)
def test_import_of_a_model_that_computes_another_function_is_refused(
    tmp_path: Path, model: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    (tmp_path / "hf").mkdir()
    one = experiment(tmp_path, **model)
    config = hugging_face_config(one.config.model, eot_token=EOT_TOKEN)
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=told) as refused:
        import_folder(tmp_path / "hf", one)
    assert str(tmp_path / "hf") in str(refused.value)


def test_import_of_a_model_without_its_tokenizer_is_refused_where_gpt2s_has_more_ids(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    (tmp_path / "hf" / "vocab.json").unlink()
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:300].contiguous()
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    _changed_config(tmp_path / "hf", vocab_size=300)
    (tmp_path / "later.yaml").write_text(
        "\n".join(
            [
                "experiment_name: later",
                "data: {source: sample, num_samples: 300, max_length: 16, tokenizer: {train: 300}}",
                "start_from: {hugging_face: ./hf}",
                "storage: {base_folder: storage}",
            ]
        )
    )
    with pytest.raises(UserError, match=r"found a model of 300 ids and a tokenizer of 50257, need .*tokenizer\.json"):
        convert_start(load_experiment(tmp_path / "later.yaml"), say=lambda text: None)


@pytest.mark.parametrize("model", [LLAMA, NANOCHAT], ids=str)
def test_start_from_an_exported_folder_has_its_architecture_shape_and_dropout(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    one = experiment(tmp_path, **{**model, "dropout": 0.0})
    info = checkpoint(one)
    export_checkpoint(one, info.path, tmp_path / "hf")
    (tmp_path / "later.yaml").write_text(
        "\n".join(
            [
                "experiment_name: later",
                "data: {source: sample, num_samples: 300, max_length: 16}",
                "start_from: {hugging_face: ./hf}",
                "storage: {base_folder: storage}",
            ]
        )
    )
    to_come = load_experiment(tmp_path / "later.yaml")
    assert to_come.config.model == one.config.model
    convert_start(to_come, say=lambda text: None)
    later = load_experiment(tmp_path / "later.yaml")
    assert later.config.model == one.config.model  # not the dropout of GPT-2, the default before the weights are known
    start = find_start(later)
    assert start is not None
    assert start.checkpoint.weights_sha256 == info.weights_sha256


def test_import_of_weights_that_are_quantised_is_refused(tmp_path: Path) -> None:
    one = experiment(tmp_path, **LLAMA)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"found torch.int8, need float32, bfloat16, float16, float64"):
        import_folder(tmp_path / "hf", one)


def test_import_reads_old_names_masks_half_precision_and_several_files(tmp_path: Path) -> None:
    one, two = experiment(tmp_path), experiment(tmp_path, "two")
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor.half() for name, tensor in weights.items()}
    old["h.0.attn.bias"], old["h.0.attn.masked_bias"] = torch.ones(1, 1, 24, 24), torch.tensor(-1e4)
    (tmp_path / "hf" / "model.safetensors").unlink()
    names = sorted(old)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, own in parts.items():
        save_file({name: old[name] for name in own}, tmp_path / "hf" / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    taken = load_checkpoint(import_folder(tmp_path / "hf", two).checkpoint.path).model
    expected = weights["transformer.h.0.mlp.c_fc.weight"].half().float().t()
    assert torch.equal(taken["transformer.h.0.mlp.c_fc.weight"], expected)


def test_import_of_a_tied_matrix_under_the_name_of_the_head_alone_gives_the_same_weights(tmp_path: Path) -> None:
    one, two = experiment(tmp_path), experiment(tmp_path, "two")
    info = checkpoint(one)
    export_checkpoint(one, info.path, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, path)
    assert import_folder(tmp_path / "hf", two).checkpoint.weights_sha256 == info.weights_sha256


_BPE = {"type": "BPE", "vocab": {"a": 0}}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", '{"model": {"type": "BPE", "voc', "is damaged"),
        ("vocab.json", '{"a": 1', "is damaged"),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]]}}', "of type Unigram"),
        ("tokenizer.json", '{"version": "1.0"}', "no model"),
        ("tokenizer.json", "[]", "no model"),
        ("tokenizer.json", json.dumps({"model": _BPE, "added_tokens": [{"id": 3}]}), "no tokenizer"),
        ("tokenizer.json", json.dumps({"model": {**_BPE, "vocab": {"a": "x"}}}), "before the BPE"),
        ("tokenizer.json", json.dumps({"model": _BPE, "added_tokens": None}), "before the BPE"),
        ("vocab.json", '["a", "b"]', "that are not GPT-2's"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "need a weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "need a weight_map"),
    ],
)
def test_import_of_odd_files_beside_the_weights_is_refused_with_what_is_needed(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    (tmp_path / "hf" / name).write_text(content, encoding="utf-8")
    if "index" in name:
        (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=told) as raised:
        import_folder(tmp_path / "hf", one)
    assert name in str(raised.value)


def _changed_config(hf: Path, **changes: Any) -> None:
    value = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**value, **changes}))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"n_layer": 2}, "model.n_layer: found 1, the experiment says 2"),
        ({"n_embd": 16, "context_length": 32}, "model.context_length: found 24, the experiment says 32"),
        ({"tie_weights": False}, "model.tie_weights: found true, the experiment says false"),
        ({"mlp_width": 9}, "model.mlp_width: found null, the experiment says 9"),
    ],
)
def test_import_of_another_shape_names_the_difference(tmp_path: Path, model: dict[str, Any], told: str) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    two = experiment(tmp_path, "two", **model)
    with pytest.raises(UserError, match=told):
        import_folder(tmp_path / "hf", two)
    assert not two.folder.checkpoints.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"activation_function": "relu"}, "activation_function: found 'relu'"),
        ({"model_type": "opt"}, "model_type: found 'opt'"),
        ({"layer_norm_epsilon": 1e-6}, "model.norm_eps: found 1e-06"),
        ({"n_inner": 8}, "model.mlp_width: found 8"),
        ({"n_layer": None}, "not a config of GPT-2"),
    ],
)
def test_import_of_another_architecture_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    _changed_config(tmp_path / "hf", **change)
    with pytest.raises(UserError, match=told):
        import_folder(tmp_path / "hf", one)


@pytest.mark.parametrize("kind", ["qkv_bias", "no such weight", "shape", "NaN", "tokens", "safetensors", "no model"])
def test_import_of_unfit_files_is_refused(tmp_path: Path, kind: str) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    hf, path = tmp_path / "hf", tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    name = "transformer.h.0.ln_1.weight"
    if kind == "qkv_bias":
        weights["transformer.h.0.attn.c_attn.bias"][0] = 1.0
    elif kind == "no such weight":
        del weights[name]
    elif kind == "shape":
        weights[name] = torch.ones(9)
    elif kind == "NaN":
        weights[name][0] = float("nan")
    save_file(weights, path)
    if kind == "tokens":
        vocabulary = json.loads((hf / "vocab.json").read_text(encoding="utf-8"))
        vocabulary["!"], vocabulary["a"] = vocabulary["a"], vocabulary["!"]
        (hf / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    elif kind == "safetensors":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "no model":
        path.unlink()
    with pytest.raises(UserError, match=kind):
        import_folder(hf, one)
    assert not (one.folder.checkpoints / "checkpoint_step_0.pt").exists()


def test_import_while_the_experiment_trains_is_refused(tmp_path: Path) -> None:
    one = experiment(tmp_path)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    with folder_lock(one.folder.root, purpose="training"), pytest.raises(LockedError, match="training"):
        import_folder(tmp_path / "hf", one)


def test_checkpoint_of_a_gpt2_is_written_without_keys_that_earlier_versions_do_not_know(tmp_path: Path) -> None:
    known = {"n_layer", "n_head", "n_embd", "context_length", "vocab_size", "dropout", "qkv_bias", "tie_weights"}
    one = experiment(tmp_path)
    info = checkpoint(one)
    assert torch.load(info.path, weights_only=True)["model_config"].keys() == known
    assert json.loads(info.path.with_suffix(".json").read_text())["model"].keys() == known
    assert load_checkpoint(info.path).model_config == info.model == one.config.model
    other = checkpoint(experiment(tmp_path, "two", **LLAMA))
    assert load_checkpoint(other.path).model_config == other.model
    assert other.model.architecture == "llama"


def test_import_keeps_another_checkpoint_of_that_name(tmp_path: Path) -> None:
    one, two = experiment(tmp_path), experiment(tmp_path, "two")
    old = checkpoint(two, step=0)
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    assert import_folder(tmp_path / "hf", two).new
    aside = two.folder.checkpoints / "checkpoint_step_0.pt.leftover"
    assert hashlib.sha256(aside.read_bytes()).hexdigest() == old.sha256


def test_training_starts_from_an_imported_model(tmp_path: Path) -> None:
    from gpt_pipeline.training.run import run_job
    from gpt_pipeline_tests.training_jobs import Listener, make_job

    job = make_job(tmp_path, training={"max_steps": 2}, resume="checkpoint_step_0.pt")
    shape = dataclasses.asdict(job.model)
    one = experiment(tmp_path, **{key: value for key, value in shape.items() if key != "vocab_size"})
    two = dataclasses.replace(one, config=dataclasses.replace(one.config, experiment_name="experiment"))
    export_checkpoint(one, checkpoint(one).path, tmp_path / "hf")
    taken = import_folder(tmp_path / "hf", two).checkpoint
    job = dataclasses.replace(job, experiment_folder=str(two.folder.root), model=two.config.model)
    listener = Listener()
    run_job(job, observer=listener)
    assert any("checkpoint_step_0.pt, step 0" in message for message in listener.messages)
    trained = list_checkpoints(job.folder.checkpoints)[-1]
    before, after = load_checkpoint(taken.path).model, load_checkpoint(trained.path).model
    assert trained.step == 2
    change = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < change < 0.1  # two updates from there, not from weights drawn anew


def test_model_config_of_every_field_is_exported() -> None:
    """A new field of `ModelConfig` must be thought of here and in the layouts of `exchange`."""
    known = {"n_layer", "n_head", "n_embd", "context_length", "vocab_size", "dropout", "qkv_bias", "tie_weights"}
    known |= {"architecture", "n_kv_head", "mlp_width", "rope_theta", "norm_eps", "logit_soft_cap"}
    assert {field.name for field in dataclasses.fields(ModelConfig)} == known


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "nanochat"])
def test_exported_folder_that_another_experiment_starts_from_trains_on_and_writes(
    tmp_path: Path, architecture: str
) -> None:
    project = TinyProject(root=tmp_path)
    # Hardly anything changes at the later one's rate: its text shows that it goes on from these weights.
    rates = {"base": 0.01, "later": 1e-9}
    base, later = (project.write_experiment(stem, max_steps=4, learning_rate=rate) for stem, rate in rates.items())
    begin = "model: {n_layer: 1, n_head: 2, n_embd: 16, context_length: 64}"
    shape = f"model: {{architecture: {architecture}, n_layer: 1, n_head: 2, n_embd: 16, context_length: 64}}"
    for file, line in ((base, shape), (later, "start_from: {hugging_face: ../hf}")):
        text = file.read_text(encoding="utf-8")
        assert begin in text
        file.write_text(text.replace(begin, line), encoding="utf-8")
    project.run("run", str(base))
    project.run("export", str(base), "--to", "hf")
    project.run("run", str(later))
    started, trained = project.checkpoints("base")[-1], project.checkpoints("later")[-1]
    assert trained.weights_sha256 != started.weights_sha256
    of_base, of_later = (project.run("generate", str(file), "--prompt", "Number", "--raw") for file in (base, later))
    assert of_base.replace("base", "later") == of_later
