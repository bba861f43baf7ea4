"""Fingerprints that commit 775e92b computed: with another one, finished work is not found, and is done again.

A value here changes only with a code version that is raised on purpose. Where code moves, only the calls do, which are
the functions at the top.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents import raw
from gpt_pipeline.data.documents import stage as documents
from gpt_pipeline.data.documents.choice import ChosenFile
from gpt_pipeline.data.documents.index import index_part
from gpt_pipeline.data.formats.synth import SYNTH
from gpt_pipeline.data.sources.record import FileFacts
from gpt_pipeline.data.tokens import shards
from gpt_pipeline.evaluation.questions import questions_fingerprint
from gpt_pipeline.evaluation.result import evaluation_fingerprint
from gpt_pipeline.experiment.load import Experiment, load_experiment
from gpt_pipeline.experiment.training import training_fingerprint
from gpt_pipeline.orchestration.keys import data_group
from gpt_pipeline.storage.manifest import FileRecord, Manifest, StageResult

# What a stage is given: fingerprints of stages before it, and checksums of files. None of them exists.
RAW, ENGLISH, DOCUMENTS, SHARDS, WEIGHTS = ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64)
RAW_FILE, OTHER_RAW_FILE, REPEATS_FILE = ("1" * 64, "2" * 64, "3" * 64)
EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def of_raw_synth() -> str:
    files = {"synth_001.parquet": RAW_FILE, "synth_002.parquet": OTHER_RAW_FILE}
    stage = raw.RawStage(config=DataConfig(num_samples=1), data_folder=Path())
    return stage._fingerprint(
        ChosenFile(
            name=name,
            new_documents=1,
            facts=FileFacts(key=name, size=1, mtime_ns=1, sha256=sha256, rows=1, documents=1, rule=""),
        )
        for name, sha256 in files.items()
    )


def of_document_index() -> str:
    return index_part(RAW_FILE, Path(), SYNTH).fingerprint


def of_english_parquet(experiment: Experiment) -> str:
    return documents._fingerprint(experiment.config.data, RAW)


def of_english_documents(experiment: Experiment) -> list[str]:
    """Of the parts that are the documents of two raw files, the first of which has some that repeat others."""
    facts = [{"name": "synth_001.parquet", "size": 1, "documents": 1000, "repeated": 3}]
    facts += [{"name": "synth_002.parquet", "size": 1, "documents": 10**9, "repeated": 0}]
    manifest = Manifest(
        stage="raw_synth",
        fingerprint=RAW,
        config={"files": [["synth_001.parquet", RAW_FILE], ["synth_002.parquet", OTHER_RAW_FILE]]},
        files={"repeats_000001.npy": FileRecord(size=1, sha256=REPEATS_FILE)},
        facts={"files": facts},
    )
    given = StageResult(folder=Path(), manifest=manifest, reused=True)
    stage = documents.DocumentsStage(config=experiment.config.data, data_folder=Path(), given_raw=given)
    return [each.part.fingerprint for each in stage.parts()]


def of_token_shards(experiment: Experiment) -> str:
    return shards._fingerprint(experiment.config.data, ENGLISH)


def of_document_tokens(experiment: Experiment) -> list[str]:
    """Of the part that is the tokens of one part of the English documents."""
    manifest = Manifest(
        stage="english_parquet",
        fingerprint=ENGLISH,
        config={},
        files={"synth_en.parquet": FileRecord(size=1, sha256=RAW_FILE)},
        facts={"parts": [{"name": "synth_001.parquet", "file": "synth_en.parquet", "fingerprint": DOCUMENTS}]},
    )
    given = StageResult(folder=Path(), manifest=manifest, reused=True)
    stage = shards.ShardsStage(config=experiment.config.data, data_folder=Path(), given_documents=given)
    return [each.part.fingerprint for each in stage.parts()]


def of_training(experiment: Experiment) -> str:
    return training_fingerprint(experiment.config, SHARDS)


def of_evaluation(experiment: Experiment) -> str:
    return evaluation_fingerprint(
        experiment.config.evaluation,
        weights_sha256=WEIGHTS,
        shards_fingerprint=SHARDS,
        max_length=experiment.config.data.max_length,
    )


def of_questions(experiment: Experiment) -> str:
    settings = experiment.config.evaluation
    return questions_fingerprint(ENGLISH, experiment.config.data, count=settings.num_questions, seed=settings.seed)


def name_of_data_group(experiment: Experiment) -> str:
    """The first part of the data assets' keys, which Dagster's history goes by."""
    return data_group(experiment.config.data)


COMPUTED = {
    "english_parquet": of_english_parquet,
    "english_documents": of_english_documents,
    "token_shards": of_token_shards,
    "document_tokens": of_document_tokens,
    "training": of_training,
    "evaluation": of_evaluation,
    "questions": of_questions,
    "data_group": name_of_data_group,
}

GOLDEN = {
    "SmallGPT2-Samples2M.yaml": {
        "english_parquet": "b923925465069c61370f320875a9e3ecf8a3b5178474e770337c7fdcb6a40ac6",
        "english_documents": [
            "3aaf728e7d9eeda8743158ba7d655456c576342ee5c13f904434a65321896d25",
            "e4a64d6ba01b2b1fd3b0165765f59c48518755496590c8458bc72244c0adda38",
        ],
        "token_shards": "96ab1e108445a8970f6d8d4f82c7e955c83e4b22a36ae1faeaab173c873e554c",
        "document_tokens": ["06483cfcb0b611ed69ea3df48cbd69c7f4d3f28d93072f82c7e54284704286ba"],
        "training": "23fca801effd1d25ec3e8683f47990fcf0aec9aa4241219cd3aa5c4e56a1018c",
        "evaluation": "c7380afdb84ec7252ca2e404e7a79ab23e2d3bc3e16e367079f0265dc24ce2aa",
        "questions": "90f605ce8d4f022de9a91ff06ab3a88b00eac35c5824764b2660b26bb4547e41",
        "data_group": "data_synth_2000000_0bb288",
    },
    "cpu.yaml": {
        "english_parquet": "f42d43c35dcc5e7654d6e95b4f15f3afc13b1f9bec08d238b060b473316382ac",
        "english_documents": [
            "3aaf728e7d9eeda8743158ba7d655456c576342ee5c13f904434a65321896d25",
            "9c06b3b12754a30b47fd41ad883b3d432c57f93c6de89989f0fd73bc834c17e2",
        ],
        "token_shards": "408ea2a96e4f8cde45e7e2e500b6aab8e1740fe484cd68eab2d68afa7d46e6a2",
        "document_tokens": ["305cc6d4c1f6085a23346352c6fcf9b5c9d370a550e6436d81b0253f70794cf2"],
        "training": "9458e4fda0c943a117b9251ba1cad052139a0453f1fb2056b3ed1f57c0252bfc",
        "evaluation": "f8bf5d3bd23c274f4a03f742565876d15d11050a74ef5926995eaea763fcf913",
        "questions": "ca09c4065f3ec5b0214aa8e2976583542e0aa6c1a754d6658fff791d49d4a5ad",
        "data_group": "data_synth_50000_11f412",
    },
    "demo.yaml": {
        "english_parquet": "e8783aaa86a28901105c07ecfec0307976f07af28acd5e25429b92e9435bffd8",
        "english_documents": [
            "3aaf728e7d9eeda8743158ba7d655456c576342ee5c13f904434a65321896d25",
            "c56c9a10f69440de293c39d7fe95b5546b3a6cfdb8b01c8a38e28d25a3608af9",
        ],
        "token_shards": "fa09b535609468c1eafdd8cba71b5631d4b112f5c83228452fa112f0c8d1223c",
        "document_tokens": ["5fd2d764c8658812615454a8fc2d7c85d9d7c5f4535013c167c350d93a9d1f0e"],
        "training": "b1280676b97b5446c69e31afc41ac6cf20e73c2c0c86bb9d1d167babee7a4992",
        "evaluation": "d9ece8965c6050fd5aab125fadc11759954e9eb1ce9568a864b967e631cf55aa",
        "questions": "b10eb85b4a5149a21997d3b3a13a52dcbbc8c169c443828e83e737673783e210",
        "data_group": "data_sample_16000_1907de",
    },
    "gpt2-124m.yaml": {
        "english_parquet": "b923925465069c61370f320875a9e3ecf8a3b5178474e770337c7fdcb6a40ac6",
        "english_documents": [
            "3aaf728e7d9eeda8743158ba7d655456c576342ee5c13f904434a65321896d25",
            "e4a64d6ba01b2b1fd3b0165765f59c48518755496590c8458bc72244c0adda38",
        ],
        "token_shards": "96ab1e108445a8970f6d8d4f82c7e955c83e4b22a36ae1faeaab173c873e554c",
        "document_tokens": ["06483cfcb0b611ed69ea3df48cbd69c7f4d3f28d93072f82c7e54284704286ba"],
        "training": "5e3b253a5438059bcf331c2da04d6ab6a942d81239782b53cba2a8d962a244ee",
        "evaluation": "c4235913cbcf83a4351f95ee943c15063fae4a15e68ed96144be830734bc2359",
        "questions": "10953e9ec639bea6c5bc9665c7654a4290337b00258faf9caea51c02c5095e73",
        "data_group": "data_synth_2000000_0bb288",
    },
    "gpu-8gb.yaml": {
        "english_parquet": "830b41afdfbfd149546db69483b0aa39ca6dc6d9f2e4d015bef7268654268f9a",
        "english_documents": [
            "3aaf728e7d9eeda8743158ba7d655456c576342ee5c13f904434a65321896d25",
            "0464c60b7df27b61b48b1255d9337f0e054c19e334752628dcc95e1fe8037887",
        ],
        "token_shards": "96ab1e108445a8970f6d8d4f82c7e955c83e4b22a36ae1faeaab173c873e554c",
        "document_tokens": ["06483cfcb0b611ed69ea3df48cbd69c7f4d3f28d93072f82c7e54284704286ba"],
        "training": "257a333791602744897540d1a740457fafa8ee8894336eb46ced656fc0847cc6",
        "evaluation": "cfbccb5e238bd5711bc65bddd6edfc4c5838419fe2976f48b06d4764c2d68e07",
        "questions": "f049c53c99a2d2a36c51ac940afb1516c9fcac674eebdb0f462df438ece0ac06",
        "data_group": "data_synth_500000_e0ad58",
    },
}


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("file", GOLDEN)
def test_fingerprint_of_a_shipped_experiment_is_that_of_an_earlier_version(file: str, computed: str) -> None:
    experiment = load_experiment(EXPERIMENTS / file)
    assert COMPUTED[computed](experiment) == GOLDEN[file][computed]


def test_fingerprint_of_raw_files_is_that_of_an_earlier_version() -> None:
    assert of_raw_synth() == "cba61fc8a74b882fc7ef658c47b7f914e700f7f05523da2dfb51430959465ddd"
    assert of_document_index() == "4bad813c470496ee00cb2af67e1459286ac732aacf115c56cec2fdf5943e0265"
