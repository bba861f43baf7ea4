"""The proof that no question was trained on fails when the shards hold what they should not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import HEADER_BYTES, open_shards, starts_name
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.errors import DamagedFileError
from gpt_pipeline.evaluation import unseen
from gpt_pipeline.evaluation.evaluate import EvaluatedPart
from gpt_pipeline.evaluation.questions import Question, held_out_questions
from gpt_pipeline.evaluation.unseen import TrainedOn, cached_proof, prove_unseen
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.orchestration.checks import trained_before
from gpt_pipeline.storage.manifest import StageResult

DATA = DataConfig(num_samples=400, max_length=48, source="sample", validation_fraction=0.2)


@dataclasses.dataclass(frozen=True)
class Stages:
    english: StageResult
    shards: StageResult
    questions: list[Question]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    folder = tmp_path_factory.mktemp("data")
    english = prepare_documents(DATA, prepare_raw(DATA, folder), folder)
    questions = held_out_questions(english, DATA, count=12, seed=0)
    return Stages(english=english, shards=prepare_shards(DATA, english, folder), questions=questions)


def on(documents: StageResult, *shards: StageResult) -> list[EvaluatedPart]:
    return [EvaluatedPart(name="", share=1.0, documents=documents, shards=each, data=DATA) for each in shards]


def leaking(stages: Stages, folder: Path, number: int) -> StageResult:
    """The shards with the held-out document `number` written over the first training documents."""
    shutil.copytree(stages.shards.folder, folder)
    stream = open_shards(folder).validation
    start, end = (int(place) for place in stream.document_starts[number : number + 2])
    document = np.append(stream.read(start, end - start), np.uint16(EOT_TOKEN))  # and the beginning of the next
    name = next(name for name in sorted(stages.shards.manifest.files) if name.startswith("train") and ".bin" in name)
    content = bytearray((folder / name).read_bytes())
    content[HEADER_BYTES : HEADER_BYTES + document.nbytes] = document.tobytes()
    starts = np.load(folder / starts_name(name))
    starts = np.array([0, end - start, *starts[starts > end - start]], dtype=np.int64)
    (folder / name).write_bytes(content)
    np.save(folder / starts_name(name), starts)
    return dataclasses.replace(stages.shards, folder=folder)


def number_of(stages: Stages, text: str) -> int:
    """The place of the document `text` in the validation split."""
    stream = open_shards(stages.shards.folder).validation
    wanted = [EOT_TOKEN, *gpt2().encode(text)]
    starts = stream.document_starts.tolist()
    return next(n for n, start in enumerate(starts) if stream.read(start, len(wanted)).tolist() == wanted)


def test_prove_unseen_of_an_honest_split_is_green(stages: Stages) -> None:
    finding = prove_unseen(stages.questions, on(stages.english, stages.shards))
    assert finding.passed, finding.text
    assert finding.facts["questions"] == 12
    assert finding.facts["training_documents"] == len(open_shards(stages.shards.folder).train.document_starts)
    assert finding.facts["not_in_validation"] == 0


def test_prove_unseen_does_not_depend_on_the_batch_size(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prove_unseen(stages.questions, on(stages.english, stages.shards))
    monkeypatch.setattr(unseen, "_BATCH_ROWS", 3)  # most batches then hold nothing of a question's article
    assert prove_unseen(stages.questions, on(stages.english, stages.shards)) == whole


def test_prove_unseen_finds_a_questions_text_in_the_training_shards(stages: Stages, tmp_path: Path) -> None:
    asked = stages.questions[0]
    number = number_of(stages, f"{asked.answer_prompt} {asked.answer}")
    finding = prove_unseen(stages.questions, on(stages.english, leaking(stages, tmp_path / "s", number)))
    assert not finding.passed
    assert finding.facts["same_text"] == 1
    assert "materialize token_shards with force" in finding.text


def test_prove_unseen_finds_another_document_of_a_questions_article(stages: Stages, tmp_path: Path) -> None:
    own = {f"{each.answer_prompt} {each.answer}" for each in stages.questions}
    articles = {each.article for each in stages.questions}
    others = held_out_questions(stages.english, DATA, count=1000, seed=0)
    texts = [f"{each.answer_prompt} {each.answer}" for each in others if each.article in articles]
    sibling = next(text for text in texts if text not in own)
    finding = prove_unseen(
        stages.questions, on(stages.english, leaking(stages, tmp_path / "s", number_of(stages, sibling)))
    )
    assert not finding.passed
    assert (finding.facts["same_group"], finding.facts["same_text"]) == (1, 0)
    assert finding.text.startswith("1 of ")
    assert "training documents are of the same group as a question" in finding.text


def test_prove_unseen_finds_a_query_that_a_training_document_asks_too(stages: Stages) -> None:
    stream = open_shards(stages.shards.folder).train
    first = gpt2().decode(stream.read(1, int(stream.document_starts[1]) - 1).tolist())
    query = first.removeprefix("Q: ").split("\n\n")[0]
    asked = dataclasses.replace(stages.questions[0], query=query)
    finding = prove_unseen([asked], on(stages.english, stages.shards))
    assert not finding.passed
    assert finding.facts["same_question"] >= 1


def test_prove_unseen_of_questions_that_are_in_no_split_is_red_since_nothing_was_proved(stages: Stages) -> None:
    asked = dataclasses.replace(stages.questions[0], answer="Something else.")
    finding = prove_unseen([asked], on(stages.english, stages.shards))
    assert not finding.passed
    assert finding.facts["not_in_validation"] == 1


def test_prove_unseen_on_document_starts_that_are_none_is_refused(stages: Stages, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(stages.shards.folder, folder)
    name = next(path for path in folder.glob("train_*.starts.npy"))
    np.save(name, np.load(name)[1:] + 1)
    with pytest.raises(DamagedFileError, match="where a document begins"):
        prove_unseen(stages.questions, on(stages.english, dataclasses.replace(stages.shards, folder=folder)))


def test_prove_unseen_of_a_mix_finds_what_another_part_trains_on(stages: Stages, tmp_path: Path) -> None:
    other = DataConfig(num_samples=400, max_length=48, source="sample", validation_fraction=0.2, seed=1)
    shards = prepare_shards(other, stages.english, tmp_path)  # the same documents, split otherwise
    finding = prove_unseen(stages.questions, on(stages.english, stages.shards, shards))
    assert not finding.passed
    assert finding.facts["same_text"] > 0
    assert finding.facts["not_in_validation"] == 0
    mixed = prove_unseen(stages.questions, on(stages.english, stages.shards, shards), mixed=stages.shards)
    assert mixed.passed, mixed.text
    leaks = prove_unseen(stages.questions, on(stages.english, stages.shards, shards), mixed=shards)
    assert "the parts of the mix overlap" in leaks.text


def test_prove_unseen_finds_what_the_weights_it_began_with_were_trained_on(stages: Stages, tmp_path: Path) -> None:
    other = DataConfig(num_samples=400, max_length=48, source="sample", validation_fraction=0.2, seed=1)
    shards = prepare_shards(other, stages.english, tmp_path)
    before = [TrainedOn(source="base.yaml", documents=((other, stages.english),), shards=shards)]
    finding = prove_unseen(stages.questions, on(stages.english, stages.shards), before=before)
    assert not finding.passed
    assert finding.facts["seen_before"] > 0 == finding.facts["same_text"]
    assert "documents that base.yaml trained on" in finding.text
    assert "set data.seed, data.validation_fraction and data.group as there" in finding.text
    copy = [dataclasses.replace(before[0], documents=((other.at("/a/copy"), stages.english),))]
    assert prove_unseen(stages.questions, on(stages.english, stages.shards), before=copy) == finding
    alike = [dataclasses.replace(before[0], shards=stages.shards)]
    assert prove_unseen(stages.questions, on(stages.english, stages.shards), before=alike).passed


OWN = DataConfig(num_samples="all", max_length=48, source="/one/own.jsonl", format="question_answer")


@pytest.mark.parametrize(
    ("theirs", "shared", "remedy"),
    [
        (dataclasses.replace(OWN, seed=1), True, "set data.seed, data.validation_fraction and data.group as there"),
        (dataclasses.replace(OWN, group="book"), True, "data.group as there"),
        (OWN, True, "another evaluation.seed"),  # as a base does that has more documents
        (dataclasses.replace(OWN, source="/two/own.jsonl", seed=1), False, "another evaluation.seed"),
    ],
)
def test_prove_unseen_of_a_base_counts_groups_of_the_same_source_and_names_a_remedy_that_helps(
    stages: Stages, tmp_path: Path, theirs: DataConfig, shared: bool, remedy: str
) -> None:
    shards = prepare_shards(dataclasses.replace(DATA, seed=1), stages.english, tmp_path)
    before = [TrainedOn(source="base.yaml", documents=((theirs, stages.english),), shards=shards)] * 2
    data = [dataclasses.replace(each, data=OWN) for each in on(stages.english, stages.shards)]
    finding = prove_unseen(stages.questions, data, before=before)
    assert remedy in finding.text
    assert finding.text.count("documents that base.yaml trained on") == 2  # two files may have one name
    renamed = [dataclasses.replace(each, query="Asked nowhere?") for each in stages.questions]
    of_groups = prove_unseen(renamed, data, before=before).facts["seen_before"]
    assert (of_groups > 0) == shared
    assert finding.facts["seen_before"] > 0


@pytest.mark.parametrize(("seed", "named"), [(0, []), (1, ["base.yaml"])])
def test_check_of_unseen_questions_looks_at_the_base_where_it_was_split_otherwise(
    tmp_path: Path, seed: int, named: list[str]
) -> None:
    def write(stem: str, seed: int, more: str = "") -> Experiment:
        data = f"{{source: sample, num_samples: 200, max_length: 48, validation_fraction: 0.2, seed: {seed}}}"
        file = tmp_path / f"{stem}.yaml"
        file.write_text(f"experiment_name: {stem}\ndata: {data}\n{more}storage: {{base_folder: {tmp_path}}}\n")
        return load_experiment(file)

    goes_on = "start_from: {{experiment: {}.yaml}}\n".format
    chain = write("first", 0), write("base", 0, goes_on("first")), write("later", seed, goes_on("base"))
    for each in chain:
        documents = prepare_documents(each.data, prepare_raw(each.data, each.data_folder), each.data_folder)
        prepare_shards(each.data, documents, each.data_folder)
    assert [found.source for found in trained_before(each)] == named


def test_cached_proof_is_looked_for_once(stages: Stages, tmp_path: Path) -> None:
    first = cached_proof(tmp_path / "kept", stages.questions, on(stages.english, stages.shards))
    gone = dataclasses.replace(stages.shards, folder=tmp_path / "nowhere")
    assert cached_proof(tmp_path / "kept", stages.questions, on(stages.english, gone)) == first
