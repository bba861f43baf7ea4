"""The verbs of trained models: text from them, a server, their exchange with transformers, public benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import click

from gpt_pipeline.cli.common import ALLOW_HOST, CHECKPOINT, EXPERIMENT, JSON, STOPPED, WEIGHTS, print_json, say, tell
from gpt_pipeline.storage.names import as_typed
from gpt_pipeline.storage.ports import HOST
from gpt_pipeline.training.config import Device

if TYPE_CHECKING:
    from gpt_pipeline.checkpoints.load import Weights
    from gpt_pipeline.data.config import DataConfig
    from gpt_pipeline.evaluation.generate import Pick
    from gpt_pipeline.exchange.gguf import Dtype
    from gpt_pipeline.writing import Manner, Writer


@click.command()
@EXPERIMENT
@CHECKPOINT
@WEIGHTS
@click.option("--prompt", help="The question; with --raw, the beginning of the text.")
@click.option("--interactive", is_flag=True, help="Answer one line after the other, until Ctrl+D.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, not as a question; it is printed too.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0: always the most likely token.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from this many of the most likely tokens.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Default: as the experiment file says.")
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: as the experiment file says.")
def generate(
    *,
    experiment: Path,
    checkpoint: str,
    weights: Weights,
    prompt: str | None,
    interactive: bool,
    raw: bool,
    temperature: float,
    top_k: int | None,
    seed: int,
    max_new_tokens: int | None,
    device: str | None,
) -> int | None:
    """Generate text from a checkpoint.

    Output streams as it is generated, reasoning first, then the answer; everything else goes to stderr. A model of
    texts without questions continues the prompt as with --raw; one of conversations remembers the lines before.
    """
    if (prompt is None) != interactive:
        raise click.UsageError("give either --prompt or --interactive", click.get_current_context())
    if top_k is not None and temperature == 0:
        raise click.UsageError("--top-k needs a --temperature above 0", click.get_current_context())
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    config = loaded.config
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint, if_none=loaded.way_to_checkpoints)
    say(f"Loading {chosen.path.name} ...")
    from gpt_pipeline.exchange.export import trained_length  # torch
    from gpt_pipeline.writing import Writer, converse, picker, write_once

    writer = Writer.of_checkpoint(
        chosen.path,
        device=device or config.hardware.device_here,
        trained_length=trained_length(loaded, chosen),
        weights=weights,
    )
    manner = _manner(
        writer,
        config.data,
        raw=raw,
        pick=picker(temperature=temperature, top_k=top_k, seed=seed),
        max_new_tokens=max_new_tokens or config.evaluation.max_new_tokens,
    )
    say(f"{writer.checkpoint.path.name}, step {writer.checkpoint.step:,}")
    try:
        if prompt is None:
            converse(writer, manner, say=say)
        else:
            write_once(writer, manner, prompt, say=say)
    except KeyboardInterrupt:
        click.echo()
        return STOPPED
    return None


def _manner(writer: Writer, data: DataConfig, *, raw: bool, pick: Pick, max_new_tokens: int) -> Manner:
    """Return how the model is asked and answers, by the form of the documents it was trained on."""
    from gpt_pipeline.data.formats import has_conversations, has_questions, has_reasoning
    from gpt_pipeline.data.formats.conversation import first_answer_of, prompt_of
    from gpt_pipeline.data.formats.forms import CHATML, PLAIN
    from gpt_pipeline.evaluation.score import split_answer
    from gpt_pipeline.writing import Manner

    form, reasons = CHATML if writer.tokenizer.marks else PLAIN, has_reasoning(data)
    is_conversation = has_conversations(data) and not raw
    return Manner(
        pick=pick,
        max_new_tokens=max_new_tokens,
        raw=raw or not has_questions(data),
        asked=partial(prompt_of, form=form, reasons=reasons),
        remembers=is_conversation,
        answered=lambda written: split_answer(written, with_reasoning=reasons, form=form).answer,
        until=partial(first_answer_of, reasons=reasons) if is_conversation and not form.has_marks else iter,
    )


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="EXPERIMENT.yaml[@CHECKPOINT]...")
@WEIGHTS
@click.option("--host", default=HOST, show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), help="Default: 8000, or the next that is free.")
@click.option(
    "--api-key-env",
    "key_variable",
    metavar="NAME",
    help="A variable of the environment with the key that clients must send; needed where --host is not this machine.",
)
@ALLOW_HOST
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: as the experiment file says.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Texts of a model that are written at a time.",
)
@click.option(
    "--queue-size", type=click.IntRange(1), default=256, show_default=True, help="Texts that may wait; more get 429."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), help="New tokens of a text at the most; default: what the context holds."
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="That a request may take.",
)
@click.option("--open", "in_browser", is_flag=True, help="Show the page in the browser.")
def serve(
    *,
    models: Sequence[str],
    weights: Weights,
    host: str,
    port: int | None,
    key_variable: str | None,
    names: Sequence[str],
    device: str | None,
    batch_size: int,
    queue_size: int,
    max_tokens: int | None,
    max_seconds: float,
    in_browser: bool,
) -> None:
    """Serve checkpoints by OpenAI's interface, with a page to talk to them.

    The model `my-idea` is the best checkpoint of my-idea.yaml, `my-idea@last` that of my-idea.yaml@last; CHECKPOINT is
    best, last, step_N or a .pt file. Checkpoints are loaded once, at the start. For this machine only, unless --host
    says otherwise. Ctrl+C stops it; answers under way are finished first.
    """
    say("Loading ...")
    from gpt_pipeline.serving.models import find_wanted, load_served  # torch

    wanted = find_wanted(models)
    from gpt_pipeline.serving.app import Limits
    from gpt_pipeline.serving.server import place_of
    from gpt_pipeline.serving.server import serve as serve_models

    place = place_of(host=host, port=port, key_variable=key_variable, names=names)
    served = []
    for each in wanted:
        served.append(load_served(each, device=device, weights=weights))
        say(f"{each.name}: {each.checkpoint.path.name}, step {each.checkpoint.step:,}")

    def opened() -> None:
        click.echo(place.address)
        say(f"The page is there; OpenAI's interface at {place.address}/v1. Ctrl+C stops it.")
        if in_browser:
            click.launch(place.address)

    serve_models(
        served,
        place,
        limits=Limits(batch_size=batch_size, queue_size=queue_size, seconds=max_seconds, max_tokens=max_tokens),
        opened=opened,
        stopping=lambda: say("Stopping ..."),
    )


@click.command()
@EXPERIMENT
@CHECKPOINT
@WEIGHTS
@click.option("--to", "target", type=click.Path(path_type=Path), help="A new folder; with --push it may be left out.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["hf", "gguf"]),
    default="hf",
    show_default=True,
    help="hf: for transformers; gguf: for llama.cpp and Ollama.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    help="Of the matrices, with --format gguf.  [default: f16]",
)
@click.option("--push", "repository", metavar="OWNER/NAME", help="Upload the folder to this repository of the hub.")
@click.option("--private", is_flag=True, help="A repository that --push creates is not public.")
def export(
    *,
    experiment: Path,
    checkpoint: str,
    weights: Weights,
    target: Path | None,
    form: str,
    dtype: Dtype | None,
    repository: str | None,
    private: bool,
) -> None:
    """Write a checkpoint as a folder for transformers, or for llama.cpp.

    Weights, tokenizer and model card, as Hugging Face's library or llama.cpp loads them. It replaces an earlier export,
    and nothing else. --push also uploads it, with the token of HF_TOKEN or of `hf auth login`.
    """
    context = click.get_current_context()
    if target is None and repository is None:
        raise click.UsageError("give --to FOLDER, --push OWNER/NAME, or both", context)
    if private and repository is None:
        raise click.UsageError("--private needs --push", context)
    if dtype is not None and form != "gguf":
        raise click.UsageError("--dtype needs --format gguf; a folder for transformers is float32", context)
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.exchange.push import push_folder, require_pushable
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint, if_none=loaded.way_to_checkpoints)
    if repository is not None:
        require_pushable(repository)
    say(f"Loading {chosen.path.name} ...")
    from gpt_pipeline.exchange.export import export_checkpoint, export_gguf  # torch

    with ExitStack() as temporary:
        folder = target or Path(temporary.enter_context(TemporaryDirectory(prefix="gpt-pipeline-"))) / "export"
        if form == "gguf":
            exported = export_gguf(loaded, chosen.path, folder, weights=weights, dtype=dtype or "f16")
        else:
            exported = export_checkpoint(loaded, chosen.path, folder, weights=weights)
        say(f"{chosen.path.name}, step {exported.checkpoint.step:,}: {exported.parameters:,} parameters")
        if target is not None:
            tell(exported.folder)
        if repository is not None:
            say(f"Uploading to {repository} ...")
            pushed = push_folder(exported.folder, repository, private=private)
            say(
                f"Uploaded, commit {pushed.commit}."
                if pushed.new
                else f"Nothing to upload: commit {pushed.commit} has it."
            )
            tell(pushed.address)


@click.command(name="import")
@click.argument("folder", type=click.Path(path_type=Path), callback=lambda *given: given[2].absolute())
@EXPERIMENT
def import_(folder: Path, experiment: Path) -> None:
    """Import a model of transformers as a checkpoint.

    FOLDER is what save_pretrained, or our export, wrote. Its shape must be that of the experiment.
    """
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    say(f"Reading {folder} ...")
    from gpt_pipeline.exchange.import_model import import_folder  # torch

    taken = import_folder(folder, loaded)
    say("Imported." if taken.new else "Nothing to do: the experiment has this model already.")
    say(
        f"To start a training from it, set storage.checkpoint_to_resume: {taken.checkpoint.path.name} in "
        f"{experiment.name} and run: gpt-pipeline run {as_typed(experiment, Path.cwd())}"
    )
    tell(taken.checkpoint.path)


@click.command()
@EXPERIMENT
@CHECKPOINT
@WEIGHTS
@click.option("--tasks", required=True, metavar="A,B", help="As lm-evaluation-harness names them, such as hellaswag.")
@click.option("--limit", type=click.IntRange(min=1), help="Documents of each task; default: all.")
@click.option("--task-folder", type=click.Path(path_type=Path, exists=True), help="With task files of your own.")
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: as the experiment file says.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Texts at a time.")
@JSON
def benchmark(
    *,
    experiment: Path,
    checkpoint: str,
    weights: Weights,
    tasks: str,
    limit: int | None,
    task_folder: Path | None,
    device: Device | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Score a checkpoint on public benchmarks.

    It needs an extra; in the project's clone: pip install -c constraints.txt -e '.[benchmarks]'.
    """
    from gpt_pipeline.checkpoints.choose import choose_checkpoint
    from gpt_pipeline.exchange.benchmark import BenchmarkRequest, benchmark_checkpoint
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    chosen = choose_checkpoint(loaded.folder.checkpoints, checkpoint, if_none=loaded.way_to_checkpoints)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    request = BenchmarkRequest(
        tasks=names,
        limit=limit,
        task_folder=task_folder,
        weights=weights,
        device=device or loaded.config.hardware.device_here,
        batch_size=batch_size,
    )
    say(f"Loading {chosen.path.name} and lm-evaluation-harness ...")
    result = benchmark_checkpoint(loaded, chosen.path, request)
    say(f"{chosen.path.name}, step {result.step:,}" + (", measured before" if result.reused else ""))
    if as_json:
        print_json([{**asdict(score), "samples": result.samples.get(score.task)} for score in result.scores])
        return
    for score in result.scores:
        spread = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        count = result.samples.get(score.task)
        tell(f"{score.task}  {score.metric}  {score.value:.4f}{spread}" + (f"  of {count:,}" if count else ""))
    say(str(result.path))
