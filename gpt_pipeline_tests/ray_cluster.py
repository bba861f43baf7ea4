"""A real Ray cluster on this machine, of nodes with one processor each, for tests; Ray has to be installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpt_pipeline_tests.servers import descendants, free_port, is_answered, wait

_REPOSITORY = Path(__file__).parents[1]
_UP_SECONDS = 180.0
_OBJECTS = 80_000_000  # bytes of shared memory a node; Ray's least is 75 MB, its default a third of the memory


class RayCluster:
    """Its head and further nodes, each a process with all that it starts."""

    def __init__(self, folder: Path) -> None:
        """`folder` has a short name: the system limits those of the sockets in it."""
        self._folder = folder
        self._gcs, self._dashboard = free_port(), free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """Of the dashboard, which takes jobs."""
        return f"http://127.0.0.1:{self._dashboard}"

    def start(self) -> None:
        """Start the head, which is the first node."""
        head = ["--head", f"--port={self._gcs}", f"--dashboard-port={self._dashboard}"]
        self._start(*head, f"--temp-dir={self._folder}", f"--ray-client-server-port={free_port()}")
        wait(lambda: is_answered(f"{self.address}/api/version"), seconds=_UP_SECONDS, what="Ray's dashboard")

    def add_node(self) -> None:
        """Start one more node, and wait until the head knows it."""
        known = self._alive()
        self._start(f"--address=127.0.0.1:{self._gcs}")
        wait(lambda: self._alive() > known, seconds=_UP_SECONDS, what="one more node of Ray's")

    def lose_node(self) -> None:
        """Kill the newest node and all that runs there at once, as if its power was cut."""
        node = self._nodes.pop()
        for pid in [node.pid, *descendants(node.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def jobs(self) -> dict[str, str]:
        """Return the status of each job by its id."""
        return {job["submission_id"]: job["status"] for job in self._ask("/api/jobs/") if job["submission_id"]}

    def driver(self, job: str) -> int:
        """Return the process that is the job's driver."""
        return int(self._ask(f"/api/jobs/{job}")["driver_info"]["pid"])

    def close(self) -> None:
        """End the whole cluster."""
        while self._nodes:
            self.lose_node()

    def _alive(self) -> int:
        answer = self._ask("/api/v0/nodes?limit=100")
        return sum(node["state"] == "ALIVE" for node in answer["data"]["result"]["result"])

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=30) as answer:
            return json.load(answer)

    def _start(self, *options: str) -> None:
        common = ["--num-cpus=1", f"--object-store-memory={_OBJECTS}", f"--dashboard-agent-listen-port={free_port()}"]
        variables = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(_REPOSITORY),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # `dagster` is there
            "OMP_NUM_THREADS": "1",
        }
        with self._folder.with_suffix(".log").open("ab") as log:
            ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *common, *options]
            node = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gpt_pipeline.training.supervise",
                    str(os.getpid()),
                    *ray,
                ],  # ends with the tests
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        self._nodes.append(node)


@contextmanager
def ray_cluster(*, nodes: int) -> Iterator[RayCluster]:
    """A cluster for the block."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    cluster = RayCluster(folder / "s")
    try:
        cluster.start()
        for _ in range(nodes - 1):
            cluster.add_node()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
