"""Tokenizers other than GPT-2's: from a file, or trained on the experiment's own training documents."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.checkpoints.load import load_checkpoint, tokenizer_in
from gpt_pipeline.checkpoints.save import save_checkpoint
from gpt_pipeline.checkpoints.snapshot import Progress, Snapshot
from gpt_pipeline.data.config import ColumnsConfig, DataConfig, PartConfig, TokenizerConfig
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.stage import exclusive, prepare
from gpt_pipeline.data.tokens import tokenizer_training
from gpt_pipeline.data.tokens.choose import find_shards, known_shards
from gpt_pipeline.data.tokens.shards import ShardsStage, prepare_shards
from gpt_pipeline.data.tokens.stream import open_shards
from gpt_pipeline.data.tokens.tokenizer import EOT, Tokenizer, gpt2, read_tokenizer, tokenizer_of, with_turns
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage, vocabulary_size
from gpt_pipeline.data.verification import verify_data
from gpt_pipeline.doctor.examination import _downloads
from gpt_pipeline.errors import ConfigError, DamagedFileError, DataError, UserError
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.experiment.load import ExperimentFileError, load_experiment
from gpt_pipeline.experiment.training import StartPoint, _require_same_tokenizer
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.planning.plan import make_plan
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.job import TOKENIZER, TrainingJob, find_changes, settings_of
from gpt_pipeline_tests.hub_server import running_hub
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.test_formats_text import config_of, prepared, texts, write_texts
from gpt_pipeline_tests.training_jobs import make_job

SIZE = 300
OWN_SOURCE = "source: ../texts, format: text, num_samples: all, tokenizer: {train: 1024}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Documents, and the shards of their own tokenizer."""

    folder: Path
    config: DataConfig
    documents: StageResult
    shards: StageResult


def made(folder: Path, bodies: Sequence[str], **changed: object) -> Data:
    write_texts(folder / "own" / "a.parquet", bodies)
    config = config_of(folder / "own", **{"tokenizer": TokenizerConfig(train=SIZE), **changed})
    documents = prepared(config, folder / "data")
    shards = prepare_shards(config, documents, folder / "data")
    return Data(folder=folder / "data", config=config, documents=documents, shards=shards)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return made(tmp_path_factory.mktemp("own"), texts(70))


@pytest.fixture(scope="module")
def own(data: Data) -> Tokenizer:
    return tokenizer_of(data.shards)


@given(text=st.text(max_size=60))
def test_tokenizer_of_ones_own_gives_every_text_back(own: Tokenizer, text: str) -> None:
    tokens = own.encode(text)
    assert own.decode_bytes(tokens) == text.encode()
    assert own.encode_batch([text, "x"]) == [tokens, own.encode("x")]
    assert int(own.token_lengths[tokens].sum()) == len(text.encode())


def test_tokenizer_of_ones_own_reads_half_a_character_as_gpt2s_does(own: Tokenizer) -> None:
    text = "a\ud83d b"
    found = {tokenizer.decode(tokenizer.encode(text)) for tokenizer in (own, gpt2(), with_turns(own))}
    assert found == {"a\ufffd b"}
    assert own.encode_batch([text]) == [own.encode(text)]


def test_tokenizer_of_ones_own_takes_the_name_of_a_special_token_for_text(own: Tokenizer) -> None:
    assert own.eot_token not in own.encode(f"a{EOT}b")
    assert own.decode(own.encode(f"a{EOT}b")) == f"a{EOT}b"
    assert own.bytes_of(own.eot_token) == own.bytes_of(65_000) == b""


def value_of(tokenizer: Tokenizer) -> dict[str, Any]:
    assert tokenizer.file is not None
    found: dict[str, Any] = json.loads(tokenizer.file)
    return found


