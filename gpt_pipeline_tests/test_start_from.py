"""Experiments that start from experiments, from checkpoint files and from models of Hugging Face."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import CheckpointInfo, best_checkpoint, list_checkpoints
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.export import export_checkpoint
from gpt_pipeline.exchange.import_model import convert_start
from gpt_pipeline.exchange.origin import origin_of
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.new import write_new_experiment
from gpt_pipeline.experiment.start_from import StartNotReadyError, note_source
from gpt_pipeline.experiment.training import find_start, training_job, wanted_fingerprint
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.planning.plan import make_plan
from gpt_pipeline.progress.show import training_text
from gpt_pipeline.progress.status import experiment_status
from gpt_pipeline.project import Project
from gpt_pipeline.training.run import run_job
from gpt_pipeline_tests.projects import train
from gpt_pipeline_tests.test_exchange import own_tokenizer
from gpt_pipeline_tests.training_jobs import Listener

BASE = """\
experiment_name: Base
data: {source: sample, num_samples: 300, max_length: 32, validation_fraction: 0.1}
model: {n_layer: 1, n_head: 2, n_embd: 8, context_length: 64, dropout: 0.0}
training: {batch_size: 8, max_steps: 8, warmup_steps: 2, learning_rate: 0.01}
evaluation: {eval_freq: 4, eval_iters: 1, save_every_n_iterations: 4, num_questions: 2, max_new_tokens: 8}
storage: {base_folder: ../storage}
hardware: {device: cpu}
"""
LATER = """\
experiment_name: Later
data: {source: sample, num_samples: 300, max_length: 32, validation_fraction: 0.1}
start_from: START
training: {batch_size: 8, max_steps: 4, warmup_steps: 1}
evaluation: {eval_freq: 4, eval_iters: 1, save_every_n_iterations: 4, num_questions: 2, max_new_tokens: 8}
storage: {base_folder: ../storage}
hardware: {device: cpu}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A project's folder of experiments with a finished base; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("project") / "experiments"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    _train(load_experiment(folder / "base.yaml"))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained.parent, tmp_path / "project", copy_function=shutil.copy2)
    return tmp_path / "project" / "experiments"


def _export(folder: Path, number: int = -1) -> CheckpointInfo:
    """Write the base's checkpoint as a folder for transformers, beside `experiments`; return its info."""
    base = _base(folder)
    info = list_checkpoints(base.folder.checkpoints)[number]
    export_checkpoint(base, info.path, folder.parent / "hf")
    return info


def _train(experiment: Experiment) -> Experiment:
    train(experiment)
    return experiment


def _later(folder: Path, start: str = "{experiment: base.yaml}", *, more: str = "", name: str = "later") -> Experiment:
    (folder / f"{name}.yaml").write_text(LATER.replace("START", start) + more)
    return load_experiment(folder / f"{name}.yaml")


def _base(folder: Path) -> Experiment:
    return load_experiment(folder / "base.yaml")


def test_later_experiment_has_the_shape_of_its_base_and_trains_from_its_weights(folder: Path) -> None:
    later = _later(folder, "{experiment: base.yaml, checkpoint: last}")
    assert later.config.model == _base(folder).config.model
    listener = Listener()
    shards = find_shards(later.data, later.data_folder)
    run_job(training_job(later, shards), listener)
    first = next(record for record in listener.records if record["kind"] == "validation")
    base = list_checkpoints(_base(folder).folder.checkpoints)[-1]
    assert (first["step"], first["val_loss"]) == (0, base.metrics["val_loss"])  # the same held-out documents


@pytest.mark.parametrize(("checkpoint", "step"), [("last", 8), ("step_4", 4)])
def test_start_is_the_checkpoint_that_the_file_names(folder: Path, checkpoint: str, step: int) -> None:
    assert find_start(_later(folder, f"{{experiment: base.yaml, checkpoint: {checkpoint}}}")).checkpoint.step == step


def test_start_is_the_best_checkpoint_unless_the_file_says_otherwise(folder: Path) -> None:
    best = best_checkpoint(_base(folder).folder.checkpoints)
    assert find_start(_later(folder)).checkpoint.weights_sha256 == best.weights_sha256


