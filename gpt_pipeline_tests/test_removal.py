"""Removing experiments: what goes, what stays, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gpt_pipeline.cli import main
from gpt_pipeline.data.documents import check
from gpt_pipeline.data.documents import stage as documents_stage
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import find_documents, prepare_documents
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.evaluate import _one_at_a_time
from gpt_pipeline.experiment.config import TRASH
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.mirror.order import agent_lock
from gpt_pipeline.progress.data_users import held_users, note_users, record_of, users_of
from gpt_pipeline.progress.failures import last_failure, note_failure
from gpt_pipeline.progress.removal import Removal, _moved, plan_removal, remove
from gpt_pipeline.project import Project
from gpt_pipeline.storage.atomic import write_json
from gpt_pipeline.storage.lock import folder_lock, hold_lock
from gpt_pipeline_tests.projects import TinyProject, make_data
from gpt_pipeline_tests.test_submission import note_of_job


def _quiet(text: str) -> None: ...


Made = Callable[..., Experiment]
"""Writes an experiment, by its file's stem and changes, and makes its data and a file in its folder."""


@pytest.fixture(scope="module")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the sample's raw files, looked at once for all tests, and no user on record."""
    project = TinyProject(root=tmp_path_factory.mktemp("sample"))
    project.write_experiment("sample")
    experiment = project.experiment("sample")
    note_users([experiment], say=_quiet)
    prepare_raw(experiment.data, experiment.data_folder, say=_quiet)
    record_of(experiment).unlink()
    return experiment.data_folder


@pytest.fixture
def made(project: TinyProject, sample_data: Path) -> Made:
    def make(stem: str, **changes: int) -> Experiment:
        project.write_experiment(stem, **changes)
        experiment = project.experiment(stem)
        shutil.copytree(sample_data, experiment.data_folder, dirs_exist_ok=True)
        note_users([experiment], say=_quiet)
        make_data(experiment)
        experiment.folder.checkpoints.mkdir(parents=True)
        (experiment.folder.checkpoints / "best_model.pt").write_bytes(b"0" * 1000)
        return experiment

    return make


def _removed(experiment: Experiment, *, file: bool = False, delete: bool = False) -> list[Path]:
    return remove(experiment, plan_removal(experiment, file=file), file=file, delete=delete)


def _kept_data(planned: Removal, experiment: Experiment) -> bool:
    """Whether nothing of the data goes but the record of who uses it."""
    data = [item.path for item in planned.items if item.path.is_relative_to(experiment.data_folder)]
    return data in ([], [record_of(experiment)])


def _trash(experiment: Experiment) -> set[str]:
    return {each.name for each in experiment.base_folder.glob(".trash/*/*")}


def test_removal_of_the_only_experiment_takes_its_data_and_leaves_its_file(made: Made) -> None:
    experiment = made("a")
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    planned = plan_removal(experiment, file=False)
    [root] = [item for item in planned.items if item.path == experiment.folder.root]
    assert root.inside == (("checkpoints", 1000),)
    remove(experiment, planned, file=False, delete=False)
    assert not experiment.folder.root.exists()
    assert find_shards(experiment.data, experiment.data_folder) is None
    assert {experiment.folder.root.name, shards.folder.name} <= _trash(experiment)
    assert experiment.file.is_file()
    assert plan_removal(experiment, file=False).items == ()


def test_removal_leaves_data_that_another_experiment_uses(made: Made) -> None:
    one, other = made("a"), made("b")
    planned = plan_removal(one, file=True)
    assert [item.path for item in planned.items] == [one.folder.root, record_of(one), one.file]
    assert any("token_shards" in text and "used by b.yaml" in text for text in planned.stays)
    remove(one, planned, file=True, delete=True)
    assert find_shards(other.data, other.data_folder) is not None
    assert not one.file.exists()
    assert _trash(one) == set()