def refusal(value: object) -> str:
    with pytest.raises(UserError) as refused:
        read_tokenizer(value if isinstance(value, str) else json.dumps(value), source="it.json")
    return str(refused.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": None}, "no model with a vocabulary"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "a model of type WordPiece"),
        ({"normalizer": {"type": "NFC"}}, "a normalizer of type NFC"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "the steps Metaspace before the BPE"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space: true"),
        ({"added_tokens": []}, "no token that can stand between documents"),
        ({"added_tokens": [{"id": 70_000, "content": EOT, "special": True}]}, "70,001 ids, need at most 65,536"),
    ],
)
def test_tokenizer_that_cannot_be_used_is_refused_with_what_is_needed(
    own: Tokenizer, changed: dict[str, Any], told: str
) -> None:
    said = refusal({**value_of(own), **changed})
    assert told in said
    assert "need " in said


def test_tokenizer_that_is_no_json_or_lacks_bytes_is_refused(own: Tokenizer) -> None:
    assert "found no JSON" in refusal("{")
    value = value_of(own)
    del value["model"]["vocab"]["a"]
    value["model"]["merges"] = [pair for pair in value["model"]["merges"] if "a" not in "".join(pair)]
    assert "no token for 1 of the 256 bytes" in refusal(value)


def test_tokenizer_whose_documents_end_by_another_name_has_that_token(own: Tokenizer) -> None:
    value = value_of(own)
    (end,) = value["added_tokens"]
    value["model"]["vocab"]["</s>"] = value["model"]["vocab"].pop(EOT)
    value["added_tokens"] = [{**end, "content": "</s>"}]
    other = read_tokenizer(json.dumps(value), source="it.json")
    assert other.eot_token == own.eot_token
    assert other.eot_token not in other.encode("a</s>b")


