"""A training as manifests for Kubernetes, to be applied by hand: an Indexed Job, and the service by which pods meet."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pipeline.launchers.protocol import SHUTDOWN_SECONDS, TrainingCommand

_PORT = 29500
_FOLDER, _SHARED_MEMORY = "folder", "shared-memory"
_RESTARTS = 20


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a manifest has to name."""

    image: str
    """Has gpt_pipeline installed, or torch, numpy, filelock and its source."""

    claim: str
    """A PersistentVolumeClaim whose volume is the base folder, for all pods at once (ReadWriteMany)."""

    base_folder: Path
    """Where it is mounted: the same path as here, since the job's file names it."""

    gpus: int
    """On each node."""


def manifests(command: TrainingCommand, cluster: Cluster) -> list[dict[str, Any]]:
    """Return the service and the job that train `command`, as JSON values."""
    labels = {"app.kubernetes.io/name": "gpt-pipeline", "app.kubernetes.io/instance": command.name}
    head = {"name": command.name, "labels": labels}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": head,
        "spec": {
            "clusterIP": "None",  # headless: a name for each pod
            "publishNotReadyAddresses": True,
            "selector": {"job-name": command.name},
            "ports": [{"name": "rendezvous", "port": _PORT}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": head,
        "spec": {
            "completionMode": "Indexed",
            "completions": command.nodes,
            "parallelism": command.nodes,
            "backoffLimit": _RESTARTS,
            "template": {"metadata": {"labels": labels}, "spec": _pod(command, cluster)},
        },
    }
    return [service, job]


def _pod(command: TrainingCommand, cluster: Cluster) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": str(cluster.gpus)} if cluster.gpus else {}
    trainer = {
        "name": "trainer",
        "image": cluster.image,
        "command": command.arguments(endpoint=f"{command.name}-0.{command.name}:{_PORT}", rendezvous=command.name),
        "env": [{"name": name, "value": value} for name, value in sorted(command.variables.items())],
        "resources": {"limits": limits},
        "volumeMounts": [
            {"name": _FOLDER, "mountPath": str(cluster.base_folder)},
            {"name": _SHARED_MEMORY, "mountPath": "/dev/shm"},  # a pod has 64 MB of it, and NCCL needs more
        ],
    }
    return {
        "subdomain": command.name,
        "restartPolicy": "OnFailure",  # a lost node, or one that failed with it, goes on from the last checkpoint
        "terminationGracePeriodSeconds": SHUTDOWN_SECONDS + 20,
        "containers": [trainer],
        "volumes": [
            {"name": _FOLDER, "persistentVolumeClaim": {"claimName": cluster.claim}},
            {"name": _SHARED_MEMORY, "emptyDir": {"medium": "Memory"}},
        ],
    }


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """Return the manifests as one text for `kubectl apply -f -`."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.representer.ignore_aliases = lambda _: True
    text = io.StringIO()
    yaml.dump_all(documents, text)
    return text.getvalue()