@pytest.mark.parametrize("checkpoint", ["best", "step_4"])
def test_start_of_a_base_that_went_on_is_what_it_has_kept_of_the_training_before(folder: Path, checkpoint: str) -> None:
    wanted = next(iter(list_checkpoints(_base(folder).folder.checkpoints)))
    if checkpoint == "best":
        wanted = best_checkpoint(_base(folder).folder.checkpoints)
    longer = BASE.replace("max_steps: 8", "max_steps: 12").replace("learning_rate: 0.01", "learning_rate: 10.0")
    resumed = longer.replace(
        "base_folder: ../storage", "base_folder: ../storage, checkpoint_to_resume: checkpoint_step_8.pt"
    )
    (folder / "base.yaml").write_text(resumed)
    _train(_base(folder))
    start = find_start(_later(folder, f"{{experiment: base.yaml, checkpoint: {checkpoint}}}"))
    assert start.checkpoint.weights_sha256 == wanted.weights_sha256


def test_fingerprint_depends_on_the_weights_and_not_on_where_they_are_named(folder: Path) -> None:
    named = wanted_fingerprint(_later(folder, "{experiment: base.yaml, checkpoint: step_4}"))
    path = "../storage/Base/checkpoints/checkpoint_step_4.pt"
    assert wanted_fingerprint(_later(folder, f"{{file: {path}}}")) == named
    assert wanted_fingerprint(_later(folder, "{experiment: base.yaml, checkpoint: last}")) != named
    assert (
        wanted_fingerprint(_later(folder, "null", more=BASE[BASE.index("model:") : BASE.index("training:")])) != named
    )


def test_retrained_base_makes_the_later_training_out_of_date_and_moves_nothing(folder: Path) -> None:
    later = _train(_later(folder))
    before = wanted_fingerprint(later)
    assert experiment_status(later).training.state == "finished"
    base = folder / "base.yaml"
    base.write_text(BASE.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    status = experiment_status(load_experiment(later.file))
    assert (status.start_is_ready, status.next.command) == (False, f"gpt-pipeline run {_typed(later.file)}")
    assert "base.yaml" in status.start
    assert "changed" in status.start
    assert status.training.ended_before
    assert "stopped" not in training_text(status.training)
    _train(_base(folder))
    status = experiment_status(load_experiment(later.file))
    assert status.start_is_ready
    assert status.training.of_other_settings
    assert wanted_fingerprint(load_experiment(later.file)) != before
    assert [info.step for info in list_checkpoints(later.folder.checkpoints)] == [4]
    assert not (later.folder.root / "previous").exists()


def test_later_training_run_after_its_base_changed_moves_the_earlier_one_aside(folder: Path) -> None:
    _train(_later(folder))
    _train(_later(folder, "{experiment: base.yaml, checkpoint: step_4}"))
    later = load_experiment(folder / "later.yaml")
    assert len(list((later.folder.root / "previous").iterdir())) == 1
    start = find_start(later).checkpoint.weights_sha256
    assert load_checkpoint(list_checkpoints(later.folder.checkpoints)[-1].path).settings["start_from"] == start


def test_base_that_is_not_trained_is_named_with_the_command_that_trains_it(folder: Path) -> None:
    shutil.rmtree(_base(folder).folder.root)
    later = _later(folder)
    with pytest.raises(StartNotReadyError, match=r"base\.yaml.* not trained"):
        find_start(later)
    assert wanted_fingerprint(later) is None
    status = experiment_status(later)
    assert status.next.command.startswith("gpt-pipeline run ")
    assert "base.yaml" in status.next.why


def test_checkpoint_that_the_base_has_not_kept_is_refused_with_those_it_has(folder: Path) -> None:
    with pytest.raises(UserError, match=r"found 'step_5', .*need one of .*step_4, step_8"):
        find_start(_later(folder, "{experiment: base.yaml, checkpoint: step_5}"))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("{experiment: gone.yaml}", r":3: start_from\.experiment: found 'gone.yaml', need an experiment file"),
        ("{experiment: later.yaml}", r"does not lead back \(later.yaml -> later.yaml\)"),
        ("{experiment: broken.yaml}", r"need an experiment that can be used \(.*broken.yaml: "),
        ("{experiment: base.yaml, file: a.pt}", r":3: start_from.file: found 'a.pt', need only one of"),
        ("{checkpoint: last}", r":3: start_from.checkpoint: found 'last', need no value where start_from names no"),
        ("{experiment: base.yaml, checkpoint: newest}", r"need best, last, or a step"),
        ("{experiment: base.yaml, chekpoint: last}", r"did you mean start_from.checkpoint"),
        ("{file: gone.pt}", r":3: start_from\.file: found 'gone.pt'.*does not exist"),
        ("{hugging_face: ./gone}", r":3: start_from\.hugging_face: found './gone'.*does not exist"),
        ("base.yaml", r"need keys indented below `start_from:`"),
    ],
)
def test_start_that_cannot_be_is_refused_in_one_line_with_its_place(folder: Path, start: str, message: str) -> None:
    (folder / "broken.yaml").write_text("experiment: x\n")
    with pytest.raises(UserError, match=message) as refused:
        _later(folder, start)
    assert len(str(refused.value).splitlines()) == 1