def test_trained_tokenizer_is_the_same_with_and_without_threads(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        found.append(tokenizer_training.train_tokenizer(SIZE, [(data.documents, data.config)], lambda line: None)[0])
    assert found[0] == found[1] == tokenizer_of(data.shards).file


def test_trained_tokenizer_sees_no_held_out_document(tmp_path: Path) -> None:
    bodies = []
    for number in range(200):  # which of these are held out is known from the text: each is a group of its own
        bodies.append(f"{number} " + "zqzqzqzqzq " * 20)
    plain = made(tmp_path / "a", bodies, tokenizer=TokenizerConfig(train=400))
    groups = [row["group"] for row in _rows(plain.documents)]
    held = [is_held_out(group, seed=0, fraction=0.2) for group in groups]
    assert any(held)
    documents, text_bytes = (plain_stage(plain).manifest.facts[name] for name in ("documents", "text_bytes"))
    kept = [row["text"] for row, is_held in zip(_rows(plain.documents), held, strict=True) if not is_held]
    assert (documents, text_bytes) == (len(kept), sum(len(text.encode()) for text in kept))


def _rows(stage: StageResult) -> list[dict[str, Any]]:
    from gpt_pipeline.data.documents.files import read_documents
    from gpt_pipeline.data.documents.stage import document_files

    batches = read_documents(document_files(stage), ("text", "group"), batch_rows=1000)
    return [row for batch in batches for row in batch.to_pylist()]


def plain_stage(data: Data) -> StageResult:
    return TokenizerStage(config=data.config, data_folder=data.folder).found()


def test_trained_tokenizer_of_much_text_takes_it_evenly(
    data: Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = plain_stage(data).manifest.facts
    monkeypatch.setattr(tokenizer_training, "TRAINED_BYTES", whole["text_bytes"] // 4)
    _, facts = tokenizer_training.train_tokenizer(SIZE, [(data.documents, data.config)], lambda line: None)
    assert abs(facts["documents"] - whole["documents"] / 4) <= 1
    assert facts["text_bytes"] == pytest.approx(whole["text_bytes"] / 4, rel=0.2)


def test_shards_of_a_trained_tokenizer_hold_every_document(data: Data, own: Tokenizer) -> None:
    shards = open_shards(data.shards.folder)
    found = []
    for stream in (shards.train, shards.validation):
        assert stream.eot_token == own.eot_token
        for start, end in zip(stream.document_starts, [*stream.document_starts[1:], stream.n_tokens], strict=True):
            assert stream.read(int(start), 1)[0] == own.eot_token
            found.append(own.decode(stream.read(int(start) + 1, int(end - start - 1)).tolist()))
    assert sorted(found) == sorted(texts(70))
    facts = data.shards.manifest.facts
    assert (facts["vocab_size"], facts["eot_token"]) == (SIZE, own.eot_token)
    assert facts["tokenizer"] == own.identity
    stages = [(each.stage, each.problem) for each in verify_data(data.config, data.folder)]
    assert stages == [("raw_files", None), ("documents", None), ("tokenizer", None), ("token_shards", None)]


def test_shards_of_another_tokenizer_are_others_beside_the_first(data: Data) -> None:
    other = dataclasses.replace(data.config, tokenizer=TokenizerConfig(train=280))
    assert find_shards(other, data.folder) is None
    theirs = prepare_shards(other, data.documents, data.folder)
    assert theirs.fingerprint != data.shards.fingerprint
    assert find_shards(data.config, data.folder) is not None


def test_shards_whose_tokenizer_was_changed_on_the_disk_are_refused(tmp_path: Path) -> None:
    data = made(tmp_path, texts(20))
    path = data.shards.folder / "tokenizer.json"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"BPE", b"BPF"))
    with pytest.raises(DamagedFileError, match=r"tokenizer\.json: found sha256"):
        tokenizer_of(data.shards)


def test_tokenizer_file_is_copied_once_and_needed_no_more(data: Data, own: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(str(own.file), encoding="utf-8")
    config = dataclasses.replace(data.config, tokenizer=str(path))
    shards = prepare_shards(config, data.documents, data.folder)
    assert tokenizer_of(shards).identity == own.identity
    path.unlink()
    known = known_shards(config, data.folder)
    assert known is not None
    assert known.fingerprint == shards.fingerprint
    value = value_of(own)
    value["added_tokens"][0]["id"] = 299
    path.write_text(json.dumps(value), encoding="utf-8")  # another file is another tokenizer
    assert known_shards(config, data.folder) is None


def test_tokenizer_whose_file_is_gone_is_made_again_of_its_copy(data: Data, own: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(str(own.file), encoding="utf-8")
    stage = TokenizerStage(config=dataclasses.replace(data.config, tokenizer=str(path)), data_folder=tmp_path)
    made = prepare(stage, say=lambda line: None)
    path.unlink()
    assert prepare(stage, force=True, say=lambda line: None).manifest == made.manifest
    (made.folder / "manifest.json").unlink()  # as a force that failed left it before
    assert prepare(stage, say=lambda line: None).manifest == made.manifest
    (made.folder / "tokenizer.json").write_bytes(bytes(made.manifest.files["tokenizer.json"].size))
    with pytest.raises(ConfigError, match=r"mine\.json', need a file that can be read"):
        prepare(stage, force=True, say=lambda line: None)


def test_tokenizer_file_that_is_gone_is_the_one_that_it_was_last(own: Tokenizer, tmp_path: Path) -> None:
    path, copy = tmp_path / "mine.json", tmp_path / "copy.json"
    first, second = str(own.file), json.dumps(value_of(own), indent=1)

    def stage_of(file: Path) -> TokenizerStage:
        return TokenizerStage(
            config=DataConfig(num_samples=5, source="sample", tokenizer=str(file)), data_folder=tmp_path / "data"
        )

    found = []
    for content in (first, second, first):
        path.write_text(content, encoding="utf-8")
        found.append(prepare(stage_of(path), say=lambda line: None).fingerprint)
    copy.write_text(second, encoding="utf-8")
    prepare(stage_of(copy), say=lambda line: None)
    path.unlink()
    copy.unlink()
    assert found[0] == found[2] == stage_of(path).found().fingerprint
    assert found[1] == stage_of(copy).found().fingerprint


def test_trained_tokenizer_is_kept_by_a_force_without_its_documents(tmp_path: Path) -> None:
    data = made(tmp_path, texts(20))
    next(data.documents.folder.glob("*.parquet")).unlink()
    stage = TokenizerStage(config=data.config, data_folder=data.folder)
    with pytest.raises(DataError, match="documents is not finished"):
        prepare(stage, force=True, say=lambda line: None)
    assert prepare(stage, say=lambda line: None).reused


def test_tokenizer_file_that_changes_before_it_is_copied_is_refused(own: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(str(own.file), encoding="utf-8")
    config = DataConfig(num_samples=5, source="sample", tokenizer=str(path))
    place = TokenizerStage(config=config, data_folder=tmp_path).place()
    assert place is not None
    refused: list[UserError] = []

    def copy() -> None:
        with pytest.raises(UserError) as found:
            TokenizerStage(config=config, data_folder=tmp_path).finish(say=lambda line: waits.set())
        refused.append(found.value)

    waits, thread = threading.Event(), threading.Thread(target=copy, daemon=True)
    with exclusive(place[0], purpose="holding the other up", say=lambda line: None):
        thread.start()
        assert waits.wait(60)  # it knows the fingerprint by now
        path.write_text(json.dumps(value_of(own), indent=1), encoding="utf-8")
    thread.join()
    assert "mine.json changed while it was copied; run again" in str(refused[0])
    assert TokenizerStage(config=config, data_folder=tmp_path).finish(say=lambda line: None).folder != place[0]


TINY_FILE = """experiment_name: a
data: {{source: {source}, format: text, num_samples: all, max_length: 8{tokenizer}}}
model: {{n_layer: 1, n_head: 1, n_embd: 8, context_length: 8{vocab_size}}}
training: {{batch_size: 1, max_steps: 10, warmup_steps: 1}}
storage: {{base_folder: {base}}}
"""


_FETCH = """
import sys
from pathlib import Path
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.tokens.tokenizer_stage import fetch_tokenizer
config = DataConfig(num_samples=5, source="sample", tokenizer=sys.argv[1])
print([fetch_tokenizer(config, Path(sys.argv[2]), lambda line: None) for _ in range(2)])
"""


def test_tokenizer_of_the_hub_is_fetched_once_and_pinned(own: Tokenizer, tmp_path: Path) -> None:
    assert own.file is not None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(own.file, encoding="utf-8")
    with running_hub() as hub:
        hub.repository = "someone/model"
        commit = hub.publish(tmp_path / "model")
        # Its library reads where the hub is when it is imported.
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}

        def fetch(name: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", _FETCH, name, str(tmp_path / "data")]
            return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)

        assert fetch("someone/model").stdout == "[True, False]\n"
        asked = len(hub.requests)
        assert fetch("someone/model").stdout == "[False, False]\n"
        assert len(hub.requests) == asked
        assert vocabulary_size("someone/model", tmp_path / "data") == own.vocab_size
        assert commit in "".join(path.read_text() for path in (tmp_path / "data").rglob("*.json"))
        assert "tokenizer.json of someone/else cannot be fetched from the hub" in fetch("someone/else").stderr


_COPY = """
import json, sys
from pathlib import Path
from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage
config = DataConfig(num_samples=5, source="sample", tokenizer="someone/model")
stage = TokenizerStage(config=config, data_folder=Path(sys.argv[1]))
print(prepare(stage, force=True, say=lambda line: None).manifest.facts["tokenizer"])
"""


def test_tokenizer_of_the_hub_that_has_changed_there_stays_what_it_was(own: Tokenizer, tmp_path: Path) -> None:
    first, second = str(own.file).encode(), json.dumps(value_of(own), indent=1).encode()
    data = tmp_path / "data"
    with running_hub() as hub:
        hub.repository = "someone/model"
        commit = hub.commit({"tokenizer.json": first})
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}

        def copied() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", _COPY, str(data)]
            return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)

        identity = copied().stdout
        (folder,), (note,) = data.glob("tokenizer-*"), data.glob("tokenizers/*.json")
        noted = note.read_bytes()
        hub.commit({"tokenizer.json": second})
        asked = len(hub.requests)
        assert (copied().stdout, len(hub.requests)) == (identity, asked)  # the copy is whole
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "cache")
        assert copied().stdout == identity
        assert (folder / "tokenizer.json").read_bytes() == first
        hub.commits[commit] = {"tokenizer.json": second}  # another model by the same name, say
        (folder / "tokenizer.json").write_bytes(bytes(len(first)))
        shutil.rmtree(tmp_path / "cache")
        said = copied().stderr
    assert "tokenizer.json of someone/model is no longer what was fetched before: found sha256" in said
    assert "delete the note" in said
    assert note.read_bytes() == noted
    assert [*data.glob("tokenizer-*")] == [folder]


