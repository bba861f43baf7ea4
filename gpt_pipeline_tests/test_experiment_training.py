"""The training's identity, and the job that the trainer gets."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.experiment.identity import training_identity
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.training import training_fingerprint, training_job
from gpt_pipeline.storage.fingerprint import neutral_values
from gpt_pipeline.storage.manifest import Manifest, StageResult
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.test_experiment_load import ORIGINAL, SMALL

SHARDS = "5" * 64


@pytest.fixture
def load(tmp_path):
    """Return a function from a file's text to its experiment."""

    def loader(text: str, name: str = "x.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return load_experiment(path)

    return loader


def shards_of(folder: Path, *, train_tokens: int) -> StageResult:
    manifest = Manifest(stage="token_shards", fingerprint=SHARDS, config={}, facts={"train_tokens": train_tokens})
    return StageResult(folder=folder, manifest=manifest, reused=True)


def test_training_fingerprint_of_the_original_experiment_stays_what_it_is(load):
    """A new value here makes every finished training start again: let it change on purpose only."""
    config = load(ORIGINAL).config
    assert training_identity(config) == {
        "max_length": 512,
        "model": {
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "context_length": 1024,
            "vocab_size": 50257,
            "dropout": 0.1,
            "qkv_bias": False,
            "tie_weights": True,
        },
        "training": {
            "learning_rate": 0.0003,
            "min_learning_rate": 0.0003 / 10,
            "lr_schedule": "cosine",
            "warmup_steps": 500,
            "weight_decay": 0.1,
            "gradient_clip": 1.0,
            "optimizer": "adamw",
            "precision": "auto",
            "seed": 0,
            "sequences_per_step": 8,
            "length": {"epochs": 2},
        },
    }
    assert training_fingerprint(config, SHARDS) == "6a435124d70069f93cb824db6f03487c8e2b1aaab1e0a72d6ec03c1bf9becf0a"


@pytest.mark.parametrize(
    "same",
    [
        "hardware: {device: cuda}",
        "hardware: {num_gpus: 8}",
        "training: {micro_batch_size: 2}",
        "training: {compile: false}",
        "training: {tokens_per_step: 4096}",
        "training: {tokens_per_step: 4096, batch_size: 3}",
        "training: {min_learning_rate: 2.9999999999999997e-05}",  # 3e-4 / 10 to the last bit
        "training: {learning_rate: 0.00030}",
        "training: {weight_decay: 1e-1}",
        "evaluation: {eval_freq: 3, num_questions: 9, keep_last: 1, seed: 4}",
        "runtime: {parameters: 5}",
        "# a comment",
    ],
)
def test_training_fingerprint_is_the_same_for_the_same_weights(load, same):
    assert training_fingerprint(load(SMALL + same).config, SHARDS) == training_fingerprint(load(SMALL).config, SHARDS)


def test_training_fingerprint_knows_no_names_and_places(load):
    other = SMALL.replace("Small", "Other").replace("../storage", "/elsewhere") + "  checkpoint_to_resume: scratch\n"
    data = "data:\n  num_samples: 100\n  local_dataset_path: /raw\n  seed: 3"  # the shards' fingerprint speaks for it
    other = other.replace("data:\n  num_samples: 100", data)
    config = load(other, "other.yaml").config
    assert training_fingerprint(config, SHARDS) == training_fingerprint(load(SMALL).config, SHARDS)


def test_training_fingerprint_with_max_steps_knows_no_epochs(load):
    two, three = (load(SMALL + f"training: {{max_steps: 600, num_epochs: {epochs}}}").config for epochs in (2, 3))
    assert training_fingerprint(two, SHARDS) == training_fingerprint(three, SHARDS)


@pytest.mark.parametrize(
    "other",
    [
        *(
            "training: {batch_size: 4}",
            "training: {num_epochs: 2}",
            "training: {max_steps: 600}",
            "training: {seed: 1}",
        ),
        *("training: {learning_rate: 4e-4}", "training: {min_learning_rate: 0}", "training: {lr_schedule: wsd}"),
        *("training: {warmup_steps: 5}", "training: {weight_decay: 0}", "training: {gradient_clip: 2}"),
        *("training: {optimizer: muon}", "training: {tokens_per_step: 8192}", "training: {precision: bf16}"),
        *("model: {n_layer: 2}", "model: {dropout: 0}", "model: {qkv_bias: true}", "model: {context_length: 512}"),
    ],
)
def test_training_fingerprint_differs_for_other_weights(load, other):
    assert training_fingerprint(load(SMALL + other).config, SHARDS) != training_fingerprint(load(SMALL).config, SHARDS)


def test_training_fingerprint_follows_length_and_data(load):
    config = load(SMALL).config
    shorter = load(SMALL.replace("100", "100\n  max_length: 256")).config
    assert len({training_fingerprint(*pair) for pair in [(config, SHARDS), (shorter, SHARDS), (config, "6" * 64)]}) == 3


def test_every_training_key_is_either_in_the_identity_or_left_out_on_purpose(load):
    left_out = {"micro_batch_size", "compile", "batch_size", "tokens_per_step", "num_epochs", "max_steps"}
    names = {field.name for field in dataclasses.fields(TrainingConfig)} - neutral_values(TrainingConfig).keys()
    assert names - left_out == set(training_identity(load(SMALL).config)["training"]) - {"sequences_per_step", "length"}


def test_training_identity_leaves_out_a_key_that_was_added_later_while_it_is_neutral(load):
    config = load(SMALL).config
    assert "objective" not in training_identity(config)["training"]
    other = dataclasses.replace(config.training, objective="another")
    assert training_identity(dataclasses.replace(config, training=other))["training"]["objective"] == "another"


def test_training_job_has_what_the_trainer_needs_and_survives_json(load, tmp_path):
    text = SMALL + "  checkpoint_to_resume: checkpoint_step_5.pt\nevaluation: {eval_freq: 3}\nhardware: {device: cpu}\n"
    experiment = load(text)
    shards = shards_of(tmp_path / "shards", train_tokens=10_000)
    job = training_job(experiment, shards)
    assert job == TrainingJob(
        experiment_name="Small",
        fingerprint=training_fingerprint(experiment.config, SHARDS),
        shards_folder=str(tmp_path / "shards"),
        shards_fingerprint=SHARDS,
        experiment_folder=str(tmp_path.parent / "storage" / "Small"),
        model=experiment.config.model,
        training=experiment.config.training,
        max_length=512,
        cadence=experiment.cadence,
        hardware=experiment.config.hardware,
        resume="checkpoint_step_5.pt",
    )
    job.write(tmp_path / "job.json")
    assert TrainingJob.read(tmp_path / "job.json") == job


def test_training_job_on_too_little_data_is_refused(load, tmp_path):
    with pytest.raises(DataError, match="need at least 4,097"):
        training_job(load(SMALL), shards_of(tmp_path, train_tokens=4096))


def test_training_job_in_a_folder_of_another_system_is_refused(load, tmp_path, monkeypatch):
    monkeypatch.setattr("os.name", "posix")
    with pytest.raises(ConfigError, match=r"storage\.base_folder"):
        training_job(load(ORIGINAL), shards_of(tmp_path, train_tokens=100_000))


def test_experiment_package_loads_no_heavy_library():
    modules = "gpt_pipeline.experiment." + ", gpt_pipeline.experiment.".join(["discover", "training", "runtime"])
    heavy = {"torch", "mlflow", "pyarrow", "huggingface_hub", "transformers", "dagster", "numpy"}
    code = f"import sys, {modules}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
