"""The `runtime:` block, written back into the experiment file."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.tokens.batches import BatchSampler
from gpt_pipeline.errors import DataError, UserError
from gpt_pipeline.experiment import runtime
from gpt_pipeline.experiment.document import read_document
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.runtime import runtime_values, with_runtime, write_runtime
from gpt_pipeline.experiment.sizes import training_size
from gpt_pipeline_tests.test_experiment_load import ORIGINAL, SMALL

VALUES = {"parameters": 124412160, "average_tokens_per_sample": 812.25}
FILE = Path("x.yaml")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_bytes(SMALL.encode())
    return path


def block(text: str) -> dict[str, str]:
    """Return the runtime block of an experiment file's text, values as written."""
    entries = next(entry.block for entry in read_document(FILE, text) if entry.key == "runtime")
    return {entry.key: entry.value.text for entry in entries}


def test_runtime_block_is_added_at_the_end_and_read_as_yaml(file):
    assert write_runtime(file, VALUES) is True
    text = file.read_text()
    assert text.startswith(SMALL + "\nruntime:")
    assert block(text) == {"parameters": "124412160", "average_tokens_per_sample": "812.25"}
    assert load_experiment(file).config == load_experiment(_written(file, SMALL)).config


def test_runtime_block_written_again_changes_nothing(file):
    write_runtime(file, VALUES)
    before = file.stat()
    assert write_runtime(file, VALUES) is False
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_runtime_block_is_replaced_as_a_whole_where_it_stands():
    before, after = "# mine\n" + SMALL, "\n# about training\n\ntraining:  # more\n  seed: 1\n"
    old = "runtime:\n  old: 1\n\n  # within\n  older:\n    - 5\n"
    text = with_runtime(FILE, before + old + after, VALUES)
    assert text.startswith(before + "runtime:")
    assert text.endswith("  average_tokens_per_sample: 812.25\n" + after)
    assert block(text).keys() == VALUES.keys()


@pytest.mark.parametrize("old", ["runtime:\n", "runtime: {a: 1}\n", "runtime: 5", '"runtime":\n  a: |\n    x\n'])
def test_runtime_block_of_any_form_is_replaced(old):
    text = with_runtime(FILE, SMALL + old, VALUES)
    assert text == with_runtime(FILE, SMALL + "runtime: {}\n", VALUES)


def test_comments_below_the_block_stay():
    tail = "# to do: try a higher rate\n  # and more data\n"
    assert with_runtime(FILE, SMALL + "runtime:\n  a: 1\n" + tail, VALUES).endswith(".25\n" + tail)


@pytest.mark.parametrize("text", [SMALL.rstrip("\n"), SMALL.replace("\n", "\r\n"), "\ufeff" + SMALL, "---\n" + SMALL])
def test_text_forms_are_kept(text):
    first = with_runtime(FILE, text, VALUES)
    assert first.startswith(text)
    assert ("\r\n" in first) == ("\r\n" in text)
    assert first.replace("\r\n", "").count("\n") == (0 if "\r\n" in text else first.count("\n"))
    assert with_runtime(FILE, first, VALUES) == first


def test_indented_file_gets_its_block_at_the_same_depth():
    text = "".join(f"  {line}\n" for line in SMALL.splitlines())
    first = with_runtime(FILE, text, VALUES)
    assert "\n  runtime:  #" in first
    assert with_runtime(FILE, first, VALUES) == first


@pytest.mark.parametrize(
    "text",
    [
        "{experiment_name: A, data: {num_samples: 1}}\n",
        "{experiment_name: A,\nruntime: {a: 1}\n}\n",
        SMALL + "...\n",
        SMALL + "runtime:\n- 5\n",
        SMALL + "runtime: &r {a: 1}\ntraining: *r\n",
    ],
)
def test_file_without_a_place_for_the_block_is_refused_and_untouched(file, text):
    _written(file, text)
    with pytest.raises(UserError, match="cannot write the `runtime:` block without touching"):
        write_runtime(file, VALUES)
    assert file.read_text() == text


@pytest.mark.parametrize("values", [{"a": float("nan")}, {"a: b": 1}, {"A": 1}])
def test_values_that_are_no_yaml_scalars_are_our_own_mistake(values):
    with pytest.raises(ValueError, match="runtime"):
        with_runtime(FILE, SMALL, values)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither these modes nor links for everyone")
def test_mode_and_link_of_the_file_are_kept(file, tmp_path):
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    write_runtime(link, VALUES)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert "runtime:" in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "small.yaml"]


def test_edit_that_lands_while_the_block_is_written_is_kept(file, monkeypatch):
    edits = iter(["# edited once\n", "# edited twice\n"])
    real = runtime.fsync_file

    def edit_then_sync(path: Path) -> None:
        file.write_text(next(edits, "") + file.read_text())
        real(path)

    monkeypatch.setattr(runtime, "fsync_file", edit_then_sync)
    assert write_runtime(file, VALUES) is True
    assert file.read_text().startswith("# edited twice\n# edited once\n" + SMALL + "\nruntime:")


def test_file_that_is_edited_without_pause_is_left_alone_with_a_clear_error(file, monkeypatch):
    monkeypatch.setattr(runtime, "fsync_file", lambda _: file.write_text("# again\n" + file.read_text()))
    with pytest.raises(UserError, match="the file keeps changing"):
        write_runtime(file, VALUES)
    assert "runtime" not in file.read_text()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user for whom a file can be read-only")
