"""The experiment file, read and checked."""

import dataclasses
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.experiment import reading
from gpt_pipeline.experiment.config import ExperimentConfig, StorageConfig, contradictions
from gpt_pipeline.experiment.document import read_document
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.problems import ExperimentFileError
from gpt_pipeline.training.config import HardwareConfig, TrainingConfig

ORIGINAL = r"""experiment_name: Traditional Small GPT 2 - Samples 2M
data:       {num_samples: 2000000, max_length: 512}
training:   {batch_size: 8, num_epochs: 2, learning_rate: 0.0003, weight_decay: 0.1, gradient_clip: 1.0, warmup_steps: 500}
evaluation: {eval_freq: 500, eval_iters: 20, save_every_n_iterations: 1000}
storage:    {base_folder: 'E:\GPT_SANDBOX_STORAGE', checkpoint_to_resume: null}   # or "checkpoint_step_50000.pt"
hardware:   {device: cuda}
"""  # noqa: E501
SMALL = """\
experiment_name: Small
data:
  num_samples: 100
storage:
  base_folder: ../storage
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes an experiment file and returns its path."""

    def writer(content: str | bytes, name: str = "small.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


@pytest.fixture
def problems(write):
    """Return a function from a file's content to its problems, each without the file's name."""

    def reader(content: str | bytes) -> list[str]:
        path = write(content)
        with pytest.raises(ExperimentFileError) as caught:
            load_experiment(path)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(str(path)) for line in lines)
        return [line.removeprefix(str(path)).removeprefix(":") for line in lines]

    return reader


# What loads.


@pytest.mark.parametrize("form", ["as it is", "CRLF", "BOM", "CRLF and BOM", "old Mac"])
def test_original_file_loads_unchanged_in_every_text_form(write, form):
    text = ORIGINAL
    if "CRLF" in form:
        text = text.replace("\n", "\r\n")
    if "Mac" in form:
        text = text.replace("\n", "\r")
    if "BOM" in form:
        text = "\ufeff" + text
    config = load_experiment(write(text)).config
    assert config.experiment_name == "Traditional Small GPT 2 - Samples 2M"
    assert (config.data.num_samples, config.data.max_length) == (2_000_000, 512)
    assert (config.training.learning_rate, config.training.warmup_steps) == (3e-4, 500)
    assert config.storage.base_folder == "E:\\GPT_SANDBOX_STORAGE"
    assert config.storage.checkpoint_to_resume is None
    assert config.hardware.device == "cuda"
    assert config.model.n_embd == 768


def test_mark_and_columns_of_ones_own_may_hold_line_ends_and_paths_may_not(write, problems):
    block = 'data: {num_samples: all, source: ./texts, format: text, split_text_at: "\\n\\n", columns: {text: "a\\tb"}}'
    rest = "\nexperiment_name: Own\nstorage: {base_folder: ./storage}\n"
    data = load_experiment(write(f"{block}{rest}")).config.data
    assert (data.split_text_at, data.columns.text) == ("\n\n", "a\tb")
    (found,) = problems(block.replace("./texts", '"./\\texts"') + rest)
    assert "data.source: found './\\texts', need text; a backslash in double quotes starts an escape" in found


def test_windows_folder_on_posix_loads_and_names_key_and_remedy_when_asked_for(write, monkeypatch):
    monkeypatch.setattr("os.name", "posix")
    path = write(ORIGINAL)
    experiment = load_experiment(path)
    with pytest.raises(ConfigError) as caught:
        _ = experiment.base_folder
    text = str(caught.value)
    assert text.startswith(f"{path}:5: storage.base_folder: found 'E:\\GPT_SANDBOX_STORAGE', need a path on this")
    assert "set storage.base_folder to one here" in text


