"""The verbs of experiments: from a new file to trained, evaluated, compared checkpoints.

What a verb needs is imported when it runs, so that the command starts at once.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt_pipeline.cli.common import (
    EXPERIMENT,
    FAILED,
    JSON,
    experiments_argument,
    print_json,
    say,
    show,
    tell,
    tell_outcome,
)
from gpt_pipeline.errors import StoppedError, UserError
from gpt_pipeline.experiment.recipes import RECIPES
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.names import as_typed

if TYPE_CHECKING:
    from gpt_pipeline.data.verification import Verified
    from gpt_pipeline.experiment.load import Experiment

_logger = logging.getLogger(__name__)
_SEQUENCES_SHOWN = 2
_LOOKED_AT = 100  # rows, to find one that becomes a document
_OF_A_FAMILY = ("experiment", "base", "assignments")  # what `init` takes for one
_MANY_FOR_A_CPU = 50_000_000  # parameters


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path), metavar="EXPERIMENT.yaml")
@click.option("--recipe", type=click.Choice(list(RECIPES)), help="Start from one of the project's experiments.")
@click.option("--samples", type=click.IntRange(min=1), help="Documents to train on.")
@click.option(
    "--start-from",
    metavar="BASE",
    help="Begin with the weights of another experiment (its .yaml), a checkpoint (.pt), or a model of Hugging Face.",
)
@click.option(
    "--data",
    metavar="PATH_OR_NAME",
    help="Your own files (a folder, a file or a pattern), or a dataset of the hub (owner/name); they are looked into.",
)
@click.option("--subset", help="Of the hub's dataset, if it has several.")
@click.option("--split", help="Of the hub's dataset; default: train, or the only one.")
@click.option("--folder", help="For data and checkpoints; relative to the folder of the file.")
@click.option(
    "--from",
    "base",
    type=click.Path(path_type=Path),
    metavar="BASE.yaml",
    help="Write a family of experiments: copies of BASE, one for each combination of the values of --set.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="With --from: a key and its values, such as training.learning_rate=0.001,0.002. Give it once for each key.",
)
@click.pass_context
def init(
    context: click.Context,
    experiment: Path,
    *,
    base: Path | None,
    assignments: tuple[str, ...],
    recipe: str | None,
    samples: int | None,
    start_from: str | None,
    data: str | None,
    subset: str | None,
    split: str | None,
    folder: str | None,
) -> None:
    """Write a new, commented experiment file.

    It holds every key with its meaning and default. Keys that you leave unchanged may be deleted.

    With --from and --set, a family of files whose names begin with EXPERIMENT and say their values.
    """
    if base is not None or assignments:
        _init_family(context, experiment, base, assignments)
        return
    from gpt_pipeline.experiment.new import write_new_experiment

    written = write_new_experiment(
        experiment,
        recipe=recipe,
        num_samples=samples,
        base_folder=folder,
        start_from=start_from,
        data=data,
        subset=subset,
        split=split,
        say=say,
    )
    tell(written.file)
    name = as_typed(experiment, Path.cwd())
    look = f"gpt-pipeline show {name}, then: " if data else ""
    say(f"Next: {look}gpt-pipeline plan {name}, then: gpt-pipeline run {name}")
    _say_what_suits_a_cpu(written, own=data is not None)
    if data:
        _tell_first_document(written)


def _init_family(context: click.Context, new: Path, base: Path | None, assignments: Sequence[str]) -> None:
    from gpt_pipeline.experiment.grid import parse_values, write_family

    others = [name for name, value in context.params.items() if value is not None and name not in _OF_A_FAMILY]
    if base is None or not assignments or others:
        need = "--from and --set go together" if not others else f"--from copies BASE, and takes no --{others[0]}"
        raise click.UsageError(need.replace("_", "-"), context)
    family = write_family(new, base, parse_values(assignments))
    for each in family.experiments:
        tell(f"{each.file}{'' if each.file in family.written else '  (was there already)'}")
    stem = family.experiments[0].config.family
    files = as_typed(new.absolute().with_name(f"{stem}-"), Path.cwd()) + "*.yaml"
    count = counted(len(family.experiments), "experiment")
    say(f"{count}. Next: gpt-pipeline plan one of them, then: gpt-pipeline run {files}")


def _tell_first_document(experiment: Experiment) -> None:
    """Print how much the files hold, and the first document as the model will see it."""
    from gpt_pipeline.cli.preview import tell_previews
    from gpt_pipeline.data.formats.rules import in_words, with_hints
    from gpt_pipeline.data.preview import previews
    from gpt_pipeline.data.tokens.tokenizer_stage import usable_tokenizer
    from gpt_pipeline.planning.findings import mixed_splits, passed_over
    from gpt_pipeline.planning.survey import survey

    data = experiment.data
    held = survey(data, experiment.data_folder)
    about = "" if held.is_exact else "about "
    holds = f"{about}{counted(held.rows, 'row')}, about {counted(held.documents, 'document')}"
    tell(f"{data.local or data.origin}: {holds}, {held.text_bytes / 1e6:,.1f} MB")
    if held.dropped:
        why = with_hints(in_words(held.dropped), held.dropped)
        tell(f"Of the first {counted(held.read, 'row')} these become no documents: {why}")
    for finding in (*mixed_splits(data), *passed_over(data)):
        tell(f"{finding.text}; {finding.remedy}")
    tokenizer = usable_tokenizer(data, experiment.data_folder)
    rows = [*previews(data, experiment.data_folder, tokenizer, start=0, count=_LOOKED_AT, say=_logger.info)]
    shown = next((each for each in rows if each.dropped is None), None)
    tell_previews([shown] if shown else rows[:1], tokenizer, has_turns=data.writes_turns)


def _say_what_suits_a_cpu(experiment: Experiment, *, own: bool) -> None:
    """Point to a recipe for this machine where it has no GPU for a model of this size."""
    from gpt_pipeline.doctor.software import find_nvidia
    from gpt_pipeline.model.costs import parameter_count

    parameters = parameter_count(experiment.config.model)
    if experiment.config.start_from is None and parameters > _MANY_FOR_A_CPU and find_nvidia() is None:
        say(
            f"This machine has no NVIDIA GPU; on a CPU, a model of {parameters / 1e6:.0f} million parameters takes "
            f"weeks. A smaller one: gpt-pipeline init NAME.yaml{' --data ...' if own else ''} --recipe cpu, "
            "or --recipe demo for a first look."
        )


@click.command()
@EXPERIMENT
def validate(experiment: Path) -> None:
    """Check an experiment file.

    Its keys and values, and whether this machine can use its folder. Nothing is made or measured; see `plan`.
    """
    from gpt_pipeline.experiment.discover import load_alone
    from gpt_pipeline.experiment.start_from import StartNotReadyError
    from gpt_pipeline.experiment.training import find_start

    loaded = load_alone(experiment)
    folder = loaded.folder.root  # also checks that the base folder can be used on this machine
    with suppress(StartNotReadyError):  # running the experiment makes it
        find_start(loaded)
    config, documents = loaded.config, loaded.data.documents  # which checks the source's path
    tell(f"{experiment} is valid.")
    tell(f"  experiment  {config.experiment_name}")
    tell(f"  data        {documents}")
    if config.start_from is not None:
        tell(f"  starts from {config.start_from.text}")
    tell(f"  folder      {folder}")


@click.command("show")
@EXPERIMENT
@click.option(
    "--row", default=0, show_default=True, type=click.IntRange(min=0), help="Of the first file that has rows."
)
@click.option("--count", default=3, show_default=True, type=click.IntRange(min=1), help="Rows to show.")
@JSON
def preview(experiment: Path, row: int, count: int, as_json: bool) -> None:
    """Show documents as the model sees them.

    From the raw row to the tokens: what is read, why a row is dropped, the text, the side of the split, and where
    reasoning and answer begin. Nothing is kept or trained on: of files on the hub, only what is shown is transferred.
    With data.packing: documents, also the first sequences of the training, once the token shards are made.
    """
    from gpt_pipeline.cli.preview import tell_previews
    from gpt_pipeline.data.config import DOCUMENTS, as_of_part
    from gpt_pipeline.data.preview import previews
    from gpt_pipeline.data.tokens.tokenizer_stage import usable_tokenizer
    from gpt_pipeline.experiment.discover import load_alone

    loaded = load_alone(experiment)
    tokenizer = usable_tokenizer(loaded.data, loaded.data_folder)
    found = {}
    for name, part in loaded.data.parts.items():
        try:
            found[name] = list(previews(part, loaded.data_folder, tokenizer, start=row, count=count, say=say))
        except UserError as error:
            raise UserError(as_of_part(str(error), name)) from error
    if as_json:
        rows = {name: [dataclasses.asdict(each) for each in own] for name, own in found.items()}
        print_json(rows if loaded.data.mix is not None else rows[""])
        return
    for name, own in found.items():
        if name:
            tell(f"{name}: {loaded.data.shares[name]:.1%} of the training tokens\n")
        if not own:
            tell(f"The first file that has rows has no row {row}; rows count from 0.")
        within = loaded.data.max_length if loaded.config.training.answers_only else None
        tell_previews(own, tokenizer, has_turns=loaded.data.parts[name].writes_turns, answers_within=within)
    if loaded.data.packing == DOCUMENTS:
        _tell_sequences(loaded)


def _tell_sequences(experiment: Experiment) -> None:
    from gpt_pipeline.cli.preview import tell_sequences
    from gpt_pipeline.data.tokens.choose import find_shards
    from gpt_pipeline.data.tokens.packing import DocumentSampler
    from gpt_pipeline.data.tokens.stream import open_shards
    from gpt_pipeline.data.tokens.tokenizer import tokenizer_of

    shards, config = find_shards(experiment.data, experiment.data_folder), experiment.config
    if shards is None:
        tell("The sequences that training packs these into are shown once the token shards are made.")
        return
    sampler = DocumentSampler(
        stream=open_shards(shards.folder).train,
        sequence_length=config.data.max_length,
        batch_size=1,
        seed=config.training.seed,
        answers_only=config.training.answers_only,
    )
    tell_sequences(sampler, tokenizer_of(shards), count=_SEQUENCES_SHOWN)


@click.command()
@EXPERIMENT
@JSON
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="Make a few real updates on this device, for at most two minutes.",
)
def plan(experiment: Path, as_json: bool, measure: bool) -> None:
    """Estimate time, memory and disk of an experiment.

    Tokens, steps, FLOPs and hours on this device too, and which finished work is used again. Nothing is written. Exit
    code 1 if something would make the run fail.
    """
    from gpt_pipeline.experiment.discover import load_alone

    loaded = load_alone(experiment)
    say(f"{loaded.display_name}: loading torch ...")
    from gpt_pipeline.planning import show as form
    from gpt_pipeline.planning.plan import make_plan

    made = make_plan(loaded, measured=measure, say=say)
    show(made, form, as_json=as_json)
    if made.problems:
        sys.exit(FAILED)


@click.command()
@experiments_argument(required=True, metavar="EXPERIMENT.yaml ...")
@click.option("--force", is_flag=True, help="Train again from the first step; the old training is moved aside.")
def run(experiments: Sequence[Path], force: bool) -> None:
    """Do everything: data, training, evaluations, report.

    Finished work is not done again. Ctrl+C saves a checkpoint; the same command continues from it.

    Several experiments, also as a folder or a pattern such as 'experiments/rates-*.yaml', run one after the other; one
    that fails does not keep the next from running. Then a table says how each ended; exit code 1 if one failed.
    """
    if len({*experiments}) > 1:
        _run_several([*dict.fromkeys(experiments)], force=force)
        return
    from gpt_pipeline.experiment.discover import load_alone
    from gpt_pipeline.project import Project

    here = Path.cwd()  # the session works in the project's folder
    loaded = load_alone(experiments[0])
    say(f"{loaded.display_name}: loading Dagster ...")
    from gpt_pipeline.orchestration.driver import run_alone, stop_at_sigterm

    _say_outline(loaded, force=force)
    with stop_at_sigterm():
        worked = run_alone(loaded, force=force, say=say)
    say("Everything is done." if worked else "Nothing to do: everything is finished, from the raw files to the report.")
    tell_outcome(Project.of_experiments(loaded.file.parent), loaded, here=here)


def _run_several(files: Sequence[Path], *, force: bool) -> None:
    from gpt_pipeline.progress import several as form

    say(f"{counted(len(files), 'experiment')}, one after the other: loading Dagster ...")
    from gpt_pipeline.orchestration.driver import run_each, stop_at_sigterm

    with stop_at_sigterm():
        ended = run_each(files, force=force, say=say)
    show(ended, form, as_json=False)
    if any(each.state == "stopped" for each in ended):
        raise StoppedError("Stopped; what was done is saved. The same command continues from here.")
    if any(each.state == "failed" for each in ended):
        sys.exit(FAILED)


def _say_outline(experiment: Experiment, *, force: bool) -> None:
    from gpt_pipeline.planning.outline import outline

    lines = [*outline(experiment, force=force)]
    if lines:
        makes = "trains again" if force else "makes what is missing"
        say(f"{experiment.display_name}: this run {makes}.")
    for line in lines:
        say(f"  {line}")


@click.command()
@experiments_argument(required=False, metavar="[EXPERIMENT.yaml ...]")
@JSON
def status(experiments: Sequence[Path], as_json: bool) -> None:
    """Show the progress of experiments.

    Which data is ready, how far training is, what remains to be evaluated, and the command that comes next. Without a
    file: all experiments of the project. Only folders are read.
    """
    from gpt_pipeline.progress import show as form
    from gpt_pipeline.progress.status import statuses
    from gpt_pipeline.project import Project

    found = statuses(experiments, experiments=Project.here().experiments)
    show(found, form, as_json=as_json)
    if not found:
        say("There is no experiment yet; `gpt-pipeline init` writes one.")


@click.command()
@EXPERIMENT
@click.option(
    "--questions", type=click.IntRange(min=0), help="Questions to ask, or texts to continue; default: as the file says."
)
@click.option("--force", is_flag=True, help="Evaluate again what has been evaluated.")
def evaluate(experiment: Path, questions: int | None, force: bool) -> None:
    """Evaluate the checkpoints that have no evaluation yet.

    Then the report is written anew.
    """
    from gpt_pipeline.checkpoints.manifest import list_checkpoints
    from gpt_pipeline.experiment.discover import load_alone
    from gpt_pipeline.project import Project

    here = Path.cwd()  # the session works in the project's folder
    loaded = load_alone(experiment)
    if_none = loaded.way_to_checkpoints
    say(f"{loaded.display_name}: loading Dagster ...")
    from gpt_pipeline.orchestration.driver import Session, evaluate_experiment, stop_at_sigterm

    project = Project.of_experiments(loaded.file.parent)
    say("Opening the project's history ...")
    with stop_at_sigterm(), Session.open(project, loaded, say=say) as session:
        count = evaluate_experiment(session, questions=questions, force=force, say=say)
    if not count and not list_checkpoints(loaded.folder.checkpoints):
        raise UserError(f"there is no checkpoint yet; {if_none}")
    say(f"{count} evaluated." if count else "Nothing to do: every checkpoint is evaluated.")
    tell_outcome(project, loaded, here=here)


@click.command()
@experiments_argument(required=True, metavar="A.yaml B.yaml ...")
@click.option("--by", "key", metavar="KEY", help="Show a metric by this key's values, such as training.learning_rate.")
@click.option("--metric", metavar="METRIC", help="For --by, such as val_loss or correct; default: what ranks them.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with curves and answers, too."
)
@JSON
def compare(
    experiments: Sequence[Path], *, key: str | None, metric: str | None, page: Path | None, as_json: bool
) -> None:
    """Compare experiments.

    Quality, cost, and the keys of their files that differ. They are ranked only if their losses are of the same
    held-out tokens. Experiments of one family are also compared by the key in which they differ most.
    """
    from gpt_pipeline.comparison import show as form
    from gpt_pipeline.comparison.by_key import with_key
    from gpt_pipeline.comparison.compare import are_one_family, compare_experiments
    from gpt_pipeline.experiment.load import load_experiment

    if twice := [path.name for path, count in Counter(experiments).items() if count > 1]:
        raise UserError(f"found {', '.join(twice)} twice, need different experiments; name each once")
    if page is not None:
        from gpt_pipeline.comparison.page import require_page

        require_page(page)  # before anything is read
    loaded = [load_experiment(path) for path in experiments]
    found = compare_experiments(loaded)
    if key or metric or are_one_family(loaded):
        found = with_key(found, key=key, metric=metric)
    show(found, form, as_json=as_json)
    if page is not None:
        from gpt_pipeline.comparison.page import write_page

        say(f"Written: {write_page(found, loaded, page)}")


@click.command()
@EXPERIMENT
@JSON
def verify(experiment: Path, as_json: bool) -> None:
    """Read all finished data again.

    Every byte is compared with the manifests; exit code 1 if some of it has changed.
    """
    from gpt_pipeline.data.verification import verify_data
    from gpt_pipeline.experiment.load import load_experiment

    loaded = load_experiment(experiment)
    found = [*verify_data(loaded.data, loaded.data_folder, say=say), *_verified_prompts(loaded)]
    if as_json:
        print_json([{"stage": each.stage, "folder": each.folder, "problem": each.problem} for each in found])
    else:
        for each in found:
            tell(f"{each.stage:16} {each.problem or 'as it was made'}")
    if any(each.is_damaged for each in found):
        sys.exit(FAILED)


def _verified_prompts(experiment: Experiment) -> Iterator[Verified]:
    """Yield what was found of the questions whose answers a training on rewards samples."""
    from gpt_pipeline.data.verification import verify_files
    from gpt_pipeline.experiment.training import prompts_stage, start_in_words
    from gpt_pipeline.rl.stage import NAME

    if experiment.config.has_rollouts:
        stage = prompts_stage(experiment) if start_in_words(experiment).is_ready else None
        yield verify_files(NAME, None if stage is None else stage.place(), say=say)


@click.command()
@EXPERIMENT
@click.option("--send", is_flag=True, help="Send what is finished here, and wait until it is there.")
@click.option("--bring", is_flag=True, help="Bring data and training from the mirror, and train nothing.")
def mirror(experiment: Path, *, send: bool, bring: bool) -> None:
    """Show what an experiment's mirror has, send to it, or bring from it.

    Runs do both by themselves; the key is storage.mirror. Exit code 1 if not everything could be sent.
    """
    from gpt_pipeline.experiment.discover import load_alone
    from gpt_pipeline.experiment.mirroring import mirror_in_words, send_to_mirror
    from gpt_pipeline.mirror.order import state_for
    from gpt_pipeline.mirror.wait import wait_until_sent

    loaded = load_alone(experiment)
    if loaded.config.storage.mirror is None:
        raise UserError(f"{experiment}: found no storage.mirror; set it to an address such as s3://bucket/prefix")
    if bring:
        _bring_all(loaded)
    if send:
        send_to_mirror(loaded)
        wait_until_sent(loaded.folder, say=say)
    for label, text in mirror_in_words(loaded):
        tell(f"{label:12} {text}")
    state = state_for(loaded.folder, loaded.config.storage.mirror)
    if send and (state is None or not state.complete_at):
        sys.exit(FAILED)


def _bring_all(experiment: Experiment) -> None:
    """Bring what the experiment's mirror has, first that of its base, if the weights to start from are not here."""
    from gpt_pipeline.experiment.mirroring import bring_all_data
    from gpt_pipeline.experiment.training import base_experiment, start_in_words, wanted_fingerprint
    from gpt_pipeline.mirror.store import open_store
    from gpt_pipeline.storage.lock import folder_lock
    from gpt_pipeline.training.mirroring import bring_newer  # torch

    base, url = base_experiment(experiment), experiment.config.storage.mirror
    if base is not None and not start_in_words(experiment).is_ready:
        _bring_all(base)
    if url is None:
        return
    bring_all_data(experiment, say=say)
    fingerprint, name = wanted_fingerprint(experiment), experiment.file.name
    if fingerprint is None:
        start = start_in_words(experiment)
        why = "its data is neither here nor in the mirror" if start.is_ready else start.text
        say(f"{name}: its training is not known yet: {why}.")
        return
    with folder_lock(experiment.folder.root, purpose="bringing a training from the mirror"):
        if not bring_newer(open_store(url), experiment.folder, fingerprint, say=say):
            say(f"{name}: the mirror has nothing of the training that is newer than what is here.")