def written(folder: Path, tokenizer: str = "", vocab_size: str = "") -> Path:
    (folder / "texts").mkdir(exist_ok=True)
    path = folder / "a.yaml"
    values = {"source": folder / "texts", "base": folder / "out", "tokenizer": tokenizer, "vocab_size": vocab_size}
    path.write_text(TINY_FILE.format(**values), encoding="utf-8")
    return path


def problem(path: Path) -> str:
    with pytest.raises(ExperimentFileError) as refused:
        load_experiment(path)
    return str(refused.value)


def test_experiment_has_as_many_ids_as_its_tokenizer(tmp_path: Path, own: Tokenizer) -> None:
    (tmp_path / "mine.json").write_text(str(own.file), encoding="utf-8")
    sizes = {
        "": 50257,
        ", tokenizer: gpt2": 50257,
        ", tokenizer: {train: 1024}": 1024,
        ", tokenizer: ./mine.json": own.vocab_size,
        ", tokenizer: owner/name": 50257,  # not fetched yet: nothing is known of it
    }
    for tokenizer, size in sizes.items():
        assert load_experiment(written(tmp_path, tokenizer)).config.model.vocab_size == size, tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "vocab_size", "told"),
    [
        ("", ", vocab_size: 1000", "model.vocab_size: found 1000, need 50257"),
        (", tokenizer: {train: 1024}", ", vocab_size: 1000", "need 1024, the ids of data.tokenizer"),
        (", tokenizer: {train: 257}", "", "data.tokenizer.train: found 257, need a whole number from 258"),
        (", tokenizer: {train: 65537}", "", "data.tokenizer.train: found 65537"),
        (", tokenizer: {tran: 1024}", "", "did you mean data.tokenizer.train?"),
        (", tokenizer: gtp2", "", "data.tokenizer: found 'gtp2', need gpt2, the path of"),
        (", tokenizer: ./missing.json", "", "there is no such file"),
        (", tokenizer: ./texts", "", "texts/tokenizer.json may be meant"),
        (", tokenizer: a/b--c", "", "data.tokenizer: found 'a/b--c', need"),
        (", tokenizer: -a/b", "", "data.tokenizer: found '-a/b', need"),
        (", tokenizer: a/.b", "", "data.tokenizer: found 'a/.b', need"),
        (", tokenizer: a/b.git", "", "data.tokenizer: found 'a/b.git', need"),
    ],
)
def test_experiment_with_a_tokenizer_that_cannot_be_is_refused(
    tmp_path: Path, tokenizer: str, vocab_size: str, told: str
) -> None:
    assert told in problem(written(tmp_path, tokenizer, vocab_size))