def test_folders_of_an_experiment_start_at_its_file(write, tmp_path):
    text = SMALL + "hardware: {device: cpu}\n"
    experiment = load_experiment(write(text.replace("  num", "  local_dataset_path: raw\n  num"), "My idea-2.yaml"))
    assert experiment.name == "my_idea_2"
    assert experiment.display_name == "Small"
    assert experiment.base_folder == tmp_path.parent / "storage"
    assert experiment.data_folder == tmp_path.parent / "storage" / "data"
    assert experiment.folder.root == tmp_path.parent / "storage" / "Small"
    assert experiment.data == dataclasses.replace(experiment.config.data, local_dataset_path=str(tmp_path / "raw"))


@pytest.mark.parametrize("below", ["", "/in/it"])
def test_base_folder_in_whose_place_a_file_lies_is_refused_with_place_and_remedy(write, tmp_path, below):
    (tmp_path.parent / "taken").write_text("")
    path = write(SMALL.replace("../storage", f"../taken{below}"))
    with pytest.raises(ConfigError) as caught:
        _ = load_experiment(path).folder
    text = str(caught.value)
    assert f"storage.base_folder: found '../taken{below}', need a folder" in text
    assert f"{tmp_path.parent / 'taken'} is a file" in text
    assert text.endswith("set storage.base_folder to another folder")


@pytest.mark.parametrize("folder", ["$SCRATCH/gpt", "${HOME}/gpt", "%USERPROFILE%/gpt"])
def test_base_folder_with_a_variable_is_refused_unless_a_folder_has_that_very_name(write, tmp_path, folder):
    experiment = load_experiment(write(SMALL.replace("../storage", f"'{folder}'")))
    with pytest.raises(ConfigError, match="a folder without variables, which are not replaced here"):
        _ = experiment.base_folder
    (tmp_path / folder).mkdir(parents=True)
    assert experiment.base_folder == tmp_path / folder


def test_folders_stay_where_they_are_when_the_working_directory_changes(write, tmp_path, monkeypatch):
    monkeypatch.chdir(write(SMALL).parent)
    experiment = load_experiment(Path("small.yaml"))
    monkeypatch.chdir("/")
    assert experiment.base_folder == tmp_path.parent / "storage"


def test_cadence_is_what_the_evaluation_block_says(write):
    cadence = load_experiment(write(SMALL + "evaluation: {eval_freq: 7, keep_last: 2}\n")).cadence
    assert dataclasses.asdict(cadence) == {
        "eval_freq": 7,
        "eval_iters": 20,
        "save_every_n_iterations": 1000,
        "keep_last": 2,
    }


def test_sizes_of_an_update_are_derived(write):
    text = SMALL + "training: {tokens_per_step: 8192, micro_batch_size: 2}\nhardware: {num_gpus: 4}\n"
    config = load_experiment(write(text)).config
    assert (config.tokens_per_step, config.sequences_per_step) == (8192, 16)
    assert config.grad_accum_steps == 2
    plain = load_experiment(write(SMALL)).config
    assert (plain.tokens_per_step, plain.sequences_per_step) == (4096, 8)
    assert plain.grad_accum_steps == 1
    large = load_experiment(write(SMALL + "training: {micro_batch_size: 100}\n")).config
    assert large.grad_accum_steps == 1


@pytest.mark.parametrize("block", ["training:\n", "training: {}\n", "training: ~\n", "training: # later\n", ""])
def test_empty_optional_block_has_its_defaults(write, block):
    assert load_experiment(write(SMALL + block)).config == load_experiment(write(SMALL)).config


@pytest.mark.parametrize("runtime", ["runtime:\n  parameters: 1\n  x: [1, {a: 2}]\n", "runtime: 5\n", "runtime:\n"])
def test_runtime_block_decides_nothing(write, runtime):
    assert load_experiment(write(SMALL + runtime)).config == load_experiment(write(SMALL)).config


@pytest.mark.parametrize(
    ("written", "value"),
    [("1000", 1000), ("1_000", 1000), ("1e3", 1000), ("1000.0", 1000), ("2.5e3", 2500), ("+7", 7), ("1E+2", 100)],
)
def test_whole_number_is_read_in_every_plain_form(write, written, value):
    read = load_experiment(write(SMALL.replace("100", written))).config.data.num_samples
    assert read == value
    assert type(read) is int


