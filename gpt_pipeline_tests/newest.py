"""Move constraints.txt to the newest versions that pass: `make update`.

A new environment takes the newest release of everything that pyproject.toml allows, and the checks and the default test
suite run in it. Only if they pass does constraints.txt change. torch stays where it is unless `--torch` names another
release: with torch the losses of trainings change in their last digits, and its builds are gigabytes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
_INSTALLED = ".[dev,benchmarks,postgres,s3,gcs,azure,ray]"
# The project itself; what torch brings for one platform, since constraining it would keep others from theirs.
_LEFT_OUT = re.compile(r"((nvidia|cuda|triton|pytorch-triton)([-_].*)?|gpt[-_]pipeline)", re.IGNORECASE)
_CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("lint-imports",),
    ("pytest", "-n", "2", "--dist", "loadfile"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the newest versions; return 0 if constraints.txt has them now, or had them already."""
    parser = argparse.ArgumentParser(prog="make update", description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", metavar="VERSION", help="the release of torch; without it, that of constraints.txt")
    options = parser.parse_args(arguments)
    before = versions_of(CONSTRAINTS.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        after = _install(Path(folder), options.torch or before["torch"])
        changes = list(changes_between(before, after))
        if not changes:
            print("constraints.txt has the newest versions.")
            return 0
        print(*changes, sep="\n")
        failed = _first_failure(Path(folder))
    if failed:
        print(f"constraints.txt stays as it was: `{failed}` fails with these versions.", file=sys.stderr)
        return 1
    CONSTRAINTS.write_text(with_versions(CONSTRAINTS.read_text(encoding="utf-8"), after), encoding="utf-8")
    print(f"constraints.txt: {len(changes)} lines changed. `make test-slow test-browser demo` try what is left.")
    return 0


def _install(folder: Path, torch: str) -> dict[str, str]:
    """Install the newest of everything into a new environment in `folder`; return the versions."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [_bin(folder) / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
    subprocess.run([*pip, "install", f"torch=={torch}", "-e", _INSTALLED], cwd=ROOT, check=True)
    frozen = subprocess.run([*pip, "freeze", "--exclude-editable"], capture_output=True, text=True, check=True).stdout
    return versions_of(frozen)


def _first_failure(folder: Path) -> str | None:
    for command in _CHECKS:
        if subprocess.run([_bin(folder) / command[0], *command[1:]], cwd=ROOT, check=False).returncode:
            return " ".join(command)
    return None


def _bin(folder: Path) -> Path:
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


def versions_of(text: str) -> dict[str, str]:
    """Return the versions by package that lines such as `torch==2.13.0` name, without builds as in `+cpu`."""
    lines = (re.match(r"([A-Za-z0-9._-]+)==([^\s;+]+)", line) for line in text.splitlines())
    return {found[1]: found[2] for found in lines if found and not _LEFT_OUT.fullmatch(found[1])}


def with_versions(text: str, versions: Mapping[str, str]) -> str:
    """Return the constraints file `text`, its comments kept, with these versions in place of its own."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    lines = [f"{name}=={versions[name]}" for name in sorted(versions, key=str.lower)]
    return "\n".join([*comments, *lines]) + "\n"


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return a line for each package whose version differs, that is new, or is needed no longer."""
    old = {_canonical(name): version for name, version in before.items()}
    new = {_canonical(name): version for name, version in after.items()}
    names = sorted(name for name in old | new if old.get(name) != new.get(name))
    return [f"{name}: {old.get(name, 'new')} -> {new.get(name, 'needed no longer')}" for name in names]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
