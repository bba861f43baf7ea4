"""Removing experiments: what goes, what stays, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt_pipeline.cli import main
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import find_shards, prepare_shards
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.progress.removal import plan_removal, remove
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline_tests.projects import TinyProject


def _quiet(text: str) -> None: ...


def _made(project: TinyProject, stem: str, **changes: int) -> Experiment:
    """An experiment with its data and a file in its folder."""
    project.write_experiment(stem, **changes)
    experiment = project.experiment(stem)
    data, folder = experiment.data, experiment.data_folder
    raw = prepare_raw(data, folder, say=_quiet)
    prepare_shards(data, prepare_documents(data, raw, folder, say=_quiet), folder, say=_quiet)
    experiment.folder.checkpoints.mkdir(parents=True)
    (experiment.folder.checkpoints / "best_model.pt").write_bytes(b"0" * 1000)
    return experiment


@pytest.fixture
def project(tmp_path: Path) -> TinyProject:
    return TinyProject(root=tmp_path)


def _trash(experiment: Experiment) -> set[str]:
    return {each.name for each in experiment.base_folder.glob(".trash/*/*")}


def test_removal_of_the_only_experiment_takes_its_data_and_leaves_its_file(project: TinyProject) -> None:
    experiment = _made(project, "a")
    shards = find_shards(experiment.data, experiment.data_folder)
    assert shards is not None
    planned = plan_removal(experiment, file=False)
    assert planned.items[-1].path == experiment.folder.root
    assert planned.items[-1].inside == (("checkpoints", 1000),)
    trash = remove(planned, delete=False)
    assert trash is not None
    assert not experiment.folder.root.exists()
    assert find_shards(experiment.data, experiment.data_folder) is None
    assert {experiment.folder.root.name, shards.folder.name} <= _trash(experiment)
    assert experiment.file.is_file()
    assert plan_removal(experiment, file=False).items == ()


def test_removal_leaves_data_that_another_experiment_uses(project: TinyProject) -> None:
    one, other = _made(project, "a"), _made(project, "b")
    planned = plan_removal(one, file=True)
    assert [item.path for item in planned.items] == [one.folder.root, one.file]
    assert any("token_shards" in text and "used by b.yaml" in text for text in planned.stays)
    remove(planned, delete=True)
    assert find_shards(other.data, other.data_folder) is not None
    assert not one.file.exists()
    assert _trash(one) == set()


@pytest.mark.parametrize("who", ["broken file", "stranger"])
def test_removal_leaves_all_data_where_its_users_are_not_known(project: TinyProject, who: str) -> None:
    experiment = _made(project, "a")
    if who == "stranger":
        (experiment.base_folder / "stranger").mkdir()
        (experiment.base_folder / "stranger" / "job.json").write_text("{}")
    else:
        project.write_experiment("stranger").write_text("experiment_name: [")
    planned = plan_removal(experiment, file=False)
    assert [item.path for item in planned.items] == [experiment.folder.root]
    assert "stranger" in planned.stays[0]


def test_removal_killed_after_any_of_its_moves_is_finished_by_the_next(project: TinyProject) -> None:
    experiment = _made(project, "a")
    count = len(plan_removal(experiment, file=False).items)
    for left in range(count, 0, -1):
        planned = plan_removal(experiment, file=False)
        assert len(planned.items) == left
        first = planned.items[0].path
        target = experiment.base_folder / ".trash" / ".deleting" / "killed"
        target.mkdir(parents=True, exist_ok=True)
        os.rename(first, target / first.name)
    remove(plan_removal(experiment, file=False), delete=True)
    assert _trash(experiment) == set()


def test_removal_of_one_that_trains_is_refused(project: TinyProject) -> None:
    experiment = _made(project, "a")
    with folder_lock(experiment.folder.root, purpose="training"), pytest.raises(UserError, match="training is running"):
        plan_removal(experiment, file=False)


def test_removal_of_one_that_another_starts_from_names_it(project: TinyProject) -> None:
    experiment = _made(project, "a")
    later = project.write_experiment("later")
    text = later.read_text().replace("storage:", "start_from: {experiment: a.yaml}\nstorage:")
    later.write_text("\n".join(line for line in text.splitlines() if not line.startswith("model:")) + "\n")
    with pytest.raises(UserError, match=r"later\.yaml start from it"):
        plan_removal(experiment, file=False)


def test_remove_without_a_terminal_or_yes_changes_nothing(
    project: TinyProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = _made(project, "a")
    monkeypatch.chdir(project.root)
    for arguments, code in ((["remove", str(experiment.file)], 1), (["remove", str(experiment.file), "--yes"], 0)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert (end.value.code or 0) == code
        assert experiment.folder.root.exists() == (code == 1)
    printed = capsys.readouterr()
    assert "give --yes" in printed.err
    assert "1 kB    checkpoints" in printed.out


def test_deleting_one_leaves_what_another_left_in_the_trash_whatever_its_name(project: TinyProject) -> None:
    kept, gone = _made(project, "a.deleting"), _made(project, "b", num_samples=500)
    trash = remove(plan_removal(kept, file=False), delete=False)
    remove(plan_removal(gone, file=False), delete=True)
    assert trash is not None
    assert (trash / kept.folder.root.name / "checkpoints" / "best_model.pt").is_file()
    assert [each.name for each in trash.parent.iterdir()] == [trash.name]