def test_circle_of_three_is_shown_whole(folder: Path) -> None:
    (folder / "a.yaml").write_text(LATER.replace("START", "{experiment: b.yaml}"))
    (folder / "b.yaml").write_text(LATER.replace("START", "{experiment: c.yaml}"))
    (folder / "c.yaml").write_text(LATER.replace("START", "{experiment: a.yaml}"))
    with pytest.raises(UserError, match=r"a.yaml -> b.yaml -> c.yaml -> a.yaml"):
        load_experiment(folder / "a.yaml")


def test_model_block_that_says_another_shape_is_refused_and_dropout_is_not(folder: Path) -> None:
    assert _later(folder, more="model: {dropout: 0.3, n_layer: 1}\n").config.model.dropout == 0.3
    with pytest.raises(UserError, match=r":8: model.n_layer: found 3, need 1, as base.yaml has it; remove the line"):
        _later(folder, more="model: {n_layer: 3}\n")


def test_sequence_longer_than_the_base_has_positions_is_refused(folder: Path) -> None:
    text = LATER.replace("START", "{experiment: base.yaml}").replace("max_length: 32", "max_length: 128")
    (folder / "later.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data.max_length: found 128, need at most model.context_length=64"):
        load_experiment(folder / "later.yaml")


def test_damaged_checkpoint_of_the_base_stops_the_later_training_and_stays(folder: Path) -> None:
    later = _later(folder, "{experiment: base.yaml, checkpoint: step_4}")
    path = find_start(later).checkpoint.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError):
        run_job(training_job(later, find_shards(later.data, later.data_folder)), Listener())
    assert path.read_bytes() == bytes(content)
    assert not list_checkpoints(later.folder.checkpoints)


def test_hugging_face_folder_is_converted_once_and_gives_the_same_weights(folder: Path) -> None:
    info = _export(folder)
    later = _later(folder, "{hugging_face: ../hf}")
    with pytest.raises(StartNotReadyError, match="converted"):
        find_start(later)
    convert_start(later, say=lambda text: None)
    later = load_experiment(later.file)
    assert later.config.model.n_embd == 8
    start = find_start(later)
    assert start.checkpoint.weights_sha256 == info.weights_sha256
    written = start.checkpoint.path.stat().st_mtime_ns
    convert_start(later, say=pytest.fail)
    assert find_start(later).checkpoint.path.stat().st_mtime_ns == written
    shutil.rmtree(folder.parent / "hf")  # an unplugged disk: what was made of it stands
    assert find_start(load_experiment(later.file)).checkpoint.weights_sha256 == info.weights_sha256


def test_conversion_removes_what_one_that_was_killed_left(folder: Path) -> None:
    _export(folder)
    later = _later(folder, "{hugging_face: ../hf}")
    left = later.folder.start / ".checkpoint_step_0.pt.7.7.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of it")
    convert_start(later, say=lambda text: None)
    assert not left.exists()


