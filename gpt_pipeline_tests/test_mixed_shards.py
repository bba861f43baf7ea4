"""The shards of a mix: shares, repeats, what is left out, and what is the same whatever the parts are called."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.data.config import ColumnsConfig, DataConfig, PartConfig, as_of_part
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.data.tokens.choose import find_shards, known_shards, shards_stage
from gpt_pipeline.data.tokens.mixed import MixedShardsStage, epoch_of
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import TokenShards, TokenStream, open_shards
from gpt_pipeline.data.verification import verify_data
from gpt_pipeline.errors import ConfigError, DataError, UserError
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.experiment.problems import ExperimentFileError
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.keys import data_groups, part_of
from gpt_pipeline.project import Project
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.projects import TINY, TinyProject
from gpt_pipeline_tests.test_formats_text import texts, write_texts

Shares = Mapping[str, float]


def mix_of(
    folder: Path, shares: Shares, *, until: str = "first_exhausted", names: Mapping[str, str] | None = None
) -> DataConfig:
    """Return a mix of the folders `short` and `long` and, under `asked`, of the sample's questions."""
    own = {"format": "text", "columns": ColumnsConfig(text="body")}
    sources = {
        name: {"source": "sample", "num_samples": 60} if name == "asked" else {"source": str(folder / name), **own}
        for name in shares
    }
    called = names or {}
    parts = {
        called.get(name, name): PartConfig(share=share, **sources[name])  # type: ignore[arg-type]
        for name, share in shares.items()
    }
    return DataConfig(num_samples="all", max_length=16, validation_fraction=0.2, mix=parts, mix_until=until)  # type: ignore[arg-type]


def made(config: DataConfig, data_folder: Path) -> StageResult:
    for part in config.parts.values():
        prepare_shards(part, prepare_documents(part, prepare_raw(part, data_folder), data_folder), data_folder)
    return prepare(shards_stage(config, data_folder), say=lambda line: None)


