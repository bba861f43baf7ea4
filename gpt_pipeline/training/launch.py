"""What the environment says of the processes that train together; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gpt_pipeline.errors import UserError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
VARIABLES = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process that it starts, as torch.distributed reads it ("Environment Variables")."""


class Place(NamedTuple):
    """A process's place among those that train together."""

    rank: int
    world_size: int
    local_rank: int
    """Its number on its machine."""


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Return this process's place in a launch of several; None where the launch is incomplete, or there is none.

    Clusters set some of the variables for reasons of their own; torchrun sets all of them.

    Raises:
        UserError: all are set, but not to whole numbers that fit each other.
    """
    if any(name not in environment for name in VARIABLES):
        return None
    texts = {name: environment[name] for name in _NUMBERS}
    found = ", ".join(f"{name}={text}" for name, text in texts.items())
    if not all(text.isdecimal() for text in texts.values()):
        raise UserError(f"found {found} in the environment, need whole numbers; start the trainer by torchrun")
    place = Place(*map(int, texts.values()))
    if not place.local_rank <= place.rank < place.world_size:
        raise UserError(
            f"found {found} in the environment, need LOCAL_RANK <= RANK < WORLD_SIZE; start the trainer by torchrun"
        )
    return place


def ignored_launch(environment: Mapping[str, str]) -> str | None:
    """Return what to say of an incomplete launch in the environment, which is ignored; None if there is none."""
    given = [f"{name}={environment[name]}" for name in _NUMBERS if name in environment]
    missing = [name for name in VARIABLES if name not in environment]
    if not given or not missing:
        return None
    found, lacking = ", ".join(given), ", ".join(missing)
    return (
        f"{found} in the environment is ignored, for want of {lacking}: this process trains alone. To use several GPUs "
        "of a machine, set hardware.num_gpus."
    )