@pytest.mark.parametrize("who", ["broken file", "stranger"])
def test_removal_leaves_all_data_where_its_users_are_not_known(project: TinyProject, made: Made, who: str) -> None:
    experiment = made("a")
    if who == "stranger":
        (experiment.base_folder / "stranger").mkdir()
        (experiment.base_folder / "stranger" / "job.json").write_text("{}")
    else:
        project.write_experiment("stranger").write_text("experiment_name: [")
    planned = plan_removal(experiment, file=False)
    assert _kept_data(planned, experiment)
    assert "stranger" in planned.stays[0]


def test_removal_killed_after_any_of_its_moves_is_finished_by_the_next(made: Made) -> None:
    experiment = made("a")
    count = len(plan_removal(experiment, file=False).items)
    for left in range(count, 0, -1):
        planned = plan_removal(experiment, file=False)
        assert len(planned.items) == left
        first = planned.items[0].path
        target = experiment.base_folder / ".trash" / ".deleting" / "killed"
        target.mkdir(parents=True, exist_ok=True)
        os.rename(first, target / first.name)
    _removed(experiment, delete=True)
    assert _trash(experiment) == set()


def test_removal_of_one_that_trains_is_refused(made: Made) -> None:
    experiment = made("a")
    with folder_lock(experiment.folder.root, purpose="training"), pytest.raises(UserError, match="training is running"):
        plan_removal(experiment, file=False)


def test_removal_of_one_that_is_evaluated_is_refused(made: Made) -> None:
    experiment = made("a")
    with (
        _one_at_a_time(experiment.folder.evaluations, "0" * 64),
        pytest.raises(UserError, match="evaluation is running"),
    ):
        plan_removal(experiment, file=False)


def test_removal_of_one_whose_job_may_be_at_work_elsewhere_is_refused(made: Made) -> None:
    experiment = made("a")
    note = note_of_job(where="http://gone:8265")
    for state, refused in (("waiting", True), ("running", True), ("unknown", False), ("cancelled", False)):
        write_json(experiment.folder.launch, {**dataclasses.asdict(note), "state": state})
        with pytest.raises(UserError, match=r"ray job gpt-a-1.*launch .*a\.yaml --stop") if refused else nullcontext():
            plan_removal(experiment, file=False)


def test_removal_of_one_that_another_starts_from_names_it(project: TinyProject, made: Made) -> None:
    experiment = made("a")
    later = project.write_experiment("later")
    text = later.read_text().replace("storage:", "start_from: {experiment: a.yaml}\nstorage:")
    later.write_text("\n".join(line for line in text.splitlines() if not line.startswith("model:")) + "\n")
    with pytest.raises(UserError, match=r"later\.yaml start from it"):
        plan_removal(experiment, file=False)


