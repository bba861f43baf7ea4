"""What the command line says to wrong inputs and surroundings: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_pipeline.cli import main
from gpt_pipeline.doctor.software import Nvidia
from gpt_pipeline.project import Project
from gpt_pipeline_tests.projects import TinyProject

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    for name in ("DAGSTER_HOME", "GPT_PIPELINE_EXPERIMENTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return TinyProject(root=tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return int(end.value.code or 0), printed.out + printed.err


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_init_of_a_folder_names_a_file_in_it(
    project: TinyProject, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, text = said(capsys, "init", name)
    assert (code, "my-idea.yaml" in text) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "gpu", "hint"),
    [([], False, True), ([], True, False), (["--recipe", "cpu"], False, False), (["--recipe", "demo"], False, False)],
)
def test_init_without_a_gpu_points_to_a_recipe_that_fits(
    project: TinyProject,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    arguments: list[str],
    gpu: bool,
    hint: bool,
) -> None:
    nvidia = Nvidia(text="a GPU", cuda=(13, 0)) if gpu else None
    monkeypatch.setattr("gpt_pipeline.doctor.software.find_nvidia", lambda: nvidia)
    code, text = said(capsys, "init", "mine.yaml", *arguments)
    assert (code, "--recipe cpu" in text) == (0, hint)


def test_init_of_files_of_which_no_row_becomes_a_document_shows_why(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.root / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}\n', encoding="utf-8"
    )
    code, text = said(capsys, "init", "mine.yaml", "--data", "chats.jsonl")
    assert code == 0
    assert "become no documents: text_parts: 1; set data.join_parts: true" in text
    assert re.search("dropped +text_parts", text)


_FIRST_WORD = """
import sys
from gpt_pipeline.cli import experiments
from gpt_pipeline.cli.main import command

def first(text):
    print([name for name in ("dagster", "mlflow", "torch") if name in sys.modules], text)
    sys.exit()

experiments.say = first
command.main(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.parametrize(("verb", "library"), [("run", "Dagster"), ("evaluate", "Dagster"), ("plan", "torch")])
def test_first_word_comes_before_the_large_libraries_are_imported(
    project: TinyProject, verb: str, library: str
) -> None:
    file = project.write_experiment("tiny")
    command = [sys.executable, "-c", _FIRST_WORD, verb, str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=project.root)
    assert said.stdout == f"[] tiny: loading {library} ...\n", said.stderr


def test_init_below_a_file_says_what_is_in_the_way(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    (project.root / "taken").write_text("")
    code, text = said(capsys, "init", "taken/mine.yaml")
    assert code == 1
    assert "taken" in text


def test_validate_of_a_source_of_another_system_does_not_call_the_file_valid(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project.write_experiment("mine")
    path.write_text(path.read_text().replace("source: sample", "source: 'E:\\texts', format: text"))
    code, text = said(capsys, "validate", str(path))
    assert (code, "Windows path" in text, "is valid" in text) == (2, True, False)


def test_init_with_a_folder_of_another_system_writes_nothing(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "init", "mine.yaml", "--folder", "E:\\data")
    assert code == 2
    assert "Windows path" in text
    assert not list(project.root.iterdir())


@pytest.mark.parametrize("home", ["missing", "/missing/folder"])
@pytest.mark.parametrize("verb", [["run"], ["evaluate"]])
def test_dagster_home_that_is_no_folder_is_named_and_not_made(
    project: TinyProject,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: str,
    verb: list[str],
) -> None:
    file = project.write_experiment("tiny")
    monkeypatch.setenv("DAGSTER_HOME", home)
    code, text = said(capsys, *verb, str(file))
    assert code == 1
    assert f"DAGSTER_HOME: found '{home}'" in text
    assert not Path(home).exists()


def test_run_with_a_checkpoint_that_is_not_there_makes_no_data_first(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project.write_experiment("tiny")
    text = file.read_text().replace(
        "{base_folder: ../storage}", "{base_folder: ../storage, checkpoint_to_resume: a.pt}"
    )
    file.write_text(text)
    code, printed = said(capsys, "run", str(file))
    assert code == 1
    assert "found 'a.pt'" in printed
    assert not (project.root / "storage" / "data").exists()


def test_doctor_with_a_dagster_home_that_is_no_folder_still_looks_at_the_rest(
    project: TinyProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project.write_experiment("tiny")
    monkeypatch.setenv("DAGSTER_HOME", "/missing/folder")
    code, text = said(capsys, "doctor", str(file), "--offline")
    assert code == 1
    assert re.search(r"^problem +DAGSTER_HOME", text, re.MULTILINE)
    assert re.search(r"^ok +python", text, re.MULTILINE)


def test_ui_of_a_folder_that_is_not_there_is_misuse(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "ui", "nowhere")
    assert code == 2
    assert "nowhere" in text


def test_evaluate_before_any_training_says_to_train(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    file = project.write_experiment("tiny")
    code, text = said(capsys, "evaluate", str(file))
    assert code == 1
    assert "gpt-pipeline run experiments/tiny.yaml" in text


def test_compare_of_one_experiment_with_itself_is_refused(
    project: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(project.write_experiment("tiny"))
    code, text = said(capsys, "compare", file, file)
    assert code == 1
    assert "tiny.yaml twice" in text


def test_project_is_the_same_from_its_root_and_from_a_folder_in_it(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_experiment("tiny")
    (project.root / "dagster.yaml").write_text("")
    from_root = Project.here()
    monkeypatch.chdir(project.root / "experiments")
    assert Project.here() == from_root
    assert from_root.experiments == project.root / "experiments"


def test_project_without_a_folder_for_experiments_has_the_files_beside_it(project: TinyProject) -> None:
    (project.root / "mine.yaml").write_text("")
    assert Project.here().experiments == project.root


def test_project_with_dagsters_files_alone_keeps_its_experiments_in_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dagster.yaml", "executor.yaml", "workspace.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert Project.here().experiments == tmp_path / "experiments"


def test_links_of_the_documentation_lead_to_files_that_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))]
    missing = [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert len(links) > 20
    assert not missing
