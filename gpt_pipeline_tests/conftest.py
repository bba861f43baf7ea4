"""Fixtures that several test files share."""

import os

# The models of the tests are too small for two threads to help; files run side by side instead. Set before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock
from pytest_timeout import Settings, is_debugging

from gpt_pipeline_tests.hangs import ask_for_stacks, watched
from gpt_pipeline_tests.projects import TinyProject, make_data, train

# No test depends on the speed of the machine.
hypothesis.settings.register_profile(
    "any_speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_speed")


_watching = pytest.StashKey[ExitStack]()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Settings) -> Iterator[None]:
    """Some time before a test's timeout, show what its processes do and end them; the timeout shows the test alone."""
    item.stash[_watching] = ExitStack()
    if not is_debugging():
        item.stash[_watching].enter_context(watched(0.9 * settings.timeout))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> Iterator[None]:
    if _watching in item.stash:
        item.stash[_watching].close()
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def stacks_of_children(tmp_path_factory: pytest.TempPathFactory) -> None:
    ask_for_stacks(tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="session", autouse=True)
def signals_for_children() -> None:
    """Let the programs that tests start receive the signals that a shell's background job, or nohup, ignores.

    A program inherits what is ignored, but not a handler. This one does nothing, so that the tests go on as before.
    """
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has one of them
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def small_collections() -> None:
    """Let no collection of garbage look through what the tests before have imported: each training begins with some."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    """Give each test the environment and the folder of the one before it: the command changes both."""
    variables, folder = dict(os.environ), Path.cwd()
    yield
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)


@pytest.fixture
def project(tmp_path: Path) -> TinyProject:
    """A project without an experiment."""
    return TinyProject(root=tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> TinyProject:
    """A project whose experiment `tiny` was run to the end, once for all workers. Tests must not change it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    project = TinyProject(root=folder / "finished")
    with FileLock(folder / "finished.lock"):
        if not (project.root / "storage" / "tiny" / "report.html").is_file():
            project.root.mkdir(exist_ok=True)
            (project.root / "mlflow.db").write_bytes(empty_store)
            project.write_experiment("tiny")
            project.run("run", "experiments/tiny.yaml")
    return project


@pytest.fixture
def copy(finished: TinyProject, tmp_path: Path) -> Iterator[TinyProject]:
    """The finished project, moved to another folder: what is in it must not depend on where it lies."""
    project = TinyProject(root=tmp_path / "moved")
    shutil.copytree(finished.root, project.root)
    yield project
    shutil.rmtree(project.root)


@pytest.fixture(scope="session")
def tiny_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return the storage of an experiment `tiny` that has its data and so many of its twelve steps; tests copy it."""

    @cache
    def made(step: int) -> Path:
        project = TinyProject(root=tmp_path_factory.mktemp("tiny"))
        project.write_experiment("tiny")
        if step:
            train(project.experiment("tiny"), stop_at=step if step < 12 else None)
        else:
            make_data(project.experiment("tiny"))
        return project.root / "storage"

    return made


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new MLflow store's bytes: MLflow takes seconds to create one."""
    from gpt_pipeline.tracking.store import configure_mlflow, open_client
    from gpt_pipeline_tests.projects import default_tracking_uri

    folder = tmp_path_factory.mktemp("empty")
    configure_mlflow()
    open_client(default_tracking_uri(folder)).search_experiments()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def store(tmp_path: Path, empty_store: bytes) -> Path:
    """A folder with a new MLflow store in it."""
    folder = tmp_path / "a store"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store)
    return folder