def documents_of(shards: TokenShards, split: str = "train") -> list[tuple[int, ...]]:
    stream = getattr(shards, split)
    bounds = [*stream.document_starts.tolist(), stream.n_tokens]
    return [tuple(stream.read(first, last - first).tolist()) for first, last in itertools.pairwise(bounds)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_texts(folder / "short" / "a.parquet", texts(60))
    write_texts(folder / "long" / "a.parquet", [text * 4 for text in texts(150, first=1000)])
    write_texts(folder / "long" / "b.parquet", [text * 4 for text in texts(150, first=2000)])
    return folder


@pytest.mark.parametrize(
    ("sizes", "shares", "until", "amounts"),
    [
        ([100, 100], [0.5, 0.5], "first_exhausted", [100, 100]),
        ([100, 1000], [0.5, 0.5], "first_exhausted", [100, 100]),
        ([100, 1000], [0.5, 0.5], "all_exhausted", [1000, 1000]),
        ([700, 1000], [0.7, 0.3], "first_exhausted", [700, 300]),
        ([100, 100, 100], [0.2, 0.3, 0.5], "all_exhausted", [100, 150, 250]),
    ],
)
def test_epoch_ends_with_the_first_or_the_last_part(
    sizes: list[int], shares: list[float], until: str, amounts: list[int]
) -> None:
    assert epoch_of(sizes, shares, until=until) == amounts


@given(
    parts=st.lists(
        st.tuples(st.integers(1_000, 10**12), st.floats(0.01, 1.0, allow_nan=False)), min_size=2, max_size=6
    ),
    until=st.sampled_from(["first_exhausted", "all_exhausted"]),
)
def test_epoch_has_the_shares_and_uses_one_part_up(parts: list[tuple[int, float]], until: str) -> None:
    sizes = [size for size, _ in parts]
    total = sum(weight for _, weight in parts)
    shares = [weight / total for _, weight in parts]
    amounts = epoch_of(sizes, shares, until=until)
    for amount, share in zip(amounts, shares, strict=True):
        assert amount == pytest.approx(share * sum(amounts), rel=1e-6, abs=len(parts))
    exhausted = [amount >= size for amount, size in zip(amounts, sizes, strict=True)]
    assert any(exhausted) if until == "first_exhausted" else all(exhausted)
    if until == "first_exhausted":
        assert all(amount <= size for amount, size in zip(amounts, sizes, strict=True))


def test_mix_in_words_tells_the_amount_and_origin_of_each_part(folder: Path) -> None:
    told = mix_of(folder, {"short": 3, "asked": 1}).documents
    assert told == f"all documents of local files {folder / 'short'} and 60 documents of sample"


@pytest.mark.parametrize(
    ("own", "above", "said"),
    [
        ({"short": None, "long": None}, 5, "raise data.num_samples"),
        ({"short": None, "long": None}, "all", "add documents"),
        ({"short": 5, "long": "all"}, "all", "raise num_samples of a part, or add documents"),
        ({"short": None, "long": "all"}, 5, "raise num_samples of a part, or add documents"),
        ({"short": "all", "long": "all"}, 5, "add documents"),
    ],
)
def test_mix_asks_for_more_documents_where_they_are_limited(
    folder: Path, own: dict[str, Any], above: Any, said: str
) -> None:
    config = mix_of(folder, {"short": 3, "long": 1})
    assert config.mix is not None
    mix = {name: dataclasses.replace(part, num_samples=own[name]) for name, part in config.mix.items()}
    assert dataclasses.replace(config, num_samples=above, mix=mix).way_to_more == said


def test_mix_errors_of_a_part_name_its_own_keys_wherever_they_are_told(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    (tmp_path / "gone").mkdir()
    path = project.write_experiment("mixed")
    parts = "mix: {a.b: {source: sample, share: 2}, c: {source: ../gone, format: text, num_samples: all, share: 1}}"
    path.write_text(path.read_text().replace("source: sample", parts))
    with pytest.raises(UserError, match=r"^data\.mix\.c\.source: found "):
        project.call("show", str(path))
    experiment = project.experiment("mixed")
    [groups] = data_groups([experiment]).values()
    for name in experiment.parts:
        assert part_of(experiment, groups[name]) == name
    assert part_of(experiment, groups[""]) == ""
    told = "a.jsonl: lacks text; see data.columns and data.filter, /data.columns, data.max_length"
    assert as_of_part(told, "") == told
    own = "a.jsonl: lacks text; see data.mix.a.b.columns and data.mix.a.b.filter, /data.columns, data.max_length"
    assert as_of_part(told, "a.b") == own


def test_mix_step_that_fails_names_the_keys_of_the_experiment_that_its_run_is_of(
    tmp_path: Path,
) -> None:
    project = TinyProject(root=tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl").write_text('{"body": "some text"}\n' * 50)
    mine, other = "source: ../mine, format: text, num_samples: all", "{source: sample, num_samples: 60, share: 1}"
    mix = f"num_samples: all, mix: {{%s: {{{mine}, share: 1}}, other: {other}}}"
    for name, data in {"alone": mine, "first": mix % "own", "second": mix % "chats"}.items():
        path = project.write_experiment(name)
        path.write_text(path.read_text().replace("source: sample, num_samples: 300", data))
    definitions = build_definitions(Project.of_experiments(tmp_path / "experiments"))
    for name, key in {"alone": "data", "first": "data.mix.own", "second": "data.mix.chats"}.items():
        job = definitions.resolve_job_def(f"data_{name}")
        chosen = [each for each in job.asset_layer.executable_asset_keys if "files" in each.path[-1]]
        ended = job.execute_in_process(
            asset_selection=chosen, instance=dg.DagsterInstance.ephemeral(), raise_on_error=False
        )
        [failure] = [event.step_failure_data for event in ended.all_events if event.is_step_failure]
        assert failure.user_failure_data is not None
        assert f"set {key}.columns.text to" in (failure.user_failure_data.description or "")
    with pytest.raises(UserError, match=r"set data\.mix\.chats\.columns\.text to"):
        project.call("run", "experiments/second.yaml")  # says what the step said; each of its steps is a process


def test_mix_takes_whole_documents_from_the_beginning_of_each_part(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 3, "long": 1})
    stage = made(config, tmp_path)
    mixed = set(documents_of(open_shards(stage.folder)))
    parts = {name: _shards_of(config, name, tmp_path) for name in config.parts}
    short, long = (documents_of(parts[name]) for name in ("short", "long"))
    from_long = [each for each in long if each in mixed]
    assert set(short) < mixed
    assert from_long == long[: len(from_long)]
    assert len(mixed) == len(short) + len(from_long)
    tokens = sum(map(len, from_long))
    wanted = parts["short"].train.n_tokens / 3
    assert 0 <= wanted - tokens < len(long[len(from_long)]) + 1
    assert stage.manifest.facts["train_tokens_by_part"] == {"short": parts["short"].train.n_tokens, "long": tokens}
    assert stage.manifest.facts["epochs_by_part"]["short"] == 1.0


def test_mix_repeats_a_part_that_runs_out_by_links_to_its_shards(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 1, "long": 1}, until="all_exhausted")
    stage = made(config, tmp_path)
    short, long = (_shards_of(config, name, tmp_path) for name in ("short", "long"))
    found = documents_of(open_shards(stage.folder))
    times = long.train.n_tokens / short.train.n_tokens
    assert times > 2
    for document in documents_of(short):
        assert found.count(document) in (int(times), int(times) + 1)
    for document in documents_of(long):
        assert found.count(document) == 1
    files = [path.stat().st_ino for path in stage.folder.glob("train_*.bin")]
    assert len(set(files)) < len(files)


def test_mix_of_a_part_that_another_one_holds_out_names_it(tmp_path: Path) -> None:
    sides = {is_held_out(f"book {number}", seed=0, fraction=0.2): f"book {number}" for number in range(99)}
    parts = {}
    for name, asked_again in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        books = [sides[asked_again]] * 40 + [sides[not asked_again]] * 40
        own = [*texts(40), *texts(40, first=100 if asked_again else 200)]
        pq.write_table(pa.table({"text": own, "book": books}), tmp_path / name / "a.parquet")
        parts[name] = PartConfig(source=str(tmp_path / name), format="text", group="book", share=1.0)
    config = DataConfig(num_samples="all", max_length=16, validation_fraction=0.2, mix=parts)
    with pytest.raises(ConfigError, match=r"data\.mix\.a: found 'no training tokens', need documents that no other"):
        made(config, tmp_path / "data")


def test_mix_held_out_documents_take_turns_in_their_shares(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 3, "long": 1})
    mixed = open_shards(made(config, tmp_path).folder)
    short = set(documents_of(_shards_of(config, "short", tmp_path), "validation"))
    tokens, of_short, longest = 0, 0, 0
    for document in documents_of(mixed, "validation"):
        tokens += len(document)
        of_short += len(document) * (document in short)
        longest = max(longest, len(document))
        assert abs(of_short - 0.75 * tokens) <= longest
    assert tokens == mixed.validation.n_tokens