@pytest.mark.skipif(os.name == "nt", reason="a Windows path is fine on Windows")
@pytest.mark.parametrize(("tokenizer", "base"), [(r"'E:\mine'", "out"), ("a/b", r"'E:\mine'")])
def test_experiment_whose_tokenizer_is_sought_on_a_drive_is_told_so_once(
    tmp_path: Path, tokenizer: str, base: str
) -> None:
    path = written(tmp_path, f", tokenizer: {tokenizer}")
    path.write_text(path.read_text(encoding="utf-8").replace(str(tmp_path / "out"), base), encoding="utf-8")

    text = problem(path)

    assert text.count(path.name) == 1
    assert ": found 'E:\\mine', need a path on this machine" in text


@pytest.mark.parametrize("name", ["a/b--c", "a/b..c", "-a/b", "a/.b", "a/b-", "a/b.git", f"a/{'b' * 97}", "a/é"])
def test_name_that_the_hub_cannot_have_is_no_source_and_no_tokenizer(name: str) -> None:
    for key in ("source", "tokenizer"):
        with pytest.raises(ConfigError, match=f"^{key}: found "):
            DataConfig(**{"num_samples": 1, key: name})
    assert DataConfig(num_samples=1, source="a.b/c-d_e.f", tokenizer="1/2").tokenizer_on_hub == "1/2"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": None}, "found no model with a vocabulary, need a tokenizer.json as `tokenizers` saves it"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "found a model of type WordPiece, need a byte-level BPE"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "found a model of type Unigram, need a byte-level BPE"),
        (
            {"added_tokens": [{"id": 128_255, "content": EOT, "special": True}]},
            "found 128,256 ids, need at most 65,536",
        ),
    ],
)
def test_experiment_whose_tokenizer_file_cannot_be_used_is_refused_at_its_line(
    tmp_path: Path, own: Tokenizer, changed: dict[str, Any], told: str
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({**value_of(own), **changed}), encoding="utf-8")
    path = written(tmp_path, ", tokenizer: ./mine.json")
    assert problem(path).startswith(f"{path}:2: data.tokenizer: {told}")


