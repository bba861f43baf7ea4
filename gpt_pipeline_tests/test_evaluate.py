from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pipeline.checkpoints.manifest import CheckpointInfo, read_info
from gpt_pipeline.checkpoints.save import link_best, save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.errors import ConfigError, DamagedFileError, UserError
from gpt_pipeline.evaluation.config import EvaluationConfig
from gpt_pipeline.evaluation.evaluate import (
    CheckpointGoneError,
    EvaluatedPart,
    EvaluationTask,
    UnusableCheckpointError,
    evaluate_checkpoint,
)
from gpt_pipeline.evaluation.result import (
    EvaluationResult,
    evaluation_fingerprint,
    find_evaluation,
    read_evaluations,
    summarize_evaluations,
)
from gpt_pipeline.hardware import devices
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.storage.manifest import StageResult

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=64)
DATA = DataConfig(num_samples=200, max_length=48, source="sample", validation_fraction=0.2)
CONFIG = EvaluationConfig(num_questions=4, num_documents=8, max_new_tokens=8, max_validation_tokens=400)


@dataclasses.dataclass(frozen=True)
class Stages:
    english: StageResult
    shards: StageResult


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    folder = tmp_path_factory.mktemp("data")
    english = prepare_documents(DATA, prepare_raw(DATA, folder), folder)
    return Stages(english=english, shards=prepare_shards(DATA, english, folder))


def save(
    folder: Path, step: int, *, seed: int = 0, nan: bool = False, average: bool = False, **changes: Any
) -> CheckpointInfo:
    torch.manual_seed(seed)
    model = make_model(changes.get("model_config", MODEL))
    if nan:
        torch.nn.init.constant_(model.transformer.ln_f.weight, math.nan)
    snapshot = Snapshot(
        model=model.state_dict(),
        model_config=MODEL,
        optimizer={},
        random={},
        progress=Progress(step=step, tokens_seen=step * 10, seconds=1.0, train_loss=3.0),
        fingerprint="t" * 64,
        shards_fingerprint="s" * 64,
        average={name: 2 * tensor for name, tensor in model.state_dict().items()} if average else None,
    )
    snapshot = dataclasses.replace(snapshot, **changes)
    folder.mkdir(exist_ok=True)
    return save_checkpoint(folder, snapshot)


def evaluate(
    path: Path, stages: Stages, folder: Path, config: EvaluationConfig = CONFIG, *, force: bool = False
) -> EvaluationResult:
    checkpoint = read_info(path)
    assert checkpoint is not None
    return evaluate_checkpoint(task_of(checkpoint, stages, folder, config), force=force)


def task_of(
    checkpoint: CheckpointInfo, stages: Stages, folder: Path, config: EvaluationConfig = CONFIG
) -> EvaluationTask:
    return EvaluationTask(
        checkpoint=checkpoint,
        shards=stages.shards,
        parts=(EvaluatedPart(name="", share=1.0, shards=stages.shards, documents=stages.english, data=DATA),),
        config=config,
        max_length=DATA.max_length,
        device="cpu",
        folder=folder / "evaluations",
    )