@pytest.mark.parametrize(
    ("written", "value"), [("6e-4", 6e-4), ("6E-04", 6e-4), ("1", 1.0), (".5", 0.5), ("0.0003", 3e-4), ("1e-3", 1e-3)]
)
def test_number_is_read_as_float_in_every_plain_form(write, written, value):
    read = load_experiment(write(SMALL + f"training: {{learning_rate: {written}}}\n")).config.training.learning_rate
    assert read == value
    assert type(read) is float


@pytest.mark.parametrize("revision", ["0123456", "1e10", "123_456", "0x12", "true", "no", "1.10"])
def test_text_key_takes_exactly_what_is_written(write, revision):
    text = SMALL.replace("  num", f"  revision: {revision}\n  num")
    assert load_experiment(write(text)).config.data.revision == revision


@pytest.mark.parametrize(("written", "value"), [("true", True), ("False", False), ("auto", "auto"), ("'auto'", "auto")])
def test_boolean_or_word_is_read_as_what_it_is(write, written, value):
    assert load_experiment(write(SMALL + f"training: {{compile: {written}}}\n")).config.training.compile is value


def test_anchors_and_flow_style_mean_what_yaml_says(write):
    text = "{experiment_name: &n A, data: {num_samples: &n 64, max_length: *n}, storage: {base_folder: x}}"
    data = load_experiment(write(text)).config.data
    assert (data.num_samples, data.max_length) == (64, 64)


@pytest.mark.parametrize("form", ["Two lines", ">-\n  Two\n  lines", "|-\n  Two lines", "'Two\n  lines'"])
def test_text_over_several_lines_is_what_yaml_says(write, form):
    assert load_experiment(write(SMALL.replace("Small", form))).config.experiment_name == "Two lines"


# Shapes of blocks that a config class may have.


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

    checkpoint: str = "best"
    """Which checkpoint."""

    columns: Mapping[str, str] | None = None
    """Names of columns."""

    names: Names = dataclasses.field(default_factory=Names)
    """A block within a block."""

    count: int | Literal["all"] | None = 5
    """How many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    start_from: Base | None = None


@pytest.fixture
def read_whole(write):
    """Return a function from a file's content to the values of `Whole` and the problems found."""

    def reader(content: str):
        one = reading.Reading()
        values = one.block(Whole, read_document(write(content), content), section="", line=None)
        return values, [problem.text for problem in one.problems]

    return reader


def test_block_that_may_be_null_is_null_or_its_class(read_whole):
    assert read_whole("start_from:\n") == ({"start_from": None}, [])
    assert read_whole("start_from: null\n") == ({"start_from": None}, [])
    text = "start_from: {experiment: a.yaml, columns: {text: body, 1: '2'}, names: {text: body}, count: all}\n"
    expected = Base(experiment="a.yaml", columns={"text": "body", "1": "2"}, names=Names(text="body"), count="all")
    assert read_whole(text) == ({"start_from": expected}, [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("start_from: a.yaml", "start_from: found 'a.yaml', need keys indented below `start_from:`; write one"),
        ("start_from: {}", "start_from.experiment: missing, need text"),
        ("start_from: {experiment: a, columns: body}", "start_from.columns: found 'body', need `name: text` lines or"),
        ("start_from: {experiment: a, columns: {t: [1]}}", "start_from.columns.t: found a list, need text"),
        ("start_from: {experiment: a, columns: {t: b, t: c}}", "start_from.columns.t: found twice, first in line 1"),
        ("start_from: {experiment: a, chekpoint: b}", "start_from.chekpoint: unknown key; did you mean start_from.ch"),
        (
            "start_from: {experiment: a, names: {txt: b}}",
            "start_from.names.txt: unknown key; did you mean start_from.n",
        ),
        ("start_from: {experiment: a, names: b}", "start_from.names: found 'b', need keys indented below `names:`"),
        (
            "start_from: {experiment: a, count: many}",
            "start_from.count: found 'many', need a whole number, `all` or null",
        ),
    ],
)
def test_block_that_may_be_null_is_checked_as_any_other(read_whole, content, expected):
    values, problems = read_whole(content)
    assert values == {}
    assert len(problems) == 1
    assert problems[0].startswith(expected)


