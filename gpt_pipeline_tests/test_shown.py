"""Text from elsewhere: harmless on terminals and in markdown, and no password of an address anywhere."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.cli import main
from gpt_pipeline.cli.common import print_json, say
from gpt_pipeline.doctor.services import check_mlflow
from gpt_pipeline.errors import UserError
from gpt_pipeline.orchestration.build import build_definitions
from gpt_pipeline.orchestration.metadata import counts_table, fact
from gpt_pipeline.orchestration.tracking_resource import MlflowTracking
from gpt_pipeline.project import Project
from gpt_pipeline.report import wording
from gpt_pipeline.sheet import Sheet, plain_text
from gpt_pipeline.shown import as_code, in_markdown, on_terminal, size, without_password
from gpt_pipeline.tracking.tables import answers_as_markdown, kinds_as_markdown
from gpt_pipeline.training.observer import PlainObserver
from gpt_pipeline.writing import whole_characters
from gpt_pipeline_tests.projects import TinyProject
from gpt_pipeline_tests.servers import free_port

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe"
MARKUP = "<img src=http://evil.example/x> ![x](http://evil.example/y) [a](b) `c` **d** | <script>"
ADDRESSES = {
    "http://me:s3cret@mlflow.example:5000": "http://mlflow.example:5000",
    "https://s3cret@mlflow.example/a@b": "https://mlflow.example/a@b",
    "http://mlflow.example:5000/a@b": "http://mlflow.example:5000/a@b",
    "https://me:s3cret@x@mlflow.example/": "https://mlflow.example/",
    "https://me:s3/cret#x@mlflow.example:5000/": "https://mlflow.example:5000/",
    "http://[::1]:5000/a@b": "http://[::1]:5000/a@b",
    "postgresql+psycopg2://me:s3cret@db/mlflow": "postgresql+psycopg2://db/mlflow",
    "postgresql://me:s3/cret@db:5432/mlflow": "postgresql://db:5432/mlflow",
    "postgresql://db/mlflow?user=me&password=s3cret&x=1": "postgresql://db/mlflow?user=me&password=...&x=1",
    "https://mlflow.example/?access_token=s3cret": "https://mlflow.example/?access_token=...",
    "sqlite:////data/mlflow.db": "sqlite:////data/mlflow.db",
    "E:\\GPT_SANDBOX me@example.org": "E:\\GPT_SANDBOX me@example.org",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_address_loses_its_password_and_nothing_else(address: str) -> None:
    assert without_password(address) == ADDRESSES[address]
    assert (
        without_password(f"at {address} (see '{address}')") == f"at {ADDRESSES[address]} (see '{ADDRESSES[address]}')"
    )


@settings(max_examples=50)
@given(st.text())
def test_text_on_a_terminal_has_no_control_and_can_be_written(text: str) -> None:
    shown = on_terminal(text)
    assert not any((ord(letter) < 0x20 and letter not in "\n\t") or 0x7F <= ord(letter) < 0xA0 for letter in shown)
    shown.encode()


def test_text_with_accents_emoji_and_line_breaks_is_shown_as_it_is() -> None:
    assert on_terminal("é 漢字 👩‍👩‍👧\r\n\tשלום") == "é 漢字 👩‍👩‍👧\n\tשלום"


def _is_harmless(text: str) -> bool:
    return not any(letter in text for letter in "\x1b\x07\x9b\u202e")


def test_terminal_messages_errors_sheets_and_json_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    say(ESCAPES)
    print_json({"kind": ESCAPES})
    PlainObserver(sys.stderr).message(ESCAPES)
    captured = capsys.readouterr()
    assert _is_harmless(captured.out + captured.err)
    assert json.loads(captured.out) == {"kind": ESCAPES}
    assert _is_harmless(str(UserError(ESCAPES)))
    assert _is_harmless(plain_text([Sheet(heading=[ESCAPES], rows=[[ESCAPES, (ESCAPES, "bold")]])]))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_command_about_a_file_with_a_hostile_name_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = TinyProject(root=tmp_path).write_experiment(f"a{ESCAPES}")
    path.write_text(path.read_text().replace("max_steps", "max_stepz"))
    with pytest.raises(SystemExit):
        main(["validate", str(path)])
    captured = capfd.readouterr()
    assert "owned" in captured.err
    assert _is_harmless(captured.out + captured.err)


def test_generated_text_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt_pipeline import writing
    from gpt_pipeline.data.tokens.tokenizer import gpt2

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    for piece in whole_characters(gpt2().encode(ESCAPES), gpt2()):
        writing._put(piece)
    assert _is_harmless(out.getvalue())
    assert "owned" in out.getvalue()


ANSWER = {"exercise": MARKUP, "correct": False, "well_formed": True, "question": MARKUP, "expected": MARKUP}


def _has_markup(markdown: str) -> bool:
    """Whether anything of the hostile text, outside of code blocks, is markup."""
    lines = [line for line in markdown.splitlines() if not line.startswith("    ")]
    bare = [line.replace("\\\\", "").replace("\\<", "").replace("\\[", "").replace("\\`", "") for line in lines]
    return any(sign in line for line in bare for sign in ("<", "[x]", "[a]", "`"))


def test_markdown_of_names_and_texts_from_data_is_no_markup() -> None:
    shown = [
        in_markdown(MARKUP),
        counts_table({MARKUP: 3}).md_str,
        answers_as_markdown([{**ANSWER, "generated": f"{MARKUP}\n\n{MARKUP}"}], title="step 1"),
        kinds_as_markdown({f"val_loss/{MARKUP}": 1.0}, {}) or "",
        fact([MARKUP]).md_str,
    ]
    assert not [markdown for markdown in shown if _has_markup(markdown)]
    assert len(counts_table({MARKUP: 3}).md_str.splitlines()) == 3


def test_code_in_markdown_is_a_block_that_its_text_cannot_end_nor_steer_a_terminal() -> None:
    shown = as_code("```\n# big\n\x1b[2J\u202eabc")
    assert shown.splitlines() == ["    ```", "    # big", r"    \u001b[2J\u202eabc"]
    assert as_code("") == "    "


def test_markdown_of_an_experiments_name_is_no_markup(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    project.write_experiment("tiny", name=json.dumps(MARKUP))
    (tmp_path / "experiments" / "<img src=x>.yaml").write_text(f"experiment_name: [{MARKUP}")
    definitions = build_definitions(Project(root=tmp_path, experiments=tmp_path / "experiments"))
    described = [spec.description or "" for spec in definitions.resolve_all_asset_specs()]
    described += [job.description or "" for job in definitions.resolve_all_job_defs()]
    assert any("evil.example" in text for text in described)
    own = re.compile(r"`(run_|data_)[\w.]*`|`(gpt-pipeline|dagster dev)[^`]*`")  # jobs and commands that we name
    assert not [text for text in described if _has_markup(own.sub("", text))]


@pytest.mark.parametrize("address", [address for address in ADDRESSES if "s3cret" in address])
def test_password_of_the_store_is_in_no_link_command_or_finding(address: str) -> None:
    tracking = MlflowTracking(tracking_uri=address)
    links = {name: str(value.value) for name, value in tracking.links(experiment_id="1", run_id="2").items()}
    findings = [] if address.startswith("http") else list(check_mlflow(address))
    assert "s3cret" not in f"{tracking} {links} {findings}"


@pytest.mark.slow
def test_password_of_a_server_that_does_not_answer_is_written_nowhere(tmp_path: Path) -> None:
    project = TinyProject(root=tmp_path)
    path = project.write_experiment("tiny")
    environment = {
        **project.environment,
        "MLFLOW_TRACKING_URI": f"http://someone:s3cret@127.0.0.1:{free_port()}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    said = ""
    for verb in (["run", str(path)], ["evaluate", str(path)], ["status"], ["doctor", "--offline"]):
        done = subprocess.run(
            [sys.executable, "-m", "gpt_pipeline", *verb],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said += done.stdout + done.stderr
    assert "127.0.0.1" in said
    assert "s3cret" not in said
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("runs" in file.parts for file in written)  # of Dagster's history
    assert not [file for file in written if b"s3cret" in file.read_bytes()]


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999 bytes"), (1234567, "1.23 MB"), (999_600, "1 MB"), (999_600_000, "1 GB"), (1.536e12, "1.54 TB")],
)
def test_size_takes_the_unit_of_what_it_shows(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(99_951, "99,951"), (123_456, "123 k"), (999_999, "1 M"), (-2.5e9, "-2.5 B")]
)
def test_count_takes_the_unit_of_what_it_shows(value: float, text: str) -> None:
    assert wording.count(value) == text
