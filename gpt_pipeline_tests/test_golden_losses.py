"""The trainer's arithmetic, held to losses that commit 775e92b computed: if they change, every training changes.

Whoever means to change the weights that a configuration gives raises `TRAINING_CODE_VERSION`, and records new losses:
`python -m gpt_pipeline_tests.golden_trainings --losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pipeline.training.job import TrainingJob
from gpt_pipeline_tests.golden_trainings import TRAININGS, adamw_with_dropout, muon_without_dropout, train

_ROUNDING = 1e-5  # relative; processors add in different orders

_TRAIN_LOSSES = {
    adamw_with_dropout: [
        *(10.83619499206543, 10.816465377807617, 10.82706069946289, 10.82369613647461),
        *(10.822689056396484, 10.694822311401367, 10.629350662231445, 10.636341094970703),
        *(10.581954956054688, 10.55556869506836, 10.49629020690918, 10.477882385253906),
    ],
    muon_without_dropout: [
        *(10.822175979614258, 10.831402778625488, 10.832605361938477, 10.820162773132324),
        *(10.830622673034668, 10.666290283203125, 10.570086479187012, 10.523344039916992),
        *(10.434706687927246, 10.298966407775879, 10.185370445251465, 10.103622436523438),
    ],
}
_VAL_LOSSES = {
    adamw_with_dropout: [
        *(10.829127311706543, 10.83340311050415, 10.83021879196167, 10.82390546798706, 10.822582721710205),
    ],
    muon_without_dropout: [
        *(10.812828063964844, 10.831130981445312, 10.82934284210205, 10.820341110229492, 10.817898750305176),
    ],
}


@pytest.mark.parametrize("make", TRAININGS)
def test_training_of_an_earlier_version_has_the_same_losses(
    tmp_path: Path, make: Callable[[Path], TrainingJob]
) -> None:
    found = train(make(tmp_path))
    assert found.train_losses == pytest.approx(_TRAIN_LOSSES[make], rel=_ROUNDING)
    assert found.val_losses == pytest.approx(_VAL_LOSSES[make], rel=_ROUNDING)