# What is refused, and in which words.

CASES = {
    "unknown key": (
        "training: {lerning_rate: 1}",
        "6: training.lerning_rate: unknown key; did you mean training.learn",
    ),
    "wrong case": (
        "training: {Batch_Size: 1}",
        "6: training.Batch_Size: unknown key; did you mean training.batch_size?",
    ),
    "other block's key": ("training: {n_layer: 2}", "6: training.n_layer: unknown key here, it belongs to `model:`"),
    "near another block's": (
        "training: {n_layers: 2}",
        "6: training.n_layers: unknown key; did you mean model.n_layer",
    ),
    "key without its block": ("batch_size: 4", "6: batch_size: unknown key here, it belongs to `training:`; move it"),
    "unlike any key": (
        "hardware: {zzz: 2}",
        "6: hardware.zzz: unknown key, need one of device, num_gpus, launcher, slurm",
    ),
    "unknown block": ("trainin: {}", "6: trainin: unknown key; did you mean training?"),
    "merge key": ("training: {<<: {seed: 1}}", "6: training.<<: unknown key: YAML 1.2 merges no blocks; write the"),
    "line break in a key": ('training: {"a\\nb": 1}', "6: training.a\\nb: unknown key"),
    "list as key": ("training: {[a]: 1}", "6: training.?: unknown key"),
    "text for a number": (
        "training: {learning_rate: abc}",
        "6: training.learning_rate: found 'abc', need a finite number above 0",
    ),
    "quoted number": (
        "training: {batch_size: '8'}",
        "6: training.batch_size: found '8', need a whole number above 0; remove the quotes",
    ),
    "quoted null": (
        "training: {max_steps: 'null'}",
        "6: training.max_steps: found 'null', need a whole number above 0, or",
    ),
    "quoted boolean": (
        "model: {qkv_bias: 'true'}",
        "6: model.qkv_bias: found 'true', need true or false; remove the q",
    ),
    "fraction": ("training: {batch_size: 8.5}", "6: training.batch_size: found 8.5, need a whole number above 0"),
    "out of range": ("training: {batch_size: 0}", "6: training.batch_size: found 0, need a whole number above 0"),
    "negative": (
        "model: {dropout: -0.1}",
        "6: model.dropout: found -0.1, need a number from 0 up to, not including, 1",
    ),
    "leading zero": (
        "training: {batch_size: 017}",
        "6: training.batch_size: found 017, need a whole number above 0; write",
    ),
    "octal": (
        "training: {seed: 0o17}",
        "6: training.seed: found 0o17, need a whole number, 0 or above; write it with dec",
    ),
    "huge": (f"training: {{seed: {'9' * 5000}}}", "6: training.seed: found '9999"),
    "huge exponent": (
        "training: {seed: 1e999999999}",
        "6: training.seed: found 1e999999999, need a whole number, 0 or",
    ),
    "above 64 bits": (
        "training: {seed: 9223372036854775808}",
        "6: training.seed: found 9223372036854775808, need a whole number, 0 or above; it does not fit into 64 bits",
    ),
    "inexact exponent": ("training: {seed: 1e17}", "6: training.seed: found 1e17, need a whole number"),
    "infinite": (
        "training: {weight_decay: .inf}",
        "6: training.weight_decay: found '.inf', need a number in [0, 1); infi",
    ),
    "not a number": (
        "training: {learning_rate: .NaN}",
        "6: training.learning_rate: found '.NaN', need a finite number a",
    ),
    "overflow": (
        "training: {learning_rate: 1e400}",
        "6: training.learning_rate: found 1e400, need a finite number above",
    ),
    "more than a state file holds": (
        "training: {gradient_clip: 1e39}",
        "6: training.gradient_clip: found 1e39, need a finite number above 0; numbers end at 1.7e+38",
    ),
    "decimal comma": (
        "training:\n  learning_rate: 0,01",
        "7: training.learning_rate: found 0,01, need a finite number abov",
    ),
    "yes": ("model: {tie_weights: yes}", "6: model.tie_weights: found 'yes', need true or false; write true (YAML 1.2"),
    "Off": ("training: {compile: Off}", "6: training.compile: found 'Off', need true or false or `auto`; write false"),
    "number for a boolean": ("model: {qkv_bias: 1}", "6: model.qkv_bias: found 1, need true or false"),
    "boolean for a number": (
        "training: {batch_size: true}",
        "6: training.batch_size: found 'true', need a whole number ab",
    ),
    "unlike any word": (
        "hardware: {device: tpu}",
        "6: hardware.device: found 'tpu', need `auto`, `cpu`, `cuda`, `mps` or `xpu`",
    ),
    "word in capitals": (
        "hardware: {device: CUDA}",
        "6: hardware.device: found 'CUDA', need `auto`, `cpu`, `cuda`, `mps` or `xpu`; did",
    ),
    "nothing": (
        "training: {batch_size: }",
        "6: training.batch_size: found nothing, need a whole number above 0; give a v",
    ),
    "null": ("training: {batch_size: null}", "6: training.batch_size: found 'null', need a whole number above 0"),
    "list": ("training: {batch_size: [8]}", "6: training.batch_size: found a list, need a whole number above 0"),
    "block": (
        "training: {batch_size: {a: 8}}",
        "6: training.batch_size: found a block of keys, need a whole number abo",
    ),
    "block as number": ("training: 5", "6: training: found 5, need keys indented below `training:`"),
    "block as list": ("training:\n- batch_size: 5", "6: training: found a list, need keys indented below `training:`"),
    "no space": (
        "training:\n  batch_size:5",
        "6: training: found 'batch_size:5', need keys indented below `training:`; wr",
    ),
    "twice": (
        "training:\n  seed: 1\n  seed: 1",
        "8: training.seed: found twice, first in line 7, need it once; remove one",
    ),
    "block twice": ("data: {num_samples: 5}", "6: data: found twice, first in line 2, need it once; remove one"),
    "runtime twice": ("runtime: {}\nruntime: {}", "7: runtime: found twice, first in line 6, need it once; remove one"),
    "tag": ("training: {seed: !!python/name:os.system 1}", "6: found the tag"),
    "own tag": ("training: {seed: !dice 1}", "6: found the tag '!dice'; remove it, or quote the value"),
    "default against value": (
        "model: {n_head: 7}",
        "6: model.n_embd: found 768 (the default), need a multiple of n_head=7",
    ),
    "tab": (
        "training:\n\tseed: 1",
        "7: not valid YAML: found character '\\t' that cannot start any token; indent with sp",
    ),
    "two documents": (
        "---\na: 1",
        "6: not valid YAML: found another document; keep one experiment in a",
    ),
    "open quote": (
        "training:\n  lr_schedule: 'cosine\n\n",
        "7: not valid YAML: found unexpected end of stream; close the",
    ),
    "open bracket": (
        "training: {seed: 1",
        "6: not valid YAML: expected ',' or '}', but got '<stream end>'; close the b",
    ),
    "bad indentation": (
        "training:\n  seed: 1\n seed: 2",
        "8: not valid YAML: expected <block end>, but found '<block map",
    ),
    "two colons": (
        "training: seed: 1",
        "6: not valid YAML: mapping values are not allowed here; check the indentation a",
    ),
    "bound without quotes": (
        "training:\n  seed: >= 3",
        "7: not valid YAML: expected chomping or indentation indicators, but found '='; put text that starts with `>`",
    ),
    "NUL": ("training: \x00", "6: character '\\x00' is not allowed in YAML; remove it"),
}


