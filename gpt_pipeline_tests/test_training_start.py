"""From where a training starts, what is set aside, and that nothing is ever overwritten."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from gpt_pipeline.checkpoints.choose import choose_checkpoint
from gpt_pipeline.checkpoints.manifest import best_checkpoint, list_checkpoints
from gpt_pipeline.checkpoints.retention import announce_evaluator
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.training.decision import decide_start, find_finished_work
from gpt_pipeline.training.estimates import find_estimate_changes
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.job import (
    OBJECTIVE,
    PACKING,
    SCRATCH,
    SHARDS,
    Change,
    TrainingJob,
    find_changes,
    settings_of,
)
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.run import TrainingOutcome, run_job
from gpt_pipeline.training.start import prepare_start
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline_tests.crashing import Killed
from gpt_pipeline_tests.rl_jobs import make_rl_job
from gpt_pipeline_tests.training_jobs import Listener, T, make_job, write_shards

OTHER = "b" * 64


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    job = make_job(tmp_path_factory.mktemp("template"))
    assert run_job(job, Listener()).finished
    return job


@pytest.fixture
def finished(tmp_path, template) -> TrainingJob:
    """A job of 12 updates that ran to its end; checkpoints at 4, 8 and 12."""
    shutil.copytree(template.experiment_folder, tmp_path / "experiment")
    return dataclasses.replace(template, experiment_folder=str(tmp_path / "experiment"))


def _run(job: TrainingJob, *, stop_at: int | None = None) -> tuple[TrainingOutcome, Listener]:
    stop = StopFlag()
    listener = Listener(lambda step: stop.request(signal.SIGTERM) if step == stop_at else None)
    return run_job(job, listener, stop=stop), listener


def _first_step(listener: Listener) -> int:
    return next(record["step"] for record in listener.records if record["kind"] == "train")


def _steps(folder: Path) -> list[int]:
    return [info.step for info in list_checkpoints(folder)]


def _previous(job: TrainingJob) -> list[Path]:
    folder = job.folder.root / "previous"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _flip_byte(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))


def _zero_page(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(4096)
        file.write(bytes(4096))


# null


def test_start_of_a_finished_training_does_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.checkpoints.iterdir() if path.is_file()}
    outcome, listener = _run(finished)
    assert (outcome.finished, outcome.reused, outcome.step, outcome.exit_code) == (True, True, 12, 0)
    assert outcome.checkpoint.step == 12
    assert listener.records == []
    assert any("Nothing to do" in message for message in listener.messages)
    after = {path: path.stat().st_mtime_ns for path in finished.folder.checkpoints.iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize("damage", [_flip_byte, _zero_page, lambda path: os.truncate(path, 5000)])
def test_start_with_a_damaged_newest_checkpoint_takes_the_one_before(finished, damage):
    damage(finished.folder.checkpoints / "checkpoint_step_12.pt")
    outcome, listener = _run(finished)
    assert (outcome.finished, outcome.reused) == (True, False)
    assert _first_step(listener) == 9
    assert (finished.folder.checkpoints / "checkpoint_step_12.pt.damaged").is_file()
    assert (finished.folder.checkpoints / "checkpoint_step_12.json.damaged").is_file()
    assert any("checkpoint_step_12.pt is damaged" in message for message in listener.messages)
    assert find_finished_training(finished.folder, finished.fingerprint).step == 12
    assert _previous(finished) == []


def test_start_with_every_checkpoint_damaged_keeps_them_aside_and_starts_again(finished):
    for path in finished.folder.checkpoints.glob("*.pt"):
        _flip_byte(path)
    outcome, listener = _run(finished)
    assert outcome.finished
    assert _first_step(listener) == 1
    (aside,) = _previous(finished)
    assert len(list((aside / "checkpoints").glob("*.pt.damaged"))) == 4


def test_start_with_another_configuration_moves_the_old_training_aside(finished):
    finished.folder.evaluations.mkdir()
    (finished.folder.evaluations / "step_00000012-x.json").write_text("{}")
    finished.folder.report.write_text("report")
    old = {info.step: info.sha256 for info in list_checkpoints(finished.folder.checkpoints)}
    outcome, listener = _run(dataclasses.replace(finished, fingerprint=OTHER))
    assert outcome.finished
    assert _first_step(listener) == 1
    (aside,) = _previous(finished)
    assert {info.step: info.sha256 for info in list_checkpoints(aside / "checkpoints")} == old
    names = {path.name for path in aside.iterdir()}
    assert names >= {"checkpoints", "metrics.jsonl", "training.json", "evaluations", "report.html"}
    assert not finished.folder.evaluations.exists()
    assert any("previous" in message for message in listener.messages)

    _run(finished)  # and back again: a second folder, the first untouched
    assert len(_previous(finished)) == 2
    assert {info.step: info.sha256 for info in list_checkpoints(aside / "checkpoints")} == old


def test_start_of_an_empty_folder_moves_nothing(tmp_path):
    job = make_job(tmp_path, training={"max_steps": 1})
    job.write(job.folder.job)
    outcome, _ = _run(job)
    assert outcome.finished
    assert _previous(job) == []


def test_start_after_the_best_model_was_lost_between_two_files(finished):
    for name in ("best_model.pt", "best_model.json"):
        (finished.folder.checkpoints / name).unlink()
    finished.folder.training.unlink()
    outcome, _ = _run(finished)
    assert outcome.finished
    assert best_checkpoint(finished.folder.checkpoints) is not None
    assert find_finished_training(finished.folder, finished.fingerprint).best_step == 12


# scratch and force


def test_scratch_starts_again_once_and_survives_an_interruption(finished):
    job = dataclasses.replace(finished, resume=SCRATCH)
    outcome, listener = _run(job, stop_at=6)
    assert (outcome.step, _first_step(listener)) == (6, 1)
    (aside,) = _previous(job)
    assert _steps(aside / "checkpoints") == [4, 8, 12]

    outcome, listener = _run(job)  # the same job, started again by whoever started it
    assert outcome.finished
    assert _first_step(listener) == 7
    outcome, _ = _run(job)
    assert outcome.reused
    assert _previous(job) == [aside]

    assert _run(finished)[0].reused  # asked for something else in between, scratch is a new demand
    outcome, listener = _run(job)
    assert _first_step(listener) == 1
    assert len(_previous(job)) == 2


def test_forced_request_trains_a_finished_training_again_once(finished):
    job = dataclasses.replace(finished, request="run-1")
    _, listener = _run(job, stop_at=2)
    assert _first_step(listener) == 1
    _, listener = _run(job)
    assert _first_step(listener) == 3
    assert _run(job)[0].reused
    _, listener = _run(dataclasses.replace(finished, request="run-2"))
    assert _first_step(listener) == 1
    assert len(_previous(job)) == 2


@pytest.mark.parametrize("resume", [SCRATCH, "checkpoint_step_8.pt"])
def test_forced_request_stands_for_what_the_file_asks_for_too(finished, resume):
    plain = dataclasses.replace(finished, resume=resume)
    _run(dataclasses.replace(plain, request="run-1"), stop_at=2)
    _, listener = _run(plain)
    assert _first_step(listener) == 3
    assert _run(plain)[0].reused
    assert len(_previous(plain)) == 1


def test_scratch_that_the_file_asks_for_after_a_forced_start_is_carried_out(finished):
    _run(dataclasses.replace(finished, request="run-1"))
    _, listener = _run(dataclasses.replace(finished, resume=SCRATCH))
    assert _first_step(listener) == 1


@pytest.mark.parametrize("resume", [None, SCRATCH, "checkpoint_step_8.pt"])
def test_forced_start_of_an_earlier_version_is_not_made_again(finished, resume):
    """They noted `scratch`, whatever the file said."""
    note = {"fingerprint": finished.fingerprint, "resume": "scratch", "request": "run-1", "time": "then"}
    (finished.folder.root / "start.json").write_text(json.dumps(note))
    assert _run(dataclasses.replace(finished, resume=resume, request="run-1"))[0].reused
    assert _run(dataclasses.replace(finished, resume=resume))[0].reused
    assert find_finished_work(dataclasses.replace(finished, request="run-2")) is None


@pytest.mark.parametrize("demand", [{"resume": SCRATCH}, {"resume": "checkpoint_step_8.pt"}, {"request": "run-1"}])
def test_finished_work_is_none_until_the_demand_is_carried_out(finished, demand):
    assert find_finished_work(finished).step == 12
    job = dataclasses.replace(finished, **demand)
    assert find_finished_work(job) is None
    _run(job, stop_at=9)
    assert find_finished_work(job) is None
    _run(job)
    assert find_finished_work(job).step == 12


# a file name


def test_named_checkpoint_is_resumed_exactly_and_what_came_after_is_kept_aside(finished):
    folder = finished.folder
    folder.evaluations.mkdir()
    for step in (4, 8, 12):
        (folder.evaluations / f"step_{step:08d}-x.json").write_text("{}")
    weights = list_checkpoints(folder.checkpoints)[-1].weights_sha256
    job = dataclasses.replace(finished, resume="checkpoint_step_8.pt")
    outcome, listener = _run(job, stop_at=10)
    assert (outcome.step, _first_step(listener)) == (10, 9)
    (aside,) = _previous(job)
    assert _steps(aside / "checkpoints") == [12]
    assert (aside / "training.json").is_file()
    assert [path.name for path in (aside / "evaluations").iterdir()] == ["step_00000012-x.json"]
    assert max(line["step"] for line in read_metrics(aside / "metrics.jsonl")) == 12
    assert max(line["step"] for line in read_metrics(folder.metrics)) == 10

    outcome, listener = _run(job)  # started again: goes on, does not go back
    assert (outcome.finished, _first_step(listener)) == (True, 11)
    assert list_checkpoints(folder.checkpoints)[-1].weights_sha256 == weights
    assert _run(job)[0].reused
    assert _previous(job) == [aside]


def test_named_checkpoint_that_is_missing_lists_what_there_is(finished):
    with pytest.raises(
        UserError, match=r"found 'x\.pt'.*checkpoint_step_4\.pt, .*checkpoint_step_12\.pt, best_model\.pt"
    ):
        run_job(dataclasses.replace(finished, resume="x.pt"), Listener())
    assert _steps(finished.folder.checkpoints) == [4, 8, 12]


def test_named_checkpoint_that_is_damaged_is_refused_not_replaced_by_another(finished):
    _flip_byte(finished.folder.checkpoints / "checkpoint_step_8.pt")
    with pytest.raises(DamagedFileError, match=r"checkpoint_step_8\.pt is damaged: .*; put an undamaged copy"):
        run_job(dataclasses.replace(finished, resume="checkpoint_step_8.pt"), Listener())
    assert _previous(finished) == []


def test_named_checkpoint_of_another_configuration_is_taken_over_if_its_shape_fits(finished):
    training = dataclasses.replace(finished.training, learning_rate=5e-3)
    job = dataclasses.replace(finished, resume="checkpoint_step_8.pt", fingerprint=OTHER, training=training)
    outcome, listener = _run(job, stop_at=9)
    assert (_first_step(listener), outcome.checkpoint.fingerprint) == (9, OTHER)
    assert any("made with another configuration" in message for message in listener.messages)
    outcome, listener = _run(job)
    assert (outcome.finished, _first_step(listener)) == (True, 10)


def test_named_checkpoint_continued_with_other_settings_says_each_old_and_new_value(finished):
    job = dataclasses.replace(
        finished,
        resume="checkpoint_step_8.pt",
        fingerprint=OTHER,
        training=dataclasses.replace(finished.training, learning_rate=5e-3, micro_batch_size=4),
        model=dataclasses.replace(finished.model, dropout=0.0),
        cadence=dataclasses.replace(finished.cadence, keep_last=5),
    )
    _, listener = _run(job)
    warned = next(message for message in listener.messages if message.startswith("Warning"))
    assert "training.learning_rate: 0.01 -> 0.005" in warned
    assert "model.dropout: 0.2 -> 0.0" in warned
    assert "micro_batch_size" not in warned
    free = next(message for message in listener.messages if message.startswith("Changed since"))
    assert "training.micro_batch_size: 2 -> 4" in free
    assert "evaluation.keep_last: 3 -> 5" in free


def test_start_continues_with_free_keys_changed_and_says_which(finished):
    (finished.folder.checkpoints / "checkpoint_step_12.pt").unlink()
    training = dataclasses.replace(finished.training, micro_batch_size=1)
    outcome, listener = _run(dataclasses.replace(finished, training=training))
    assert outcome.finished
    assert any("to no effect on the weights: training.micro_batch_size: 2 -> 1." in said for said in listener.messages)


def test_start_anew_says_what_sets_the_old_checkpoints_apart(finished):
    training = dataclasses.replace(finished.training, learning_rate=5e-3)
    _, listener = _run(dataclasses.replace(finished, training=training, fingerprint=OTHER), stop_at=1)
    assert any("checkpoint_step_12.pt has training.learning_rate: 0.01 -> 0.005)" in said for said in listener.messages)


def test_checkpoint_with_a_manifest_from_before_settings_were_kept_is_continued(finished):
    manifest = finished.folder.checkpoints / "checkpoint_step_8.json"
    value = json.loads(manifest.read_text())
    assert value.pop("settings")["training.learning_rate"] == 0.01
    manifest.write_text(json.dumps(value))
    job = dataclasses.replace(finished, resume="checkpoint_step_8.pt")
    outcome, listener = _run(job)
    assert (outcome.finished, _first_step(listener)) == (True, 9)


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("model.n_head", "refused"),
        ("model.tie_weights", "refused"),
        ("model.dropout", "warned"),
        ("training.optimizer", "refused"),
        ("training.seed", "warned"),
        ("training.precision", "warned"),
        ("training.compile", "free"),
        ("data.max_length", "warned"),
        ("token shards", "warned"),
        ("hardware.device", "free"),
        ("evaluation.eval_freq", "free"),
    ],
)
def test_change_of_a_key_is_free_warned_about_or_refused(key, effect):
    assert Change(key=key, before=1, after=2).effect == effect


def test_changes_know_every_setting_of_a_job(tmp_path):
    job = make_job(tmp_path)
    settings = settings_of(job)
    assert find_changes(settings, job) == []
    assert json.loads(json.dumps(settings)) == settings
    changes = find_changes(dict.fromkeys(settings, "old"), job)
    assert [change.key for change in changes] == list(settings)


def test_changes_leave_out_keys_that_only_one_of_two_versions_knows(tmp_path):
    job = make_job(tmp_path)
    settings = settings_of(job)
    assert find_changes({**settings, "training.of_a_newer_version": 1}, job) == []
    assert find_changes({key: value for key, value in settings.items() if key != "training.objective"}, job) == []


def test_named_checkpoint_of_before_a_key_counts_as_made_with_its_neutral_value(finished):
    manifest = finished.folder.checkpoints / "checkpoint_step_8.json"
    value = json.loads(manifest.read_text())
    del value["settings"]["training.objective"]
    manifest.write_text(json.dumps(value))
    training = dataclasses.replace(finished.training, objective="another")
    _, listener = _run(
        dataclasses.replace(finished, training=training, fingerprint=OTHER, resume="checkpoint_step_8.pt")
    )
    assert any("training.objective: pretrain -> another" in message for message in listener.messages)


def test_named_checkpoint_killed_before_its_first_successor_is_resumed_again(finished):
    job = dataclasses.replace(finished, resume="checkpoint_step_8.pt", fingerprint=OTHER)

    def die(step: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        run_job(job, Listener(die))
    outcome, listener = _run(job)
    assert (outcome.finished, _first_step(listener)) == (True, 9)


def test_named_checkpoint_of_another_shape_is_refused_with_the_difference(finished):
    model = dataclasses.replace(finished.model, n_layer=2, qkv_bias=True)
    with pytest.raises(UserError, match=r"\(model\.n_layer: 1 -> 2; model\.qkv_bias: False -> True\)"):
        run_job(
            dataclasses.replace(finished, resume="checkpoint_step_8.pt", fingerprint=OTHER, model=model), Listener()
        )
    assert _steps(finished.folder.checkpoints) == [4, 8, 12]


def test_named_checkpoint_of_another_optimizer_is_refused(finished):
    training = dataclasses.replace(finished.training, optimizer="muon")
    with pytest.raises(UserError, match=r"training\.optimizer: adamw -> muon"):
        run_job(
            dataclasses.replace(finished, resume="checkpoint_step_8.pt", fingerprint=OTHER, training=training),
            Listener(),
        )
    assert _previous(finished) == []


def test_named_checkpoint_beyond_the_last_step_is_refused(finished):
    training = dataclasses.replace(finished.training, max_steps=10)
    job = dataclasses.replace(finished, resume="checkpoint_step_12.pt", fingerprint=OTHER, training=training)
    with pytest.raises(UserError, match="is at step 12, and this training ends at step 10"):
        run_job(job, Listener())


def test_best_model_can_be_resumed_by_name(finished):
    best = best_checkpoint(finished.folder.checkpoints).step
    outcome, listener = _run(dataclasses.replace(finished, resume="best_model.pt"))
    assert (outcome.finished, _first_step(listener)) == (True, best + 1)


# back to the earlier configuration


def _continued(finished: TrainingJob, resume: str, *, keep_last: int) -> TrainingJob:
    """Return `finished` after another training went on from its checkpoint `resume` to step 20, to no good."""
    training = dataclasses.replace(finished.training, max_steps=20, learning_rate=10.0)
    cadence = dataclasses.replace(finished.cadence, keep_last=keep_last)
    other = dataclasses.replace(finished, fingerprint=OTHER, training=training, cadence=cadence, resume=resume)
    assert run_job(other, Listener()).finished
    return dataclasses.replace(finished, cadence=cadence)


@pytest.mark.parametrize(
    ("resume", "keep_last", "left", "moved"),
    [
        ("checkpoint_step_12.pt", 1, [20], [20]),  # all that is left of the earlier training is its best model
        ("checkpoint_step_12.pt", 3, [12, 16, 20], [16, 20]),
        ("checkpoint_step_8.pt", 9, [4, 8, 12, 16, 20], [12, 16, 20]),
    ],
)
def test_start_after_another_training_went_on_finishes_with_the_same_weights(finished, resume, keep_last, left, moved):
    before = find_finished_training(finished.folder, finished.fingerprint)
    job = _continued(finished, resume, keep_last=keep_last)
    assert [step for step in _steps(job.folder.checkpoints) if step in left] == left
    assert find_finished_work(job) is None
    assert decide_start(job).moves_checkpoints

    outcome, listener = _run(job)
    assert outcome.finished
    assert find_finished_work(job).weights_sha256 == before.weights_sha256
    assert {each.fingerprint for each in list_checkpoints(job.folder.checkpoints)} == {job.fingerprint}
    named = [choose_checkpoint(job.folder.checkpoints, name) for name in ("best", "last")]
    assert [(each.step, each.fingerprint) for each in named] == [
        (before.best_step, job.fingerprint),
        (12, job.fingerprint),
    ]
    assert max(line["step"] for line in read_metrics(job.folder.metrics)) == 12

    aside = _previous(job)[-1]
    kept = [info for info in list_checkpoints(aside / "checkpoints") if info.fingerprint == OTHER]
    assert [info.step for info in kept] == moved
    assert find_finished_training(ExperimentFolder(root=aside), OTHER).step == 20
    assert max(line["step"] for line in read_metrics(aside / "metrics.jsonl")) == 20
    assert any(str(aside) in said and "checkpoint_step_20.pt" in said for said in listener.messages)
    assert _run(job)[0].reused
    assert _previous(job)[-1] == aside


def test_training_that_ends_where_the_named_checkpoint_of_another_is_stays_finished(finished):
    training = dataclasses.replace(finished.training, learning_rate=1e-3)
    other = dataclasses.replace(finished, fingerprint=OTHER, training=training, resume="checkpoint_step_12.pt")
    assert _run(other)[0].checkpoint.fingerprint == finished.fingerprint

    for again in (other, dataclasses.replace(other, resume=None)):
        assert decide_start(again).kind == "finished"
        assert _run(again)[0].reused
        assert _steps(again.folder.checkpoints) == [4, 8, 12]


@pytest.mark.parametrize("named", [True, False])
def test_start_killed_at_any_rename_loses_no_line_and_no_checkpoint(finished, tmp_path, monkeypatch, named):
    goal = _continued(finished, "checkpoint_step_8.pt", keep_last=9)
    if named:
        goal = dataclasses.replace(goal, resume="checkpoint_step_8.pt")
    lines = read_metrics(goal.folder.metrics)
    rename = os.replace

    def killed_at(number: int, folder: Path) -> bool:
        remaining = itertools.count(number, -1)

        def counted(source, target) -> None:
            if folder in Path(target).parents and next(remaining) == 0:
                raise Killed
            rename(source, target)

        monkeypatch.setattr(os, "replace", counted)
        try:
            prepare_start(job, max_steps=12, say=lambda _: None)
        except Killed:
            return True
        finally:
            monkeypatch.setattr(os, "replace", rename)
        return False

    for number in itertools.count():
        root = tmp_path / f"killed_at_{number}"
        shutil.copytree(goal.folder.root, root)
        job = dataclasses.replace(goal, experiment_folder=str(root))
        killed = killed_at(number, root)
        assert prepare_start(job, max_steps=12, say=lambda _: None).checkpoint.step == 8
        assert read_metrics(job.folder.metrics) == [line for line in lines if line["step"] <= 8]
        assert lines in [read_metrics(aside / "metrics.jsonl") for aside in _previous(job)]
        assert _steps(job.folder.checkpoints) == [4, 8]
        assert {path.name for path in root.rglob("*.pt")} >= {f"checkpoint_step_{step}.pt" for step in (12, 16, 20)}
        if not killed:
            break
    assert number > 5


# other estimates


def test_named_checkpoint_on_other_data_counts_its_best_among_its_own(tmp_path):
    write_shards(tmp_path / "shards", vocab_size=50)  # the easier text
    job = make_job(tmp_path)
    _run(job)
    before = best_checkpoint(job.folder.checkpoints)
    fingerprint = "6" * 64
    shards = write_shards(tmp_path / "other", fingerprint=fingerprint)
    training = dataclasses.replace(job.training, max_steps=20)
    other = dataclasses.replace(
        job,
        shards_folder=str(shards),
        shards_fingerprint=fingerprint,
        fingerprint=OTHER,
        training=training,
        resume="checkpoint_step_12.pt",
    )
    _, listener = _run(other)
    done, best = find_finished_training(other.folder, OTHER), best_checkpoint(other.folder.checkpoints)
    measured = {record["step"]: record["val_loss"] for record in listener.records if record["kind"] == "validation"}
    assert done.best_step in measured
    assert done.best_val_loss == measured[done.best_step] == min(measured.values()) > before.metrics["val_loss"]
    assert (best.step, best.fingerprint, best.shards_fingerprint) == (done.best_step, OTHER, fingerprint)
    assert any("The best is counted anew from step 12 on" in said for said in listener.messages)
    assert best_checkpoint(_previous(other)[-1] / "checkpoints").sha256 == before.sha256


def test_named_checkpoint_on_the_same_data_keeps_its_best(finished):
    before = best_checkpoint(finished.folder.checkpoints)
    job = _continued(finished, "checkpoint_step_12.pt", keep_last=3)
    assert find_finished_training(job.folder, OTHER).best_step == before.step
    assert best_checkpoint(job.folder.checkpoints).sha256 == before.sha256


def test_start_with_other_eval_iters_counts_the_best_anew_if_other_tokens_are_measured(tmp_path):
    job = make_job(tmp_path, training={"seed": 1}, cadence={"eval_iters": 2})
    _run(job, stop_at=7)
    first = best_checkpoint(job.folder.checkpoints).step
    assert first == 3  # later estimates are worse
    longer = dataclasses.replace(job, cadence=dataclasses.replace(job.cadence, eval_iters=3))
    _, listener = _run(longer, stop_at=10)
    assert not any("best" in said for said in listener.messages)
    assert best_checkpoint(job.folder.checkpoints).step == first
    shorter = dataclasses.replace(job, cadence=dataclasses.replace(job.cadence, eval_iters=1))
    _, listener = _run(shorter)
    assert any("held-out tokens in an estimate: 69 -> 64" in said for said in listener.messages)
    assert find_finished_training(job.folder, job.fingerprint).best_step > 10


_MEASURED = {"training.batch_size": 4, "data.max_length": T, "evaluation.eval_iters": 1}


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({}, []),
        ({"training.seed": 7, "training.learning_rate": 1.0, "training.tokens_per_step": 128}, []),
        ({"evaluation.eval_freq": 9, "hardware.device": "cuda", "training.precision": "bf16"}, []),
        ({SHARDS: "6" * 64}, [SHARDS]),
        ({"data.max_length": 8}, ["data.max_length", "held-out tokens in an estimate"]),
        ({"evaluation.eval_iters": 2}, ["held-out tokens in an estimate"]),
        ({"training.batch_size": 2}, ["held-out tokens in an estimate"]),
        ({"training.batch_size": 2, "evaluation.eval_iters": 2}, []),
        ({PACKING: "documents"}, ["the loss that decides"]),
        ({OBJECTIVE: "sft"}, ["the loss that decides"]),
    ],
)
def test_estimates_compare_unless_something_else_is_measured(tmp_path, before, told):
    job = make_job(tmp_path)
    assert {key: settings_of(job)[key] for key in _MEASURED} == _MEASURED
    assert [change.key for change in find_estimate_changes({**settings_of(job), **before}, job)] == told
    assert [change.key for change in find_estimate_changes(before, job)] == told


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"rl.kl": 0.1, "training.batch_size": 2, "training.learning_rate": 1.0}, []),
        ({"rl_prompts": "other questions to train on"}, []),
        ({"evaluation.eval_iters": 2}, []),  # there are no more questions
        ({"rl.prompts_per_step": 2}, ["held-out questions in an estimate"]),
        ({"rl.prompts_per_step": 2, "evaluation.eval_iters": 2}, []),
        ({"rl.temperature": 0.5, "training.seed": 7}, ["training.seed", "rl.temperature"]),
        ({OBJECTIVE: "pretrain"}, ["the loss that decides"]),
    ],
)
def test_estimates_of_sampled_answers_compare_unless_something_else_is_measured(tmp_path, before, told):
    job = make_rl_job(tmp_path)
    assert [change.key for change in find_estimate_changes({**settings_of(job), **before}, job)] == told


# what is kept


def test_training_keeps_the_newest_and_the_best_only(tmp_path):
    job = make_job(tmp_path, cadence={"save_every_n_iterations": 1, "keep_last": 2})
    _, listener = _run(job)
    best = best_checkpoint(job.folder.checkpoints).step
    assert _steps(job.folder.checkpoints) == sorted({best, 11, 12})
    assert [info.step for info in listener.checkpoints] == list(range(1, 13))
    recorded = [record["val_loss"] for record in listener.records if record["kind"] == "validation"][1:]
    assert best_checkpoint(job.folder.checkpoints).metrics["val_loss"] == min(recorded)


def test_training_keeps_what_an_evaluator_has_not_seen(tmp_path):
    job = make_job(tmp_path, cadence={"save_every_n_iterations": 2, "keep_last": 1})
    job.folder.root.mkdir()
    announce_evaluator(job.folder.root)
    _run(job)
    assert _steps(job.folder.checkpoints) == [2, 4, 6, 8, 10, 12]


# the manifest of the finished training


def test_finished_training_without_its_last_checkpoint_does_not_count(finished):
    assert find_finished_training(finished.folder, OTHER) is None
    (finished.folder.checkpoints / "checkpoint_step_12.pt").unlink()
    best = best_checkpoint(finished.folder.checkpoints)
    assert (find_finished_training(finished.folder, finished.fingerprint) is None) == (best.step != 12)


def test_finished_training_says_what_it_came_to(finished):
    value = json.loads(finished.folder.training.read_text())
    lines = read_metrics(finished.folder.metrics)
    validations = {line["step"]: line["val_loss"] for line in lines if line["kind"] == "validation"}
    del validations[0]
    assert value["val_loss"] == validations[12]
    assert value["best_val_loss"] == min(validations.values()) == validations[value["best_step"]]
    assert value["tokens_seen"] == 12 * 64