def test_experiment_whose_tokenizer_file_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.json").touch()

    read_bytes = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name != "mine.json":
            return read_bytes(path)
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    path = written(tmp_path, ", tokenizer: ./mine.json")
    assert "2: data.tokenizer: found './mine.json', need a file that can be read (Permission denied)" in problem(path)


def test_tokenizer_of_text_without_a_pair_to_merge_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no two bytes beside each other in .* documents"):
        made(tmp_path, [chr(letter) for letter in range(97, 117)])


def test_experiment_that_starts_from_another_has_its_ids_and_needs_its_tokenizer(
    tmp_path: Path, own: Tokenizer
) -> None:
    (tmp_path / "mine.json").write_text(str(own.file), encoding="utf-8")
    base = written(tmp_path, ", tokenizer: {train: 1024}").rename(tmp_path / "base.yaml")
    later = written(tmp_path, ", tokenizer: ./mine.json")
    later.write_text(later.read_text(encoding="utf-8") + f"start_from: {{experiment: {base.name}}}\n", encoding="utf-8")
    assert load_experiment(later).config.model.vocab_size == 1024  # of which the tokenizer may use fewer
    text = later.read_text(encoding="utf-8").replace("./mine.json", "gpt2")
    later.write_text(text, encoding="utf-8")
    assert "need the tokenizer of base.yaml, whose model has 1024 ids; this one has 50257" in problem(later)


@pytest.mark.parametrize("is_off", [False, True])
def test_plan_and_doctor_know_of_a_tokenizer_that_is_not_fetched_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_off: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_off)
    path = written(tmp_path, ", tokenizer: owner/name")
    (tmp_path / "texts" / "a.txt").write_text("Some words. " * 999, encoding="utf-8")
    experiment = load_experiment(path)
    [found] = [
        each
        for each in make_plan(experiment, measured=False, say=lambda line: None).findings
        if each.key == "data.tokenizer"
    ]
    assert found.severity == ("problem" if is_off else "note")
    assert ("HF_HUB_OFFLINE forbids" if is_off else "those with 50,257 ids") in found.text
    assert _downloads(experiment)
    assert not _downloads(load_experiment(written(tmp_path)))


def later_of(tmp_path: Path, base: str, tokenizer: str) -> Path:
    """Return a file that starts from another one, both with their tokenizers."""
    written(tmp_path, base).rename(tmp_path / "base.yaml")
    path = written(tmp_path, tokenizer)
    path.write_text(f"{path.read_text(encoding='utf-8')}start_from: {{experiment: base.yaml}}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("base", "later"),
    [
        (", tokenizer: ./mine.json", ", tokenizer: ./other.json"),
        (", tokenizer: ./mine.json", ", tokenizer: {train: 280}"),
        (", tokenizer: {train: 1024}", ", tokenizer: {train: 512}"),
        (", tokenizer: {train: 1024}", ", seed: 1, tokenizer: {train: 1024}"),  # of other documents
        (", tokenizer: owner/name", ""),
        ("", ", tokenizer: ./mine.json"),
    ],
)
def test_experiment_that_starts_from_one_of_another_tokenizer_is_refused_before_any_work(
    tmp_path: Path, own: Tokenizer, base: str, later: str
) -> None:
    (tmp_path / "mine.json").write_text(str(own.file), encoding="utf-8")
    (tmp_path / "other.json").write_text(f"{own.file}\n", encoding="utf-8")
    said = problem(later_of(tmp_path, base, later))
    assert "data.tokenizer: found " in said
    assert "need the tokenizer of base.yaml" in said