@pytest.mark.parametrize("case", CASES)
def test_problem_is_one_line_with_line_number_key_value_and_need(problems, case):
    content, expected = CASES[case]
    found = problems(SMALL + content + "\n")
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", " the file is empty; start with `experiment_name:`"),
        ("# nothing yet\n", " the file is empty"),
        ("- a\n- b\n", "1: found a list, need `key: value` lines"),
        ("\n\njust words\n", "3: found 'just words', need `key: value` lines"),
        ("[" * 500, " not a YAML file"),
        (b"experiment_name: A\ndata: \xe9\n", "2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (SMALL.encode("utf-16"), " the file is UTF-16; save it as UTF-8"),
        (b"x" * 2_000_000, " found 2000000 bytes; an experiment file is a YAML text of a few lines"),
        (SMALL.replace("Small", "../../etc"), "1: experiment_name: found '../../etc', need a name that stays inside"),
        (
            SMALL.replace("Small", "Data"),
            "1: experiment_name: found 'Data', need another name: the folder `data` holds",
        ),
        (
            SMALL.replace("Small", ".Trash"),
            "1: experiment_name: found '.Trash', need another name: `gpt-pipeline remove`",
        ),
        (SMALL.replace("Small", ""), "1: experiment_name: found nothing, need text"),
        (SMALL.replace("Small", "[a]"), "1: experiment_name: found a list, need text"),
        (SMALL.replace("../storage", "''"), "5: storage.base_folder: found '', need the path of a folder"),
        (
            SMALL.replace("../storage", r'"E:\GPT"'),
            "5: not valid YAML: found unknown escape character 'G'; write a Wind",
        ),
        (
            SMALL.replace("../storage", r'"E:\new\table"'),
            r"5: storage.base_folder: found 'E:\new\table', need text; a b",
        ),
        (SMALL.replace("100", ""), "3: data.num_samples: found nothing, need a whole number above 0"),
    ],
)
def test_file_that_is_no_experiment_says_so_in_one_line(problems, content, expected):
    found = problems(content)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_missing_keys_and_blocks_are_all_named(problems):
    assert problems("data:\n  max_length: 64\n") == [
        " experiment_name: missing, need text",
        " storage.base_folder: missing, need text",
        "1: data.num_samples: missing, need a whole number above 0, or all",
    ]


