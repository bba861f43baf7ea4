"""Each check of the doctor, against what is really wrong or right on this machine."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PureWindowsPath

import pytest
import torch

from gpt_pipeline.cli import main
from gpt_pipeline.doctor import show
from gpt_pipeline.doctor.examination import examine, findings_of
from gpt_pipeline.doctor.machine import check_disk, check_files, check_memory, check_open_files, check_port, find_holder
from gpt_pipeline.doctor.services import check_dagster_home, check_history, check_hub, check_mlflow, within
from gpt_pipeline.doctor.software import (
    Nvidia,
    check_libraries,
    check_python,
    check_torch,
    cuda_build,
    find_nvidia,
    misfit,
)
from gpt_pipeline.errors import UserError
from gpt_pipeline.findings import Finding, ok, problem, problem_of
from gpt_pipeline.orchestration.history import count_runs, open_instance
from gpt_pipeline.planning.host import HostMemory
from gpt_pipeline.project import Project
from gpt_pipeline.sheet import plain_text
from gpt_pipeline.storage.lock import folder_lock
from gpt_pipeline.training.config import HardwareConfig
from gpt_pipeline_tests.disks import refuse
from gpt_pipeline_tests.hub_server import running_hub
from gpt_pipeline_tests.projects import TinyProject

_SMI = """#!/bin/sh
if [ "$1" = "-L" ]; then echo "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)"; exit 0; fi
echo "| NVIDIA-SMI 570.1    Driver Version: 570.1    CUDA Version: 12.8 |"
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(root=tmp_path, experiments=tmp_path / "experiments")


