"""Validation losses of several experiments in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.report.charts import INSET_HEIGHT, INSET_WIDTH, Chart, Series, draw_standalone, points_of
from gpt_pipeline.training.metrics import read_metrics

_CURVES = 4  # as many colours as can be told apart


def losses_svg(experiments: Sequence[Experiment]) -> str:
    """Return the trainers' validation loss against tokens seen, of the first four experiments that have any, as SVG.

    Give them in the order of a comparison: the best stand first.
    """
    curves: list[Series] = []
    for experiment in experiments:
        points = points_of(read_metrics(experiment.folder.metrics), "validation", "tokens_seen", "val_loss")
        if points and len(curves) < _CURVES:
            curves.append(Series(name=experiment.name, points=points, colour=len(curves) + 1))
    chart = Chart(
        title="Validation loss in nats per token against training tokens",
        x_label="training tokens",
        y_label="nats per token",
        series=tuple(curves),
        width=INSET_WIDTH,
        height=INSET_HEIGHT,
    )
    return draw_standalone(chart)
