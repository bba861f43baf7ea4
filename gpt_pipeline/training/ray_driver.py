"""What a Ray job runs: the trainers of one training, on as many nodes of the cluster as it asks for.

    python -m gpt_pipeline.training.ray_driver --name NAME --nodes 2 --processes 1 --log FILE JOB.json

Ray reserves the nodes as a placement group; on each of them an actor starts the same torchrun as on other clusters.
SIGTERM, by which Ray stops a job, reaches all trainers, and the driver waits until they have saved.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_pipeline.launchers.protocol import SHUTDOWN_SECONDS, TrainingCommand
from gpt_pipeline.launchers.ray_jobs import EXIT_NODE_LOST
from gpt_pipeline.training.ray_node import NodeTrainers
from gpt_pipeline.training.stopping import StopFlag, stop_on_signals

_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 10.0  # for the nodes to answer, before the driver looks whether a stop was asked for
_GRACE_SECONDS = SHUTDOWN_SECONDS + 20  # torchrun kills its processes first
_FAILURE_LINES = 40
_LOST = -1  # in place of an exit code, which is never below 0

Nodes = Sequence[Any]
"""A handle of the actor on each node."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the training to its end; return 0, 143 when stopped, else the exit code of the node that failed first."""
    options = _parser().parse_args(arguments)
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

    ray.init(log_to_driver=False)  # in the cluster that the environment of Ray's jobs names
    stop = StopFlag()
    with stop_on_signals(stop):  # in place of the handlers that ray.init has set
        group = _reserve(options, stop)
        if group is None:
            return stop.exit_code
        try:
            nodes = _start_trainers(options, group, stop)
        except RayError as error:
            print(f"error: {_cannot_start(options, error)}", flush=True)
            is_lost = isinstance(error, (ActorDiedError, ActorUnavailableError)) and not error.actor_init_failed
            return EXIT_NODE_LOST if is_lost else 1
        if nodes is None:
            return stop.exit_code
        codes = _wait(nodes, stop)
        if not any(codes) and None not in codes:
            return 0
        lost = _stop(nodes)
        return stop.exit_code if stop.requested else _explain(nodes, codes, lost)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpt_pipeline.training.ray_driver")
    parser.add_argument("job", type=Path, help="the training's job file, which all nodes see")
    parser.add_argument("--name", required=True, help="of the Ray job, and of its placement group")
    parser.add_argument("--log", type=Path, required=True, help="where the trainers' output goes")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="trainers on each node")
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs to reserve on each node")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs to reserve on each node")
    return parser


def _reserve(options: argparse.Namespace, stop: StopFlag) -> Any | None:
    """Return the placement group once the cluster has room for it; None if a stop was asked for first."""
    import ray
    from ray.util.placement_group import placement_group

    resources = {name: count for name, count in (("CPU", options.cpus), ("GPU", options.gpus)) if count}
    group = placement_group([resources] * options.nodes, strategy="STRICT_SPREAD", name=options.name)
    ready = group.ready()  # group.wait with a time limit, asked again and again, fills the memory of Ray's head (2.60)
    while not ray.wait([ready], timeout=_POLL_SECONDS)[0]:
        if stop.requested:
            return None
    return group