def test_evaluate_checkpoint_measures_and_keeps_the_result(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    result = evaluate(checkpoint.path, stages, tmp_path)
    assert not result.reused
    assert result.path.name == f"step_00000050-{result.fingerprint[:12]}.json"
    assert result.metrics["val_loss"] == pytest.approx(math.log(50257), abs=0.2)
    assert result.metrics["answer_loss"] == pytest.approx(math.log(50257), abs=0.3)
    assert result.metrics["validation_tokens"] == 400
    assert result.metrics["documents"] == 8
    assert result.metrics["val_loss/mcq"] == pytest.approx(math.log(50257), abs=0.3)
    kinds = {name.replace(" ", "_") for name in stages.english.manifest.facts["exercises"]}
    assert {name.partition("/")[2] for name in result.metrics if name.startswith("answer_loss/")} == kinds
    assert result.metrics["well_formed"] == 0
    assert len(result.answers) == result.metrics["num_questions"] == 4
    kept = find_evaluation(result.path.parent, result.fingerprint)
    assert kept == dataclasses.replace(result, reused=True)


def test_evaluate_checkpoint_with_a_mean_of_its_weights_measures_that_too(tmp_path: Path, stages: Stages) -> None:
    plain, averaged = (save(tmp_path / name, 50, average=name == "b") for name in ("a", "b"))
    alone, both = (evaluate(each.path, stages, tmp_path / each.path.parent.name) for each in (plain, averaged))
    assert "averaged_val_loss" not in alone.metrics
    assert both.fingerprint == alone.fingerprint  # which stands for the weights themselves
    assert both.metrics.pop("averaged_val_loss") != both.metrics["val_loss"]  # type: ignore[attr-defined]
    assert both.metrics == alone.metrics


def test_evaluate_checkpoint_again_does_no_work(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    first = evaluate(checkpoint.path, stages, tmp_path)
    written = first.path.stat().st_mtime_ns
    again = evaluate(checkpoint.path, stages, tmp_path)
    assert again == dataclasses.replace(first, reused=True)
    assert first.path.stat().st_mtime_ns == written
    forced = evaluate(checkpoint.path, stages, tmp_path, force=True)
    assert not forced.reused
    assert (forced.metrics, forced.answers) == (first.metrics, first.answers)


def test_evaluate_checkpoint_that_equals_the_best_is_one_evaluation(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    best = link_best(tmp_path / "checkpoints", checkpoint)
    first = evaluate(best.path, stages, tmp_path)
    second = evaluate(checkpoint.path, stages, tmp_path)
    assert second.reused
    assert first.key == second.key == "step_00000050"
    assert len(read_evaluations(tmp_path / "evaluations")) == 1


def test_evaluate_checkpoint_with_other_settings_is_another_evaluation(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    evaluate(checkpoint.path, stages, tmp_path)
    fewer = dataclasses.replace(CONFIG, num_questions=2)
    assert len(evaluate(checkpoint.path, stages, tmp_path, fewer).answers) == 2
    assert len(read_evaluations(tmp_path / "evaluations")) == 2


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"eval_freq": 7, "save_every_n_iterations": 9, "keep_last": 99, "eval_iters": 3}, True),
        ({"num_questions": 6}, False),
        ({"num_documents": 6}, False),
        ({"max_new_tokens": 9}, False),
        ({"max_validation_tokens": 5}, False),
        ({"seed": 4}, False),
    ],
)
def test_evaluation_fingerprint_covers_what_changes_the_result(changes: dict[str, int], same: bool) -> None:
    upstream = {"weights_sha256": "a", "shards_fingerprint": "b", "max_length": 48}
    before = evaluation_fingerprint(CONFIG, **upstream)
    assert (evaluation_fingerprint(dataclasses.replace(CONFIG, **changes), **upstream) == before) is same
    assert evaluation_fingerprint(CONFIG, **{**upstream, "weights_sha256": "c"}) != before
    assert evaluation_fingerprint(CONFIG, **{**upstream, "shards_fingerprint": "c"}) != before


def test_evaluate_checkpoint_that_vanishes_before_it_is_read_says_it_is_gone(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    checkpoint.path.unlink()
    with pytest.raises(CheckpointGoneError, match="only the last checkpoints are kept"):
        evaluate_checkpoint(task_of(checkpoint, stages, tmp_path))
    assert read_evaluations(tmp_path / "evaluations") == []


def test_evaluate_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    content = bytearray(checkpoint.path.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="sha256"):
        evaluate(checkpoint.path, stages, tmp_path)


def test_evaluate_checkpoint_without_manifest_is_refused(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    checkpoint.path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"manifest .* is missing"):
        evaluate_checkpoint(task_of(checkpoint, stages, tmp_path))


def test_evaluate_checkpoint_of_nan_weights_is_refused_with_the_reason(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50, nan=True)
    with pytest.raises(UnusableCheckpointError, match="nan"):
        evaluate(checkpoint.path, stages, tmp_path)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_config": dataclasses.replace(MODEL, context_length=32)}, r"32 positions, need data\.max_length=48"),
        ({"settings": {"data.tokenizer": "tokenizer-of-others"}}, "tokenizer-of-others, need that of the data, gpt2"),
    ],
)
def test_evaluate_checkpoint_of_another_experiment_names_what_does_not_fit(
    tmp_path: Path, stages: Stages, changes: dict[str, Any], found: str
) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50, **changes)
    with pytest.raises(UnusableCheckpointError, match=found):
        evaluate(checkpoint.path, stages, tmp_path)