def test_every_problem_of_a_file_is_reported_in_the_order_of_the_file(problems):
    text = """\
seed: 3
experiment_name: Many
data:
  num_samples: -5
  max_length: 0
  validation_fraction: 2
training:
  learning_rate: 0
  min_learning_rate: 7e-4   # only too high for the default learning rate, which was never asked for
  batch_size: none
model:
  n_head: 0
  n_embd: 100   # no multiple of the default n_head, which was never asked for
storage:
  checkpoint_to_resume: newest
"""
    found = [line.split(" found")[0] for line in problems(text)]
    assert found == [
        "1: seed: unknown key here, it belongs to `data:`, `training:` or `evaluation:`; move it there",
        "4: data.num_samples:",
        "5: data.max_length:",
        "6: data.validation_fraction:",
        "8: training.learning_rate:",
        "10: training.batch_size:",
        "12: model.n_head:",
        "14: storage.base_folder: missing, need text",
        "15: storage.checkpoint_to_resume:",
    ]


BLOCKS = [
    (section, hint) for section, hint in reading._hints(ExperimentConfig).items() if dataclasses.is_dataclass(hint)
]


@pytest.mark.parametrize(("section", "config"), BLOCKS)
def test_need_of_every_number_says_more_than_its_type(section, config):
    for field in dataclasses.fields(config):
        hint = reading._hints(config)[field.name]
        if {int, float} & set(reading.choices(hint)):
            need = reading._need(config, field.name, {})
            assert need not in ("a whole number", "a number", "a whole number or null", "a number or null"), field.name


