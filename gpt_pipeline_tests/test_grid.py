"""Families of experiment files, and what a changed value leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.edit import with_value
from gpt_pipeline.experiment.grid import MOST_FILES, parse_values, write_family
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.new import write_new_experiment
from gpt_pipeline.experiment.runtime import write_runtime

BASE = """\
# my notes
experiment_name: Base  # its name
data: {source: sample, num_samples: 300, max_length: 32}
model:
  n_layer: 1
  n_head: 2
  n_embd: 16
training:
  learning_rate: 0.01  # high
  max_steps: 20
  warmup_steps: 2
  # the end of training
storage:
  base_folder: ../storage
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "experiments" / "base.yaml"
    file.parent.mkdir()
    file.write_text(BASE)
    return file


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("training.learning_rate", "0.5", BASE.replace("0.01  #", "0.5  #")),
        ("training.seed", "3", BASE.replace("warmup_steps: 2\n", "warmup_steps: 2\n  seed: 3\n")),
        ("data.seed", "3", BASE.replace("data: {", "data: {seed: 3, ")),
        ("training.muon.nesterov", "false", BASE.replace("s: 2\n", "s: 2\n  muon: {nesterov: false}\n")),
        ("hardware.device", "cpu", BASE + "hardware: {device: cpu}\n"),
        ("family", "'a: b'", BASE + "family: 'a: b'\n"),
    ],
)
def test_value_set_in_a_text_changes_nothing_else(key: str, value: str, changed: str) -> None:
    assert with_value(Path("x.yaml"), BASE, key, value) == changed


@pytest.mark.parametrize("empty", ["", "  # mine", " null", " ~  # mine"])
@pytest.mark.parametrize("rest", ["", BASE])
def test_value_set_in_an_empty_block_is_added_to_it(empty: str, rest: str) -> None:
    changed = with_value(Path("x.yaml"), f"hardware:{empty}\n{rest}", "hardware.device", "cpu")
    comment = "  # mine" if "#" in empty else ""
    assert changed == f"hardware: {{device: cpu}}{comment}\n{rest}"


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_value_added_keeps_line_ends_and_byte_order_mark(ends: str) -> None:
    text = "\ufeff" + BASE.removesuffix("\n").replace("\n", ends)
    changed = with_value(Path("x.yaml"), text, "storage.checkpoint_to_resume", "scratch")
    assert changed == text + ends + "  checkpoint_to_resume: scratch" + ends


@pytest.mark.parametrize("form", ["|-\n  Base", ">-\n  Base\n  one\n", "'Base\n  one'"])
def test_value_set_in_place_of_a_text_over_several_lines_keeps_what_follows(form: str) -> None:
    text = "experiment_name: {}\n# more\ndata: {{num_samples: 1}}\n"
    changed = with_value(Path("x.yaml"), text.format(form), "experiment_name", "New")
    assert changed.split() == text.format("New").split()


def test_value_that_is_an_alias_is_refused() -> None:
    text = BASE.replace("n_layer: 1", "n_layer: &one 1").replace("n_head: 2", "n_head: *one")
    with pytest.raises(UserError, match=r"model\.n_head: cannot set it to 4"):
        with_value(Path("x.yaml"), text, "model.n_head", "4")


def test_family_of_two_keys_has_a_file_for_each_combination(base: Path) -> None:
    values = parse_values(["training.learning_rate=0.001,0.002", "data.seed=1,2"])
    family = write_family(base.with_name("lr.yaml"), base, values)
    assert [file.name for file in family.written] == [
        f"lr-learning_rate-{rate}-seed-{seed}.yaml" for rate in ("0.001", "0.002") for seed in (1, 2)
    ]
    loaded = [load_experiment(file) for file in family.written]
    assert [(each.config.training.learning_rate, each.config.data.seed) for each in loaded] == [
        (0.001, 1),
        (0.001, 2),
        (0.002, 1),
        (0.002, 2),
    ]
    assert {each.config.family for each in loaded} == {"lr"}
    assert loaded[0].display_name == "Lr learning_rate 0.001 seed 1"
    assert "# high" in family.written[0].read_text()
    assert base.read_text() == BASE


def test_family_key_is_in_no_identity(base: Path) -> None:
    family = write_family(base.with_name("lr"), base, parse_values(["training.learning_rate=0.01"]))
    assert family.experiments[0].identity == load_experiment(base).identity


def test_family_written_again_leaves_files_that_a_run_added_its_block_to(base: Path) -> None:
    values = parse_values(["training.learning_rate=0.001,0.002"])
    first = write_family(base.with_name("lr"), base, values).written[0]
    write_runtime(first, {"parameters": 3})
    write_runtime(base, {"parameters": 5})
    text = first.read_text()
    assert write_family(base.with_name("lr"), base, values).written == ()
    assert first.read_text() == text


def test_family_with_a_file_that_differs_is_refused_and_writes_nothing(base: Path) -> None:
    taken = base.with_name("lr-learning_rate-0.002.yaml")
    taken.write_text(BASE.replace("Base", "Mine"))
    with pytest.raises(UserError, match=r"lr-learning_rate-0\.002\.yaml is there already and differs"):
        write_family(base.with_name("lr"), base, parse_values(["training.learning_rate=0.001,0.002"]))
    assert sorted(file.name for file in base.parent.iterdir()) == ["base.yaml", taken.name]