def _one(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


# Python, libraries, torch


def test_python_too_old_is_a_problem_and_this_one_is_not() -> None:
    assert _one(check_python((3, 10))).severity == "problem"
    assert _one(check_python()).severity in ("ok", "note")


def test_libraries_of_another_version_or_missing_are_named() -> None:
    from packaging.requirements import Requirement

    assert misfit(Requirement("click>=8.1")) is None
    assert "found click" in misfit(Requirement("click>=999"))
    assert "is missing" in misfit(Requirement("no-such-library-here>=1"))


def test_libraries_of_a_package_that_is_not_installed_are_a_note() -> None:
    assert _one(check_libraries("no-such-library-here")).severity == "note"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that says what NVIDIA's says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(_SMI)
    (folder / "nvidia-smi").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.skipif(os.name == "nt" or torch.cuda.is_available(), reason="needs a shell script, and no real GPU")
def test_torch_for_the_cpu_beside_a_gpu_is_a_problem_with_the_index_to_install_from(nvidia_smi: None) -> None:
    assert find_nvidia() == Nvidia(text="NVIDIA GeForce RTX 4090", cuda=(12, 8))
    found = _one(check_torch(None))
    if torch.version.cuda is None:
        assert found.severity == "problem"
        assert "https://download.pytorch.org/whl/cu128" in found.remedy
        assert _one(check_torch(HardwareConfig(device="cpu"))).severity == "ok"
    else:
        assert "driver" in found.remedy


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script")
@pytest.mark.parametrize("text", ["#!/bin/sh\nexec sleep 60\n", "#!/no/such/shell\n"], ids=["hangs", "cannot start"])
def test_init_beside_an_nvidia_smi_that_does_not_answer_ends_and_says_so(
    nvidia_smi: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text(text)
    monkeypatch.setattr("gpt_pipeline.doctor.software._SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["init", "mine.yaml"])
    assert ended.value.code == 0
    assert "nvidia-smi does not tell" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_torch_without_a_gpu_is_a_problem_only_for_an_experiment_that_wants_one() -> None:
    assert _one(check_torch(HardwareConfig(device="cuda"))).severity == "problem"


def test_cuda_build_is_the_newest_that_the_driver_can_run() -> None:
    assert "/cu130 " in cuda_build("2.13.0+cpu", Nvidia(text="", cuda=(13, 1)))
    assert "torch==2.13.0 " in cuda_build("2.13.0+cpu", Nvidia(text="", cuda=(12, 7)))
    assert "/cu126 " in cuda_build("2.13.0+cpu", Nvidia(text="", cuda=(12, 7)))
    assert cuda_build("2.13.0+cpu", Nvidia(text="", cuda=(11, 8))).startswith("update the GPU's driver")


# Machine and files


def test_disk_and_memory_are_judged_by_their_size(tmp_path: Path) -> None:
    assert _one(check_disk([tmp_path, tmp_path])).severity in ("ok", "note", "problem")
    assert _one(check_memory(HostMemory(total=8 * 10**9, available=10**8))).severity == "problem"
    assert _one(check_memory(HostMemory(total=64 * 10**9, available=32 * 10**9))).severity == "ok"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_open_files_below_the_usual_are_a_note() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))
    try:
        assert _one(check_open_files()).severity == "note"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_files_of_a_folder_to_come_are_tried_out_in_its_parent_and_nothing_stays(tmp_path: Path) -> None:
    assert _one(check_files([tmp_path / "to" / "come"])).severity == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write in")
def test_files_of_a_read_only_folder_are_a_problem_with_a_remedy() -> None:
    found = _one(check_files([Path("/proc")]))
    assert found.severity == "problem"
    assert "storage.base_folder" in found.remedy


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither call")
@pytest.mark.parametrize(
    ("refused", "severity", "text"),
    [
        (("os.fsync", errno.EINVAL, stat.S_ISDIR), "note", "does not make renames durable (Invalid argument)"),
        (("os.fsync", errno.EINVAL, stat.S_ISREG), "problem", "does not make files durable"),
        (("fcntl.flock", errno.ENOSYS, stat.S_ISREG), "note", "has no file locks"),
    ],
    ids=["renames", "files", "locks"],
)
def test_files_of_a_disk_that_lacks_something_are_named_for_what_they_lack(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: tuple[str, int, Callable[[int], bool]],
    severity: str,
    text: str,
) -> None:
    call, number, kind = refused
    refuse(monkeypatch, call, number, kind=kind)
    found = _one(check_files([tmp_path]))
    assert found.severity == severity
    assert text in found.text


@pytest.mark.skipif(os.name == "nt", reason="needs a system whose own limit is known")
def test_files_of_a_folder_whose_path_leaves_no_room_are_a_note(tmp_path: Path) -> None:
    deep = tmp_path
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") - 150
    while (room := longest - len(str(deep)) - 1) > 1:
        deep /= "d" * min(room, 200)
    deep.mkdir(parents=True)
    found = _one(check_files([deep]))
    assert (found.severity, "cannot hold a path" in found.text) == ("note", True)
    assert "shorter storage.base_folder" in found.remedy


# Hub and ports


def test_hub_that_answers_is_ok_and_the_token_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "synth_001.parquet").write_bytes(b"PAR1")
    with running_hub() as hub:
        hub.publish(tmp_path)
        assert _one(check_hub(endpoint=hub.endpoint)).severity == "ok"
        hub.token = "hf_right"
        assert _one(check_hub(endpoint=hub.endpoint, token="hf_right")).severity == "ok"
        wrong = _one(check_hub(endpoint=hub.endpoint, token="hf_wrong"))
        assert wrong.severity == "problem"
        assert "hf_wrong" not in wrong.text + wrong.remedy
        hub.failing = 503
        assert _one(check_hub(endpoint=hub.endpoint)).severity == "note"


