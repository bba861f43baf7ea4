"""A model that writes on, and what of it reaches the terminal."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.checkpoints.choose import choose_checkpoint
from gpt_pipeline.checkpoints.manifest import BEST_NAME, CheckpointInfo
from gpt_pipeline.cli.models import _manner
from gpt_pipeline.data.formats.conversation import Message
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2, with_turns
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.evaluation.generate import generate, greedy
from gpt_pipeline.experiment.load import read_experiment
from gpt_pipeline.model.architectures import make_model
from gpt_pipeline.model.config import ModelConfig
from gpt_pipeline.writing import Manner, Writer, converse, picker, whole_characters, write_once
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.synth_rows import prompt_text

GREEDY = Manner(pick=greedy, max_new_tokens=10, raw=False)


def writer(context: int = 32, bias: float = 0.0, *, in_turns: bool = False) -> Writer:
    """A small model with decided opinions; `bias` is for or against `<|endoftext|>`."""
    torch.manual_seed(0)
    tokenizer = with_turns(gpt2()) if in_turns else gpt2()
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": max(32, context)}
    model = make_model(ModelConfig(n_layer=1, n_head=2, n_embd=8, **shape, tie_weights=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.transformer.ln_f.bias.fill_(1.0)
        model.head_weight[EOT_TOKEN] = bias
    info = CheckpointInfo(
        path=Path("x.pt"), step=1, sha256="", weights_sha256="", size=0, fingerprint="", shards_fingerprint="",
        tokens_seen=0, metrics={}, model=model.config, created_at="",
    )  # fmt: skip
    return Writer(model=model, tokenizer=tokenizer, checkpoint=info, context_length=context)


def test_writer_greedy_writes_what_the_evaluation_generates() -> None:
    one = writer()
    text = "".join(one.write("Why?", GREEDY))
    prompt = [EOT_TOKEN, *gpt2().encode(prompt_text("Why?"))]
    (needed,) = generate(one.model, [prompt], max_new_tokens=10, context_length=32)
    assert text == gpt2().decode(list(needed.tokens))
    assert one.end == "limit"
    assert len(needed.tokens) == 10


def test_writer_stops_where_the_model_ends() -> None:
    one = writer(bias=100.0)
    assert list(one.write("Why?", GREEDY)) == []
    assert one.end == "ended"


def test_writer_stops_when_the_context_is_full() -> None:
    one = writer(context=16, bias=-100.0)
    manner = Manner(pick=greedy, max_new_tokens=100, raw=True)
    assert "".join(one.write("a b c d", manner))
    assert one.end == "context"
    assert not one.prompt_truncated


def test_write_once_raw_prints_prompt_and_text_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    manner = Manner(pick=greedy, max_new_tokens=5, raw=True)
    text = "".join(writer().write("Once upon", manner))
    write_once(writer(), manner, "Once upon", say=lambda _: None)
    assert capsys.readouterr().out == f"Once upon{text}\n"


def test_converse_raw_prints_each_prompt_and_a_question_prints_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    for raw in (True, False):
        monkeypatch.setattr("sys.stdin", io.StringIO("Once upon\n"))
        converse(writer(), Manner(pick=greedy, max_new_tokens=5, raw=raw), say=lambda _: None)
        outputs.append(capsys.readouterr().out.startswith("Once upon"))
    assert outputs == [True, False]


MIX = """\
experiment_name: Mix
data:
  num_samples: all
  max_length: 64
  template: TEMPLATE
  mix:
    sums: {share: 1, source: ./sums.csv, format: question_answer, columns: {reasoning: why}}
    chat: {share: 1, source: ./chat.jsonl, format: chat}
