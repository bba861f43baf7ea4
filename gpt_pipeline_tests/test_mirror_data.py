"""The data of an experiment in a mirror: all that another machine needs of it, and nothing more."""

import json
import re
import shutil

import pytest

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.data.tokens.choose import known_shards
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import (
    bring_all_data,
    bring_data,
    data_stages,
    mirror_in_words,
    mirror_order,
    send_to_mirror,
)
from gpt_pipeline.experiment.training import wanted_fingerprint
from gpt_pipeline.mirror.agent import Agent
from gpt_pipeline.mirror.order import Order, State, read_order, write_order, write_state
from gpt_pipeline.mirror.wait import wait_until_sent
from gpt_pipeline.progress.status import experiment_status
from gpt_pipeline.rl.config import RlConfig
from gpt_pipeline.rl.stage import PromptsStage
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.storage.manifest import Manifest
from gpt_pipeline_tests.mirrors import folder_mirror
from gpt_pipeline_tests.projects import TinyProject


def machine(folder, name: str) -> TinyProject:
    project = TinyProject(root=folder / name)
    project.root.mkdir()
    path = project.write_experiment("tiny")
    mirror = f"{{base_folder: ../storage, mirror: {folder_mirror(folder / 'mirror')!r}}}"
    path.write_text(path.read_text().replace("{base_folder: ../storage}", mirror))
    return project


def experiment_on(folder, name: str) -> Experiment:
    return machine(folder, name).experiment("tiny")


def prepare_all(experiment: Experiment) -> None:
    for stage in data_stages(experiment):
        prepare(stage, say=lambda _: None)


def send_data(experiment: Experiment) -> None:
    prepare_all(experiment)
    order = mirror_order(experiment, None)
    write_order(experiment.folder, order)
    assert Agent(experiment.folder).run().complete_at


def test_data_of_one_machine_is_brought_by_another_without_its_raw_files(tmp_path):
    a, b = experiment_on(tmp_path, "a"), experiment_on(tmp_path, "b")
    send_data(a)
    said: list[str] = []
    bring_all_data(b, say=said.append)
    for stage in data_stages(b):
        assert not stage.plan(force=False, say=said.append), "nothing is left to do"
        assert stage.finish(say=said.append).reused
    assert known_shards(b.data, b.data_folder).fingerprint == known_shards(a.data, a.data_folder).fingerprint
    assert not list(b.data_folder.rglob("synth_0*.parquet"))


def test_questions_of_one_machine_are_brought_by_another(tmp_path):
    a, b = experiment_on(tmp_path, "a"), experiment_on(tmp_path, "b")
    theirs, ours = (
        PromptsStage(
            config=RlConfig(),
            seed=0,
            max_length=16,
            shards_fingerprint="5" * 64,
            weights_sha256="6" * 64,
            data_folder=each.data_folder,
        )
        for each in (a, b)
    )
    folder, fingerprint = theirs.place()
    folder.mkdir(parents=True)
    Manifest(stage=theirs.name, fingerprint=fingerprint, config={}).write(folder)
    stages = (folder.relative_to(a.base_folder).as_posix(),)
    write_order(a.folder, Order(mirror=a.config.storage.mirror, keep_last=1, stages=stages))
    assert Agent(a.folder).run().complete_at
    bring_data(b, ours, say=lambda _: None)
    assert ours.find()


def test_data_of_a_mirror_that_is_not_there_is_not_made_again_unasked(tmp_path):
    a = experiment_on(tmp_path, "a")
    lost = a.config.storage.mirror.replace("/mirror", "/unplugged/mirror")
    path = a.file
    path.write_text(path.read_text().replace(a.config.storage.mirror, lost))
    gone = TinyProject(root=path.parent.parent).experiment("tiny")
    with pytest.raises(UserError, match=r"storage\.mirror: null in tiny\.yaml"):
        bring_data(gone, next(data_stages(gone)), say=lambda _: None)