def test_read_only_file_is_a_user_error(file):
    file.chmod(0o444)
    with pytest.raises(UserError, match="read-only"):
        write_runtime(file, VALUES)


_COMMENTS = st.sampled_from(["", "\n", "# a note\n", "   # set off\n", "\n\n# two\n"])
_BLOCKS = [
    "data:\n  num_samples: 100   # few\n",
    "storage: {base_folder: 'E:\\x'}\n",
    'training:\n\n    learning_rate: 6e-4\n  # odd\n    optimizer: "adamw"\n',
    "model:\n",
    "runtime:\n  parameters: 1  # old\n\n  x: 'y'\n",
    "runtime: {parameters: 1, x: [1, 2]}\n",
]


@st.composite
def valid_files(draw: st.DrawFn) -> str:
    """Experiment files: blocks in any order, comments between them, a runtime block anywhere or nowhere."""
    blocks = draw(st.lists(st.sampled_from(_BLOCKS), unique_by=lambda block: block.split(":")[0]))
    name = draw(st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8))
    blocks.insert(draw(st.integers(0, len(blocks))), f"experiment_name: '{name}'  # {name}\n")
    text = "".join(block + draw(_COMMENTS) for block in blocks)
    text = text.rstrip("\n") if draw(st.booleans()) else text
    text = text.replace("\n", "\r\n") if draw(st.booleans()) else text
    return draw(st.sampled_from(["", "\ufeff", "# first\n"])) + text


@settings(deadline=None)
@given(text=valid_files(), numbers=st.dictionaries(st.sampled_from(["a", "b_2", "parameters"]), st.integers()))
def test_text_outside_the_block_is_untouched_in_any_file(text, numbers):
    changed = with_runtime(FILE, text, numbers)
    assert with_runtime(FILE, changed, numbers) == changed
    assert block(changed) == {key: str(number) for key, number in numbers.items()}
    start = changed.index("runtime:")
    size = len(changed[start:]) - len(_after_block(changed[start:]))
    if "runtime:" in text:
        assert text[:start] == changed[:start]
        assert text.endswith(changed[start + size :])
        left = text[start : len(text) - len(changed[start + size :])]
        assert left.split(":")[0] == "runtime"
        assert "\nstorage" not in left
        assert "# two" not in left
    else:
        assert changed[:start].rstrip("\r\n") == text.rstrip("\r\n")
        assert changed[:start].startswith(text)
        assert changed[start + size :] == ""


def _after_block(text: str) -> str:
    """Return what follows the lines that `with_runtime` writes: the key and its two-space lines."""
    lines = text.splitlines(keepends=True)
    count = 1
    while count < len(lines) and lines[count].startswith("  ") and ":" in lines[count]:
        count += 1
    return "".join(lines[count:])


# What stands in it.


def test_runtime_values_of_the_original_experiment(tmp_path):
    config = load_experiment(_written(tmp_path / "original.yaml", ORIGINAL)).config
    size = training_size(config, train_tokens=1_000_000)
    assert runtime_values(config, {"tokens_per_document": 812.3456}, size) == {
        "parameters": 124_412_160,
        "trainable_parameters": 124_412_160,
        "tokens_per_epoch": 244 * 4096,
        "batches_per_epoch": 244,
        "iterations": 488,
        "tokens_per_batch": 4096,
        "average_tokens_per_sample": 812.35,
    }


class _Stream:
    """What `BatchSampler` asks a stream for its length with."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens


@pytest.mark.parametrize("train_tokens", [4097, 8192, 8193, 12_288, 100_000])
def test_training_size_counts_the_steps_that_the_sampler_gives(file, train_tokens):
    config = load_experiment(file).config
    sampler = BatchSampler(stream=_Stream(train_tokens), sequence_length=config.data.max_length, batch_size=8, seed=0)
    assert training_size(config, train_tokens=train_tokens).steps_per_epoch == sampler.steps_per_epoch


def test_training_size_of_too_few_tokens_names_the_tokens_needed(file):
    config = load_experiment(file).config
    with pytest.raises(DataError, match="found 4,096 training tokens, need at least 4,097 for one update of 8"):
        training_size(config, train_tokens=4096)


@pytest.mark.parametrize(
    ("key", "lower"),
    [
        ("batch_size: 8", "lower training.batch_size or data.max_length"),
        ("tokens_per_step: 4096", "lower training.tok"),
    ],
)
def test_training_size_of_too_few_tokens_says_which_key_to_lower(file, key, lower):
    config = load_experiment(_written(file, SMALL + f"training: {{{key}}}\n")).config
    with pytest.raises(DataError, match=lower):
        training_size(config, train_tokens=4096)


def test_training_size_of_too_few_packed_rows_names_the_rows_needed(file):
    config = load_experiment(file).config
    found = r"found 7 sequences of whole documents \(50,000 training tokens\), need at least 8 for one update of 8"
    with pytest.raises(DataError, match=found):
        training_size(config, train_tokens=50_000, rows=7)


def test_training_size_with_max_steps_is_max_steps(file):
    config = load_experiment(_written(file, SMALL + "training: {max_steps: 700, num_epochs: 3}\n")).config
    assert training_size(config, train_tokens=100_000).layout.max_steps == 700


def _written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path