def test_mix_keeps_the_answers_and_spans_of_its_documents(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"asked": 1, "short": 1})
    mixed = open_shards(made(config, tmp_path).folder)
    for split in ("train", "validation"):
        own = {}
        for name in config.parts:
            stream = getattr(_shards_of(config, name, tmp_path), split)
            own |= dict(zip(documents_of(_shards_of(config, name, tmp_path), split), _marks(stream), strict=True))
        stream = getattr(mixed, split)
        for document, marks in zip(documents_of(mixed, split), _marks(stream), strict=True):
            assert marks == own[document]


def test_mix_leaves_out_of_training_what_another_part_holds_out(tmp_path: Path) -> None:
    same = [f"{text} Told twice." for text in texts(200)]
    write_texts(tmp_path / "a" / "a.parquet", same)
    path = tmp_path / "b" / "a.parquet"
    path.parent.mkdir()
    groups = [f"book {number // 2}" for number in range(len(same))]
    pq.write_table(pa.table({"body": same, "book": groups}), path)
    own = {"format": "text", "columns": ColumnsConfig(text="body"), "share": 1.0}
    parts = {
        "a": PartConfig(source=str(tmp_path / "a"), **own),  # type: ignore[arg-type]
        "b": PartConfig(source=str(tmp_path / "b"), group="book", **own),  # type: ignore[arg-type]
    }
    config = DataConfig(num_samples="all", max_length=16, validation_fraction=0.2, mix=parts)
    stage = made(config, tmp_path / "data")
    held_out = {
        document
        for name in parts
        for document in documents_of(_shards_of(config, name, tmp_path / "data"), "validation")
    }
    trained = documents_of(open_shards(stage.folder))
    assert held_out.isdisjoint(trained)
    assert len(trained) > 100
    left_out = stage.manifest.facts["left_out_by_part"]
    own_trained = documents_of(_shards_of(config, "a", tmp_path / "data"))
    assert left_out["a"] == len(held_out.intersection(own_trained)) > 0
    assert not verify_data(config, tmp_path / "data")[-1].problem


