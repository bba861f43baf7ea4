"""The model card: what the model is, what it was trained on, and how well it does."""

from __future__ import annotations

from typing import Any

from gpt_pipeline import __version__
from gpt_pipeline.checkpoints.load import Weights
from gpt_pipeline.checkpoints.manifest import CheckpointInfo
from gpt_pipeline.data.config import FORMAT_COLUMNS, DataConfig, on_hub
from gpt_pipeline.data.documents.stage import DocumentsStage
from gpt_pipeline.data.formats import has_conversations, has_questions, has_reasoning
from gpt_pipeline.data.formats.forms import END, FORMS, MARKS, Form, with_names
from gpt_pipeline.data.tokens.choose import known_shards
from gpt_pipeline.data.tokens.shards import tokenizer_facts
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.evaluation.result import EvaluationResult, read_evaluations
from gpt_pipeline.evaluation.shares import share_of
from gpt_pipeline.exchange.origin import origin_of
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.template import written
from gpt_pipeline.model.config_json import config_json_of
from gpt_pipeline.model.costs import parameter_count
from gpt_pipeline.shown import in_markdown, markdown_templates
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.training.job import OBJECTIVE

_METRICS = {
    "val_loss": ("Validation loss", "nats per held-out token"),
    "perplexity": ("Perplexity", "e to the loss"),
    "val_bpb": ("Bits per byte", "bits per UTF-8 byte of held-out text"),
    "answer_loss": ("Answer loss", "nats per token of the reference answers, given question and reference reasoning"),
    "well_formed": ("Well-formed answers", "share that end by themselves with all their parts"),
    "correct": ("Right answers", "share with the expected number, else the expected text"),
    "token_f1": ("Word F1", "overlap with the expected words"),
    "distinct_2": ("Distinct word pairs", "share; low is repetitive"),
}

_CONTENTS = {"text": "Texts", "question_answer": "Questions and answers", "chat": "Conversations"}


def model_card(
    experiment: Experiment,
    info: CheckpointInfo,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    weights: Weights = "raw",
    gguf: str | None = None,
) -> str:
    """Return the card of a checkpoint as markdown; it says what is unknown (no evaluation, data removed).

    `gguf` is the type of the numbers in a GGUF file; None for a folder of `transformers`.
    """
    environment = markdown_templates("gpt_pipeline.exchange")
    environment.filters["as_it_is"] = lambda value: in_markdown(str(value))
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    evaluation = _evaluation(experiment, info)
    return environment.get_template("README.md.j2").render(
        title=in_markdown(experiment.display_name),
        info=info,
        model=info.model,
        origin=origin_of(experiment, info),
        layout=config_json_of(info.model),
        parameters=parameter_count(info.model),
        max_length=max_length,
        averaged=weights == "average",
        gguf=gguf,
        data=_data(experiment),
        source=_source(experiment),
        on_hub=_is_on_hub(experiment),
        languages=_languages(experiment.config.data),
        asks=has_questions(experiment.config.data),
        reasons=has_reasoning(experiment.config.data),
        forms=_forms(experiment.config.data, FORMS["chatml" if tokenizer.marks else "plain"]),
        ends=" or ".join(f"`{tokenizer.eot if end == tokenizer.eot_token else MARKS[END]}`" for end in tokenizer.ends),
        losses=_losses(info),
        settings=_settings(info),
        evaluation=evaluation,
        metrics=_metrics(evaluation),
        tokenizer=tokenizer,
        program_version=__version__,
    )


def _evaluation(experiment: Experiment, info: CheckpointInfo) -> EvaluationResult | None:
    """Return the newest evaluation of these very weights, if there is one."""
    results = read_evaluations(experiment.folder.evaluations)
    same = [result for result in results if result.checkpoint["weights_sha256"] == info.weights_sha256]
    return max(same, key=lambda result: result.created_at, default=None)