def test_hub_with_a_token_that_cannot_be_sent_is_a_problem_that_does_not_show_it(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("gpt_pipeline.data.sources.hub.explain.get_token", lambda: "hf_\x01secret")
    found = _one(iter(findings_of({"hub": check_hub})))
    assert (found.severity, "HF_TOKEN" in found.text, "secret" in found.text) == ("problem", True, False)


def test_hub_that_is_not_there_is_a_note() -> None:
    found = _one(check_hub(endpoint="http://127.0.0.1:9"))
    assert found.severity == "note"
    assert "does not answer" in found.text


def test_within_gives_up_on_what_takes_too_long_and_passes_on_errors() -> None:
    forever = threading.Event()
    with pytest.raises(TimeoutError, match="no answer"):
        within(0.05, forever.wait)
    forever.set()
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    assert within(5, lambda: 7) == 7


@contextmanager
def _server(status: int = 200, body: bytes = b"", login: str | None = None) -> Iterator[int]:
    needed = None if login is None else f"Basic {b64encode(login.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.headers["Authorization"] == needed else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_port_that_is_taken_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with _server() as port:
        found = _one(check_port(port, page="a page", pages=tmp_path))
        assert found.severity == "note"
        if sys.platform == "linux":
            assert find_holder(port).startswith(f"process {os.getpid()} (")
            assert f"process {os.getpid()}" in found.text
    assert _one(check_port(port, page="a page", pages=tmp_path)).severity == "ok"


def test_port_that_the_system_refuses_is_not_said_to_be_taken(tmp_path: Path, monkeypatch) -> None:
    def bind(*_: object) -> None:  # as for a port that is kept for others, which root may open on Linux
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("socket.socket.bind", bind)
    found = _one(check_port(3000, page="a page", pages=tmp_path))
    assert (found.severity, found.text) == ("note", "3000 is refused by the system (Permission denied)")


def test_port_that_the_projects_own_pages_have_is_ok(tmp_path: Path) -> None:
    with _server() as port:
        with folder_lock(tmp_path, purpose=f"web pages at http://127.0.0.1:{port} and http://127.0.0.1:5000"):
            found = _one(check_port(port, page="a page", pages=tmp_path))
        assert found.severity == "ok"
        assert "open already" in found.text
        with folder_lock(tmp_path, purpose=f"web pages at http://127.0.0.1:{port}1 and http://127.0.0.1:5000"):
            assert _one(check_port(port, page="a page", pages=tmp_path)).severity == "note"


def test_port_of_dagsters_pages_without_a_guard_is_warned_of(tmp_path: Path) -> None:
    with _server(body=b'{"dagster_webserver_version": "1.13.27"}') as port:  # as test_guard.py asks Dagster's own
        found = _one(check_port(port, page="Dagster's page", pages=tmp_path))
    assert found.severity == "warning"
    assert "gpt-pipeline ui" in found.remedy
    with _server(status=403, body=b'{"dagster_webserver_version": "1.13.27"}') as port:
        assert _one(check_port(port, page="Dagster's page", pages=tmp_path)).severity == "note"


# Stores


def test_dagster_home_unset_relative_missing_bare_and_right(project: Project, tmp_path: Path) -> None:
    def look(home: str) -> Finding:
        return _one(check_dagster_home(project, {"DAGSTER_HOME": home}))

    assert look("").severity == "ok"
    assert look("some/folder").severity == "problem"
    assert "absolute" in look("some/folder").text
    assert look(str(tmp_path / "gone")).severity == "problem"
    home = tmp_path / "home"
    home.mkdir()
    assert look(str(home)).severity == "note"
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    assert look(str(home)).severity == "ok"


@pytest.mark.parametrize("home", ["some/folder", "/no/such/folder"])
def test_history_of_a_dagster_home_that_is_a_problem_is_not_said_to_be_fine(project: Project, home: str) -> None:
    assert list(check_history(project, count_runs, {"DAGSTER_HOME": home})) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_dagster_home_that_is_read_only_is_a_problem(project: Project, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    assert _one(check_dagster_home(project, {"DAGSTER_HOME": str(home)})).severity == "problem"


def test_history_absent_readable_and_damaged(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none yet" in _one(check_history(project, count_runs, {})).text
    assert list(project.root.iterdir()) == []
    where = Path.cwd()
    project.enter()
    try:
        with open_instance(project) as instance:
            assert instance.get_runs_count() == 0
    finally:
        os.chdir(where)
        del os.environ["GPT_PIPELINE_EXPERIMENTS"]
    assert _one(check_history(project, count_runs, {})).text.startswith("0 runs")
    assert Path.cwd() == where
    database = next(project.root.glob(".dagster/history/**/runs.db"))
    database.write_bytes(b"this is no database" * 500)
    found = _one(check_history(project, count_runs, {}))
    assert found.severity == "problem"
    assert f"move the folders history and schedules of {project.root / '.dagster' / 'history'} aside" in found.remedy
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "make it writable" in _one(check_history(project, count_runs, {})).remedy


@pytest.mark.parametrize("base_dir", [None, ".dagster/history"], ids=["its own", "of the project's dagster.yaml"])
def test_history_of_a_dagster_home_that_is_damaged_names_the_folder_to_move(
    project: Project, tmp_path: Path, base_dir: str | None
) -> None:
    home = tmp_path / "elsewhere"
    home.mkdir()
    if base_dir is not None:
        (home / "dagster.yaml").write_text(f"storage: {{sqlite: {{base_dir: {base_dir}}}}}\n")
    place = home if base_dir is None else project.root / base_dir
    assert "none yet" in _one(check_history(project, count_runs, {"DAGSTER_HOME": str(home)})).text
    (place / "history").mkdir(parents=True)

    def damaged(_: Project) -> int:
        raise sqlite3.DatabaseError("file is not a database")

    found = _one(check_history(project, damaged, {"DAGSTER_HOME": str(home)}))
    assert found.severity == "problem"
    assert f" of {place} aside" in found.remedy
    assert _one(check_history(project, lambda _: 7, {"DAGSTER_HOME": str(home)})).text == f"7 runs in {place}"


@pytest.mark.parametrize("text", ["storage: {postgres: {postgres_url: {env: URL}}}\n", "storage: [\n"])
def test_history_that_is_in_no_folder_is_counted_or_leads_to_dagster_yaml(project: Project, text: str) -> None:
    (project.root / "dagster.yaml").write_text(text)

    def down(_: Project) -> int:
        raise ConnectionError("connection refused")

    assert f"see what {project.root / 'dagster.yaml'} says" in _one(check_history(project, down, {})).remedy
    assert _one(check_history(project, lambda _: 7, {})).text.startswith("7 runs in the storage that")


def test_mlflow_database_new_filled_locked_and_damaged(tmp_path: Path, store: Path) -> None:
    assert "none yet" in _one(check_mlflow(f"sqlite:///{tmp_path}/mlflow.db")).text
    assert not (tmp_path / "mlflow.db").exists()
    uri = f"sqlite:///{(store / 'mlflow.db').as_posix()}"
    assert _one(check_mlflow(uri)).text.startswith("0 runs")
    (store / "mlflow.db").write_bytes(b"this is no database" * 500)
    assert _one(check_mlflow(uri)).severity == "problem"


def test_mlflow_database_that_another_program_writes_is_a_note(store: Path, monkeypatch) -> None:
    monkeypatch.setattr("gpt_pipeline.doctor.services._SECONDS", 0.1)
    other = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        found = _one(check_mlflow(f"sqlite:///{(store / 'mlflow.db').as_posix()}"))
    finally:
        other.close()
    assert found.severity == "note"


def test_mlflow_server_up_down_and_a_folder_of_files() -> None:
    with _server() as port:
        assert _one(check_mlflow(f"http://127.0.0.1:{port}")).severity == "ok"
    with _server(status=401) as port:
        assert _one(check_mlflow(f"http://127.0.0.1:{port}")).severity == "note"
    assert _one(check_mlflow(f"http://127.0.0.1:{port}")).severity == "problem"
    assert _one(check_mlflow("file:///tmp/mlruns")).severity == "problem"
    assert _one(check_mlflow("postgresql://user:secret@db/mlflow")).severity == "note"
    assert "secret" not in _one(check_mlflow("postgresql://user:secret@db/mlflow")).text


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "uc:profile"])
def test_mlflow_of_databricks_is_not_taken_for_a_folder_of_files(uri: str) -> None:
    found = _one(check_mlflow(uri))
    assert (found.severity, found.text) == ("note", f"{uri.partition(':')[0]} store: not checked")


def test_mlflow_server_that_needs_the_password_in_its_address_gets_it() -> None:
    with _server(login="al:s3/cret") as port:
        assert _one(check_mlflow(f"http://al:s3%2Fcret@127.0.0.1:{port}")).severity == "ok"
        assert "401" in _one(check_mlflow(f"http://al:wrong@127.0.0.1:{port}")).text


@pytest.mark.parametrize("host", ["mlflow.invalid", "127.0.0.1:9", "127.0.0.1:port", "[::1", ".mlflow"])
def test_mlflow_address_that_leads_nowhere_is_a_problem_without_its_password(host: str) -> None:
    found = _one(check_mlflow(f"http://al:s3cretpass@{host}"))
    assert found.severity == "problem"
    assert found.text.startswith(f"http://{host} does not answer (")
    assert "s3cret" not in found.text + found.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_mlflow_server_of_this_machine_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with _server() as port:
        assert _one(check_mlflow(f"http://{host}:{port}")).severity == "ok"


# All together


def test_a_look_that_fails_itself_is_a_problem_and_keeps_no_other_from_looking() -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("the disk controller said no")

    found = findings_of({"first": broken, "second": lambda: [ok("second", "fine")]})
    assert [finding.severity for finding in found] == ["problem", "ok"]
    assert "the disk controller said no" in found[0].text


@pytest.mark.parametrize(
    ("said", "text", "remedy"),
    [
        ("slurm: no answer; start it", "no answer", "start it"),
        ("found a; found b; use c", "found a; found b", "use c"),
        ("the controller is away", "the controller is away", ""),
    ],
)
def test_problem_of_an_error_has_its_remedy_where_it_names_one(said: str, text: str, remedy: str) -> None:
    found = problem_of(UserError(said), "slurm")
    assert (found.text, found.remedy) == (text, remedy)


def test_disk_that_is_not_there_is_a_problem_in_its_own_words() -> None:
    gone = PureWindowsPath("Q:/storage")

    class Gone(type(Path())):  # a drive that no machine of POSIX can lack
        @property
        def parents(self):
            return ()

        def exists(self) -> bool:
            return False

    found = findings_of({"disk": lambda: check_disk([Gone(gone.as_posix())])})
    assert found[0].severity == "problem"
    assert "plug it in" in found[0].remedy


def test_examination_of_a_project_without_experiments_points_to_init(project: Project) -> None:
    found = examine(project, None, offline=True, count_runs=count_runs)
    assert any("gpt-pipeline init" in finding.remedy for finding in found)
    assert list(project.root.iterdir()) == []


def test_doctor_command_exits_with_1_and_shows_the_remedy(tmp_path: Path, capsys, monkeypatch) -> None:
    tiny = TinyProject(root=tmp_path)
    path = tiny.write_experiment("tiny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(path), "--offline", "--json"])
    value = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert value["problems"] == 1
    wrong = [finding for finding in value["findings"] if finding["status"] == "problem"]
    assert wrong[0]["check"] == "MLflow"
    assert "sqlite:" in wrong[0]["remedy"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(path), "--offline"])
    assert ended.value.code == 0
    assert "\x1b[" not in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["experiments"]


def test_doctor_command_survives_a_torch_that_cannot_be_loaded(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    path = os.pathsep.join([str(broken.parent), os.environ["PYTHONPATH"]])
    tiny = TinyProject(root=tmp_path / "project", variables={"PYTHONPATH": path})
    tiny.root.mkdir()
    tiny.write_experiment("tiny")
    printed = tiny.run("doctor", "--offline", expect=1)
    (line,) = [line for line in printed.splitlines() if line.startswith("problem")]
    assert "libcudart.so.13" in line


def test_sheets_have_each_finding_with_its_remedy() -> None:
    text = plain_text(show.sheets([problem("disk", "full", "empty it")]))
    assert text.splitlines()[1].strip() == "-> empty it"
    assert "1 problem to solve." in text


@pytest.mark.parametrize("name", ["a%2Fb", "what?", b"\xff"])
def test_project_in_a_folder_that_no_databases_address_can_hold_is_refused(tmp_path: Path, name: str | bytes) -> None:
    root = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), os.fsencode(name))))
    try:
        root.mkdir()
    except (OSError, ValueError):
        pytest.skip("this file system does not take the name")
    project = Project(root=root, experiments=root / "experiments")
    with pytest.raises(UserError, match="rename it") as refused:
        project.enter()
    str(refused.value).encode()
    assert list(root.iterdir()) == []


def test_temporary_folder_too_long_for_sockets_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "t" * 75)
    with pytest.raises(UserError, match=r"TMPDIR: .* 76 bytes long"):
        project.enter()