def test_origin_of_weights_is_the_chain_that_they_come_from_while_its_files_say_so(folder: Path) -> None:
    _export(folder)
    convert_start(later := _later(folder, "{hugging_face: ../hf}"), say=lambda text: None)
    note_source(later.folder, {"text": "someone/small", "files": None})  # as if it had been taken from the hub
    _train(_later(folder, "{hugging_face: someone/small}"))
    text = LATER.replace("START", "{experiment: later.yaml}").replace("Later", "Third")
    (folder / "third.yaml").write_text(text.replace("max_steps: 4", "max_steps: 4, objective: sft"))
    third = _train(load_experiment(folder / "third.yaml"))
    info = list_checkpoints(third.folder.checkpoints)[-1]

    hub = "[someone/small](https://huggingface.co/someone/small)"
    origin = origin_of(third, info)
    assert origin.made == f"fine-tuned from the experiment *Later*, which began with {hub}"
    assert origin.on_hub == "someone/small"

    (folder / "third.yaml").write_text(third.file.read_text().replace("later.yaml", "base.yaml"))
    origin = origin_of(load_experiment(third.file), info)
    assert (origin.made, origin.on_hub, origin.has_base) == ("fine-tuned from other weights", None, True)
    (folder / "later.yaml").unlink()
    assert origin_of(third, info).made == "fine-tuned from other weights"


def test_converted_hugging_face_folder_whose_links_lead_nowhere_stands(folder: Path) -> None:
    info, weights = _export(folder), folder.parent / "hf" / "model.safetensors"
    kept = shutil.move(weights, folder.parent / "blob")  # as the hub's cache keeps them
    weights.symlink_to(kept)
    later = _later(folder, "{hugging_face: ../hf}")
    convert_start(later, say=lambda text: None)
    os.unlink(kept)
    assert find_start(load_experiment(later.file)).checkpoint.weights_sha256 == info.weights_sha256
    os.utime(folder.parent / "hf" / "config.json", ns=(1, 1))
    with pytest.raises(StartNotReadyError):
        find_start(load_experiment(later.file))
    new = folder / "new.yaml"
    new.write_text(later.file.read_text().replace("Later", "New"))
    with pytest.raises(UserError, match=r"and links that lead nowhere \(model\.safetensors\)"):
        load_experiment(new)


def test_hugging_face_folder_gives_its_shape_before_it_is_converted(folder: Path) -> None:
    _export(folder)
    more = "model: {dropout: 0.0, qkv_bias: true}\n"  # the weights alone tell whether the biases are zero
    later = _later(folder, "{hugging_face: ../hf}", more=more)
    assert later.config.model == dataclasses.replace(_base(folder).config.model, qkv_bias=True)
    found = make_plan(later, measured=False, say=str).findings
    assert "start_from.hugging_face" not in [finding.key for finding in found]
    with pytest.raises(UserError, match=r"model\.n_embd: found 24, need 8, as \.\./hf has it"):
        _later(folder, "{hugging_face: ../hf}", more="model: {n_embd: 24}\n")
    _change(folder.parent / "hf" / "config.json", n_positions=16)
    with pytest.raises(UserError, match=r"data\.max_length: found 32"):
        _later(folder, "{hugging_face: ../hf}")
    _change(folder.parent / "hf" / "config.json", model_type="mamba")
    with pytest.raises(UserError, match=r"start_from\.hugging_face: found '\.\./hf'.*need gpt2, llama, nanochat"):
        _later(folder, "{hugging_face: ../hf}")


def _change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_model_of_the_hub_has_its_shape_once_it_is_downloaded_and_the_plan_says_so_before(
    folder: Path, monkeypatch
) -> None:
    cache = folder.parent / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    later = _later(folder, "{hugging_face: someone/small}")
    found = {finding.key: finding.text for finding in make_plan(later, measured=False, say=str).findings}
    assert "someone/small is not downloaded yet" in found["start_from.hugging_face"]
    _export(folder)
    shutil.copytree(folder.parent / "hf", cache / "models--someone--small" / "snapshots" / ("c" * 40))
    (cache / "models--someone--small" / "refs").mkdir()
    (cache / "models--someone--small" / "refs" / "main").write_text("c" * 40)
    assert load_experiment(later.file).config.model.n_embd == 8


def test_original_checkpoint_is_gpt2_whatever_the_model_block_says(folder: Path) -> None:
    (folder / "original.pt").write_bytes(b"without a manifest")
    more = "model: {architecture: llama, n_head: 4, n_embd: 64, n_kv_head: 2}\n"
    with pytest.raises(
        UserError, match=r"architecture: found 'llama', need gpt2, as original.pt.*remove the line"
    ) as no:
        _later(folder, "{file: original.pt}", more=more)
    assert "model.n_kv_head: found 2, need null" in str(no.value)