def _metrics(evaluation: EvaluationResult | None) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of each measured metric; a share of answers with its 95 % interval."""
    if evaluation is None:
        return []
    shown = {key: f"{value:.4g}" for key, value in evaluation.metrics.items()}
    for key in ("well_formed", "correct"):
        if (share := share_of(evaluation.answers, key)) is not None:
            shown[key] = str(share)
    return [(label, shown[key], meaning) for key, (label, meaning) in _METRICS.items() if key in shown]


def _data(experiment: Experiment) -> dict[str, Any]:
    """Return counts of the data stages by name; empty if the data is gone."""
    facts: dict[str, Any] = {}
    folder = experiment.data_folder
    parts = [DocumentsStage(config=part, data_folder=folder).known() for part in experiment.data.parts.values()]
    for stage in (*(parts if len(parts) == 1 else ()), known_shards(experiment.data, folder)):
        facts |= _counts(stage) if stage else {}
    return facts


def _counts(stage: StageResult) -> dict[str, float]:
    facts, of_tokenizer = stage.manifest.facts, tokenizer_facts(stage)
    plain = {name: value for name, value in facts.items() if isinstance(value, int) and not isinstance(value, bool)}
    return {name.replace("_", " "): value for name, value in plain.items() if name not in of_tokenizer}


def _forms(data: DataConfig, form: Form) -> list[dict[str, Any]]:
    """Return the forms of the documents, each once, with the names of the parts of a mix that have it."""
    names: dict[tuple[bool, bool, bool], list[str]] = {}
    for name, part in data.parts.items():
        names.setdefault((has_questions(part), has_reasoning(part), has_conversations(part)), []).append(name)
    return [
        {
            "parts": ", ".join(own),
            "asks": asks,
            "reasons": reasons,
            "converses": converses,
            "text": with_names(form.document("{question}", "{reasoning}" if reasons else "", "{answer}")),
        }
        for (asks, reasons, converses), own in names.items()
    ]


def _source(experiment: Experiment) -> str:
    shares = experiment.config.data.shares
    parts = {name: _source_of(part) for name, part in experiment.config.data.parts.items()}
    return "; ".join(
        f"{shares[name]:.1%} of the tokens: {source}" if name else source for name, source in parts.items()
    )


def _source_of(data: DataConfig) -> str:
    documents = "English documents" if data.is_english else f"Documents{in_markdown(data.in_languages)}"
    if data.is_sample:
        return f"{documents} that gpt_pipeline generates itself, with the columns of PleIAs/SYNTH"
    if data.format == "synth":
        return f"{documents}{'' if data.local is None else ' with the columns of PleIAs/SYNTH,'} from {_place(data)}"
    named = ", ".join(f"`{in_markdown(column)}`" for column in _columns(data))
    return f"{_CONTENTS[data.format]} from {_place(data)} ({named})"


def _place(data: DataConfig) -> str:
    if data.local is not None:
        return "files of one's own"
    part = in_markdown(on_hub("", data.subset, data.split))
    commit = f"at commit `{data.revision}`" if data.revision else ""
    link = f"[{data.source}](https://huggingface.co/datasets/{data.source})"
    return " ".join(filter(None, (link, part, commit)))


def _languages(data: DataConfig) -> str:
    """Return the languages of the documents as YAML, for the card's head; nothing where they are not known."""
    found: set[str] = set()
    for part in data.parts.values():
        if part.format != "synth" or part.wanted_languages is None:
            return ""
        found.update(part.wanted_languages)
    names = [written(each) for each in sorted(found)]
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _columns(data: DataConfig) -> list[str]:
    values = (getattr(data.columns, name) for name in FORMAT_COLUMNS[data.format])
    return [value for value in values if value is not None]


def _is_on_hub(experiment: Experiment) -> str | None:
    [data, *others] = experiment.config.data.parts.values()
    return data.source if not others and data.local is None and not data.is_sample else None


def _losses(info: CheckpointInfo) -> dict[str, float]:
    """Return the losses that the trainer saw, in nats per token: what moves rewarded answers is none."""
    rewarded = info.settings.get(OBJECTIVE) == "rl"
    known = {name: value for name, value in info.metrics.items() if value is not None}
    return {name: value for name, value in known.items() if not (rewarded and name == "train_loss")}


def _settings(info: CheckpointInfo) -> dict[str, Any]:
    wanted = ("training.", "data.")
    return {key: value for key, value in info.settings.items() if key.startswith(wanted) and value is not None}