storage: {base_folder: ../storage}
"""


@pytest.mark.parametrize(
    ("template", "written"),
    [("plain", "We add.\n\nA: 4\n\nQ: And"), ("chatml", "We add.\n</think>\n\n4")],
)
def test_converse_where_documents_reason_shows_the_answer_and_remembers_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, template: str, written: str
) -> None:
    one = writer(context=64, bias=-100.0, in_turns=template == "chatml")
    ids = one.tokenizer.encode(written)
    script: list[int] = []
    data = read_experiment(tmp_path / "mix.yaml", MIX.replace("TEMPLATE", template)).config.data
    manner = _manner(one, data, raw=False, pick=lambda logits: torch.tensor([script.pop(0)]), max_new_tokens=len(ids))
    heard = []

    def asked(messages: Sequence[Message]) -> str:
        heard.append([message.content for message in messages])
        script[:] = ids
        return manner.asked(messages)

    monkeypatch.setattr(sys, "stdin", io.StringIO("2 + 2?\nAgain?\n"))
    converse(one, dataclasses.replace(manner, asked=asked), say=lambda _: None)
    shown, *_ = written.partition("\n\nQ:")
    assert capsys.readouterr().out == f"{shown}\n" * 2
    assert heard == [["2 + 2?"], ["2 + 2?", "4", "Again?"]]


def test_writer_long_prompt_keeps_its_end() -> None:
    one = writer(context=16, bias=-100.0)
    text = "".join(one.write("x " * 50 + "the end", Manner(pick=greedy, max_new_tokens=8, raw=True)))
    assert one.prompt_truncated
    kept = [EOT_TOKEN, *gpt2().encode("x " * 50 + "the end")[-7:]]
    (needed,) = generate(one.model, [kept], max_new_tokens=8, context_length=16)
    assert text == gpt2().decode(list(needed.tokens))


def test_writer_yields_each_piece_before_the_next_token_is_computed() -> None:
    one, calls = writer(bias=-100.0), 0

    def pick(logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.tensor([gpt2().encode("a")[0]])

    pieces = one.write("Why?", Manner(pick=pick, max_new_tokens=5, raw=False))
    seen = [(piece, calls) for piece in pieces]
    assert seen == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("a", 5)]


@given(text=st.text(alphabet=st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=20))
def test_whole_characters_pieces_add_up_to_the_text(text: str) -> None:
    tokens = gpt2().encode(text)
    pieces = list(whole_characters(tokens, gpt2()))
    assert "".join(pieces) == text


def test_whole_characters_cut_in_a_character_waits_for_the_rest() -> None:
    single = {byte: gpt2().token_bytes.index(bytes([byte])) for byte in "日é".encode()}
    tokens = [single[byte] for byte in "日é".encode()]
    assert list(whole_characters(tokens, gpt2())) == ["日", "é"]
    assert list(whole_characters(tokens[:4], gpt2())) == ["日", "\ufffd"]  # the model stopped inside a character


def test_picker_temperature_0_is_greedy_and_a_seed_draws_the_same() -> None:
    logits = torch.randn(1, 50257, generator=torch.Generator().manual_seed(1))
    assert picker(temperature=0, top_k=None, seed=1)(logits) == logits.argmax()
    one, two, three = (picker(temperature=1.0, top_k=None, seed=seed) for seed in (5, 5, 6))
    drawn = [[int(pick(logits)) for _ in range(20)] for pick in (one, two, three)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_picker_draws_with_the_softmax_of_logits_over_temperature_among_the_top_k() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    pick = picker(temperature=0.5, top_k=2, seed=0)
    counts = torch.bincount(pick(logits.expand(20_000, 4)), minlength=4) / 20_000
    needed = torch.softmax(torch.tensor([4.0, 2.0]), 0)
    assert counts[2:].sum() == 0
    assert torch.allclose(counts[:2].double(), needed.double(), atol=0.02)


def test_choose_checkpoint_knows_best_last_steps_and_files(finished: TinyProject, tmp_path: Path) -> None:
    folder = finished.experiment("tiny").folder.checkpoints
    newest = finished.checkpoints("tiny")[-1]
    assert choose_checkpoint(folder, "best").path.name == BEST_NAME
    for name in ("last", "step_12", "step_00000012", newest.path.name, str(newest.path)):
        assert choose_checkpoint(folder, name) == newest


@pytest.mark.parametrize("name", ["step_7", "checkpoint_step_7.pt", "newest", "", "/nowhere/x.pt"])
def test_choose_checkpoint_unknown_name_lists_those_that_are_there(finished: TinyProject, name: str) -> None:
    with pytest.raises(UserError, match=r"checkpoint_step_8\.pt, checkpoint_step_12\.pt"):
        choose_checkpoint(finished.experiment("tiny").folder.checkpoints, name)


def test_choose_checkpoint_cut_short_is_damaged_and_none_says_to_train(copy: TinyProject, tmp_path: Path) -> None:
    folder = copy.experiment("tiny").folder.checkpoints
    path = folder / BEST_NAME
    content = path.read_bytes()
    path.unlink()  # it may be the same file as another
    path.write_bytes(content[:-5])
    with pytest.raises(DamagedFileError, match="manifest"):
        choose_checkpoint(folder, "best")
    path.unlink()
    with pytest.raises(UserError, match=r"found no best one, need an estimate.*take last.*checkpoint_step_12\.pt"):
        choose_checkpoint(folder, "best")
    with pytest.raises(UserError, match="train first"):
        choose_checkpoint(tmp_path / "none", "best")


def test_generate_command_prints_the_text_alone_and_needs_no_compiler(finished: TinyProject) -> None:
    command = ["generate", "experiments/tiny.yaml", "--prompt", "What is it?", "--max-new-tokens", "5"]
    without = "import sys; sys.modules['torch._dynamo'] = None"  # more than a second to import
    process = subprocess.run(
        [sys.executable, "-c", f"{without}; from gpt_pipeline.cli import main; main({command})"],
        cwd=finished.root, env=finished.environment, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    of = finished.experiment("tiny")
    one = Writer.of_checkpoint(of.folder.checkpoints / BEST_NAME, device="cpu", trained_length=32)
    needed = "".join(one.write("What is it?", Manner(pick=greedy, max_new_tokens=5, raw=False)))
    assert process.stdout == needed + "\n"
    assert "best_model.pt, step" in process.stderr


def test_generate_command_keeps_to_the_length_that_the_checkpoint_was_trained_at(copy: TinyProject) -> None:
    path = copy.experiment("tiny").file
    path.write_text(path.read_text().replace("max_length: 32", "max_length: 33"))
    assert copy.experiment("tiny").config.data.max_length == 33
    said = copy.call("generate", str(path), "--raw", "--prompt", "a " * 40, "--max-new-tokens", "1")
    assert "[the prompt is longer than 31 tokens, which leave room for 1 more in the 32 that" in said


def test_generate_command_interactive_answers_each_line(finished: TinyProject) -> None:
    arguments = ["generate", "experiments/tiny.yaml", "--interactive", "--max-new-tokens", "2", "--checkpoint", "last"]
    process = finished.start(*arguments, stdin=subprocess.PIPE)
    output, _ = process.communicate("What?\n\nWhy?\n")
    assert process.returncode == 0
    assert output.count("stopped after 2 tokens") == 2


def test_generate_command_damaged_checkpoint_is_a_clear_error(copy: TinyProject) -> None:
    path = copy.checkpoints("tiny")[-1].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    output = copy.run("generate", "experiments/tiny.yaml", "--checkpoint", "last", "--prompt", "x", expect=1)
    assert "is damaged: found sha256" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("arguments", [(), ("--prompt", "x", "--interactive"), ("--prompt", "x", "--top-k", "3")])
def test_generate_command_misused_says_how(finished: TinyProject, arguments: tuple[str, ...]) -> None:
    assert "Traceback" not in finished.run("generate", "experiments/tiny.yaml", *arguments, expect=2)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_generate_command_interactive_ctrl_c_stops_the_answer_only(copy: TinyProject, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sys, time, gpt_pipeline.evaluation.generate as g\n"
        "real, tokens = g.greedy, []\n"
        "def greedy(logits):\n"
        "    tokens.append(1)\n"
        "    if len(tokens) == 3:\n"
        "        print('waits', flush=True); time.sleep(600)\n"
        "    return real(logits)\n"
        "import gpt_pipeline.writing as w; w.greedy = greedy\n"
        "from gpt_pipeline.cli import main; main(sys.argv[1:])\n"
    )
    arguments = ["generate", "experiments/tiny.yaml", "--interactive", "--max-new-tokens", "6"]
    with subprocess.Popen(
        [sys.executable, str(slow), *arguments],
        cwd=copy.root, env=copy.environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        process.stdin.write("What?\n")
        process.stdin.flush()
        assert any("waits" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate("Why?\n", timeout=60)
    assert process.returncode == 0
    assert "[stopped]" in output
    assert output.count("stopped after 6 tokens") == 1
