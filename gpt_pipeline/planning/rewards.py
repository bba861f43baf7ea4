"""Whether documents ask what a reward can judge, as far as that shows before `rl_prompts` looks at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gpt_pipeline.data.documents.stage import find_documents
from gpt_pipeline.data.formats import has_questions
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.tokenizer import tokenizer_of
from gpt_pipeline.errors import DataError, UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.findings import Finding, problem_of
from gpt_pipeline.planning.survey import is_surveyed, survey
from gpt_pipeline.rl.candidates import Candidates, first_candidates, has_a_check
from gpt_pipeline.rl.stage import require_candidates

_LOOKED_AT = 10_000  # documents of each part: a second or two where none can be judged


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Look:
    candidates: Candidates
    documents: int
    """Documents that were looked at."""

    is_whole: bool
    """Whether they are all."""


def without_candidates(experiment: Experiment) -> Iterator[Finding]:
    """Find data of which the stage `rl_prompts` would say that it asks nothing that a reward can judge."""
    key = "training.objective"
    try:
        look = _look_at_documents(experiment) or _look_at_first_rows(experiment)
    except UserError as error:
        yield problem_of(error, key)
        return
    if look is None or (look.candidates.training and not look.is_whole):
        return
    try:
        require_candidates(look.candidates)
    except DataError as error:
        found = problem_of(error, key)
        if not look.is_whole:  # others may come behind them
            text = f"{found.text} in the first {look.documents:,} documents"
            found = dataclasses.replace(found, severity="warning", text=text)
        yield found


def _look_at_documents(experiment: Experiment) -> _Look | None:
    """Return what the finished documents ask; None while these, or the shards with their tokenizer, are not made."""
    found = [(find_documents(part.data, part.data_folder), part.data) for part in experiment.parts.values()]
    documents = [(stage, data) for stage, data in found if stage is not None]
    shards = find_shards(experiment.data, experiment.data_folder)
    if shards is None or len(documents) < len(found):
        return None
    counts = [int(stage.manifest.facts["documents"]) for stage, _ in documents]
    longest = experiment.config.rl.longest_question(experiment.config.data.max_length)
    return _Look(
        candidates=first_candidates(documents, tokenizer_of(shards), longest=longest, among=_LOOKED_AT),
        documents=sum(min(count, _LOOKED_AT) for count in counts),
        is_whole=max(counts) <= _LOOKED_AT,
    )


def _look_at_first_rows(experiment: Experiment) -> _Look | None:
    """Return that none of the first documents of files can be judged; None if one can, or not all parts are files.

    Also None once documents are made of them: the files may be gone.
    """
    parts = [part for part in experiment.parts.values() if has_questions(part.data)]
    if not all(is_surveyed(part.data) and find_documents(part.data, part.data_folder) is None for part in parts):
        return None
    documents = 0
    for part in parts:
        try:
            held = survey(part.data, part.data_folder)
        except UserError:  # `_looked_into` says what is wrong, where files are still needed
            return None
        if any(has_a_check(batch, part.data) for batch in held.first):
            return None
        documents += sum(batch.num_rows for batch in held.first)
    if not documents:  # `findings` says so
        return None
    nothing = Candidates(training=(), held_out=(), left_out={"no_check": documents})
    return _Look(candidates=nothing, documents=documents, is_whole=False)
