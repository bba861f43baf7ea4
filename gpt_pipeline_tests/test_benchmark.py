"""lm-evaluation-harness on an exported checkpoint, on a task that lies beside the test."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from gpt_pipeline.checkpoints.load import load_model
from gpt_pipeline.checkpoints.manifest import BEST_NAME
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.errors import UserError
from gpt_pipeline.exchange.benchmark import BenchmarkRequest, benchmark_checkpoint
from gpt_pipeline.exchange.own_tasks import own_files
from gpt_pipeline.exchange.tokenizer_files import write_tokenizer
from gpt_pipeline.model.language_model import LanguageModel
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.serving_models import CONTEXT, decided_model, served, server


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded is here; nothing is asked of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="needs the extra `benchmarks`")

DOCUMENTS = [
    {
        "text": f"Q: Which of them is number {number}?\n\nA:",
        "choices": [" cat", " the", " 7 tall trees"],
        "gold": number % 3,
    }
    for number in range(7)
]
TASK = """\
task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3}}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    (folder / "own.yaml").write_text(TASK.format(file=documents.as_posix()), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "changed",
    ["own.yaml", "a/own.yaml", "b/own.yaml", "code.py", "docs.jsonl", "../documents.jsonl", "../base.yml", "../more/x"],
)
def test_own_tasks_are_others_once_any_file_of_theirs_changes(tasks: Path, changed: str) -> None:
    tasks = tasks.rename(tasks.with_name("[tasks]"))
    base = 'include: base.yml\ndataset_path: "{folder}"\ntag: !function code.tag\n'
    (tasks.parent / "base.yml").write_text(base.format(folder=(tasks.parent / "more").as_posix()))
    for path in (tasks / "a" / "own.yaml", tasks / "b" / "own.yaml", tasks.parent / "more" / "x"):
        path.parent.mkdir()
        path.write_text("include: ../../base.yml\n")
    for name in ("code.py", "docs.jsonl"):
        (tasks / name).write_text("")
    (tasks / "broken.yaml").write_text("a: [\n")
    before = own_files(tasks)
    (tasks / "__pycache__").mkdir()
    (tasks / "__pycache__" / "code.cpython-311.pyc").write_bytes(b"compiled")
    assert own_files(tasks) == before
    (tasks / changed).write_text("task: other\n")
    assert own_files(tasks) != before


def choice_scores(model: LanguageModel) -> list[list[float]]:
    """The log-likelihoods of each document's choices after its text, computed with our own model."""
    found = []
    for document in DOCUMENTS:
        sums = []
        for choice in document["choices"]:
            prompt, rest = [EOT_TOKEN, *gpt2().encode(document["text"])], gpt2().encode(choice)
            with torch.inference_mode():
                logs = model(torch.tensor([prompt + rest]))[0].log_softmax(-1)
            sums.append(sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(rest)))
        found.append(sums)
    return found


def accuracy(checkpoint: Path) -> float:
    """Share of the documents whose right choice is the likeliest after the text."""
    model, _ = load_model(checkpoint)
    scores = zip(choice_scores(model), DOCUMENTS, strict=True)
    return sum(sums.index(max(sums)) == document["gold"] for sums, document in scores) / len(DOCUMENTS)


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_benchmark_scores_as_our_own_model_does_and_only_once(copy: TinyProject, tasks: Path) -> None:
    of = copy.experiment("tiny")
    checkpoint = of.folder.checkpoints / BEST_NAME
    request = BenchmarkRequest(tasks=["own_choices"], task_folder=tasks)
    result = benchmark_checkpoint(of, checkpoint, request)
    assert [(score.task, score.metric) for score in result.scores] == [("own_choices", "acc")]
    assert result.scores[0].value == pytest.approx(accuracy(checkpoint))
    assert result.samples == {"own_choices": 7}
    assert not result.reused
    again = benchmark_checkpoint(of, checkpoint, request)
    assert again.reused
    assert again.scores == result.scores
    with (tasks.parent / "documents.jsonl").open("a") as documents:
        documents.write(json.dumps(DOCUMENTS[0]) + "\n")
    anew = benchmark_checkpoint(of, checkpoint, request)
    assert (anew.reused, anew.samples) == (False, {"own_choices": 8})


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_benchmark_command_prints_scores_and_unknown_tasks_name_the_nearest(copy: TinyProject, tasks: Path) -> None:
    options = ("--task-folder", str(tasks), "--limit", "3")
    output = copy.run("benchmark", "experiments/tiny.yaml", "--tasks", "own_choices", *options)
    assert "own_choices  acc  " in output
    assert "of 3" in output
    output = copy.run("benchmark", "experiments/tiny.yaml", "--tasks", "own_choice", *options, expect=1)
    assert "did you mean own_choices" in output
    (tasks.parent / "documents.jsonl").unlink()
    output = copy.run(
        "benchmark", "experiments/tiny.yaml", "--tasks", "own_choices", "--task-folder", str(tasks), expect=1
    )
    assert "cannot be loaded" in output
    assert "Traceback" not in output


@needs_harness
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_served_model_scores_by_the_harness_as_the_checkpoint_does(tmp_path: Path, tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    model = served("first", decided_model(), tmp_path)
    write_tokenizer(tmp_path, gpt2(), max_length=CONTEXT)
    with server([model]) as (address, _):
        arguments = {
            "model": "first",
            "base_url": f"{address}/v1/completions",
            "tokenizer": str(tmp_path),
            "tokenized_requests": False,
            "max_length": CONTEXT,
        }
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        asked = {"model": "local-completions", "model_args": arguments, "tasks": ["own_choices"]}
        found = lm_eval.simple_evaluate(**asked, task_manager=manager, bootstrap_iters=0)
    samples = sorted(found["samples"]["own_choices"], key=lambda sample: sample["doc_id"])
    scored = [loss for sample in samples for loss, _ in sample["filtered_resps"]]
    assert scored == pytest.approx([each for sums in choice_scores(model.writer.model) for each in sums], abs=1e-4)


@pytest.mark.skipif(INSTALLED, reason="the extra `benchmarks` is installed")
def test_benchmark_without_the_extra_says_what_to_install(finished: TinyProject) -> None:
    of = finished.experiment("tiny")
    with pytest.raises(UserError, match=r"-e '\.\[benchmarks\]'"):
        benchmark_checkpoint(of, of.folder.checkpoints / BEST_NAME, BenchmarkRequest(tasks=["x"]))