@pytest.mark.parametrize(("section", "config"), BLOCKS)
def test_stand_ins_for_required_values_pass_every_check(section, config):
    config(**reading._stand_ins(config))


# Blocks that do not agree.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "model: {context_length: 256}",
            " data.max_length: found 512 (the default), need at most model.context_length=256; "
            "use data.max_length: 256, or model.context_length: 512",
        ),
        (
            "training: {tokens_per_step: 100000}",
            "6: training.tokens_per_step: found 100000, need a multiple of data.max_length=512; use 99840 or 100352",
        ),
        (
            "training: {tokens_per_step: 100}",
            "6: training.tokens_per_step: found 100, need a multiple of data.max_length=512; use 512",
        ),
        (
            "training: {batch_size: 12, micro_batch_size: 5}",
            "6: training.micro_batch_size: found 5, need a divisor of the 12 sequences of one update on each GPU; "
            "use 4 or 6",
        ),
        (
            "hardware: {num_gpus: 3}",
            "6: hardware.num_gpus: found 3, need a divisor of the 8 sequences in one update; use 2 or 4",
        ),
        (
            "hardware: {launcher: slurm, num_gpus: 2, slurm: {nodes: 3}}",
            "6: hardware.slurm.nodes: found 3, need a divisor of 4: the 8 sequences of one update over a node's 2 "
            "processes; use 2 or 4",
        ),
        (
            "training: {max_steps: 300}",
            " training.warmup_steps: found 500 (the default), need a whole number below training.max_steps=300, "
            "or the learning rate never reaches its peak; use 30",
        ),
        (
            "training: {decay_share: 0.5}",
            "6: training.decay_share: found 0.5, need no such key with training.lr_schedule=cosine; "
            "remove it, or set lr_schedule: wsd",
        ),
        (
            "training: {learning_rate_factors: {head: 0.5}}",
            "6: training.learning_rate_factors.head: found 0.5, need no such key with model.tie_weights=true, where "
            "the embedding is the head; set learning_rate_factors.embedding, or model.tie_weights: false",
        ),
        (
            "training: {learning_rate_factors: {vectors: 2}}\nmodel: {architecture: nanochat}",
            "6: training.learning_rate_factors.vectors: found 2, need no such key with model.architecture=nanochat, "
            "which has no vectors; remove it",
        ),
        (
            "training: {optimizer: muon, muon: {split_qkv: true}}\nmodel: {architecture: llama}",
            "6: training.muon.split_qkv: found 'true', need no such key with model.architecture=llama, whose matrices "
            "are apart already; remove it",
        ),
    ],
)
def test_contradiction_between_blocks_names_the_values_to_use(problems, content, expected):
    assert problems(SMALL + content + "\n") == [expected]


@pytest.mark.parametrize("content", ["training: {max_steps: 501}", "training: {max_steps: 1, warmup_steps: 0}", ""])
def test_warmup_that_ends_before_training_does_is_accepted(write, content):
    load_experiment(write(SMALL + content + "\n"))


def test_contradiction_is_found_in_a_config_made_by_hand(write):
    config = load_experiment(write(SMALL)).config
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=2048))
    with pytest.raises(ConfigError, match=r"at most model\.context_length=1024"):
        Experiment(file=Path("x.yaml"), config=wrong)


def test_divisors_of_an_absurd_update_are_not_searched_for_ever(problems):
    text = SMALL + f"training: {{tokens_per_step: {512 * (2**40 + 15)}, micro_batch_size: 2}}\n"
    assert "training.micro_batch_size: found 2" in problems(text)[0]


