"""Rewards, the choice of questions, what sampled answers weigh, and the keys of the experiment file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.documents.stage import finished_documents, prepare_documents
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2, tokenizer_of
from gpt_pipeline.errors import ConfigError, DataError, UserError
from gpt_pipeline.evaluation.sampling import Sampling
from gpt_pipeline.experiment.load import load_experiment
from gpt_pipeline.findings import Finding
from gpt_pipeline.model.costs import Precision
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.planning import rewards
from gpt_pipeline.planning.memory import training_need
from gpt_pipeline.planning.plan import make_plan
from gpt_pipeline.progress.stages import data_progress
from gpt_pipeline.project import Project
from gpt_pipeline.rl.candidates import Candidates, choose_candidates
from gpt_pipeline.rl.prompts import Prompt, prompts_at, prompts_of
from gpt_pipeline.rl.rewards import Question, reward_for, reward_of
from gpt_pipeline.rl.rollouts import RecordedDraws, Sample, Tally, kept_answers, rows_of, target_log_probabilities
from gpt_pipeline.rl.stage import PromptsStage
from gpt_pipeline.training.config import TrainingConfig, rollout_layout
from gpt_pipeline_tests.projects import make_data
from gpt_pipeline_tests.rl_jobs import RL, prompt, undecided_model

OPTIONS = "Which is red? A) rose B) leaf C) sky"


def question(expected: str, **changes) -> Question:
    found = reward_for(changes.get("query", "?"), expected)
    assert found is not None
    return Question(**{"query": "?", "expected": expected, "with_reasoning": False, "reward": found, **changes})


@pytest.mark.parametrize(
    ("asked", "continuation", "ended", "reward"),
    [
        (question("12"), " It is 12.", True, 1.0),
        (question("12"), " It is 12.", False, 0.0),
        (question("12"), " 12 or 13", True, 0.0),
        (question("12"), "", True, 0.0),
        (question("12", with_reasoning=True), "We add 5 and 7.\n\nA: 12", True, 1.0),
        (question("12", with_reasoning=True), "We add 5 and 7, which is 12.", True, 0.0),
        (question("A", query=OPTIONS), " The rose", True, 1.0),
        (question("A", query=OPTIONS), " B", True, 0.0),
        (question("the Blue tower"), " blue tower!", True, 1.0),
        (question("the Blue tower"), " a blue tower, I think", True, 0.0),
        (question("7", is_conversation=True), " 7\n\nQ: And 8", False, 1.0),
    ],
)
def test_reward_is_1_for_what_ended_and_is_right(
    asked: Question, continuation: str, ended: bool, reward: float
) -> None:
    assert reward_of(asked, continuation, ended) == reward


def test_reward_for_a_long_text_is_none() -> None:
    assert reward_for("Tell me.", "This answer has more words than anyone samples exactly.") is None
    assert reward_for("Tell me.", "") is None


def test_prompts_all_come_once_before_any_comes_again() -> None:
    chosen = [number for step in range(7) for number in prompts_at(step, available=5, count=3, seed=1)]
    for epoch in range(4):
        assert sorted(chosen[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert prompts_at(0, available=2, count=6, seed=0) != prompts_at(1, available=2, count=6, seed=0)


def sample(reward: float, *tokens: int) -> Sample:
    likely = np.full(len(tokens), -0.5, np.float32)
    return Sample(tokens=tokens, ended=True, text="", reward=reward, log_probabilities=likely)


def test_rows_weigh_the_tokens_of_answers_by_their_advantage() -> None:
    asked: Prompt = prompt(1)  # two letters behind the end of the document before
    groups = [(asked, [sample(1.0, 7, 8), sample(0.0, 9)]), (asked, [sample(1.0, 5), sample(1.0, 6)])]
    rows = rows_of(list(kept_answers(groups)))
    assert rows.inputs.tolist() == [[*asked.tokens, 7], [*asked.tokens, 0]]
    assert rows.targets.tolist() == [[*asked.tokens[1:], 7, 8], [*asked.tokens[1:], 9, 0]]
    assert rows.weights.tolist() == [[0, 0, 0.5, 0.5], [0, 0, -0.5, 0]]
    tally = Tally.of(groups)
    assert (tally.groups, tally.dropped, tally.trained_tokens, tally.tokens) == (2, 1, 3, 5)
    assert tally.figures(with_distance=False)["entropy"] == pytest.approx(0.5)


def test_rows_without_an_answer_have_no_weight() -> None:
    rows = rows_of([])
    assert rows.inputs.shape == (1, 1)
    assert not rows.weights.any()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.6), Sampling(top_k=3), Sampling(top_p=0.7)])
def test_recorded_draws_note_the_models_own_log_probabilities_of_what_was_drawn_first(sampling: Sampling) -> None:
    logits = 3 * torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    draws = RecordedDraws(["a", "b", "c"], sampling, length=2)
    places = [0, 1, 2], [1, 0, 1]
    chosen, _ = draws.choose(logits[0], *places), draws.choose(logits[1], *places)
    wanted = logits[0].log_softmax(1).gather(1, chosen[:, None])[:, 0].numpy()
    np.testing.assert_allclose(draws.log_probabilities[places], wanted, atol=2e-6)
    assert np.isnan(draws.log_probabilities).sum() == 3


def test_target_log_probabilities_are_those_of_the_model() -> None:
    model, inputs = undecided_model(), torch.arange(12).reshape(3, 4)
    found = target_log_probabilities(model, inputs, inputs + 1, at_once=4)
    wanted = torch.stack([model(row[None])[0].log_softmax(-1)[range(4), row + 1] for row in inputs])
    torch.testing.assert_close(found, wanted.detach())


def write(folder: Path, *, training: str = "{objective: rl, max_steps: 4, warmup_steps: 1}", more: str = "") -> Path:
    (folder / "experiments").mkdir(exist_ok=True)
    data = "data: {source: sample, num_samples: 300, max_length: 96, validation_fraction: 0.1}\n"
    storage = "storage: {base_folder: ../storage}\n"
    base = "experiment_name: Base\nmodel: {n_layer: 1, n_head: 2, n_embd: 8, context_length: 128}\n"
    (folder / "experiments" / "base.yaml").write_text(base + data + storage)
    path = folder / "experiments" / "rl.yaml"
    path.write_text(
        f"experiment_name: RL\n{data}{storage}start_from: {{experiment: base.yaml}}\ntraining: {training}\n{more}"
    )
    return path


@pytest.mark.parametrize(
    ("training", "more", "found"),
    [
        ("{objective: rl}", "", "training.max_steps: found None"),
        ("{objective: rl, max_steps: 4, warmup_steps: 1, batch_size: 4}", "", "training.batch_size: found"),
        (
            "{objective: rl, max_steps: 4, warmup_steps: 1, micro_batch_size: auto}",
            "",
            "training.micro_batch_size: found '?auto'?, need a number or null with training.objective=rl",
        ),
        ("{objective: rl, max_steps: 4, warmup_steps: 1, tokens_per_step: 960}", "", "training.tokens_per_step: found"),
        ("{max_steps: 4, warmup_steps: 1}", "rl: {kl: 0.1}", "rl.kl: found '?0.1'?, need no such key"),
        ("{objective: rl, max_steps: 4, warmup_steps: 1}", "rl: {max_new_tokens: 96}", "less than data.max_length=96"),
        ("{objective: rl, max_steps: 4, warmup_steps: 1}", "rl: {samples_per_prompt: 1}", "2 or above"),
        ("{objective: rl, max_steps: 4, warmup_steps: 1}", "rl: {temperature: 0}", "finite number above 0"),
        (
            "{objective: rl, max_steps: 4, warmup_steps: 1}",
            "rl: {prompts_per_step: 3, max_new_tokens: 9}\nhardware: {num_gpus: 2}",
            "multiple of hardware.num_gpus=2; use 4",
        ),
    ],
)
def test_rl_file_that_cannot_be_used_says_why(tmp_path: Path, training: str, more: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        load_experiment(write(tmp_path, training=training, more=more))


def test_rl_layout_refuses_a_micro_batch_that_is_found_after_the_sampler_has_its_size() -> None:
    config = TrainingConfig(objective="rl", max_steps=4, warmup_steps=1, micro_batch_size="auto")
    with pytest.raises(ConfigError, match=r"training\.micro_batch_size: found '?auto'?, .*use 16"):
        rollout_layout(config, RL, max_length=16, world_size=1)
    own = dataclasses.replace(config, micro_batch_size=2)
    assert rollout_layout(own, RL, max_length=16, world_size=1).micro_batch_size == 2


def test_rl_file_without_a_start_says_what_to_name(tmp_path: Path) -> None:
    path = write(tmp_path, more="rl: {max_new_tokens: 20}")
    path.write_text(path.read_text().replace("start_from: {experiment: base.yaml}\n", ""))
    with pytest.raises(UserError, match="weights to begin with"):
        load_experiment(path)


def test_plan_of_rl_that_pays_for_distance_counts_the_start_weights(tmp_path: Path) -> None:
    precision = Precision(cuda=True, bf16=True, compiled=True, loss_piece=None)
    without, beside = (
        training_need(load_experiment(write(tmp_path, more=more)).config, micro_batch_size=1, precision=precision)
        for more in ("rl: {max_new_tokens: 20}", "rl: {max_new_tokens: 20, kl: 0.1}")
    )
    assert without.reference == without.asking == 0
    assert beside.reference == beside.weights
    assert beside.asking > beside.activations + beside.loss  # 2,048 tokens at a time, to 96 of an update
    assert beside.device == without.device + beside.reference + beside.asking - (without.activations + without.loss)


def test_plan_of_rl_knows_that_it_trains_without_the_dropout_of_its_model(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, more="rl: {max_new_tokens: 20}"))
    without = dataclasses.replace(experiment.config, model=dataclasses.replace(experiment.config.model, dropout=0.0))
    precision = Precision(cuda=True, bf16=True, compiled=True, loss_piece=None)
    needs = [training_need(each, micro_batch_size=8, precision=precision) for each in (experiment.config, without)]
    assert experiment.config.model.drop_rate > 0
    assert needs[0] == needs[1]
    plan = make_plan(experiment, measured=False, say=lambda _: None)
    assert not [finding for finding in plan.findings if finding.key == "model.dropout"]


def test_plan_of_rl_has_the_files_of_its_data_once_and_none_of_its_questions(tmp_path: Path) -> None:
    later = load_experiment(write(tmp_path, more="rl: {max_new_tokens: 20}"))
    base = load_experiment(later.file.with_name("base.yaml"))
    ours, theirs = (
        {
            need.what: need.size
            for disk in make_plan(each, measured=False, say=lambda _: None).disks
            for need in disk.needs
            if "checkpoints" not in need.what
        }
        for each in (later, base)
    )
    assert ours == theirs
    assert "token_shards" in ours


LONG = "This answer has more words than anyone samples exactly."
NUMBERS = {f"What is {number} and {number}?": str(2 * number) for number in range(40)}


def of_own_files(folder: Path, questions: dict[str, str], *, max_length: int = 96) -> Path:
    """Write an experiment on rewards, on questions with these answers."""
    path = write(folder, more="rl: {max_new_tokens: 20}")
    rows = [{"question": question, "answer": answer} for question, answer in questions.items()]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in (path, path.with_name("base.yaml")):
        text = file.read_text().replace("source: sample, num_samples: 300", "source: ../mine.jsonl, num_samples: all")
        own = f"format: question_answer, group: question, max_length: {max_length}"
        file.write_text(text.replace("max_length: 96", own))
    return path


def of_rewards(path: Path) -> list[Finding]:
    plan = make_plan(load_experiment(path), measured=False, say=lambda _: None)
    return [each for each in plan.findings if each.key == "training.objective" and "checked" in each.text]


def refusal_of_the_stage(path: Path) -> str:
    """Return what the stage says of the same documents."""
    experiment = load_experiment(path)
    shards = make_data(experiment)
    documents = [(finished_documents(experiment.data, experiment.data_folder), experiment.data)]
    rl, longest = experiment.config.rl, experiment.config.rl.longest_question(experiment.config.data.max_length)
    with pytest.raises(DataError) as refused:
        stage(experiment.data_folder).prepare(
            lambda: choose_candidates(documents, tokenizer_of(shards), count=rl.candidates, seed=0, longest=longest),
            lambda *_: pytest.fail("asked"),
        )
    return str(refused.value)


def held_out(question: str) -> bool:
    return is_held_out(question, seed=0, fraction=0.1)


@pytest.mark.parametrize(
    ("questions", "max_length"),
    [
        (dict.fromkeys(NUMBERS, LONG), 96),
        (NUMBERS, 24),  # which leaves four tokens to the question
        ({each: LONG if held_out(each) else answer for each, answer in NUMBERS.items()}, 96),
    ],
)
def test_plan_of_rl_on_documents_without_candidates_says_what_the_stage_does(
    tmp_path: Path, questions: dict[str, str], max_length: int
) -> None:
    path = of_own_files(tmp_path, questions, max_length=max_length)
    said = refusal_of_the_stage(path)
    (found,) = of_rewards(path)
    assert (found.severity, f"{found.text}; {found.remedy}") == ("problem", said)


def test_plan_of_rl_on_files_without_a_check_says_so_before_the_data_is_made(tmp_path: Path) -> None:
    path = of_own_files(tmp_path, dict.fromkeys(NUMBERS, LONG))
    (found,) = of_rewards(path)
    assert found.text.endswith("can be checked (no_check 40) in the first 40 documents")
    path = of_own_files(tmp_path, {**dict.fromkeys(NUMBERS, LONG), "What is 1 and 1?": "2"})
    assert of_rewards(path) == []


def test_plan_of_rl_on_documents_with_candidates_finds_nothing(tmp_path: Path) -> None:
    path = of_own_files(tmp_path, NUMBERS)
    assert of_rewards(path) == []
    make_data(load_experiment(path))
    assert of_rewards(path) == []


def test_plan_of_rl_on_many_documents_looks_at_the_first_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = {each: "7" for number in range(40) if not held_out(each := f"And what is {number}?")}
    path = of_own_files(tmp_path, {**dict.fromkeys(NUMBERS, LONG), **last})
    make_data(load_experiment(path))
    monkeypatch.setattr(rewards, "_LOOKED_AT", 40)
    (found,) = of_rewards(path)
    assert found.severity == "warning"  # others come behind them
    assert found.text.endswith("in the first 40 documents")
    monkeypatch.setattr(rewards, "_LOOKED_AT", 45)  # none of the five is held out, which says nothing of all
    assert of_rewards(path) == []
    monkeypatch.setattr(rewards, "_LOOKED_AT", 80)
    (found,) = of_rewards(path)
    assert found.text == "found no held-out question whose answer can be checked"


def test_rl_has_an_asset_of_its_questions_between_data_and_training(tmp_path: Path) -> None:
    path = write(tmp_path, more="rl: {max_new_tokens: 20}")
    definitions = build_definitions(Project(root=tmp_path, experiments=path.parent))
    specs = {tuple(spec.key.path): spec for spec in definitions.resolve_all_asset_specs()}
    upstream = {dep.asset_key.path[-1] for dep in specs["rl", "rl_prompts"].deps}
    assert upstream == {"token_shards", "training"}
    assert ("rl", "rl_prompts") in {tuple(dep.asset_key.path) for dep in specs["rl", "training"].deps}
    assert ("base", "rl_prompts") not in specs
    assert [stage.name for stage in data_progress(load_experiment(path))][-1] == "rl_prompts"


def test_candidates_of_both_sides_differ_and_have_a_check(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, more="rl: {max_new_tokens: 20}"))
    data, folder = experiment.data, experiment.data_folder
    documents = prepare_documents(data, prepare_raw(data, folder), folder)
    found = choose_candidates([(documents, data)], gpt2(), count=20, seed=0, longest=60)
    assert len(found.training) == 20
    assert found.held_out
    texts = [[each.tokens for each in side] for side in (found.training, found.held_out)]
    assert not set(texts[0]) & set(texts[1])
    assert max(Counter(texts[0] + texts[1]).values()) == 1
    assert all(len(tokens) <= 60 for side in texts for tokens in side)
    assert found.left_out["no_check"] > 0
    assert found == choose_candidates([(documents, data)], gpt2(), count=20, seed=0, longest=60)
    assert prepare_shards(data, documents, folder)  # what `sample` gives has shards too


def stage(folder: Path) -> PromptsStage:
    return PromptsStage(
        config=RL, seed=0, max_length=16, shards_fingerprint="5" * 64, weights_sha256="6" * 64, data_folder=folder
    )


def candidates(count: int) -> Candidates:
    prompts = tuple(dataclasses.replace(prompt(number), pass_rate=None) for number in range(count))
    return Candidates(training=prompts, held_out=prompts[:2], left_out={"no_check": 3})


def by_number(prompts, names):
    """Answer the first question always, the second never, the others half of the times."""
    rates = {"0": (1.0, 1.0), "1": (0.0, 0.0)}
    return [(each, [sample(reward, 1) for reward in rates.get(each.id, (1.0, 0.0))]) for each in prompts]


def test_stage_keeps_what_is_answered_sometimes_right(tmp_path: Path) -> None:
    made = stage(tmp_path).prepare(lambda: candidates(5), by_number)
    assert [each.id for each in prompts_of(made).training] == ["2", "3", "4"]
    assert {each.pass_rate for each in prompts_of(made).training} == {0.5}
    facts = made.manifest.facts
    assert (facts["never_right"], facts["always_right"], facts["prompts"]) == (1, 1, 3)
    assert (facts["pass_at_1"], facts["pass_at_k"]) == (pytest.approx(0.5), pytest.approx(0.8))
    assert stage(tmp_path).find() is not None

    def fail(*_):
        raise AssertionError

    assert stage(tmp_path).prepare(fail, fail).reused


def test_stage_that_was_stopped_goes_on_behind_what_was_answered(tmp_path: Path) -> None:
    asked: list[str] = []

    def stopped(prompts, names):
        asked.extend(names)
        if len(asked) > 16:
            raise UserError("stopped")
        return by_number(prompts, names)

    with pytest.raises(UserError, match="stopped"):
        stage(tmp_path).prepare(lambda: candidates(20), stopped)
    asked.clear()
    made = stage(tmp_path).prepare(lambda: candidates(20), stopped)
    assert asked == [f"0/candidate/{number}" for number in range(16, 20)]
    assert made.manifest.facts["prompts"] == 18


@pytest.mark.parametrize("odd", ['{"pass_rates": ["x"]}', '{"pass_rates": [0.5]}', '{"pass_rates": 3}', "{"])
def test_stage_whose_chunk_of_answers_is_damaged_asks_its_questions_again(tmp_path: Path, odd: str) -> None:
    chunk = stage(tmp_path).place()[0] / "measured" / "000000.json"
    chunk.parent.mkdir(parents=True)
    chunk.write_text(odd)
    assert stage(tmp_path).prepare(lambda: candidates(5), by_number).manifest.facts["prompts"] == 3


def test_stage_that_was_killed_ahead_of_its_manifest_asks_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path).prepare(lambda: candidates(20), by_number)
    made = stage(tmp_path).prepare(lambda: candidates(20), lambda *_: pytest.fail("asked again"))
    assert made.manifest.facts["prompts"] == 18
    assert [path.name for path in made.folder.iterdir() if path.is_dir()] == []


def test_stage_made_anew_reads_nothing_that_a_kill_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed just before
        stage(tmp_path).prepare(lambda: candidates(20), by_number)
    asked: list[str] = []

    def ask(prompts, names):
        asked.extend(names)
        return by_number(prompts, names)

    stage(tmp_path).prepare(lambda: candidates(20), ask, force=True)
    assert len(asked) == 20


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (candidates(1), r"^found none of 1 questions .* Take harder questions, or raise rl.temperature"),
        (candidates(2), "none of 2 questions .* Train the model to start from further, or raise rl.candidates"),
        (
            dataclasses.replace(candidates(3), held_out=()),
            "no held-out question .* need a number, an option .* raise data.validation_fraction",
        ),
        (Candidates(training=(), held_out=(), left_out={"no_check": 3}), r"no training-side question .*no_check 3"),
    ],
)
def test_stage_without_questions_says_what_to_do(tmp_path: Path, found: Candidates, said: str) -> None:
    with pytest.raises(DataError, match=said):
        stage(tmp_path).prepare(lambda: found, by_number)


def test_stage_is_another_with_other_weights_or_keys(tmp_path: Path) -> None:
    own = stage(tmp_path)
    longer = dataclasses.replace(RL, max_new_tokens=5)
    others = [
        dataclasses.replace(own, weights_sha256="7" * 64),
        dataclasses.replace(own, config=longer),
        dataclasses.replace(own, seed=1),
    ]
    assert len({each.place()[1] for each in (own, *others)}) == 4
    assert dataclasses.replace(own, config=dataclasses.replace(RL, kl=1.0)).place() == own.place()


MIX = """
data:
  num_samples: all
  max_length: 96
  mix:
    a: {source: sample, num_samples: 50, share: 1}
    b: {source: ./texts, format: text, num_samples: 50, share: 1}
"""


def test_rl_on_a_mix_has_parts_that_can_be_looked_at_alone(tmp_path: Path) -> None:
    text = f"""
experiment_name: mixed
start_from: {{hugging_face: owner/name}}
training: {{objective: rl, max_steps: 10, warmup_steps: 1}}
rl: {{max_new_tokens: 32}}
storage: {{base_folder: storage}}
{MIX}"""
    (tmp_path / "texts").mkdir()
    file = tmp_path / "mixed.yaml"
    file.write_text(text, encoding="utf-8")
    assert sorted(load_experiment(file).parts) == ["a", "b"]


def test_rl_on_texts_without_questions_is_refused_at_their_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text(
        "experiment_name: texts\nstart_from: {hugging_face: owner/name}\n"
        "training: {objective: rl, max_steps: 10, warmup_steps: 1}\nrl: {max_new_tokens: 32}\n"
        "storage: {base_folder: storage}\ndata: {source: ./texts, format: text, num_samples: 5, max_length: 96}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="found 'text', need synth, question_answer or chat"):
        load_experiment(file)
