import subprocess
from pathlib import Path

from gpt_pipeline.training.origin import machine, source_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_source_commit_is_that_of_a_checkout_that_tracks_the_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert source_commit(package) is None
    git(tmp_path, "init", "-q")
    assert source_commit(package) is None  # as of a package installed inside someone's repository
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "-a", "v1", "-m", "x")
    assert source_commit(package) == commit
    (package / "__init__.py").write_text("changed")
    assert source_commit(package) == f"{commit}-dirty"


def test_machine_names_processor_and_system() -> None:
    assert "logical CPUs" in machine()
