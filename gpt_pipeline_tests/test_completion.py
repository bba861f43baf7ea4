"""What a shell is told when somebody presses Tab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_pipeline_tests.projects import TinyProject


def offered(folder: Path, *words: str) -> list[str]:
    """What bash would offer for the last of the words."""
    asked = {
        "_GPT_PIPELINE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["gpt-pipeline", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "gpt_pipeline"]
    found = subprocess.run(
        command, cwd=folder, env={**os.environ, **asked}, capture_output=True, text=True, check=True, timeout=60
    )
    return [line.partition(",")[2] for line in found.stdout.splitlines()]


def test_completion_of_a_verb_begun_offers_those_that_begin_so(tmp_path: Path) -> None:
    assert offered(tmp_path, "ex") == ["export"]


def test_completion_of_a_checkpoint_without_an_experiment_offers_the_words(tmp_path: Path) -> None:
    assert offered(tmp_path, "generate", "none.yaml", "--checkpoint", "") == ["best", "last"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_script_is_one_that_bash_takes() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "gpt_pipeline", "completion", "bash"], capture_output=True, text=True, check=True
    )
    checked = subprocess.run(
        ["bash", "-c", f"{made.stdout}\ncomplete -p gpt-pipeline"], capture_output=True, check=True
    )
    assert b"_gpt_pipeline_completion" in checked.stdout


def test_completion_of_a_checkpoint_offers_the_steps_on_the_disk(finished: TinyProject) -> None:
    words = ("generate", "experiments/tiny.yaml", "--checkpoint", "step_")
    assert offered(finished.root, *words) == ["step_4", "step_8", "step_12"]