def test_hugging_face_folder_that_changed_is_converted_again(folder: Path) -> None:
    checkpoints = list_checkpoints(_base(folder).folder.checkpoints)
    _export(folder, 0)
    later = _later(folder, "{hugging_face: ../hf}")
    convert_start(later, say=lambda text: None)
    shutil.rmtree(folder.parent / "hf")
    _export(folder)
    with pytest.raises(StartNotReadyError):
        find_start(later)
    convert_start(later, say=lambda text: None)
    assert find_start(later).checkpoint.weights_sha256 == checkpoints[-1].weights_sha256


def test_model_of_the_hub_that_cannot_be_had_is_said_in_one_line(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    later = _later(folder, "{hugging_face: someone/gpt2}")
    with pytest.raises(UserError, match=r"start_from.hugging_face: someone/gpt2 cannot be downloaded") as refused:
        convert_start(later, say=lambda text: None)
    assert len(str(refused.value).splitlines()) == 1


def test_model_of_the_hub_behind_a_proxy_that_refuses_is_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(407)

        def log_message(self, *arguments: object) -> None: ...

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    later = _later(folder, "{hugging_face: someone/gpt2}")
    with HTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{proxy.server_port}")
        for name in ("https_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        huggingface_hub.close_session()  # the next one reads the environment
        try:
            with pytest.raises(UserError, match=r"cannot be downloaded \(407.*the proxy, HF_ENDPOINT") as refused:
                convert_start(later, say=lambda text: None)
        finally:
            huggingface_hub.close_session()
            proxy.shutdown()
    assert len(str(refused.value).splitlines()) == 1
    assert "s3cret" not in str(refused.value)


def test_file_that_is_no_checkpoint_is_refused(folder: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, folder / "other.pt")
    with pytest.raises(UserError, match=r"start_from.file: .*other.pt has no manifest"):
        convert_start(_later(folder, "{file: other.pt}"), say=lambda text: None)


def test_new_experiment_from_a_base_names_it_and_loads(folder: Path) -> None:
    made = write_new_experiment(folder / "tuned.yaml", start_from=str(folder / "base.yaml"), num_samples=300)
    assert made.config.start_from.experiment == "base.yaml"
    assert (made.config.data.max_length, made.config.model) == (32, _base(folder).config.model)


@pytest.mark.parametrize("length", [32, 30, 31])  # the recipe's updates are whole sequences of 32 tokens alone
def test_new_experiment_from_a_base_of_any_length_has_whole_updates(folder: Path, length: int) -> None:
    file = folder / "base.yaml"
    file.write_text(file.read_text().replace("max_length: 32", f"max_length: {length}"))
    config = write_new_experiment(folder / "tuned.yaml", start_from=str(file), recipe="sft").config
    assert config.data.max_length == length
    assert config.sequences_per_step % 16 == 0  # the recipe's micro-batch
    assert abs(config.tokens_per_step - 65_536) <= 8 * length


@pytest.mark.parametrize("has_own_files", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.05])  # the latter is the recipe's own
def test_new_experiment_from_a_base_holds_out_the_same_documents(
    folder: Path, fraction: float, has_own_files: bool
) -> None:
    file, own = folder / "base.yaml", folder / "own.jsonl"
    split = f"seed: 3, validation_fraction: {fraction}"
    file.write_text(file.read_text().replace("validation_fraction: 0.1", split))
    own.write_text("".join(f'{{"question": "What is {n}?", "answer": "{n + 1}"}}\n' for n in range(20)))
    made = write_new_experiment(
        folder / "tuned.yaml", start_from=str(file), recipe="demo-sft", data=str(own) if has_own_files else None
    )
    assert (made.config.data.seed, made.config.data.validation_fraction) == (3, fraction)


def test_new_experiment_from_a_base_on_another_drive_names_its_whole_path(folder: Path, monkeypatch) -> None:
    def refuse(path, start):  # as on Windows
        raise ValueError(f"path is on mount 'E:', start on mount 'C:': {path}, {start}")

    monkeypatch.setattr(os.path, "relpath", refuse)
    made = write_new_experiment(folder / "tuned.yaml", start_from=str(folder / "base.yaml"), num_samples=300)
    assert made.config.start_from.experiment == (folder / "base.yaml").as_posix()


def test_new_experiment_from_a_base_with_tokens_of_its_own_has_them(tmp_path: Path) -> None:
    """Of one that is trained, of a file seen from another folder, and of ChatML."""
    folder, later = tmp_path / "experiments", tmp_path / "other" / "later.yaml"
    folder.mkdir()
    base = folder / "base.yaml"
    base.write_text(BASE.replace("source: sample,", "source: sample, tokenizer: {train: 300}, template: chatml,"))
    with pytest.raises(UserError, match=r"base.yaml: found a tokenizer that its run is still to train.*run: gpt-pip"):
        write_new_experiment(later, start_from=str(base), num_samples=100, recipe="sft")
    trained = load_experiment(base)
    _train(trained)
    made = write_new_experiment(later, start_from=str(base), num_samples=100, recipe="sft")
    assert made.config.model == trained.config.model
    assert made.config.data.template == "chatml"
    file = made.data.tokenizer
    named = folder / "named.yaml"
    named.write_text(BASE.replace("source: sample,", f"source: sample, tokenizer: {os.path.relpath(file, folder)},"))
    again = write_new_experiment(later.with_name("b.yaml"), start_from=str(named), num_samples=100)
    assert again.data.tokenizer == file


def test_new_experiment_from_a_folder_with_a_tokenizer_names_it(folder: Path, tmp_path: Path) -> None:
    _export(folder)
    usual = write_new_experiment(folder / "usual.yaml", start_from=str(folder.parent / "hf"))
    assert usual.config.data.tokenizer == "gpt2"
    own = folder / "own.yaml"
    own.write_text(BASE.replace("Base", "Own").replace("source: sample,", "source: sample, tokenizer: {train: 300},"))
    trained = _train(load_experiment(own))
    info = list_checkpoints(trained.folder.checkpoints)[-1]
    export_checkpoint(trained, info.path, tmp_path / "model")
    made = write_new_experiment(folder / "later.yaml", start_from=str(tmp_path / "model"))
    assert (Path(made.data.tokenizer), made.config.model.vocab_size) == (tmp_path / "model" / "tokenizer.json", 300)
    convert_start(made, say=lambda text: None)
    assert load_experiment(made.file).config.model.vocab_size == 300


def test_new_fine_tuning_has_the_optimizer_of_its_base_and_a_tenth_of_its_rate(folder: Path) -> None:
    made = write_new_experiment(folder / "tuned.yaml", start_from=str(folder / "base.yaml"), recipe="sft")
    assert (made.config.training.optimizer, made.config.training.learning_rate) == ("adamw", 0.001)
    on = write_new_experiment(folder / "on.yaml", start_from=str(folder / "tuned.yaml"), recipe="sft")
    assert (on.config.training.optimizer, on.config.training.learning_rate) == ("muon", 0.0002)
    assert "as in gpt2-124m.yaml" in on.file.read_text(encoding="utf-8")


def test_lineage_in_dagster_leads_from_the_later_training_to_the_base(folder: Path) -> None:
    _later(folder)
    definitions = build_definitions(Project.of_experiments(folder))
    graph = definitions.resolve_asset_graph()
    parents = {key.to_user_string() for key in graph.get(_key(definitions, "later/training")).parent_keys}
    assert "base/training" in parents
    job = definitions.resolve_job_def("run_later")
    keys = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert {"base/training", "later/training"} <= keys


def _key(definitions, name: str):
    return next(key for key in definitions.resolve_asset_graph().get_all_asset_keys() if key.to_user_string() == name)


def _typed(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def test_converted_start_does_not_count_as_a_checkpoint_of_the_training(folder: Path) -> None:
    _export(folder)
    later = _later(folder, "{hugging_face: ../hf}")
    convert_start(later, say=lambda text: None)
    assert list_checkpoints(later.folder.checkpoints) == []
    assert json.loads((later.folder.start / "source.json").read_text())["text"] == "../hf"
    assert os.listdir(later.folder.start)


@pytest.mark.parametrize("start", ["", "{}", "null", "{experiment: null}"])
def test_start_block_that_says_nothing_is_none(folder: Path, start: str) -> None:
    assert _later(folder, start).config.start_from is None


@pytest.mark.parametrize("content", [b"this is a text\n", b"", b"\x80\x02garbage"])
def test_file_that_torch_cannot_read_is_refused_in_one_line(folder: Path, content: bytes) -> None:
    (folder / "text.pt").write_bytes(content)
    with pytest.raises(UserError) as refused:
        convert_start(_later(folder, "{file: text.pt}"), say=lambda text: None)
    assert len(str(refused.value).splitlines()) == 1


def test_folder_named_as_a_file_is_refused(folder: Path) -> None:
    (folder / "dir.pt").mkdir()
    with pytest.raises(UserError, match=r":3: start_from.file: found 'dir.pt'.* is a folder, need a file"):
        _later(folder, "{file: dir.pt}")


def test_status_of_a_later_experiment_without_its_base_s_best_model_says_which_are_left(folder: Path) -> None:
    later = _later(folder)
    best_checkpoint(_base(folder).folder.checkpoints).path.unlink()
    status = experiment_status(later)
    assert not status.start_is_ready
    assert "step_4, step_8" in status.start
    assert status.next.command == f"gpt-pipeline validate {_typed(later.file)}"  # to run it again would not help
    (problem,) = make_plan(later, measured=False, say=print).problems
    assert (problem.key, problem.text[:12]) == ("start_from.checkpoint", "found 'best'")


def test_reason_of_a_chain_is_that_of_the_link_that_changed(folder: Path) -> None:
    _train(_later(folder))
    third = _later(folder, "{experiment: later.yaml}", name="third")
    (folder / "base.yaml").write_text(BASE.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    with pytest.raises(StartNotReadyError, match=r"^base\.yaml has changed"):
        find_start(load_experiment(third.file))


def test_folder_without_a_model_is_refused_before_anything_is_made(folder: Path) -> None:
    empty = folder.parent / "hf"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"found config.json; need a folder with config.json and the weights"):
        _later(folder, "{hugging_face: ../hf}")


@pytest.mark.parametrize("from_the_hub", [False, True])
def test_plan_names_the_tokenizer_of_weights_that_are_still_to_be_converted(
    folder: Path, monkeypatch, from_the_hub: bool
) -> None:
    cache = folder.parent / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    _export(folder)
    if from_the_hub:
        model = cache / "models--someone--small"
        shutil.copytree(folder.parent / "hf", model / "snapshots" / ("c" * 40))
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("c" * 40)
    later = _later(folder, "{hugging_face: someone/small}" if from_the_hub else "{hugging_face: ../hf}")
    assert make_plan(later, measured=False, say=str).problems == ()
    (folder / "t.json").write_text(own_tokenizer().file or "")
    later.file.write_text(later.file.read_text().replace("source: sample,", "source: sample, tokenizer: ./t.json,"))
    (wrong,) = make_plan(load_experiment(later.file), measured=False, say=str).problems
    assert (wrong.key, wrong.remedy) == ("data.tokenizer", "leave the key out, which is gpt2")
    assert not later.folder.start.exists()


def test_plan_names_the_template_of_weights_that_are_still_to_be_converted(folder: Path) -> None:
    turns = folder / "turns.yaml"
    turns.write_text(BASE.replace("Base", "Turns").replace("source: sample,", "source: sample, template: chatml,"))
    trained = _train(load_experiment(turns))
    export_checkpoint(trained, list_checkpoints(trained.folder.checkpoints)[-1].path, folder.parent / "hf")
    later = _later(folder, "{hugging_face: ../hf}")
    (wrong,) = make_plan(later, measured=False, say=str).problems
    assert wrong.key == "data.template"


def test_plan_names_a_checkpoint_that_the_base_has_not_kept_before_the_data_is_made(folder: Path) -> None:
    later = _later(folder, "{experiment: base.yaml, checkpoint: step_5}")
    later.file.write_text(later.file.read_text().replace("num_samples: 300", "num_samples: 200"))
    (wrong,) = make_plan(load_experiment(later.file), measured=False, say=str).problems
    assert wrong.key == "start_from.checkpoint"
    assert "step_4, step_8" in wrong.text