def test_send_after_the_file_was_edited_orders_the_training_that_the_folder_holds(tmp_path):
    a = experiment_on(tmp_path, "a")
    prepare_all(a)
    assert wanted_fingerprint(a) is not None
    a.folder.root.mkdir(parents=True)
    (a.folder.root / "start.json").write_text(json.dumps({"fingerprint": "a" * 64, "resume": None, "request": ""}))
    send_to_mirror(a)
    wait_until_sent(a.folder, say=lambda _: None)
    assert read_order(a.folder).fingerprint == "a" * 64


def test_mirror_that_the_file_was_given_anew_has_nothing_yet(tmp_path):
    a = experiment_on(tmp_path, "a")
    prepare_all(a)
    write_state(a.folder, State(mirror="file:///old", complete_at="yesterday"))
    assert dict(mirror_in_words(a))["sent"] == "nothing yet"
    assert "nothing sent yet" in experiment_status(a).mirror


def test_state_of_a_mirror_that_was_never_reached_does_not_claim_that_nothing_is_to_be_sent():
    down = State(mirror="file:///gone", problem="there is no folder", problem_since="noon")
    assert down.in_words == "there is no folder (since noon)"
    known = State(mirror="file:///gone", problem="cut", problem_since="noon", waiting_files=2, waiting_bytes=10**6)
    assert known.in_words == "cut (since noon); 2 files to be sent, 1.0 MB"


def test_mirror_of_a_later_training_brings_the_one_whose_weights_it_starts_from(tmp_path, tiny_at):
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b")
    shutil.copytree(tiny_at(12), a.root / "storage", dirs_exist_ok=True)
    experiment = a.experiment("tiny")
    write_order(experiment.folder, mirror_order(experiment, wanted_fingerprint(experiment)))
    assert Agent(experiment.folder).run().complete_at
    later = b.write_experiment("later")
    text = (b.root / "experiments" / "tiny.yaml").read_text().replace("experiment_name: tiny", "experiment_name: later")
    later.write_text(re.sub("(?m)^model: .*$", "start_from: {experiment: tiny.yaml}", text))
    with pytest.raises(UserError, match=r"bring one from the mirror: gpt-pipeline mirror experiments/tiny\.yaml"):
        b.call("generate", "experiments/tiny.yaml", "--prompt", "x")
    assert "another machine has trained this" in b.call("plan", "experiments/later.yaml", "--no-measure")
    output = b.call("mirror", "experiments/later.yaml", "--bring")
    assert [info.step for info in b.checkpoints("tiny")] == [12]
    assert "later.yaml: the mirror has nothing of the training" in output
    with folder_lock(b.experiment("tiny").folder.root, purpose="training"):
        b.call("mirror", "experiments/later.yaml", "--bring")  # whose start is here now
    assert "another machine has trained this" not in b.call("plan", "experiments/later.yaml", "--no-measure")


@pytest.mark.slow
def test_run_on_another_machine_brings_everything_and_computes_nothing(tmp_path):
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b")
    a.run("run", "experiments/tiny.yaml")
    output = b.run("run", "experiments/tiny.yaml")
    assert "Brought checkpoint_step_12.pt" in output
    assert "Nothing to do: this training reached its last step" in output
    assert "documents of" not in output, "no file is filtered"
    theirs, ours = (each.checkpoints("tiny")[-1] for each in (a, b))
    assert theirs.weights_sha256 == ours.weights_sha256
    assert "complete at" in b.run("status", "experiments/tiny.yaml")
    assert "step 12" in b.run("mirror", "experiments/tiny.yaml")
    assert "its copy in the mirror" in b.run("remove", "experiments/tiny.yaml", "--yes")
    b.run("mirror", "experiments/tiny.yaml", "--bring")
    assert [info.step for info in list_checkpoints(b.experiment("tiny").folder.checkpoints)] == [12]
