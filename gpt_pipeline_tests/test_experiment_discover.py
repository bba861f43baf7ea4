"""The experiment files of a folder, each on its own."""

import os
import re
from itertools import pairwise

import pytest

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment import discover
from gpt_pipeline.experiment.discover import find_experiments, load_alone
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline_tests.test_experiment_load import ORIGINAL, SMALL


def named(name: str) -> str:
    return SMALL.replace("Small", name)


@pytest.fixture
def write(tmp_path):
    def writer(**contents: str) -> None:
        for name, content in contents.items():
            (tmp_path / f"{name}.yaml").write_text(content)

    return writer


def test_broken_file_is_reported_and_the_others_are_found(write, tmp_path):
    write(b=named("B"), a="data: [", c=named("C"), d="", e=ORIGINAL)
    (tmp_path / "f.yaml").mkdir()
    (tmp_path / "g.yaml").symlink_to("nowhere")
    found = find_experiments(tmp_path)
    assert [entry.name for entry in found] == ["a", "b", "c", "d", "e", "f", "g"]
    assert [entry.name for entry in found if entry.experiment] == ["b", "c"]
    assert all((entry.problem is None) == (entry.experiment is not None) for entry in found)
    assert "not valid YAML" in found[0].problem
    assert "storage.base_folder: found 'E:" in found[4].problem
    assert "this is a folder" in found[5].problem


_BOMB = "runtime:\n  a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdef")
)
_TOO_LONG = "n" * 300
_POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows takes a folder beside the user's own for another's home")


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ("runtime: &a [*a]\n", "an alias .* leads back to the value that it stands in"),
        (_BOMB, r"found aliases .* that repeat 1,234,550 values, need at most 10,000"),
        (f"start_from: {{hugging_face: ./{_TOO_LONG}}}\n", "weights that can be used"),
        (f"start_from: {{file: {_TOO_LONG}}}\n", "weights that can be used"),
        (f"start_from: {{experiment: {_TOO_LONG}}}\n", "does not exist"),
        ("start_from: {experiment: loop}\n", "does not exist"),
        pytest.param(
            "start_from: {file: ~nobody-of-this-name/x}\n", "a folder of a user whom this machine knows", marks=_POSIX
        ),
        ('family: "\\ud800"\n', "half of a character"),
    ],
)
def test_file_that_leads_astray_is_a_problem_of_its_own_alone(write, tmp_path, added, problem):
    write(bad=named("Bad") + added, good=named("Good"))
    (tmp_path / "loop").symlink_to("loop")
    bad, good = find_experiments(tmp_path)
    with pytest.raises(UserError, match=problem):
        raise UserError(bad.problem)
    with pytest.raises(UserError, match=problem):
        load_alone(bad.file)
    assert good.problem is None


@_POSIX
def test_base_folder_in_the_home_of_nobody_is_a_problem_of_that_experiment_alone(write, tmp_path):
    write(bad=named("Bad").replace("../storage", "~nobody-of-this-name/x"), good=named("Good"))
    bad, good = find_experiments(tmp_path)
    assert "bad.yaml:5: storage.base_folder: found '~nobody-of-this-name/x', need a folder of a user" in bad.problem
    assert good.problem is None


def test_mistake_of_ours_in_one_file_leaves_the_others(write, tmp_path, monkeypatch):
    write(bad=named("Bad"), good=named("Good"))

    def load(file):
        return 1 / 0 if file.stem == "bad" else load_experiment(file)

    monkeypatch.setattr(discover, "load_experiment", load)
    bad, good = find_experiments(tmp_path)
    assert "bad.yaml: ZeroDivisionError" in bad.problem
    assert good.problem is None


def test_order_is_that_of_the_names_and_other_files_are_left_out(write, tmp_path):
    write(**{"Zoo": named("Z"), "ant": named("A"), ".hidden": named("H")})
    (tmp_path / "Bee.yml").write_text(named("B"))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "dagster.yaml").write_text("storage: {}")
    assert [entry.name for entry in find_experiments(tmp_path)] == ["ant", "bee", "zoo"]


def test_second_file_with_the_same_name_is_refused_and_names_the_first(write, tmp_path):
    write(**{"my-idea": named("A"), "my_idea": named("B"), "my idea": named("C")})
    found = find_experiments(tmp_path)
    assert [entry.file.name for entry in found] == ["my idea.yaml", "my-idea.yaml", "my_idea.yaml"]
    assert [entry.name for entry in found] == ["my_idea", "my_idea_2", "my_idea_3"]
    assert [entry.experiment is not None for entry in found] == [True, False, False]
    assert str(tmp_path / "my idea.yaml") in found[2].problem
    assert "rename one of the files" in found[2].problem


def test_copy_with_the_same_experiment_name_is_refused_by_itself_too_and_names_both(write, tmp_path):
    write(a=named("A"), copy=named("A"), other=named("B"))
    with pytest.raises(UserError, match=r"copy\.yaml: experiment_name: would write into .*a\.yaml, .* another name"):
        load_alone(tmp_path / "copy.yaml")
    assert load_alone(tmp_path / "other.yaml").name == "other"


@pytest.mark.parametrize("name", ["UPPER.YAML", "mine.txt", "mine", ".hidden.yaml", "notify.yaml"])
def test_file_that_dagster_would_not_show_is_refused_with_what_is_wrong_with_its_name(tmp_path, name):
    (tmp_path / name).write_text(SMALL)
    with pytest.raises(UserError, match=rf"found the file's name '{re.escape(name)}', need one that ends in \.yaml"):
        load_alone(tmp_path / name)


def test_numbered_name_never_takes_the_name_of_another_file(write, tmp_path):
    write(**{"x": "", "X ": "", "x_2": named("A")})
    found = {entry.file.stem: entry.name for entry in find_experiments(tmp_path)}
    assert sorted(found.values()) == ["x", "x_2", "x_3"]
    assert found["x_2"] == "x_2"


@pytest.mark.parametrize("other", ["Same", "SAME", "Same. "])
def test_second_file_with_the_same_folder_is_refused_and_names_the_first(write, tmp_path, other):
    write(a=named("Same"), b=named(f"'{other}'"), c=named("Same").replace("../storage", "../elsewhere"))
    first, second, third = find_experiments(tmp_path)
    assert first.problem is None
    assert f"would write into the same folder as {tmp_path / 'a.yaml'}" in second.problem
    assert third.problem is None


def test_file_that_is_refused_takes_nothing(write, tmp_path):
    write(a=named("Same"), a_=named("Other"), b=named("Other"))
    assert [entry.file.stem for entry in find_experiments(tmp_path) if entry.experiment] == ["a", "b"]


def test_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_experiments(tmp_path / "nowhere")


@pytest.mark.parametrize("is_link", [False, True])
def test_file_in_place_of_an_experiments_folder_is_a_problem_of_that_experiment_alone(write, tmp_path, is_link):
    write(a=named("A").replace("../storage", "storage"), b=named("B").replace("../storage", "storage"))
    folder = tmp_path / "storage" / "A"
    folder.parent.mkdir()
    folder.symlink_to("nowhere") if is_link else folder.write_text("mine")
    first, second = find_experiments(tmp_path)
    assert "a.yaml:1: experiment_name: found 'A', need a folder, or a place to make one in" in first.problem
    assert second.problem is None
