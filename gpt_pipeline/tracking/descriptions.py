"""What the metrics in MLflow mean: MLflow describes no metric, so the description of experiment and run does."""

from collections.abc import Iterable

NOTE_TAG = "mlflow.note.content"
"""What MLflow's pages show as the description."""

_METRICS = (
    ("train_loss", "nats per token", "mean of the updates since the row before"),
    ("val_loss", "nats per token", "run `training`: the trainer's estimate on a few batches; run `step_N`: evaluated"),
    ("document_loss", "nats per token", "as val_loss, on held-out documents by themselves, each from its beginning"),
    ("eval/val_loss", "nats per token", "the checkpoint's evaluation, on up to max_validation_tokens; lower is better"),
    ("eval/val_bpb", "bits per UTF-8 byte", "the same for any tokenizer"),
    ("eval/val_loss/KIND", "as above", "on one kind of documents"),
    ("learning_rate", "", "of the last update"),
    ("gradient_norm", "", "before clipping"),
    ("loss_scale, skipped_updates", "", "in fp16: what the loss is multiplied by, and updates that were beyond fp16"),
    ("tokens_per_second", "tokens/s", "training tokens, all devices together"),
    ("mfu", "share, 0 to 1", "of the devices' peak FLOP/s"),
    ("memory_gb", "GB", "peak of the first process"),
    (
        "best_val_loss or the like, best_step",
        "as that loss, step",
        "lowest estimate of what it trains on: best_model.pt",
    ),
)
_OF_ANSWERS = (
    ("completion_loss", "nats per token", "in fine-tuning: as document_loss, of answers with their reasoning alone"),
    ("eval/answer_loss", "nats per token", "of the reference answers, given question and reference reasoning"),
    ("eval/correct", "share, 0 to 1", "right answers; eval/correct_low and eval/correct_high bound its 95 % interval"),
    ("eval/well_formed", "share, 0 to 1", "answers that have all their parts and end by themselves"),
    ("eval/token_f1", "0 to 1", "overlap with the words of the expected answer"),
    ("eval/distinct_2", "share, 0 to 1", "word pairs that differ; low is repetitive"),
    ("eval/correct/KIND", "share, 0 to 1", "right answers to one kind of questions"),
)


def _note(texts: str, metrics: Iterable[tuple[str, str, str]]) -> str:
    lines = [
        "The run `training` holds the training by step, and its evaluations as `eval/...`; each run `step_N` holds one "
        f"evaluation with its {texts}. To compare experiments, select them in the list of experiments, "
        "press Compare, search for `attributes.run_name = 'training'` and group by `experiment_file`: metrics bear the "
        "same names everywhere.",
        "",
        "| metric | unit | meaning |",
        "|---|---|---|",
        *(f"| {name} | {unit} | {meaning} |" for name, unit, meaning in metrics),
    ]
    return "\n".join(lines)


NOTE = _note("questions and answers", (*_METRICS, *_OF_ANSWERS))
TEXT_NOTE = _note("continuations", _METRICS)
"""Of a training on documents that ask nothing."""
