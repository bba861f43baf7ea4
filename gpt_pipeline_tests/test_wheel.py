"""The wheel: what is not in it is missed only by those who have no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel, built anew, and without the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Tracked and untracked files alike, without what an earlier build has left.
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "gpt_pipeline", "pyproject.toml", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([*pip, "--python", str(commands / "python"), "install", "--no-deps", str(wheel)], check=True)
    return commands


def run(commands: Path, folder: Path, *arguments: str) -> str:
    # The dependencies are the tester's; the package itself is there by a link that only its own environment follows.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [commands / "gpt-pipeline", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


def test_wheel_in_an_empty_folder_makes_an_experiment_and_runs_it(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "init", "mine.yaml", "--recipe", "demo", "--samples", "400")
    file = tmp_path / "mine.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("num_epochs: 1", "max_steps: 31 #"), encoding="utf-8")
    assert "Everything is done." in run(installed, tmp_path, "run", "mine.yaml")
    assert (tmp_path / "storage" / "Mine" / "report.html").is_file()
    assert "Nothing to do" in run(installed, tmp_path, "run", "mine.yaml")
    run(installed, tmp_path, "export", "mine.yaml", "--to", "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