def test_family_whose_folder_another_experiment_has_is_refused(base: Path) -> None:
    base.with_name("other.yaml").write_text(BASE.replace("Base", "Lr learning_rate 0.002"))
    with pytest.raises(UserError, match="would write into the same folder"):
        write_family(base.with_name("lr"), base, parse_values(["training.learning_rate=0.001,0.002"]))
    assert not base.with_name("lr-learning_rate-0.001.yaml").exists()


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("training.learning_rate=0.001,-1", "found -1, need a finite number above 0"),
        ("training/seed=1", r"training/seed: unknown key"),
        ("training.learning_rte=1", r"did you mean training\.learning_rate"),
        (f"training.seed={','.join(map(str, range(MOST_FILES + 1)))}", r"found 101 combinations, need at most 100"),
        ("data.max_length=16,4096", "model.context_length"),
    ],
)
def test_family_with_values_that_do_not_fit_writes_nothing(base: Path, assignment: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        write_family(base.with_name("lr"), base, parse_values([assignment]))
    assert [file.name for file in base.parent.iterdir()] == ["base.yaml"]


def test_family_in_another_folder_than_its_base_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match=r"need the same, since relative paths .* use .*/experiments/lr"):
        write_family(base.parent.parent / "lr", base, parse_values(["training.seed=1"]))


def test_family_of_values_that_no_name_tells_apart_is_numbered(base: Path) -> None:
    values = parse_values(["data.source=../a/b,../a_b"])
    family = write_family(base.with_name("own"), base, {**values, "data.format": ["text"]})
    assert [file.name for file in family.written] == ["own-source-1-format-text.yaml", "own-source-2-format-text.yaml"]


@pytest.mark.parametrize(
    ("assignments", "problem"),
    [
        (["training.seed"], "need KEY=VALUE"),
        (["=1"], "need KEY=VALUE"),
        (["training.seed="], "need a value before and after each comma"),
        (["training.seed=1", "training.seed=2"], "found training.seed twice"),
        (["training.seed=1,1"], "found 1 twice"),
        (["experiment_name=x"], "written by init itself"),
        (["training.muon={a: 1}"], "found a block of keys"),
        (["training.seed=[1"], "need values of YAML"),
    ],
)
def test_values_that_cannot_be_read_say_what_is_needed(assignments: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_values(assignments)


def test_values_with_commas_inside_brackets_and_quotes_are_one_value() -> None:
    assert parse_values(["a.b=[1, 2],'x, y',null"]) == {"a.b": ["[1, 2]", "'x, y'", "null"]}


@pytest.mark.parametrize("is_family", [False, True])
def test_new_file_in_place_of_a_link_that_leads_nowhere_is_refused(base: Path, is_family: bool) -> None:
    link = base.with_name("lr-seed-1.yaml")
    link.symlink_to("gone.yaml")
    with pytest.raises(UserError, match=r"is there already|a link to gone\.yaml, and there is no such file"):
        write_family(base.with_name("lr"), base, parse_values(["training.seed=1,2"])) if is_family else (
            write_new_experiment(link)
        )
    assert link.is_symlink()
    assert not base.with_name("lr-seed-2.yaml").exists()


@pytest.mark.parametrize("rates", ["0.01,1e-2", "0.01,0.02,0.0100"])
def test_family_of_one_value_written_twice_is_refused(base: Path, rates: str) -> None:
    with pytest.raises(UserError, match=r"--set training.learning_rate=0.01,(1e-2|0.0100): found two ways"):
        write_family(base.with_name("lr"), base, parse_values([f"training.learning_rate={rates}", "data.seed=1,2"]))
    assert [file.name for file in base.parent.iterdir()] == ["base.yaml"]


def test_family_of_long_names_is_numbered(base: Path) -> None:
    stem = "x" * 96  # with the value one byte too long
    family = write_family(base.with_name(stem), base, parse_values(["training.learning_rate=0.001,0.002"]))
    assert [file.name for file in family.written] == [f"{stem}-1.yaml", f"{stem}-2.yaml"]
    assert len({each.folder.root for each in family.experiments}) == 2
    told = write_family(base.with_name("x" * 95), base, parse_values(["training.learning_rate=0.001,0.002"]))
    assert told.written[0].name == f"{'x' * 95}-learning_rate-0.001.yaml"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("x" * 300, "found a name of 300 bytes, need at most 120"),
        ("é" * 100, "found a name of 200 bytes, need at most 120"),
        (".hidden", "hidden files are taken for no experiment"),
        ("notify.yaml", "taken for no experiment"),
        ("a\nb", "found the file's name 'a"),
        ("a\udcff", "found the file's name 'a"),
        ("what?", "need letters, digits"),
        ("dot.", "need letters, digits"),
        ("", "found a folder, need a file in it"),
    ],
)
@pytest.mark.parametrize("is_family", [False, True])
def test_new_file_of_an_odd_name_is_refused(base: Path, name: str, problem: str, is_family: bool) -> None:
    new = base.parent / name
    with pytest.raises(UserError, match=problem):
        write_family(new, base, parse_values(["training.seed=1,2"])) if is_family else write_new_experiment(new)
    assert [file.name for file in base.parent.iterdir()] == ["base.yaml"]