@settings(deadline=None)
@given(
    tokens=st.none() | st.integers(1, 40).map(lambda count: count * 64),
    batch=st.integers(1, 24),
    micro=st.none() | st.integers(1, 24),
    gpus=st.integers(1, 8),
)
def test_config_without_contradiction_is_one_that_the_trainer_can_plan(tokens, batch, micro, gpus):
    training = TrainingConfig(batch_size=batch, tokens_per_step=tokens, micro_batch_size=micro)
    config = ExperimentConfig(
        experiment_name="A",
        data=DataConfig(num_samples=1, max_length=128),
        storage=StorageConfig(base_folder="x"),
        training=training,
        hardware=HardwareConfig(num_gpus=gpus),
    )
    found = list(contradictions(config))
    if not found:
        plan = config.step_layout(steps_per_epoch=10)
        assert plan.batch_size * 128 == config.tokens_per_step == (tokens or batch * 128)
        assert plan.grad_accum_steps * plan.micro_batch_size * gpus == plan.batch_size
    else:
        with pytest.raises(ConfigError):
            config.step_layout(steps_per_epoch=10)


# Files that cannot be read.


def test_missing_file_names_the_nearest_one(write, tmp_path):
    write(SMALL, "my-idea.yaml")
    with pytest.raises(UserError, match=r"my_idea\.yaml: no such file; did you mean .*my-idea\.yaml\?"):
        load_experiment(tmp_path / "my_idea.yaml")
    with pytest.raises(UserError, match=r"my-idea: no such file; did you mean .*my-idea\.yaml\?"):
        load_experiment(tmp_path / "my-idea")
    write(SMALL, "h.yaml")
    with pytest.raises(UserError, match=r"other\.yaml: no such file$"):  # `.yaml` alone is no likeness
        load_experiment(tmp_path / "other.yaml")
    with pytest.raises(UserError, match="no such file; there is no folder"):
        load_experiment(tmp_path / "nowhere" / "x.yaml")


@pytest.mark.parametrize("name", ["\x00.yaml", "x" * 300 + ".yaml"])
def test_impossible_file_name_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path / name)


def test_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="this is a folder"):
        load_experiment(tmp_path)


def test_error_survives_pickling(write):
    path = write("x: 1\n")
    with pytest.raises(ExperimentFileError) as caught:
        load_experiment(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# Whatever is in the file.

_PIECES = st.sampled_from(
    [
        *(
            "\t",
            "\n",
            "\r",
            " ",
            "  ",
            ":",
            ": ",
            "- ",
            "#",
            "'",
            '"',
            "\\",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a",
            "!!int ",
        ),
        *(
            "|\n",
            ">\n",
            "%YAML 1.1\n",
            "---\n",
            "...\n",
            "? ",
            "<<: ",
            "~",
            "null",
            "1e400",
            "-",
            ".nan",
            "017",
            "0x1F",
        ),
        *(
            "\ufeff",
            "\x00",
            "\x85",
            "\u2028",
            "é",
            "💥",
            '"\\U00110000"',
            '"\\ud800"',
            "&b [*b]",
            "~x/",
            "!!python/object:os.system ",
            "runtime:\n",
        ),
    ]
)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """Valid files with a few cuts, insertions, moved lines and raw bytes."""
    text = draw(st.sampled_from([ORIGINAL, SMALL, SMALL + "training:\n  learning_rate: 6e-4\nmodel: {n_head: 4}\n"]))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + draw(st.one_of(_PIECES, st.text(max_size=5), st.just(text[end : end + 30]))) + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    cut = draw(st.integers(0, len(content)))
    return draw(st.sampled_from([content, content, content[:cut] + draw(st.binary(max_size=3)) + content[cut:]]))


@settings(deadline=None)
@given(content=mutated_files())
def test_mutated_file_loads_or_raises_user_error_and_nothing_else(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(content)
    outcome = _outcome(path)
    if isinstance(outcome, str):
        assert all(line.startswith(str(path)) for line in outcome.splitlines())
        assert outcome
    else:
        assert outcome.config.grad_accum_steps > 0
        assert math.isfinite(outcome.config.training.learning_rate)


def _outcome(path: Path) -> Experiment | str:
    try:
        return load_experiment(path)
    except UserError as error:
        return str(error)
