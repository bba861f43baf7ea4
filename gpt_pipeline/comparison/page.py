"""The comparison as a page in the report's style: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from gpt_pipeline import __version__
from gpt_pipeline.comparison.by_key import key_chart, key_sheet
from gpt_pipeline.comparison.compare import Comparison
from gpt_pipeline.comparison.show import losses_chart, ranking, table_lines, tables_of
from gpt_pipeline.errors import UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.report.build import page_environment
from gpt_pipeline.report.charts import draw
from gpt_pipeline.sheet import Line
from gpt_pipeline.storage.atomic import write_text
from gpt_pipeline.storage.manifest import utc_now

_GENERATOR, _HEAD_BYTES = b'<meta name="generator" content="gpt_pipeline ', 20_000  # what a page of ours begins with


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A picture or a table, or both, with what a reader must know."""

    title: str
    svg: Markup
    lines: Sequence[Line]
    """The head first; cells with a style stand out."""

    notes: Sequence[str]


def write_page(comparison: Comparison, experiments: Sequence[Experiment], file: Path) -> Path:
    """Write the comparison of the experiments into `file`; return its absolute path.

    Raises:
        UserError: something else than such a page stands there.
    """
    require_page(file)
    page = (
        page_environment()
        .get_template("comparison.html.j2")
        .render(
            title=f"Comparison of {len(comparison.standings)} experiments",
            ranking=ranking(comparison),
            sections=list(_sections(comparison, experiments)),
            generated_at=utc_now(),
            program_version=__version__,
        )
    )
    write_text(file, page)
    return file.absolute()


def require_page(file: Path) -> None:
    """Raise `UserError` if `file` is there and is not a page that this program wrote."""
    if file.is_dir():
        raise UserError(f"--html: found the folder {file}, need a file; use {file / 'comparison.html'}")
    if file.exists() and (not file.is_file() or _GENERATOR not in file.read_bytes()[:_HEAD_BYTES]):
        raise UserError(f"--html: found {file}, which is no page of this program, need a new file; choose another name")


def _sections(comparison: Comparison, experiments: Sequence[Experiment]) -> Iterator[_Section]:
    for by in comparison.by_key:
        sheet = key_sheet(by)
        yield _Section(title=by.title, svg=Markup(draw(key_chart(by))), lines=sheet.rows, notes=by.notes)
    by_name = {experiment.name: experiment for experiment in experiments}
    for group in comparison.groups:
        chart = losses_chart([by_name[standing.name] for standing in group.standings])
        names = [standing.name for standing in group.standings]
        beyond = [f"The best of {len(names)} experiments are drawn."] if len(names) > len(chart.series) else []
        yield _Section(title=chart.title, svg=Markup(draw(chart)), lines=(), notes=beyond)
    for table in tables_of(comparison):
        yield _Section(title=table.title or "Figures", svg=Markup(), lines=table_lines(table), notes=table.notes)