def test_mix_of_a_part_shorter_than_a_sequence_is_made(tmp_path: Path, folder: Path) -> None:
    write_texts(folder / "tiny" / "a.parquet", texts(5, first=9000))
    config = dataclasses.replace(mix_of(folder, {"tiny": 1, "long": 9}), validation_fraction=0.5, max_length=128)
    assert made(config, tmp_path).manifest.facts["train_tokens"] > 128
    assert _shards_of(config, "tiny", tmp_path).train.n_tokens < 128


def test_mix_that_would_repeat_a_part_too_often_is_refused(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 99, "long": 1}, until="all_exhausted")
    with pytest.raises(ConfigError, match=r"data\.mix\.short\.share: found 0\.99.*at most 100 times"):
        made(config, tmp_path)


def test_mix_holds_out_more_than_its_smallest_part_alone_would_allow(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 9, "long": 1})
    mixed = open_shards(made(config, tmp_path).folder).validation
    short, long = (_shards_of(config, name, tmp_path).validation for name in ("short", "long"))
    assert short.n_tokens / 0.9 < long.n_tokens / 0.1
    assert mixed.n_tokens == pytest.approx(min(16 * short.n_tokens / 0.9, long.n_tokens / 0.1), rel=0.05)


def test_mix_is_the_same_whatever_its_parts_are_called_and_in_whatever_order(tmp_path: Path, folder: Path) -> None:
    one = made(mix_of(folder, {"short": 3, "long": 1}), tmp_path / "one")
    other = made(mix_of(folder, {"long": 0.25, "short": 0.75}, names={"long": "x", "short": "y"}), tmp_path / "two")
    assert one.fingerprint == other.fingerprint
    assert one.manifest.files == other.manifest.files


def test_mix_is_found_finished_and_verified_and_other_shares_are_another(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 3, "long": 1})
    stage = made(config, tmp_path)
    assert prepare(shards_stage(config, tmp_path), say=lambda line: None).reused
    assert [each.stage for each in verify_data(config, tmp_path)][-1] == "mixed_shards"
    assert not any(each.problem for each in verify_data(config, tmp_path))
    assert known_shards(mix_of(folder, {"short": 2, "long": 1}), tmp_path) is None
    target = stage.folder / "validation_000001.bin"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.chmod(0o644)
    target.write_bytes(content)
    assert verify_data(config, tmp_path)[-1].is_damaged
    again = prepare(shards_stage(config, tmp_path), force=True, say=lambda line: None)
    assert again.manifest == stage.manifest
    assert not verify_data(config, tmp_path)[-1].problem


def test_mix_force_without_the_shards_of_a_part_leaves_it_finished(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 3, "long": 1})
    made(config, tmp_path)
    mix = shards_stage(config, tmp_path)
    assert isinstance(mix, MixedShardsStage)
    (mix.parts()[0].stage.folder / "train_000001.bin").unlink()
    with pytest.raises(DataError, match=r"token_shards of the part .* is not finished"):
        prepare(mix, force=True, say=lambda line: None)
    assert mix.plan(force=False, say=lambda line: None) == []
    assert not [*tmp_path.rglob(".again")]


def test_mix_without_the_shards_of_a_part_names_it(tmp_path: Path, folder: Path) -> None:
    config = mix_of(folder, {"short": 3, "long": 1})
    with pytest.raises(DataError, match="token_shards of the part `short` is not finished"):
        prepare(shards_stage(config, tmp_path), say=lambda line: None)


