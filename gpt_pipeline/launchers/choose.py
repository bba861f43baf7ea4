"""The engine that an experiment names."""

from __future__ import annotations

from gpt_pipeline.launchers.config import RayConfig, SlurmConfig
from gpt_pipeline.launchers.protocol import Launcher


def make_launcher(name: str, *, gpus: int, slurm: SlurmConfig, ray: RayConfig) -> Launcher | None:
    """Return the engine of this name; None for `local`, where the training is a child of the step.

    `gpus` is the number of GPUs that the training needs on each node.
    """
    match name:
        case "local":
            return None
        case "slurm":
            from gpt_pipeline.launchers.slurm import Slurm

            return Slurm(slurm, gpus=gpus)
        case "ray":
            from gpt_pipeline.launchers.ray_jobs import RayJobs

            return RayJobs(ray, gpus=gpus)
    raise ValueError(f"found launcher {name!r}, need local, slurm or ray")