def test_read_evaluations_of_a_damaged_file_leaves_the_others(tmp_path: Path, stages: Stages) -> None:
    for step in (200, 30):
        evaluate(save(tmp_path / "checkpoints", step, seed=step).path, stages, tmp_path)
    (tmp_path / "evaluations" / "step_00000040-abc.json").write_text('{"fingerprint": ', encoding="utf-8")
    (tmp_path / "evaluations" / "notes.json").write_text("[]", encoding="utf-8")
    assert [result.step for result in read_evaluations(tmp_path / "evaluations")] == [30, 200]


def test_summarize_evaluations_has_all_but_the_answers_and_follows_the_files(tmp_path: Path, stages: Stages) -> None:
    folder = tmp_path / "evaluations"
    assert summarize_evaluations(folder) == []
    for step in (200, 30):
        evaluate(save(tmp_path / "checkpoints", step, seed=step).path, stages, tmp_path)
        assert summarize_evaluations(folder) == [
            dataclasses.replace(each, answers=()) for each in read_evaluations(folder)
        ]
    path = read_evaluations(folder)[0].path
    path.write_text(path.read_text(encoding="utf-8").replace('"device": "cpu"', '"device": "cuda"'), encoding="utf-8")
    assert [each.device for each in summarize_evaluations(folder)] == ["cuda", "cpu"]
    path.unlink()
    assert [each.step for each in summarize_evaluations(folder)] == [200]


def test_find_evaluation_of_a_newer_version_reads_it_without_the_fields_it_does_not_know(
    tmp_path: Path, stages: Stages
) -> None:
    result = evaluate(save(tmp_path / "checkpoints", 50).path, stages, tmp_path)
    value = {**json.loads(result.path.read_text(encoding="utf-8")), "judge": "a newer field"}
    result.path.write_text(json.dumps(value), encoding="utf-8")
    assert find_evaluation(result.path.parent, result.fingerprint) == dataclasses.replace(result, reused=True)


def test_inference_device_on_a_machine_without_a_gpu_names_the_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="auto or cpu"):
        devices.choose_kind("cuda")


def test_evaluate_checkpoint_without_questions_and_documents_still_has_a_loss(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    neither = dataclasses.replace(CONFIG, num_questions=0, num_documents=0)
    result = evaluate(checkpoint.path, stages, tmp_path, neither)
    assert result.answers == ()
    of_tokens = {"val_loss", "perplexity", "val_bpb", "validation_tokens", "document_loss", "completion_loss"}
    assert set(result.metrics) == of_tokens


@pytest.mark.slow
def test_evaluate_checkpoint_from_two_processes_at_once_computes_once(tmp_path: Path, stages: Stages) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    code = f"""
import torch
torch.set_num_threads(1)
from pathlib import Path
from gpt_pipeline_tests.test_evaluate import DATA, Stages, evaluate
from gpt_pipeline.storage.manifest import StageResult, read_manifest
found = [StageResult(folder=Path(f), manifest=read_manifest(Path(f)), reused=True)
         for f in ({str(stages.english.folder)!r}, {str(stages.shards.folder)!r})]
print(evaluate(Path({str(checkpoint.path)!r}), Stages(*found), Path({str(tmp_path)!r})).reused)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert sorted(output.strip() for output, _ in ended) == ["False", "True"], ended


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_evaluate_checkpoint_after_a_killed_attempt_starts_again_and_writes_once(
    tmp_path: Path, stages: Stages
) -> None:
    checkpoint = save(tmp_path / "checkpoints", 50)
    code = f"""
import os, signal, torch
torch.set_num_threads(1)
from pathlib import Path
from gpt_pipeline.evaluation import evaluate as module
from gpt_pipeline.storage.manifest import StageResult, read_manifest
from gpt_pipeline_tests.test_evaluate import Stages, evaluate
found = [StageResult(folder=Path(f), manifest=read_manifest(Path(f)), reused=True)
         for f in ({str(stages.english.folder)!r}, {str(stages.shards.folder)!r})]
module.write_evaluation = lambda _: os.kill(os.getpid(), signal.SIGKILL)
evaluate(Path({str(checkpoint.path)!r}), Stages(*found), Path({str(tmp_path)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_evaluations(tmp_path / "evaluations") == []
    assert not evaluate(checkpoint.path, stages, tmp_path).reused
    assert len(read_evaluations(tmp_path / "evaluations")) == 1


def test_find_evaluation_imports_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys, gpt_pipeline.evaluation.evaluate;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