@pytest.mark.parametrize(
    ("block", "key", "need"),
    [
        ("{num_samples: 9, source: sample, mix: {a: {share: 1}, b: {share: 1}}}", "data.source", "beside data.mix"),
        ("{num_samples: 9, mix: {a: {share: 1}}}", "data.mix", "at least two parts"),
        ("{num_samples: 9, mix: {a: {share: 0}, b: {share: 1}}}", "data.mix.a.share", "above 0"),
        ("{num_samples: 9, mix: {a: {}, b: {share: 1}}}", "data.mix.a.share", "missing"),
        ("{num_samples: 9, mix: {a: 3, b: {share: 1}}}", "data.mix.a", "keys indented below"),
        ("{num_samples: 9, mix: [a, b]}", "data.mix", "blocks of keys, each under a name"),
        ("{num_samples: 9, mix: {a b: {share: 2}, b: {share: 1}}}", "data.mix.a b", "letters, digits"),
        (
            "{num_samples: 9, mix: {a: {share: 1, source: words}, b: {share: 1}}}",
            "data.mix.a.source",
            "such as ./words",
        ),
        ("{num_samples: all, mix: {a: {share: 1, source: sample}, b: {share: 1}}}", "data.mix.a.num_samples", "no end"),
        ("{num_samples: 9, mix: {a: {share: 1, kind: x}, b: {share: 1}}}", "data.mix.a.kind", "format=synth"),
        ("{num_samples: 9, mix: {a: {share: 1, max_length: 9}, b: {share: 1}}}", "data.mix.a.max_length", "unknown"),
        ("{num_samples: 9, mix_until: all_exhausted}", "data.mix_until", "without data.mix"),
    ],
)
def test_mix_in_a_file_with_a_mistake_is_refused_with_its_place(
    tmp_path: Path, block: str, key: str, need: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"experiment_name: x\ndata: {block}\nstorage: {{base_folder: s}}\n")
    with pytest.raises(ExperimentFileError) as caught:
        load_experiment(path)
    assert f"x.yaml:2: {key}: " in str(caught.value)
    assert need in str(caught.value)


def test_mix_in_a_file_gives_its_parts_what_the_block_says(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "experiment_name: x\nstorage: {base_folder: s}\ndata:\n  num_samples: 9\n  seed: 5\n  mix:\n"
        "    a: {share: 3, source: sample}\n    b: {share: 1, source: ../mine, format: text, num_samples: all}\n"
    )
    experiment = load_experiment(path)
    assert experiment.config.data.shares == {"a": 0.75, "b": 0.25}
    a, b = experiment.parts["a"].data, experiment.data.parts["b"]
    assert a == DataConfig(num_samples=9, seed=5, max_length=2, source="sample")
    assert (b.num_samples, b.seed, b.source) == ("all", 5, str(tmp_path.parent / "mine"))
    assert b == experiment.parts["b"].data
    assert json.dumps(experiment.config.as_values()["data"])
    assert "source" not in experiment.config.as_values()["data"]
    b_said = {"source": "../mine", "format": "text", "num_samples": "all", "share": 1.0}
    assert experiment.config.as_values()["data"]["mix"]["b"] == b_said
    assert experiment.parts["b"].config.as_values()["data"]["columns"] == {"text": "text"}


@pytest.mark.slow
def test_mix_trains_and_is_evaluated_by_part(tmp_path: Path, folder: Path) -> None:
    project = TinyProject(root=tmp_path)
    path = project.write_experiment("mixed", max_steps=8)
    data = "data: {source: sample, num_samples: 300, max_length: 32, validation_fraction: 0.1}"
    mix = (
        "data:\n  num_samples: 200\n  max_length: 16\n  validation_fraction: 0.2\n  mix:\n"
        "    asked: {source: sample, share: 2}\n"
        f"    read: {{source: {folder}/long, format: text, columns: {{text: body}}, share: 1}}\n"
    )
    assert data in TINY.format(name="mixed", num_samples=300, max_steps=8, learning_rate=0.001)
    path.write_text(path.read_text(encoding="utf-8").replace(data, mix), encoding="utf-8")
    said = project.run("run", str(path))
    assert "Everything is done." in said
    assert "mixed_shards" in project.run("status", str(path))
    results = sorted(project.experiment("mixed").folder.evaluations.glob("step_*.json"))
    metrics = json.loads(results[-1].read_text())["metrics"]
    assert metrics["val_loss"] == pytest.approx((2 * metrics["val_loss/asked"] + metrics["val_loss/read"]) / 3)


def find_stage(config: DataConfig, data_folder: Path) -> StageResult:
    stage = find_shards(config, data_folder)
    assert stage is not None
    return stage


def _shards_of(config: DataConfig, name: str, data_folder: Path) -> TokenShards:
    return open_shards(find_stage(config.parts[name], data_folder).folder)


def _marks(stream: TokenStream) -> list[tuple[int, list[list[int]]]]:
    """Return where each document's answer and its spans lie, from its beginning on."""
    starts = stream.document_starts
    bounds = np.append(starts, stream.n_tokens).tolist()
    answers = (stream.answer_starts - starts).tolist()
    spans = [(stream.spans_between(first, last) - first).tolist() for first, last in itertools.pairwise(bounds)]
    return list(zip(answers, spans, strict=True))
