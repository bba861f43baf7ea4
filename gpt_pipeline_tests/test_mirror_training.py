"""Trainings with a mirror in a folder: sent, lost, brought, continued."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_checkpoint
from gpt_pipeline.checkpoints.manifest import BEST_NAME, best_checkpoint, checkpoint_path, list_checkpoints
from gpt_pipeline.errors import UserError
from gpt_pipeline.mirror import lease as leases
from gpt_pipeline.mirror import store as stores
from gpt_pipeline.mirror.agent import Agent
from gpt_pipeline.mirror.lease import acquire
from gpt_pipeline.mirror.order import Order, agent_lock, is_sending, owner_of, read_order, read_state_of, write_order
from gpt_pipeline.mirror.store import FolderStore, MirrorError
from gpt_pipeline.mirror.wait import wait_until_sent
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.layout import ExperimentFolder
from gpt_pipeline.storage.lock import hold_lock
from gpt_pipeline.training import mirroring
from gpt_pipeline.training.finished import find_finished_training
from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline.training.metrics import read_metrics
from gpt_pipeline.training.run import run_job
from gpt_pipeline.training.stopping import StopFlag
from gpt_pipeline_tests.mirrors import FailingStore, folder_mirror
from gpt_pipeline_tests.training_jobs import Listener, make_job, run, trainer_command


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SILENT_SECONDS", 1.0)


def machine(folder: Path, name: str, *, keep_last: int = 3, **changes) -> TrainingJob:
    """Return a job on a machine of its own: its folders, and nothing in common with others but the mirror."""
    order = Order(mirror=folder_mirror(folder / "mirror"), keep_last=keep_last, fingerprint="a" * 64)
    return make_job(folder / name, mirror=order, **changes)


def sent_objects(folder: Path) -> set[str]:
    return set(FolderStore(folder_mirror(folder / "mirror")).sizes("experiment"))


def lose(job: TrainingJob) -> None:
    """Lose the machine of a job."""
    wait_until_sent(job.folder, say=lambda _: None)
    shutil.rmtree(job.folder.root)


def assert_same_end(job: TrainingJob, reference: TrainingJob) -> None:
    ours, theirs = (load_checkpoint(checkpoint_path(each.folder.checkpoints, 12)) for each in (job, reference))
    assert all(torch.equal(ours.model[name], tensor) for name, tensor in theirs.model.items())
    assert all(
        torch.equal(ours.optimizer["states"][0]["state"][index]["exp_avg"], state["exp_avg"])
        for index, state in theirs.optimizer["states"][0]["state"].items()
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    job = make_job(tmp_path_factory.mktemp("reference"))
    run(job)
    return job


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, TrainingJob]]:
    """Return a folder with a mirror, and a job there that has trained on machine `a`, or to a step, and is sent.

    Each is trained once, and put back as it was for whoever asks: in the same place, whose path the mirror knows.
    """

    @cache
    def made(stop_at: int | None) -> tuple[Path, Path, TrainingJob]:
        folder = tmp_path_factory.mktemp("sent")
        job = machine(folder, "a")
        run(job, stop_at=stop_at)
        wait_until_sent(job.folder, say=lambda _: None)
        return folder, shutil.copytree(folder, folder.with_name(f"{folder.name}_as_it_was")), job

    def put_back(stop_at: int | None = None) -> tuple[Path, TrainingJob]:
        folder, as_it_was, job = made(stop_at)
        shutil.rmtree(folder)
        shutil.copytree(as_it_was, folder)
        return folder, job

    return put_back


def test_mirror_has_everything_of_a_finished_training(sent):
    folder, job = sent()
    names = {name.split("/", 2)[2] for name in sent_objects(folder)}
    assert {
        f"000001/checkpoints/checkpoint_step_{step}.{end}" for step in (4, 8, 12) for end in ("pt", "json")
    } <= names
    assert {"000001/checkpoints/best_model.json", "000001/metrics.jsonl", "000001/training.json"} <= names
    assert not is_sending(job.folder)
    assert read_state_of(job.folder).complete_at


def test_mirror_training_stopped_on_a_goes_on_on_b_with_the_same_bits(sent, reference):
    folder, a = sent(6)
    lose(a)
    b = machine(folder, "b")
    listener = run(b)
    assert any("Brought checkpoint_step_6.pt" in text for text in listener.messages)
    assert_same_end(b, reference)
    steps = [record["step"] for record in read_metrics(b.folder.metrics) if record["kind"] == "train"]
    assert steps == list(range(1, 13)), "the lines of the steps on A came along"


@pytest.mark.slow
def test_mirror_training_that_went_on_for_the_worse_has_the_best_of_the_one_before(tmp_path):
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b")
    run(a)
    best = best_checkpoint(a.folder.checkpoints)
    changes = {
        "fingerprint": "b" * 64,
        "training": dataclasses.replace(a.training, max_steps=16, learning_rate=10.0),
        "resume": "checkpoint_step_12.pt",
        "mirror": dataclasses.replace(a.mirror, fingerprint="b" * 64),
    }
    longer = dataclasses.replace(a, **changes)
    run(longer)
    lose(longer)
    assert not run(dataclasses.replace(b, **changes)).records
    assert best_checkpoint(b.folder.checkpoints).weights_sha256 == best.weights_sha256


def test_mirror_finished_training_is_brought_and_not_trained_again(sent):
    folder, a = sent()
    before = load_checkpoint(a.folder.checkpoints / BEST_NAME)
    lose(a)
    b = machine(folder, "b")
    listener = run(b)
    assert not listener.records
    assert find_finished_training(b.folder, b.fingerprint).step == 12
    after = load_checkpoint(b.folder.checkpoints / BEST_NAME)
    assert after.step == before.step


def test_mirror_training_whose_bringing_is_cut_off_brings_the_rest(sent, monkeypatch, reference):
    monkeypatch.setattr(stores, "_PIECE_BYTES", 1_000)
    folder, a = sent(6)
    b = machine(folder, "b")
    lose(a)
    store, requests = FailingStore(b.mirror.mirror), []

    def cut(name: str) -> None:
        requests.append(name)
        store.is_down = name.endswith("step_6.pt") and requests.count(name) > 10  # two of them open it

    store.before = cut
    monkeypatch.setattr(mirroring, "open_store", lambda url: store)
    with pytest.raises(MirrorError, match="it is down"):
        run(b)
    store.before, store.is_down = lambda name: None, False

    run(b)

    [start] = [start for name, start in store.read_from.items() if name.endswith("step_6.pt")]
    assert start == 8_000
    assert_same_end(b, reference)
    assert not list(b.folder.root.rglob("*.part"))


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-3], ids=["best_before", "best_at_the_end"])
def test_mirror_training_whose_arrival_is_cut_off_at_any_file_brings_the_rest(tmp_path, monkeypatch, learning_rate):
    a = machine(tmp_path, "a", training={"learning_rate": learning_rate})
    run(a, stop_at=6)
    for step in (4, 6):
        write_json(a.folder.evaluations / f"step_{step:08d}-{'e' * 16}.json", {"step": step})
    run(a)
    assert (load_checkpoint(a.folder.checkpoints / BEST_NAME).step == 12) == (learning_rate < 1e-2)
    store, moved, replace = FolderStore(a.mirror.mirror), list[Path](), Path.replace

    def bring(name: str, *, cut: int = 0) -> set[str]:
        """Bring it, cut off at that file first; return the files that are there then."""
        folder = ExperimentFolder(root=tmp_path / name / "experiment")
        moved.clear()

        def move(path: Path, target: Path) -> Path:
            if "incoming" in path.parts and "incoming" not in target.parts:
                moved.append(path)
                if len(moved) == cut:
                    raise OSError("cut off")
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", move)
        for _ in range(2 if cut else 1):
            with suppress(OSError):
                mirroring.bring_newer(store, folder, a.fingerprint, say=lambda _: None)
        there = {path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*") if path.is_file()}
        return {name for name in there if not name.startswith("previous/")}

    whole = bring("b")
    assert {"training.json", "metrics.jsonl", f"evaluations/step_00000004-{'e' * 16}.json"} <= whole
    assert [bring(f"b{cut}", cut=cut) for cut in range(1, len(whole) + 1)] == [whole] * len(whole)


@pytest.mark.slow
def test_mirror_killed_training_goes_on_elsewhere_with_the_same_bits(tmp_path, reference):
    a = machine(tmp_path, "a")
    process = subprocess.Popen(trainer_command(a), stdout=subprocess.PIPE, text=True, start_new_session=True)
    prefix = "000001/checkpoints/checkpoint_step_4.json"
    deadline = time.monotonic() + 60
    while process.poll() is None and not any(name.endswith(prefix) for name in sent_objects(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lose(a)
    b = machine(tmp_path, "b")
    run(b)
    assert_same_end(b, reference)


def test_mirror_damaged_newest_checkpoint_is_passed_over(sent, reference):
    folder, a = sent(6)
    lose(a)
    damaged = next((folder / "mirror").rglob("checkpoint_step_6.pt"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    b = machine(folder, "b")
    listener = run(b)
    assert any("checkpoint_step_6.json is damaged in the mirror" in text for text in listener.messages)
    assert any("Brought checkpoint_step_4.pt" in text for text in listener.messages)
    assert_same_end(b, reference)


@pytest.mark.slow
def test_mirror_whose_newer_checkpoints_are_all_damaged_leaves_what_is_here(tmp_path):
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b")
    run(a, stop_at=5)
    wait_until_sent(a.folder, say=lambda _: None)
    run(b, stop_at=9)
    wait_until_sent(b.folder, say=lambda _: None)
    for path in (tmp_path / "mirror").rglob("checkpoint_step_[89].pt"):
        path.write_bytes(bytes(path.stat().st_size))
    listener = run(a)
    assert any("no valid checkpoint of this training that is newer" in text for text in listener.messages)
    assert any("Continuing from checkpoint_step_5.pt" in text for text in listener.messages)
    assert not (a.folder.root / "previous").exists()
    wait_until_sent(a.folder, say=lambda _: None)
    sent = {path.name for path in (tmp_path / "mirror").glob("experiment/training-*/000003/checkpoints/*.pt")}
    # One that the sender held while the trainer removed others may be here still, before the newest.
    assert {info.path.name for info in list_checkpoints(a.folder.checkpoints)[-3:]} <= sent


@pytest.mark.slow
def test_mirror_machine_behind_moves_its_training_aside_for_the_newer_one(tmp_path, reference):
    a, b = machine(tmp_path, "a"), machine(tmp_path, "b")
    run(a, stop_at=5)
    wait_until_sent(a.folder, say=lambda _: None)
    run(b, stop_at=9)
    listener = run(a)
    assert any("continued on another machine" in text for text in listener.messages)
    assert any("Brought checkpoint_step_9.pt" in text for text in listener.messages)
    [aside] = (a.folder.root / "previous").iterdir()
    assert (aside / "checkpoints" / "checkpoint_step_5.pt").is_file()
    assert_same_end(a, reference)


def test_mirror_held_by_living_machine_refuses_a_second_one(sent):
    folder, a = sent(6)
    store = FolderStore(a.mirror.mirror)
    training = f"experiment/training-{a.fingerprint[:12]}"
    lease = acquire(store, training, owner="c", say=lambda _: None)
    b = machine(folder, "b")

    def beating(*_: object) -> None:
        lease.renew()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases.acquire, "__kwdefaults__", {**leases.acquire.__kwdefaults__, "sleep": beating})
        with pytest.raises(UserError, match="is being written to the mirror"):
            run(b)
    assert not list_checkpoints(b.folder.checkpoints)


@pytest.mark.slow
def test_mirror_lease_lost_meanwhile_stops_the_training_with_a_checkpoint(tmp_path):
    a = machine(tmp_path, "a", training={"max_steps": 100_000}, cadence={"save_every_n_iterations": 1000})
    process = subprocess.Popen(trainer_command(a), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    training = f"experiment/training-{a.fingerprint[:12]}"
    store = FolderStore(a.mirror.mirror)
    deadline = time.monotonic() + 60
    while not (a.folder.metrics.is_file() and a.folder.metrics.read_text().count('"train"') > 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store.create(f"{training}/leases/000002.json", json.dumps({"owner": "b", "host": "b", "since": "now"}).encode())
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2, output
    assert "now written by b, since now" in output
    assert "What was trained until now is saved here" in output
    assert list_checkpoints(a.folder.checkpoints)
    assert not any("/000002/" in name for name in sent_objects(tmp_path))


@pytest.mark.slow
def test_mirror_forced_start_keeps_the_earlier_training_in_its_own_term(tmp_path):
    a = machine(tmp_path, "a")
    run(a)
    before = {name for name in sent_objects(tmp_path) if "/000001/" in name}
    again = dataclasses.replace(a, resume="scratch", request="once more")
    listener = run(again)
    assert any("starting from scratch as asked" in text for text in listener.messages)
    after = sent_objects(tmp_path)
    assert before <= after
    assert any(name.endswith("000002/training.json") for name in after)
    lose(again)
    b = dataclasses.replace(machine(tmp_path, "b"), resume="scratch", request="once more")
    assert not run(b).records, "what was carried out on A is not carried out again on B"


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "term"), [({}, 1), ({"resume": "scratch", "request": "once more"}, 2)])
def test_mirror_training_that_starts_while_its_folder_is_still_being_sent_goes_on(tmp_path, monkeypatch, changes, term):
    monkeypatch.setattr(mirroring, "_WATCH_SECONDS", 0.02)
    a = machine(tmp_path, "a")
    run(a, stop_at=5)
    wait_until_sent(a.folder, say=lambda _: None)
    shutil.rmtree(tmp_path / "mirror" / "experiment" / f"training-{a.fingerprint[:12]}" / "000001")
    store = FailingStore(a.mirror.mirror)
    store.before = lambda name: time.sleep(0.05)

    def send() -> None:
        with hold_lock(agent_lock(a.folder)):
            Agent(a.folder, open_store=lambda _: store, beat=0.05).run()

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        while not store.sent:
            time.sleep(0.01)
        listener = Listener(lambda step: time.sleep(0.1))
        assert run_job(dataclasses.replace(a, **changes), listener, stop=StopFlag()).finished
        sending.result()
    wait_until_sent(a.folder, say=lambda _: None)
    assert not read_state_of(a.folder).lost
    names = {name.split("/", 2)[2] for name in sent_objects(tmp_path)}
    assert f"{term:06d}/training.json" in names
    assert "000002/checkpoints/checkpoint_step_5.pt" not in names, "moved aside, so not of this term"


@pytest.mark.parametrize("changed", [{"fingerprint": "b" * 64}, {"mirror": "file:///another"}])
def test_mirror_order_for_a_file_that_was_edited_leaves_the_training_at_work_its_lease(tmp_path, monkeypatch, changed):
    monkeypatch.setattr(mirroring, "_WATCH_SECONDS", 0.02)
    a = machine(tmp_path, "a")
    given = []

    def edit(step: int) -> None:
        if step == 6:
            while (order := read_order(a.folder)) is None or not order.term:
                time.sleep(0.01)
            write_order(a.folder, dataclasses.replace(a.mirror, **changed))
            given.append(read_order(a.folder))

    assert run_job(a, Listener(edit), stop=StopFlag()).finished
    wait_until_sent(a.folder, say=lambda _: None)
    assert [(order.mirror, order.fingerprint, order.term) for order in given] == [(a.mirror.mirror, a.fingerprint, 1)]
    sent = sent_objects(tmp_path)
    assert all(name.startswith(f"experiment/training-{a.fingerprint[:12]}/") for name in sent)
    assert any(name.endswith("000001/checkpoints/checkpoint_step_12.json") for name in sent)


def test_mirror_gets_nothing_of_the_training_before_the_one_that_is_ordered(sent):
    folder, a = sent()
    write_order(a.folder, dataclasses.replace(a.mirror, fingerprint="b" * 64))
    assert Agent(a.folder).run().complete_at
    assert not any("training-bbbbbbbbbbbb/000001/" in name for name in sent_objects(folder))


def test_mirror_agent_of_a_folder_that_was_copied_to_another_machine_leaves_a_newer_term_alone(tmp_path, monkeypatch):
    a = machine(tmp_path, "a")
    write_order(a.folder, a.mirror)
    training = f"experiment/training-{a.fingerprint[:12]}"
    acquire(FolderStore(a.mirror.mirror), training, owner=owner_of(a.folder), say=lambda _: None)
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
    assert Agent(a.folder).run().lost


def test_mirror_finished_training_that_another_machine_has_taken_over_is_no_problem_here(sent):
    folder, a = sent()
    b = machine(folder, "b")
    run(b)
    wait_until_sent(b.folder, say=lambda _: None)
    before, said = sent_objects(folder), list[str]()
    a.folder.evaluations.mkdir(exist_ok=True)
    (a.folder.evaluations / "later.json").write_text("{}")
    wait_until_sent(a.folder, say=said.append)
    state = read_state_of(a.folder)
    assert not any("--send" in text for text in said)
    assert (state.problem, state.lost, bool(state.complete_at)) == ("", False, True)
    assert socket.gethostname() in state.in_words
    assert sent_objects(folder) == before, "what is here may be behind"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"resume": "scratch", "request": "once more"}])
def test_mirror_training_that_another_machine_started_over_gives_way_to_that_one(tmp_path, changes):
    """Whether B runs plainly, or is asked for what was carried out on A."""
    b = machine(tmp_path, "b")
    run(b, stop_at=9)
    wait_until_sent(b.folder, say=lambda _: None)
    a = dataclasses.replace(machine(tmp_path, "a"), resume="scratch", request="once more")
    run(a, stop_at=5)
    wait_until_sent(a.folder, say=lambda _: None)
    listener = run(dataclasses.replace(b, **changes))
    assert any("Brought checkpoint_step_5.pt" in text for text in listener.messages)
    assert listener.records[0]["step"] == 6
    [aside] = (b.folder.root / "previous").iterdir()
    assert (aside / "checkpoints" / "checkpoint_step_9.pt").is_file()


def test_mirror_that_is_down_refuses_a_training_that_starts_over(sent):
    folder, a = sent(6)
    shutil.move(folder / "mirror", folder / "unplugged")
    (folder / "mirror").touch()
    with pytest.raises(UserError, match="would come back later"):
        run(dataclasses.replace(a, resume="scratch", request="once more"))
    assert [info.step for info in list_checkpoints(a.folder.checkpoints)] == [4, 6]


def test_mirror_start_that_cannot_be_made_begins_no_term(sent):
    folder, a = sent(6)
    with pytest.raises(UserError, match="checkpoint_step_99"):
        run(dataclasses.replace(a, resume="checkpoint_step_99.pt"))
    assert not any(name.endswith("leases/000002.json") for name in sent_objects(folder))


def test_mirror_keeps_its_own_number_of_checkpoints(tmp_path):
    a = machine(tmp_path, "a", keep_last=1, cadence={"save_every_n_iterations": 2})
    run(a)
    kept = [name.rpartition("/")[2] for name in sent_objects(tmp_path) if "checkpoint_step" in name]
    assert sorted(kept) == ["checkpoint_step_12.json", "checkpoint_step_12.pt"]


@pytest.mark.parametrize("name", ["checkpoint_step_8.pt", "checkpoint_step_12.pt", BEST_NAME])
def test_mirror_lacks_a_checkpoint_that_is_damaged_here_and_says_so(sent, name):
    folder, a = sent()
    shutil.rmtree(folder / "mirror" / "experiment")
    path = a.folder.checkpoints / name
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.unlink()  # it may be one file with another's
    path.write_bytes(content)

    state = Agent(a.folder).run()

    assert f"{name} is damaged" in state.damaged
    assert not state.complete_at
    others = {"checkpoint_step_4.pt", "checkpoint_step_8.pt", "checkpoint_step_12.pt"} - {name}
    assert others <= {each.rpartition("/")[2] for each in sent_objects(folder)}


def test_mirror_that_is_not_there_refuses_a_new_training(tmp_path):
    a = machine(tmp_path, "a")
    gone = dataclasses.replace(a, mirror=dataclasses.replace(a.mirror, mirror=folder_mirror(tmp_path / "x" / "mirror")))
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(UserError, match=r"storage\.mirror: null"):
        run(gone)


@pytest.mark.slow
def test_mirror_that_is_down_lets_a_known_training_go_on_and_is_caught_up_with(tmp_path):
    a = machine(tmp_path, "a")
    order = dataclasses.replace(a.mirror, mirror=folder_mirror(tmp_path / "disk" / "mirror"))
    a = dataclasses.replace(a, mirror=order)
    run(a, stop_at=5)
    wait_until_sent(a.folder, say=lambda _: None)
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    listener = run(a)
    assert any("Training goes on with what is here" in text for text in listener.messages)
    assert any("there is no folder" in text and "The next run sends it" in text for text in listener.messages)
    assert find_finished_training(a.folder, a.fingerprint)
    (tmp_path / "unplugged").rename(tmp_path / "disk")
    wait_until_sent(a.folder, say=lambda _: None)
    deadline = time.monotonic() + 30
    while not read_state_of(a.folder).complete_at:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert any(name.endswith("training.json") for name in FolderStore(order.mirror).sizes("experiment"))