@pytest.mark.parametrize(
    ("base", "later"),
    [
        (", tokenizer: ./mine.json", ", tokenizer: ./copy.json"),
        (", tokenizer: {train: 1024}", ", tokenizer: {train: 1024}"),
        (", tokenizer: owner/name", ", tokenizer: owner/name"),
        (", tokenizer: owner/name", ", tokenizer: ./mine.json"),  # not known yet
        ("", ", seed: 1"),
    ],
)
def test_experiment_that_starts_from_one_of_the_same_tokenizer_is_taken(
    tmp_path: Path, own: Tokenizer, base: str, later: str
) -> None:
    for name in ("mine.json", "copy.json"):
        (tmp_path / name).write_text(str(own.file), encoding="utf-8")
    assert load_experiment(later_of(tmp_path, base, later)).config.start_from is not None


def test_experiment_that_starts_from_one_of_chatml_is_told_that_the_file_of_an_export_is_another(
    tmp_path: Path, own: Tokenizer
) -> None:
    (tmp_path / "mine.json").write_text(str(own.file), encoding="utf-8")
    (tmp_path / "exported.json").write_text(str(with_turns(own).file), encoding="utf-8")
    base = ", template: chatml, tokenizer: ./mine.json"
    assert load_experiment(later_of(tmp_path, base, base)).config.start_from is not None
    said = problem(later_of(tmp_path, base, base.replace("mine", "exported")))
    assert "in its folder of token_shards; that of an export has ChatML's tokens besides" in said


def test_experiment_that_starts_from_a_checkpoint_of_another_tokenizer_is_refused(
    tmp_path: Path, own: Tokenizer
) -> None:
    shape = {TOKENIZER: own.identity}
    info = save_checkpoint(tmp_path / "weights", dataclasses.replace(snapshot(own.file), settings=shape))
    (tmp_path / "mine.json").write_text(str(own.file), encoding="utf-8")
    (tmp_path / "other.json").write_text(f"{own.file}\n", encoding="utf-8")
    for name, is_same in (("mine.json", True), ("other.json", False)):
        path = written(tmp_path, f", tokenizer: ./{name}")
        start = f"start_from: {{file: {info.path}}}\n"
        path.write_text(path.read_text(encoding="utf-8") + start, encoding="utf-8")
        if is_same:
            assert load_experiment(path).config.model.vocab_size == SIZE
        else:
            assert "data.tokenizer: found './other.json', need the tokenizer of" in problem(path)


def snapshot(tokenizer: str | None) -> Snapshot:
    model = ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=8, vocab_size=SIZE)
    return Snapshot(
        model={"w": torch.zeros(2)},
        model_config=model,
        optimizer={},
        random={},
        progress=Progress(step=3),
        fingerprint="f",
        shards_fingerprint="s",
        tokenizer=tokenizer,
    )


def test_checkpoint_brings_its_tokenizer_and_says_nothing_of_gpt2s(tmp_path: Path, own: Tokenizer) -> None:
    info = save_checkpoint(tmp_path, snapshot(own.file))
    loaded = load_checkpoint(info.path)
    assert tokenizer_in(loaded.tokenizer, info).identity == own.identity
    assert loaded.model_config.vocab_size == SIZE
    assert "tokenizer" not in snapshot(None).payload()
    assert tokenizer_in(None, info) is gpt2()


def test_job_with_another_tokenizer_does_not_continue_from_a_checkpoint(tmp_path: Path, own: Tokenizer) -> None:
    plain = make_job(tmp_path)
    other = dataclasses.replace(plain, tokenizer=own.identity)
    assert "tokenizer" not in plain.to_json()
    assert TOKENIZER not in settings_of(plain)
    assert TrainingJob.from_json(other.to_json()) == other
    refused = [each.key for each in find_changes(settings_of(other), plain) if each.effect == "refused"]
    assert refused == [TOKENIZER]


