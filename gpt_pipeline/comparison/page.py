"""The comparison as a page in the report's style: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt_pipeline import __version__
from gpt_pipeline.comparison.answers import answers_side_by_side
from gpt_pipeline.comparison.by_key import key_chart, key_sheet
from gpt_pipeline.comparison.curves import figures_beside, loss_figures, read_records
from gpt_pipeline.comparison.show import Table, ranking, table_lines, tables_of
from gpt_pipeline.comparison.standings import Comparison, Standing
from gpt_pipeline.errors import UserError
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.report import wording
from gpt_pipeline.report.figures import Figure, figures_of
from gpt_pipeline.report.page import page_environment
from gpt_pipeline.sheet import Line
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.atomic import write_text
from gpt_pipeline.storage.manifest import utc_now
from gpt_pipeline.training.config import ESTIMATES

_GENERATOR, _HEAD_BYTES = b'<meta name="generator" content="gpt_pipeline ', 20_000  # what a page of ours begins with
_SIDE_BY_SIDE, _BELOW_EACH_OTHER = 8, 16  # columns, and values of a key; a larger table is folded away
_RANKED = 12  # experiments whose ranks a line can tell

Links = Callable[[Experiment], str | None]
"""Returns the address of an experiment's report, if it has one."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """An experiment in the table of all; figures that do not exist yet are None."""

    standing: Standing
    link: str | None
    group: int | None
    """Number of the group in which its losses compare; None without evaluation."""

    loss: float | None
    loss_text: str
    loss_note: str
    right: float | None
    right_text: str


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """The curves of a group of experiments whose losses compare."""

    title: str
    losses: Sequence[Figure]
    beside: Sequence[Figure]
    note: str


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """A table, with what a reader must know."""

    title: str
    lines: Sequence[Line]
    """The head first; cells with a style stand out."""

    notes: Sequence[str]
    is_large: bool
    figure: Figure | None = None


def write_page(comparison: Comparison, experiments: Sequence[Experiment], file: Path) -> Path:
    """Write the comparison of the experiments into `file`; return its absolute path.

    Raises:
        UserError: something else than such a page stands there.
    """
    require_page(file)
    write_text(file, render_page(comparison, experiments, links=_report_file))
    return file.absolute()


def require_page(file: Path) -> None:
    """Raise `UserError` if `file` is there and is not a page that this program wrote."""
    if file.is_dir():
        raise UserError(f"--html: found the folder {file}, need a file; use {file / 'comparison.html'}")
    if file.exists() and (not file.is_file() or _GENERATOR not in file.read_bytes()[:_HEAD_BYTES]):
        raise UserError(f"--html: found {file}, which is no page of this program, need a new file; choose another name")


def render_page(
    comparison: Comparison, experiments: Sequence[Experiment], *, links: Links, notes: Sequence[str] = ()
) -> str:
    """Return the page; `notes` are what a reader must know of experiments that are not on it."""
    by_name = {experiment.name: experiment for experiment in experiments}
    page = page_environment().get_template("comparison.html.j2")
    count = len(comparison.standings)
    return page.render(
        title=f"Comparison of {counted(count, 'experiment')}",
        ranking=ranking(comparison) if count <= _RANKED else "",
        notes=notes,
        rows=[_row(comparison, standing, links(by_name[standing.name])) for standing in comparison.standings],
        several_groups=len(comparison.groups) > 1,
        curves=list(_curves(comparison, by_name)),
        by_key=list(_by_key(comparison)),
        answers=answers_side_by_side(comparison.standings),
        figures=list(map(_figures, tables_of(comparison))),
        generated_at=utc_now(),
        program_version=__version__,
    )


def _report_file(experiment: Experiment) -> str | None:
    report = experiment.folder.report
    return report.as_uri() if report.is_file() else None


def _row(comparison: Comparison, standing: Standing, link: str | None) -> _Row:
    best = standing.best
    measured = None if best is None else best.metrics.get(standing.loss)
    loss = standing.estimate if measured is None else measured
    share = None if best is None else share_of(best.evaluation.answers, "correct")
    about = "about " if measured is None and loss is not None else ""
    return _Row(
        standing=standing,
        link=link,
        group=next((number for number, each in enumerate(comparison.groups, 1) if standing in each.standings), None),
        loss=loss,
        loss_text=about + wording.decimal(loss),
        loss_note="" if standing.loss == "val_loss" or loss is None else wording.of_metric(standing.loss),
        right=None if share is None else share.value,
        right_text="" if share is None else f"{share.successes} of {share.total}",
    )


def _curves(comparison: Comparison, by_name: dict[str, Experiment]) -> Iterator[_Curves]:
    for number, group in enumerate(comparison.groups, start=1):
        records = read_records([by_name[standing.name] for standing in group.standings], known=comparison.records)
        metric = group.ranked_by if group.ranked_by in ESTIMATES else "val_loss"
        drawn, all_of_it = len(records), len(group.standings)
        if drawn:
            yield _Curves(
                title="Curves" if len(comparison.groups) == 1 else f"Curves of group {number}",
                losses=loss_figures(records, metric),
                beside=figures_beside(records),
                note=f"The best {drawn} of {all_of_it} experiments are drawn." if drawn < all_of_it else "",
            )


def _by_key(comparison: Comparison) -> Iterator[_Figures]:
    for by in comparison.by_key:
        lines = key_sheet(by).rows
        is_large = len(by.lines) > _SIDE_BY_SIDE or len(lines) > _BELOW_EACH_OTHER
        figure = next(iter(figures_of([(by.title, key_chart(by))])), None)  # none where nobody has the metric
        yield _Figures(title=by.title, lines=lines, notes=by.notes, is_large=is_large, figure=figure)


def _figures(table: Table) -> _Figures:
    return _Figures(
        title=table.title or "Figures",
        lines=table_lines(table),
        notes=table.notes,
        is_large=len(table.standings) > _SIDE_BY_SIDE,
    )
