"""The schema of experiment files, and the files that are written from the same texts."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.keys import block_from, blocks, file_keys, plain
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.new import write_new_experiment
from gpt_pipeline.experiment.recipes import RECIPES
from gpt_pipeline.experiment.schema import SCHEMA_FILE, _block, experiment_schema, schema_text
from gpt_pipeline.experiment.template import render, written
from gpt_pipeline.experiment.values import choices

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
KEYS = {key.path: key for key in (*file_keys(), *(key for block in blocks() for key in block.keys))}
CHECK = jsonschema.Draft7Validator(experiment_schema())

SCALARS = st.one_of(
    st.integers(-3, 2000),
    st.sampled_from([0.5, 0.501, 0.999, 1.0, 1e-4, -0.1]),
    st.sampled_from(["x", "a/b", "sample", "auto", "muon", "model.pt", None, True, False]),
)


def document(path: str, value: object) -> dict[str, object]:
    """Return the smallest file, with one key more or changed."""
    whole: dict[str, object] = {
        "experiment_name": "Mine",
        "data": {"num_samples": 10},
        "storage": {"base_folder": "storage"},
    }
    block, _, name = path.rpartition(".")
    if block:
        inner = dict(whole.get(block) or {})  # type: ignore[call-overload]
        whole[block] = {**inner, name: value}
    else:
        whole[name] = value
    return whole


def loads(folder: Path, whole: dict[str, object]) -> bool:
    file = folder / "mine.yaml"
    lines = []
    for key, value in whole.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {written(inner)}" for name, inner in value.items())]
        else:
            lines.append(f"{key}: {written(value)}")  # type: ignore[arg-type]
    file.write_text("\n".join(lines), encoding="utf-8")
    try:
        load_experiment(file)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("path", list(KEYS))
def test_key_has_text_and_schema_of_its_own(path: str) -> None:
    key = KEYS[path]
    assert key.text.endswith(".")
    properties = experiment_schema()["properties"]
    shown = properties[key.block]["properties"][key.name] if key.block else properties[key.name]
    assert key.text in shown["description"]
    assert not key.block or properties[key.block]["description"].endswith(".")
    assert shown.get("default", "none") == ("none" if key.required else plain(key.default))


@given(path=st.sampled_from(list(KEYS)), value=SCALARS)
def test_schema_where_the_loader_takes_a_value_takes_it_too(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: object
) -> None:
    whole = document(path, value)
    # A text key takes `2024` as the text it is; to an editor it is a number, and better quoted.
    unquoted = str in choices(KEYS[path].hint) and isinstance(value, int | float)
    if loads(tmp_path_factory.getbasetemp(), whole) and not unquoted:
        CHECK.validate(whole)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.num_samples", 0),
        ("data.validation_fraction", 0.51),
        ("data.num_sample", 10),
        ("model.vocab_size", 0),
        ("model.dropout", 1.0),
        ("training.optimizer", "sgd"),
        ("training.learning_rate", "fast"),
        ("training.compile", 3),
        ("evaluation.keep_last", 0),
        ("hardware.device", "gpu"),
        ("unknown", 1),
    ],
)
def test_schema_where_the_loader_refuses_a_value_refuses_it_too(tmp_path: Path, path: str, value: object) -> None:
    whole = document(path, value)
    assert not loads(tmp_path, whole)
    assert not CHECK.is_valid(whole)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """Names of columns."""

    text: str = "text"
    """The column with the text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Where the weights come from."""

    experiment: str
    """An experiment file."""

    columns: Mapping[str, str] | None = None
    """Names of columns."""

    names: Names = dataclasses.field(default_factory=Names)
    """A block within a block."""


def test_block_that_may_be_null_is_optional_in_schema_and_a_comment_in_a_new_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = block_from("start_from", Base | None)
    schema = _block(block)
    check = jsonschema.Draft7Validator(schema)
    assert not block.required
    assert check.is_valid(None)
    assert check.is_valid({"experiment": "a", "columns": {"text": "body"}})
    assert not check.is_valid({"experiment": "a", "columns": {"text": 1}})
    assert not check.is_valid({"columns": None})
    assert not check.is_valid({"experiment": "a", "names": {"txt": "body"}})
    assert schema["properties"]["names"]["properties"]["text"]["default"] == "text"
    assert schema["properties"]["names"]["default"] == {"text": "text"}
    monkeypatch.setattr("gpt_pipeline.experiment.template.blocks", lambda: (block, *blocks()))
    commented = "# start_from:\n# experiment: # An experiment file.\n# columns: null # Names of columns.\n"
    commented += "# names: {text: text} # A block within a block.\n"
    assert commented in re.sub(" +", " ", render(RECIPES["cpu"], every_key=True))
    given = dataclasses.replace(RECIPES["cpu"], values={"start_from.experiment": ("a.yaml", "")})
    assert "\nstart_from:\n  experiment: a.yaml\n" in render(given)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_experiment_loads_and_points_at_the_schema(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    pointer = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", text.splitlines()[0])
    assert pointer is not None
    assert (file.parent / pointer[1]).read_text(encoding="utf-8") == schema_text()
    CHECK.validate(YAML(typ="safe").load(text))
    assert load_experiment(file).config.experiment_name


def test_generated_files_of_the_repository_are_those_of_the_code() -> None:
    found = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("recipe", [None, *RECIPES])
def test_new_experiment_with_all_comments_turned_into_keys_means_the_same(tmp_path: Path, recipe: str | None) -> None:
    file = tmp_path / "experiments" / "my-idea.yaml"
    goes_on = recipe is not None and any(key.startswith("start_from.") for key in RECIPES[recipe].values)
    if goes_on:
        with pytest.raises(UserError, match="name them by --start-from"):
            write_new_experiment(file, recipe=recipe)
        write_new_experiment(tmp_path / "experiments" / "base.yaml")
    base = str(tmp_path / "experiments" / "base.yaml") if goes_on else None
    made = write_new_experiment(file, recipe=recipe, start_from=base)
    text = made.file.read_text(encoding="utf-8")
    names = {key.name for block in blocks() if not block.nullable for key in block.keys}
    optional = sum(len(block.keys) for block in blocks() if block.nullable)
    active = re.sub(r"^  # (\w+): ", lambda m: f"  {m[1]}: " if m[1] in names else m[0], text, flags=re.MULTILINE)
    assert (
        len(re.findall(r"^  \w+: ", active, flags=re.MULTILINE))
        == len(KEYS) - optional - len(file_keys()) + 2 * goes_on
    )
    made.file.write_text(active, encoding="utf-8")
    assert load_experiment(made.file).config == made.config
    assert made.config.experiment_name == "My idea"
    assert made.base_folder == tmp_path / "storage"
    CHECK.validate(YAML(typ="safe").load(text))
    assert (made.file.parent / SCHEMA_FILE).is_file()


def test_new_experiment_with_values_of_ones_own_has_them(tmp_path: Path) -> None:
    made = write_new_experiment(tmp_path / "a b.yaml", num_samples=123, base_folder="it's: here")
    assert made.config.data.num_samples == 123
    assert made.base_folder == tmp_path / "it's: here"


@pytest.mark.parametrize(
    ("name", "asked", "problem"),
    [
        ("data.yaml", {}, "experiment_name: found 'Data'"),
        ("mine.yaml", {"start_from": "missing.pt"}, r"start_from\.file: found '\.\./missing\.pt'"),
        ("mine.yaml", {"num_samples": 0}, r"data\.num_samples: found 0"),
        (
            "mine.yaml",
            {"base_folder": "$SCRATCH/gpt"},
            r"storage\.base_folder: found .* need a folder without variables",
        ),
    ],
)
def test_new_experiment_that_would_be_none_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: dict[str, Any], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem) as refused:
        write_new_experiment(Path("experiments") / name, **asked)
    assert str(refused.value).startswith(f"Nothing was written, since {name} would not be")
    assert not list(tmp_path.iterdir())


def test_new_experiment_where_a_file_is_leaves_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="is there already"):
        write_new_experiment(file)
    assert file.read_text(encoding="utf-8") == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_new_experiment_with_another_ending_names_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml"):
        write_new_experiment(tmp_path / "mine.txt")
    assert not list(tmp_path.iterdir())