def test_remove_without_a_terminal_or_yes_changes_nothing(
    project: TinyProject, made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = made("a")
    monkeypatch.chdir(project.root)
    for arguments, code in ((["remove", str(experiment.file)], 1), (["remove", str(experiment.file), "--yes"], 0)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert (end.value.code or 0) == code
        assert experiment.folder.root.exists() == (code == 1)
    printed = capsys.readouterr()
    assert "give --yes" in printed.err
    assert "1 kB    checkpoints" in printed.out


def test_deleting_one_leaves_what_another_left_in_the_trash_whatever_its_name(made: Made) -> None:
    kept, gone = made("a.deleting"), made("b", num_samples=500)
    [trash] = _removed(kept)
    _removed(gone, delete=True)
    assert (trash / kept.folder.root.name / "checkpoints" / "best_model.pt").is_file()
    assert [each.name for each in trash.parent.iterdir()] == [trash.name]


def test_removal_leaves_nothing_in_the_data_folder_but_its_records_of_users(made: Made) -> None:
    experiment = made("a")
    _removed(experiment, delete=True)
    files = [path for path in experiment.data_folder.rglob("*") if path.is_file() and path.name != ".lock"]
    assert files == [record_of(experiment).with_name("complete")]


@pytest.fixture
def stranger(project: TinyProject, tmp_path: Path) -> TinyProject:
    """A project beside the first, with the same base folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return TinyProject(root=folder)


def _file_of_stranger(stranger: TinyProject, stem: str, **changes: Any) -> Path:
    path = stranger.write_experiment(stem, **changes)
    path.write_text(path.read_text().replace("../storage", "../../storage"))
    return path


def test_removal_leaves_data_that_a_project_elsewhere_uses_which_has_trained_nothing(
    made: Made, stranger: TinyProject
) -> None:
    experiment = made("a")
    file = _file_of_stranger(stranger, "theirs")
    theirs = stranger.experiment("theirs")
    note_users([theirs], say=_quiet)
    planned = plan_removal(experiment, file=False)
    assert _kept_data(planned, experiment)
    assert any("token_shards" in text and f"used by {file}" in text for text in planned.stays)
    _removed(experiment, delete=True)
    assert find_shards(theirs.data, theirs.data_folder) is not None
    _removed(theirs, delete=True)
    assert find_shards(theirs.data, theirs.data_folder) is None


@pytest.mark.parametrize("again", ["another project's file of that name", "the same file, renamed and changed"])
def test_removal_leaves_data_of_each_user_on_record_where_several_have_files_of_one_name(
    made: Made, stranger: TinyProject, tmp_path: Path, again: str
) -> None:
    experiment = made("a")
    file = _file_of_stranger(stranger, "theirs", name="first")
    note_users([stranger.experiment("theirs")], say=_quiet)
    if again.startswith("another"):
        (tmp_path / "further").mkdir()
        stranger = TinyProject(root=tmp_path / "further")
    _file_of_stranger(stranger, "theirs", name="second", num_samples=100)  # of other documents
    note_users([stranger.experiment("theirs")], say=_quiet)
    planned = plan_removal(experiment, file=False)
    assert _kept_data(planned, experiment)
    assert any("token_shards" in text and f"used by {file}" in text for text in planned.stays)


@pytest.mark.parametrize("how", ["base elsewhere", "no experiment"])
def test_removal_leaves_all_data_where_a_user_on_record_cannot_be_read_here(
    made: Made, stranger: TinyProject, how: str
) -> None:
    experiment = made("a")
    file = _file_of_stranger(stranger, "theirs")
    note_users([stranger.experiment("theirs")], say=_quiet)
    record = record_of(stranger.experiment("theirs"))
    text = record.read_text()
    changed = text.replace("../../storage", "/mnt/theirs") if how == "base elsewhere" else text.replace("n_layer", "n_")
    assert changed != text
    record.write_text(changed)
    planned = plan_removal(experiment, file=False)
    assert _kept_data(planned, experiment)
    assert str(file) in planned.stays[0]
    assert f"delete {record}" in planned.stays[0]


def test_removal_leaves_data_that_is_older_than_the_records_until_the_user_vouches_for_it(
    made: Made,
) -> None:
    experiment = made("a")
    shutil.rmtree(record_of(experiment).parent)
    note_users([experiment], say=_quiet)  # by a run of this version, years later
    planned = plan_removal(experiment, file=False)
    assert _kept_data(planned, experiment)
    complete = record_of(experiment).with_name("complete")
    assert f"make an empty file {complete}" in planned.stays[0]
    complete.touch()
    assert not _kept_data(plan_removal(experiment, file=False), experiment)


def test_removal_leaves_parts_of_an_experiment_that_is_half_made(project: TinyProject, made: Made) -> None:
    experiment = made("a")
    project.write_experiment("b", name="b").write_text(
        project.write_experiment("b").read_text().replace("validation_fraction: 0.1", "validation_fraction: 0.2")
    )
    other = project.experiment("b")  # whose documents stage is not put together yet, while its parts are there
    documents = find_documents(other.data, other.data_folder)
    assert documents is not None
    (documents.folder / "manifest.json").unlink()
    planned = plan_removal(experiment, file=False)
    kinds = {path.name.rpartition("-")[0] for path in (item.path for item in planned.items)}
    assert {"document_tokens", "token_shards"} <= kinds
    assert not kinds & {"document_index", "english_documents", "english_parquet", "raw_synth"}


@pytest.mark.parametrize("is_forced", [False, True])
def test_removal_takes_what_an_earlier_version_made_of_texts_called_by_their_names(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, is_forced: bool
) -> None:
    texts = project.root / "own" / "texts.txt"
    texts.parent.mkdir()
    texts.write_text("".join(f"Line {number} follows {number - 1}.\n" for number in range(60)), encoding="utf-8")
    settings = "source: ../own, format: text, columns: {}, split_text_at: line, kind: file, near_duplicates: 0.9"
    path = project.write_experiment("a", num_samples="all")
    path.write_text(path.read_text().replace("source: sample", settings).replace("max_length: 32", "max_length: 8"))
    experiment = project.experiment("a")
    note_users([experiment], say=_quiet)
    with monkeypatch.context() as earlier:
        for module in (check, documents_stage):
            earlier.setattr(module, "content_of", lambda name, sha256, wanted: sha256)
        _prepare(experiment)
    if is_forced:
        _prepare(experiment, force=True)
    parts = [*(experiment.data_folder / "parts").iterdir()]
    assert len(parts) == 4 * (1 + is_forced)  # index, signatures, documents, tokens
    _removed(experiment, delete=True)
    assert not [each for each in parts if each.exists()]


def _prepare(experiment: Experiment, *, force: bool = False) -> None:
    data, folder = experiment.data, experiment.data_folder
    documents = prepare_documents(data, prepare_raw(data, folder, force=force), folder, force=force)
    prepare_shards(data, documents, folder, force=force)


def test_removal_leaves_all_data_while_the_files_of_one_that_has_begun_are_not_known(
    project: TinyProject, made: Made
) -> None:
    experiment = made("a")
    project.write_experiment("b", num_samples=20_000)
    note_users([project.experiment("b")], say=_quiet)
    planned = plan_removal(experiment, file=False)
    assert _kept_data(planned, experiment)
    assert "b.yaml has begun to use it" in planned.stays[0]


def test_removal_of_one_that_is_being_sent_to_its_mirror_is_refused(made: Made) -> None:
    experiment = made("one")
    lock = agent_lock(experiment.folder)
    lock.parent.mkdir()
    with hold_lock(lock), pytest.raises(UserError, match="being sent to the mirror"):
        plan_removal(experiment, file=False)


def test_removal_of_data_without_a_users_folder_can_hold_it(tmp_path: Path) -> None:
    with held_users(tmp_path / "data"):
        assert users_of(tmp_path / "data") == []


def test_removal_of_something_else_than_was_shown_is_refused_and_changes_nothing(made: Made) -> None:
    experiment = made("a")
    shown = plan_removal(experiment, file=False)
    made("b")  # which uses the data, too
    with pytest.raises(UserError, match="something has changed since it was shown"):
        remove(experiment, shown, file=False, delete=True)
    assert experiment.folder.root.is_dir()
    assert _trash(experiment) == set()


def test_folder_whose_lock_is_taken_as_it_moves_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with (
        folder_lock(folder, purpose="training"),
        pytest.raises(UserError, match=r"process .* \(training.* has just begun to work there"),
    ):
        _moved(folder, tmp_path, Path("now"))
    assert folder.is_dir()
    assert [*(tmp_path / TRASH / "now").iterdir()] == []


def test_user_is_put_on_record_only_once_a_removal_is_through(project: TinyProject, made: Made) -> None:
    experiment = made("a")
    project.write_experiment("b")
    other = project.experiment("b")
    thread = threading.Thread(target=note_users, args=[[other]], kwargs={"say": _quiet})
    with held_users(experiment.data_folder):
        thread.start()
        thread.join(0.2)
        assert not record_of(other).exists()
    thread.join()
    assert record_of(other).is_file()


def test_user_that_cannot_be_put_on_record_is_told_and_goes_on(project: TinyProject) -> None:
    project.write_experiment("a")
    experiment = project.experiment("a")
    experiment.base_folder.mkdir()
    experiment.data_folder.write_text("in the way")
    said: list[str] = []
    note_users([experiment], say=said.append)
    assert "a.yaml cannot be put on record" in said[0]


def test_user_whose_record_is_damaged_is_put_on_record_anew(project: TinyProject) -> None:
    project.write_experiment("a")
    experiment = project.experiment("a")
    record_of(experiment).parent.mkdir(parents=True)
    record_of(experiment).write_text("[")
    with pytest.raises(UserError, match="found no record of an experiment"):
        users_of(experiment.data_folder)
    note_users([experiment], say=_quiet)
    assert [user.file for user in users_of(experiment.data_folder)] == [str(experiment.file)]


def test_removal_of_a_link_says_that_its_target_stays(made: Made, tmp_path: Path) -> None:
    experiment = made("a")
    root, target = experiment.folder.root, tmp_path / "large_disk"
    root.rename(target)
    root.symlink_to(target)
    planned = plan_removal(experiment, file=False)
    assert any(text.startswith(f"{target}: only the link to it goes") for text in planned.stays)
    assert [item.size for item in planned.items if item.path == root] == [0]
    _removed(experiment, delete=True)
    assert not root.is_symlink()
    assert (target / "checkpoints" / "best_model.pt").is_file()


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    disk = Path("/dev/shm")
    if not disk.is_dir() or disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two disks")
    folder = disk / f"gpt_pipeline-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("delete", [False, True])
def test_removal_of_data_on_another_disk_uses_a_trash_there(
    project: TinyProject, made: Made, other_disk: Path, delete: bool
) -> None:
    project.write_experiment("a")
    folder = project.experiment("a").data_folder
    folder.parent.mkdir()
    folder.symlink_to(other_disk)
    experiment = made("a")
    trash = _removed(experiment, delete=delete)
    assert find_shards(experiment.data, folder) is None
    assert ({each.parent for each in trash} >= {folder / TRASH, folder.parent / TRASH}) == (not delete)
    left = list(other_disk.rglob("*.bin"))
    assert bool(left) == (not delete)
    assert all(TRASH in path.parts for path in left)


def test_removal_takes_the_note_of_the_last_failure(made: Made) -> None:
    experiment = made("a")
    here = Project.of_experiments(experiment.file.parent)
    here.history.mkdir()
    note_failure(here, "a", job="run_a", text="out of memory")
    _removed(experiment)
    assert last_failure(here, "a") is None
    assert "a.json" in _trash(experiment)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("storage:", "start_from: {file: ../storage/a/checkpoints/best_model.pt}\nstorage:", "start_from"),
        ("source: sample", "source: ../storage/a/texts, format: text", r"data\.source"),
        ("../storage", "../storage/a/more", r"storage\.base_folder"),
    ],
)
def test_removal_of_a_folder_in_which_another_keeps_something_names_it(
    project: TinyProject, made: Made, old: str, new: str, what: str
) -> None:
    experiment = made("a")
    (experiment.folder.root / "texts").mkdir()
    (experiment.folder.root / "texts" / "one.txt").write_text("one")
    later = project.write_experiment("later")
    lines = later.read_text().replace(old, new).splitlines()
    later.write_text("\n".join(line for line in lines if what != "start_from" or not line.startswith("model:")) + "\n")
    with pytest.raises(UserError, match=rf"later\.yaml needs .* in it \({what}\)"):
        plan_removal(experiment, file=False)


def test_removal_of_a_folder_that_holds_the_projects_files_is_refused(project: TinyProject) -> None:
    path = project.write_experiment("a", name="experiments")
    path.write_text(path.read_text().replace("../storage", ".."))
    with pytest.raises(UserError, match=r"a\.yaml lies in it \(its file\)"):
        plan_removal(project.experiment("a"), file=False)