def _start_trainers(options: argparse.Namespace, group: Any, stop: StopFlag) -> Nodes | None:
    """Return the nodes once the trainers are started; None if a stop was asked for first."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # Ray gives its workers, and so what they start, a low priority; training is what these nodes are for.
    environment = {"env_vars": {"RAY_worker_niceness": "0"}}
    resources = {"num_cpus": options.cpus, "num_gpus": options.gpus, "enable_task_events": False}  # asked every second
    actor = ray.remote(**resources, runtime_env=environment)(NodeTrainers)
    nodes = [
        actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        ).remote(_log_of_node(options.log, index))
        for index in range(options.nodes)
    ]
    answers = _answers([*(node.address.remote() for node in nodes), nodes[0].free_port.remote()], stop)
    if answers is None:
        return None
    *addresses, port = answers
    training = TrainingCommand(
        name=options.name,
        job_file=options.job,
        log_file=options.log,
        nodes=options.nodes,
        processes=options.processes,
    )

    def command(index: int) -> list[str]:
        # Said, because torchrun looks the addresses up, and /etc/hosts often gives a host's own name a loopback one.
        place = [f"--rdzv-conf=is_host={int(index == 0)}", f"--local-addr={addresses[index]}"]
        meeting = {"endpoint": f"{addresses[0]}:{port}", "rendezvous": options.name}
        return [*training.arguments(**meeting, options=place), "--stop-with-parent"]

    _answers([node.start.remote(command(index)) for index, node in enumerate(nodes)], stop)  # a stop comes after these
    return nodes


def _answers(asked: Sequence[Any], stop: StopFlag) -> list[Any] | None:
    """Return what the nodes answer, however long it takes; None if a stop is asked for first.

    Raises:
        RayError: a node fails, or is lost.
    """
    import ray

    waiting = [*asked]
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
        ray.get(ready)  # a failure is told before the others have answered
        if waiting and stop.requested:
            return None
    return [*ray.get([*asked])]


def _cannot_start(options: argparse.Namespace, error: Exception) -> str:
    why = str(error).strip().splitlines()[-1]
    need = f"all nodes need gpt_pipeline, and {options.log.parent} at the same path"
    return f"a node cannot start the trainers ({why}); {need}"


def _log_of_node(log: Path, index: int) -> Path:
    """Return a file for each node: a network's file systems do not keep apart what two machines append to one."""
    return log if index == 0 else log.with_name(f"{log.stem}.node{index}{log.suffix}")


def _wait(nodes: Nodes, stop: StopFlag) -> Sequence[int | None]:
    """Return the exit codes when all trainers have ended, or the first have failed, or a stop is asked for."""
    while True:
        codes = _exit_codes(nodes)
        if any(codes) or None not in codes or stop.requested:
            return codes
        time.sleep(_POLL_SECONDS)


def _stop(nodes: Nodes) -> Sequence[bool]:
    """Have all trainers save and leave, and kill those that do not; return which nodes are lost.

    Where a node is lost, the trainers on the others fail sooner than Ray notices.
    """
    _ask(nodes, "stop")
    give_up = time.monotonic() + _GRACE_SECONDS
    while None in (codes := _exit_codes(nodes)) and time.monotonic() < give_up:
        time.sleep(_POLL_SECONDS)
    _ask(nodes, "kill")
    return [code == _LOST for code in codes]


def _explain(nodes: Nodes, codes: Sequence[int | None], lost: Sequence[bool]) -> int:
    """Say what went wrong on which node, in Ray's log of the job and in the trainers' own; return the exit code."""
    for index, code in enumerate(codes):
        if lost[index]:
            text = f"Node {index} was lost."
        elif code:
            [said] = _ask(nodes[index : index + 1], "last_lines", _FAILURE_LINES)
            text = f"Node {index}, exit code {code}, ended by:\n{said}"
        else:
            continue
        print(text, flush=True)
        if index > 0:
            _ask(nodes[:1], "note", text)
    return EXIT_NODE_LOST if any(lost) else next(code for code in codes if code)


def _exit_codes(nodes: Nodes) -> list[int | None]:
    """Return how the trainers on each node ended; None where they run, or the node does not answer now; or `_LOST`."""
    return _ask(nodes, "exit_code", lost=_LOST)


def _ask(nodes: Nodes, method: str, *arguments: Any, lost: Any = None) -> list[Any]:
    """Return what each node answers: `lost` if its actor is gone, None if it does not answer in time."""
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    answers = [getattr(node, method).remote(*arguments) for node in nodes]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_SECONDS)

    def answer(each: Any) -> Any:
        try:
            return ray.get(each) if each in ready else None
        except ActorUnavailableError:
            return None
        except ActorDiedError:
            return lost

    return [answer(each) for each in answers]


if __name__ == "__main__":
    sys.exit(main())