def test_training_that_starts_from_weights_of_another_tokenizer_is_refused(tmp_path: Path, own: Tokenizer) -> None:
    info = save_checkpoint(tmp_path, snapshot(own.file))
    theirs = dataclasses.replace(info, settings={TOKENIZER: own.identity})
    start = StartPoint(checkpoint=theirs, source="base.yaml, best_model.pt")
    _require_same_tokenizer(start, own.identity)
    with pytest.raises(ConfigError, match=r"data\.tokenizer: found \"GPT-2's\", need one whose tokenizer.json"):
        _require_same_tokenizer(start, None)


def mix_of(**sources: str) -> DataConfig:
    common = {"share": 1, "num_samples": "all", "format": "text", "columns": ColumnsConfig(text="body")}
    mix = {name: PartConfig(source=source, **common) for name, source in sources.items()}
    return DataConfig(num_samples="all", max_length=16, tokenizer=TokenizerConfig(train=SIZE), mix=mix)


def test_parts_of_a_mix_share_a_tokenizer_that_is_trained_on_all_of_them(data: Data, tmp_path: Path) -> None:
    write_texts(tmp_path / "more" / "b.parquet", [f"Other words, {number} of them" for number in range(60)])
    first, second = str(data.folder.parent / "own"), str(tmp_path / "more")
    mix = mix_of(one=first, two=second)
    stages = {name: ShardsStage(config=part, data_folder=data.folder) for name, part in mix.parts.items()}
    prepared(mix.parts["one"], data.folder)
    assert stages["one"].place() is None  # until the documents of the other are known
    prepared(mix.parts["two"], data.folder)
    made = [stage.tokenizer.finish(say=lambda line: None) for stage in stages.values()]
    assert made[0].fingerprint == made[1].fingerprint
    assert made[1].reused
    assert made[0].manifest.facts["documents"] > plain_stage(data).manifest.facts["documents"]
    shards = [prepare(stage, say=lambda line: None) for stage in stages.values()]
    assert len({each.manifest.facts["tokenizer"] for each in shards}) == 1
    renamed = mix_of(b=second, a=first).parts["a"]
    assert TokenizerStage(config=renamed, data_folder=data.folder).found().fingerprint == made[0].fingerprint


def test_tokenizer_of_a_mix_names_the_documents_that_are_not_finished_alone(data: Data) -> None:
    folder = str(data.folder.parent / "own")
    parts = {
        "own": PartConfig(share=1, num_samples="all", source=folder, format="text", columns=ColumnsConfig(text="body")),
        "synth": PartConfig(share=1, num_samples=5, source="someone/synth"),
    }
    mix = DataConfig(num_samples="all", max_length=16, tokenizer=TokenizerConfig(train=SIZE), mix=parts)
    prepared(mix.parts["own"], data.folder)
    stage = TokenizerStage(config=mix.parts["own"], data_folder=data.folder)
    with pytest.raises(DataError, match=r"^english_parquet is not finished"):
        stage.finish(say=lambda line: None)


@pytest.mark.slow
def test_experiment_with_a_trained_tokenizer_runs_evaluates_and_generates_without_its_data(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts(200)):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{text} Größe {number}.", encoding="utf-8")
    path = project.write_experiment("own")
    own = path.read_text(encoding="utf-8").replace("{source: sample, num_samples: 300,", f"{{{OWN_SOURCE},")
    path.write_text(own, encoding="utf-8")
    project.run("run", "experiments/own.yaml")
    experiment = project.experiment("own")
    results = read_evaluations(experiment.folder.evaluations)
    assert results
    assert all(0 < each.metrics["val_bpb"] < 8 for each in results)
    assert results[0].metrics["val_loss"] < 7  # ln 1,024 is 6.93, and ln 50,257 is 10.8
    assert "tokenizer" in project.run("status", "experiments/own.yaml")
    assert "Größe" in project.run("show", "experiments/own.yaml", "--count", "1").replace("|", "")
    (tmp_path / "storage" / "data").rename(tmp_path / "gone")
    written = project.run("generate", "experiments/own.yaml", "--raw", "--prompt", "Number 3", "--max-new-tokens", "4")
    assert "Number 3" in written
    (tmp_path / "gone").rename(tmp_path / "storage" / "data")
    assert "Nothing to do" in project.run("run", "experiments/own.yaml")
