"""Where a project lies: its experiment files, Dagster's history and MLflow's store."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from gpt_pipeline.errors import UserError

EXPERIMENTS_VARIABLE = "GPT_PIPELINE_EXPERIMENTS"
MLFLOW_PAGE_VARIABLE = "GPT_PIPELINE_MLFLOW_PAGE"
"""The address at which MLflow's pages are served, for links to them where the store itself has none."""

DAGSTER_CONFIG = "dagster.yaml"
NOTIFY_CONFIG = "notify.yaml"
OTHER_FILES = frozenset({DAGSTER_CONFIG, NOTIFY_CONFIG, "workspace.yaml", "executor.yaml"})
"""YAML files that are no experiments, where a project without `experiments/` keeps them beside its experiments."""

DAGSTER_PORT = 3000
MLFLOW_PORT = 5000
START_PATH = "/start"
"""Of the page to start from, on the server of Dagster's pages, none of which has this path."""

COMPARISON_PAGE = f"{START_PATH}/comparison"
"""Of the page that shows all experiments beside each other, on the same server."""


def report_page(key: str) -> str:
    """Return the path of an experiment's report on the server of Dagster's pages."""
    return f"{START_PATH}/report/{key}"


_MAX_TEMPORARY = 104 - len("/pymp-12345678/listener-12345678") - 1
"""Bytes: a socket's path has 104 on macOS (108 on Linux) with the zero behind it, and multiprocessing names its so."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with `experiments/` and `dagster.yaml`; everything the pipeline keeps for itself lies below it."""

    root: Path
    experiments: Path

    @classmethod
    def here(cls) -> Project:
        """Return the project of the working directory, or of the folder in `GPT_PIPELINE_EXPERIMENTS`."""
        folder = os.environ.get(EXPERIMENTS_VARIABLE)
        return cls.of_experiments(Path(folder).absolute()) if folder else cls._around(Path.cwd())

    @classmethod
    def of_experiments(cls, experiments: Path) -> Project:
        """Return the project whose experiment files lie in the folder `experiments`."""
        for root in (experiments, *experiments.parents):
            if (root / DAGSTER_CONFIG).is_file():
                return cls(root=root, experiments=experiments)
        root = experiments.parent if experiments.name == "experiments" else experiments
        return cls(root=root, experiments=experiments)

    @classmethod
    def _around(cls, here: Path) -> Project:
        """Return the project that `here` lies in: of the nearest `dagster.yaml`, else one that begins here."""
        if (here / "experiments").is_dir():
            return cls(root=here, experiments=here / "experiments")
        root = next((root for root in (here, *here.parents) if (root / DAGSTER_CONFIG).is_file()), here)
        folder = root / "experiments"
        files = {file.name for file in root.glob("*.yaml")} - OTHER_FILES
        beside = not folder.is_dir() and bool(files)  # files without a folder of their own
        return cls(root=root, experiments=root if beside else folder)

    @property
    def tracking_uri(self) -> str:
        """`MLFLOW_TRACKING_URI` if it is set, else a SQLite file in the project's folder."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(self.root / 'mlflow.db').as_posix()}"

    @property
    def history(self) -> Path:
        """The folder in which Dagster keeps its history; `DAGSTER_HOME` if it is set."""
        home = os.environ.get("DAGSTER_HOME")
        return Path(home) if home else self.root / ".dagster"

    @property
    def pages(self) -> Path:
        """The folder whose lock the web pages hold while they are served, with their logs."""
        return self.history / "pages"

    def require_usable(self) -> None:
        """Raise UserError where a path is none that Dagster or MLflow could work in.

        The address of a database cannot hold it, or sockets have no room in the temporary folder.
        """
        _require_database_path(self.root)
        _require_database_path(self.history)
        _require_room_for_sockets()

    def enter(self) -> None:
        """Make this process, and those it starts, work in the project: working directory and environment.

        Dagster reads `dagster.yaml` from the working directory when `DAGSTER_HOME` is not set, and the folders it
        names are relative to it: so every command shares one history without anyone setting anything.

        Raises:
            UserError: `DAGSTER_HOME` is set to what Dagster cannot use; or as `require_usable`.
        """
        dagster_home()
        self.require_usable()
        if not (self.root / DAGSTER_CONFIG).is_file():
            with as_file(files("gpt_pipeline.orchestration") / DAGSTER_CONFIG) as template:
                shutil.copyfile(template, self.root / DAGSTER_CONFIG)
        os.chdir(self.root)
        os.environ[EXPERIMENTS_VARIABLE] = str(self.experiments)


def _require_database_path(folder: Path) -> None:
    """Raise UserError where a SQLite database's address, which Dagster and MLflow make of its path, cannot hold it."""
    shown = str(folder).encode("utf-8", "backslashreplace").decode()
    if shown != str(folder) or any(letter in shown for letter in "?%"):
        raise UserError(
            f"{shown}: found a folder with `?`, `%` or bytes that are not UTF-8 in its path, which the addresses of "
            "Dagster's and MLflow's databases cannot hold; rename it"
        )


def _require_room_for_sockets() -> None:
    """Raise UserError where the temporary folder is too long for the sockets that Python's own processes talk by."""
    folder = tempfile.gettempdir()
    if os.name != "nt" and len(os.fsencode(folder)) > _MAX_TEMPORARY:
        raise UserError(
            f"TMPDIR: found {folder!r}, {len(os.fsencode(folder))} bytes long, need at most {_MAX_TEMPORARY}: sockets "
            "are made in it, whose paths the system limits; set TMPDIR=/tmp"
        )


def dagster_home() -> Path | None:
    """Return the folder in `DAGSTER_HOME`; None where it is not set, or empty.

    Raises:
        UserError: Dagster cannot use it.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return None
    folder = Path(home)
    if not (folder.is_absolute() and folder.is_dir()):
        raise UserError(
            f"DAGSTER_HOME: found {home!r}, need the absolute path of a folder that is there; make it, or unset "
            "DAGSTER_HOME, and the project's own folder has the history"
        )
    return folder