@click.command()
@EXPERIMENT
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--delete", is_flag=True, help="Delete for good, instead of moving to the trash.")
@click.option("--file", "with_file", is_flag=True, help="Remove the experiment file, too.")
def remove(experiment: Path, *, yes: bool, delete: bool, with_file: bool) -> None:
    """Remove an experiment: its checkpoints, evaluations, reports, and data that no other uses.

    Says what would go, and asks. It goes to .trash in its base folder, where you may take it back or delete it. Runs in
    MLflow and in Dagster's history stay. Refused while something works on it, and if another experiment starts from it.
    """
    from gpt_pipeline.experiment.discover import load_alone
    from gpt_pipeline.progress import removal
    from gpt_pipeline.report import wording

    loaded = load_alone(experiment)
    found = removal.plan_removal(loaded, file=with_file)
    for item in removal.summed(found.items):
        count = f" ({item.count:,} folders)" if item.count > 1 else ""
        tell(f"goes   {wording.size(item.size):>10}  {item.path}{count}")
        for name, size in item.inside:
            tell(f"       {wording.size(size):>10}    {name}")
    for text in found.stays:
        tell(f"stays              {text}")
    if not yes and found.items:
        if not sys.stdin.isatty():
            raise UserError("found no terminal to ask on, need your consent; give --yes")
        what = "Delete" if delete else "Move to the trash:"
        click.confirm(f"{what} {wording.size(found.size)}?", abort=True, err=True)
    trash = removal.remove(loaded, found, file=with_file, delete=delete)
    moved = f"Moved to {' and '.join(map(str, trash))}"
    say("Nothing to remove." if not found.items else "Deleted." if delete else moved)
