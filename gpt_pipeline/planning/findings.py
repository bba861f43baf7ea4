"""What a plan finds wrong or questionable. Each finding says what it is based on."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gpt_pipeline.checkpoints.manifest import list_checkpoints
from gpt_pipeline.data.config import SYNTH, DataConfig, as_of_part
from gpt_pipeline.data.file_kinds import TEXT, ending_of, kind_of
from gpt_pipeline.data.formats.rules import in_words, not_asked_for, with_hints
from gpt_pipeline.data.sources.folder import LocalFiles, local_files
from gpt_pipeline.data.tokens.choose import known_shards
from gpt_pipeline.data.tokens.packing import require_answers
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME, open_shards
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.data.tokens.tokenizer_stage import vocabulary_size
from gpt_pipeline.errors import DamagedFileError, UserError
from gpt_pipeline.exchange.tokenizer_files import tokenizer_of
from gpt_pipeline.experiment.launching import launcher_of
from gpt_pipeline.experiment.load import Experiment, problems_with_tokenizer
from gpt_pipeline.experiment.sizes import TrainingSize
from gpt_pipeline.experiment.start_from import (
    StartFromConfig,
    shape_to_come,
    start_checkpoint,
    weights_here,
    weights_path,
)
from gpt_pipeline.experiment.training import base_experiment
from gpt_pipeline.findings import Finding, note, problem, problem_of, warning
from gpt_pipeline.launchers.protocol import Launcher, UnreachableError
from gpt_pipeline.mirror.address import KEY
from gpt_pipeline.mirror.check import check_from_here
from gpt_pipeline.model.config_json import model_in_folder
from gpt_pipeline.model.costs import MemoryNeed, parameter_count
from gpt_pipeline.planning.device import Device
from gpt_pipeline.planning.disk import Disk
from gpt_pipeline.planning.memory import FULL, training_need
from gpt_pipeline.planning.rewards import without_candidates
from gpt_pipeline.planning.speed import Duration
from gpt_pipeline.planning.survey import is_surveyed, survey
from gpt_pipeline.planning.tokens import SYNTH_DOCUMENTS, TokenCount
from gpt_pipeline.progress.stages import StageProgress
from gpt_pipeline.progress.training import experiment_training
from gpt_pipeline.report import wording
from gpt_pipeline.shown import counted
from gpt_pipeline.storage.names import as_typed
from gpt_pipeline.storage.room import existing_folder
from gpt_pipeline.training.config import TrainingConfig
from gpt_pipeline.training.optimizer import learning_rate_at
from gpt_pipeline.training.validate import require_answers_to_estimate

_TOKEN_DEVIATION = 3.0  # nats: about the standard deviation of one token's loss under a trained language model
_SURE = 0.03  # nats: settings often differ by this much
_EPOCHS = 4  # up to this many, repeated data is worth almost as much as new: Muennighoff et al. 2023
_LONG_INTERVAL = 3600.0  # seconds of work that a crash may cost
_LONG_ON_CPU = 7 * 86_400.0  # seconds: beyond a week, a CPU is hardly what one meant to train on
_LOOK = "look at the files, at data.columns and at data.filter"
_FEW_HELD_OUT = 5  # documents on average; of as many, none is held out in 7 of 1,000 cases (Poisson)
_FILES_BESIDE = 3  # a README, a licence and the like lie beside many datasets
_LAUNCHER = "hardware.launcher"
_CUT = 0.01  # of the tokens of answers: as many may be lost without a word


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the findings are based on; None where unknown."""

    experiment: Experiment
    tokens: TokenCount
    stages: tuple[StageProgress, ...]
    size: TrainingSize | None
    disks: tuple[Disk, ...]
    need: MemoryNeed | None
    device: Device | None
    is_measured: bool
    """Whether real updates were just made here, so that memory sufficed for them."""

    duration: Duration | None


def findings(known: Known) -> list[Finding]:
    """Return the findings, those that would make the run fail first."""
    every = [
        *_what_it_reaches(known.experiment, known.stages),
        *_source(known),
        *_tokenizer(known),
        *_start(known),
        *_seen_before(known),
        *_repeats(known),
        *_disk(known),
        *_memory(known),
        *_processes(known),
        *_validation(known),
        *_schedule(known),
        *_answers(known),
        *_rewards(known),
        *_regularisation(known),
        *_time(known),
        *_sampling(known),
    ]
    return sorted(every, key=lambda finding: finding.severity != "problem")


def _what_it_reaches(experiment: Experiment, stages: Sequence[StageProgress]) -> Iterator[Finding]:
    """Find a mirror or an engine that a training which is still to begin, or to go on, cannot use."""
    if experiment_training(experiment).state in ("running", "finished"):
        return
    if (url := experiment.config.storage.mirror) is not None:
        yield from _mirror(experiment, url, is_to_do=stages[-1].state != "finished")
    if (launcher := launcher_of(experiment.config.hardware)) is not None:
        yield from _engine(launcher)


def _mirror(experiment: Experiment, url: str, *, is_to_do: bool) -> Iterator[Finding]:
    """Find a mirror that cannot be used, as far as that shows here, or that may have what `is_to_do` here."""
    try:
        check_from_here(url)
    except UserError as error:
        found, is_begun = problem_of(error, KEY), bool(list_checkpoints(experiment.folder.checkpoints))
        yield dataclasses.replace(found, key=KEY, severity="warning") if is_begun else found
        return
    if is_to_do:
        text = "what it has counts as to do here; a run brings it, and makes the rest"
        bring = f"gpt-pipeline mirror {as_typed(experiment.file, Path.cwd())} --bring"
        yield note(KEY, text, f"where another machine has trained this: {bring}, then plan again")


def _engine(launcher: Launcher) -> Iterator[Finding]:
    """Find an engine that takes no jobs, as the file configures it; one that does not answer may do so later."""
    try:
        launcher.check()
    except UnreachableError as error:
        yield warning(_LAUNCHER, str(error), "the run needs it when the training begins")
    except UserError as error:
        yield dataclasses.replace(problem_of(error, _LAUNCHER), key=_LAUNCHER)


def _source(known: Known) -> Iterator[Finding]:
    for name, part in known.experiment.parts.items():
        raw = next(stage for stage in known.stages if stage.part == name)
        for finding in _part_source(part, raw):
            key, text, remedy = (as_of_part(told, name) for told in (finding.key, finding.text, finding.remedy))
            yield dataclasses.replace(finding, key=key, text=text, remedy=remedy)


def _part_source(part: Experiment, raw: StageProgress) -> Iterator[Finding]:
    data = part.data
    if data.revision is not None and (data.local is not None or data.is_sample):
        text = f"found {data.revision!r} with {data.origin}: only datasets of the hub have revisions"
        yield warning("data.revision", text, "remove the line, which changes nothing")
    if raw.state == "finished":
        return
    if data.local is None and not data.is_sample and raw.state == "absent" and _hub_is_switched_off():
        text = f"{data.source} is not downloaded yet, and HF_HUB_OFFLINE forbids downloads"
        yield problem("data.source", text, "unset HF_HUB_OFFLINE, or name a folder with its files: local_dataset_path")
    elif is_surveyed(data):
        yield from _looked_into(part)
    elif data.source == SYNTH and data.is_english and (data.document_limit or 0) > SYNTH_DOCUMENTS:
        text = f"found {data.document_limit:,}, and {SYNTH} has some {SYNTH_DOCUMENTS:,} English documents"
        yield problem("data.num_samples", text, "set it to `all`, or lower it")


def _tokenizer(known: Known) -> Iterator[Finding]:
    """Find a tokenizer of the hub that is not fetched yet, so that the model's ids are not known."""
    name = known.experiment.config.data.tokenizer_on_hub
    if name is None or vocabulary_size(name, known.experiment.data_folder) is not None:
        return
    key, text = "data.tokenizer", f"{name} is not fetched yet"
    if _hub_is_switched_off():
        remedy = "unset HF_HUB_OFFLINE, or name a tokenizer.json by its path"
        yield problem(key, f"{text}, and HF_HUB_OFFLINE forbids downloads", remedy)
    elif known.experiment.config.start_from is None:
        ids = f"{known.experiment.config.model.vocab_size:,}"
        text += f", so that sizes are not known: parameters, tokens, memory, disk and time are those with {ids} ids"
        yield note(key, text, "a run fetches it first; plan again then")


def _start(known: Known) -> Iterator[Finding]:
    """Find weights to start from that do not fit, or whose shape shows only when a run has fetched or read them."""
    experiment, start_from = known.experiment, known.experiment.config.start_from
    if start_from is None or start_from.experiment is not None:
        return
    if start_checkpoint(start_from, experiment.file, experiment.folder) is not None:
        return
    yield from _tokenizer_of_its_start(experiment, start_from)
    if "n_layer" in shape_to_come(start_from, experiment.file):
        return
    key, done = ("file", "read") if start_from.file else ("hugging_face", "downloaded")
    text = (
        f"{start_from.text} is not {done} yet, so that its shape is not known: parameters, memory, disk and time are "
    )
    text += f"those of a model with {parameter_count(experiment.config.model):,} parameters"
    yield note(f"start_from.{key}", text, "a run converts it first; plan again then")


def _tokenizer_of_its_start(experiment: Experiment, start_from: StartFromConfig) -> Iterator[Finding]:
    """Find that weights which are to be converted have another tokenizer or template, where theirs is here."""
    path = weights_here(start_from, experiment.file)
    is_on_hub = weights_path(start_from, experiment.file) is None
    if path is None or (is_on_hub and not (path / TOKENIZER_NAME).is_file()):  # a run fetches what is not here yet
        return
    try:
        theirs = gpt2() if path.is_file() else tokenizer_of(path, model_in_folder(path))
    except UserError as error:
        yield problem_of(error, "start_from.hugging_face")
        return
    for wrong in problems_with_tokenizer(experiment, theirs.identity):
        yield problem_of(wrong, wrong.key)


def _seen_before(known: Known) -> Iterator[Finding]:
    """Find that documents are held out which the weights to start from were trained on: their split was another."""
    own, base = [*known.experiment.data.parts.values()], base_experiment(known.experiment)
    while base is not None:
        for theirs in base.data.parts.values():
            seen = [part for part in own if part.origin == theirs.origin and not part.is_held_out_in(theirs)]
            if seen:
                grouped = seen[0].group != theirs.group
                here, there = _split_of(seen[0], grouped), _split_of(theirs, grouped)
                why = "it was trained on documents that are held out and asked about here"
                text = f"found {here}, and {base.file.name} has {there}: {why}"
                yield warning("data.validation_fraction", text, f"set {there} here too")
        base = base_experiment(base)


def _split_of(data: DataConfig, grouped: bool) -> str:
    """Return the keys that decide what is held out, with `group` where it matters."""
    split = f"data.validation_fraction: {data.validation_fraction:g}"
    group = f"data.group: {data.group or 'null'}"
    return f"{split}, data.seed: {data.seed} and {group}" if grouped else f"{split} and data.seed: {data.seed}"


def _repeats(known: Known) -> Iterator[Finding]:
    for name, times in known.tokens.epochs.items():
        if times > _EPOCHS:
            text = f"an epoch of the mix has `{name}` {times:.1f} times; beyond {_EPOCHS} times, little more is learned"
            yield warning("data.mix", text, f"lower data.mix.{name}.share, or give it more documents")


def _looked_into(part: Experiment) -> Iterator[Finding]:
    """Find what footers and first rows show: unreadable files, missing columns, too few rows."""
    data = part.data
    where = data.local or data.origin
    try:
        held = survey(data, part.data_folder)
    except UserError as error:
        yield problem_of(error, f"data.{data.local_key}")
        return
    yield from (*mixed_splits(data), *passed_over(data))
    if held.documents and (lost := not_asked_for(held.dropped)):
        text = f"{lost.total():,} of the first {counted(held.read, 'row')} become no documents ({in_words(lost)})"
        yield note(f"data.{data.local_key}", text, with_hints("", lost))
    if held.read and not held.documents:
        text = f"no document in the first {counted(held.read, 'row')} ({in_words(held.dropped)})"
        yield problem(f"data.{data.local_key}", text, with_hints(_LOOK, held.dropped))
    elif held.is_exact and not held.rows:
        yield problem(f"data.{data.local_key}", f"no row in {where}", "add documents, or correct the key")
    elif data.document_limit is not None and data.document_limit > held.rows and held.is_exact:
        text = f"found {data.document_limit:,}, and the files in {where} have {counted(held.rows, 'row')}"
        yield problem("data.num_samples", text, "set it to `all`, lower it, or add files")
    elif data.document_limit is not None and data.document_limit > held.documents:
        text = f"found {data.document_limit:,}, and {where} seems to hold about {counted(held.documents, 'document')}"
        yield warning("data.num_samples", text, "set it to `all`, or lower it")


def mixed_splits(data: DataConfig) -> Iterator[Finding]:
    """Find files of one's own whose names tell several splits, as those of a copy of a dataset: all are trained on."""
    from gpt_pipeline.data.sources.hub.layout import named_splits

    if data.local is None or data.format == "synth":
        return
    files = local_files(data.local, key=f"data.{data.local_key}")
    splits = named_splits([name for name in files.names if kind_of(name) != TEXT])  # a text's name may be its subject
    if "train" in splits and len(splits) > 1:
        pattern = _pattern_of(files, splits["train"])
        text = f"files of {len(splits)} splits are all trained on: {', '.join(sorted(splits))}"
        other = "or move the others away" if pattern is None else f"such as {pattern}"
        yield warning(f"data.{data.local_key}", text, f"name those of one split by a pattern, {other}")


def passed_over(data: DataConfig) -> Iterator[Finding]:
    """Find files of one's own that could be read and are not, since others lie beside them: more than a README."""
    if data.local is None:
        return
    files = local_files(data.local, key=f"data.{data.local_key}")
    names, others = files.read_and_passed_over()
    if len(others) > _FILES_BESIDE:
        read = f"found files of several kinds: {counted(len(names), 'file')} of {kind_of(names[0])} to read"
        text = f"{read}, and {len(others):,} others that are left out, such as {others[0]}"
        pattern = f"{files.folder}/**/*{ending_of(others[0])}"
        yield warning(
            f"data.{data.local_key}", text, f"name those meant by a pattern, such as {pattern}, or use data.mix"
        )


def _pattern_of(files: LocalFiles, names: Sequence[str]) -> Path | None:
    """Return a pattern that names just these of the files; None if none of the usual ones does."""
    first, wanted = PurePosixPath(names[0]), {files.folder / name for name in names}
    for way in (re.sub(r"\d+", "*", names[0]), first.with_name(f"train*{first.suffix}"), first.with_name("*")):
        named = local_files(str(files.folder / way), key=files.key)
        if {named.folder / name for name in named.names} == wanted:
            return named.path
    return None


def _hub_is_switched_off() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _disk(known: Known) -> Iterator[Finding]:
    for folder in dict.fromkeys(existing_folder(need.folder) for disk in known.disks for need in disk.needs):
        if not os.access(folder, os.W_OK):
            yield problem("disk", f"{folder} is not writable", "make it writable, or choose another base_folder")
    for disk in known.disks:
        if disk.needed > disk.free:
            text = f"found {wording.size(disk.free)} free for {disk.folder}, need {wording.size(disk.needed)}"
            yield problem("disk", text, "free some space, choose another storage.base_folder, or lower keep_last")
        elif disk.needed > 0.9 * disk.free:
            text = f"{wording.size(disk.needed)} of the {wording.size(disk.free)} free for {disk.folder} will be needed"
            yield warning("disk", text, "sizes of data that does not exist yet are estimates: leave more space")


def _memory(known: Known) -> Iterator[Finding]:
    need, device = known.need, known.device
    if need is None or device is None or device.memory_total is None:
        return
    total, free = device.memory_total, device.memory_free if device.memory_free is not None else device.memory_total
    if need.state > total:
        more = f"{', their mean' if need.average else ''}{', the start weights' if need.reference else ''}"
        text = (
            f"weights{more}, gradients and optimizer take {wording.size(need.state)}, "
            f"the device has {wording.size(total)}"
        )
        yield problem("memory", text, "choose a smaller model, or a device with more memory")
    elif known.is_measured:
        return
    elif need.on_host and need.device > total:
        text = f"about {wording.size(need.device)} are needed, this machine has {wording.size(total)}"
        yield problem("memory", text, _smaller_batch(known, total))
    elif need.device > (free if need.on_host else FULL * free):
        text = f"about {wording.size(need.device)} are needed, {wording.size(free)} are free"
        yield warning("memory", text, f"{_smaller_batch(known, free)}, or close other programs")


def _processes(known: Known) -> Iterator[Finding]:
    """Find several processes on one CPU, which share its cores and each hold what one would."""
    count = known.experiment.config.hardware.num_gpus
    if count == 1 or known.need is None or known.device is None or known.device.memory_total is None:
        return
    if known.need.on_host:
        text = (
            f"{count} processes on this CPU need {wording.size(count * known.need.device)} together, and torchrun "
            "gives each one thread, unless OMP_NUM_THREADS says otherwise; the time is that of one with all cores"
        )
        yield warning("hardware.num_gpus", text, "set it to 1 on a CPU")


def _smaller_batch(known: Known, memory: int) -> str:
    """Return the largest micro-batch size that divides the update and fits, if need be with blocks computed again."""
    config, device = known.experiment.config, known.device
    if known.size is None or device is None:
        return "lower data.max_length or the model"
    layout = known.size.layout
    share = layout.batch_size // layout.world_size
    is_on = config.training.gradient_checkpointing
    for recompute in sorted({is_on, True}):
        also = "" if recompute == is_on else "training.gradient_checkpointing: true and "
        for size in range(layout.micro_batch_size if also else layout.micro_batch_size - 1, 0, -1):
            need = training_need(config, micro_batch_size=size, precision=device.precision, recompute=recompute)
            if share % size == 0 and need.device <= FULL * memory:
                return f"set {also}training.micro_batch_size: {size} (the update stays the same)"
    return "lower data.max_length or the model"


def _validation(known: Known) -> Iterator[Finding]:
    tokens, data = known.tokens, known.experiment.config.data
    raise_it = f"raise data.validation_fraction={data.validation_fraction:g}, or {data.way_to_more}"
    if not tokens.documents:
        return
    found = [*_hardly_held_out(known)]
    yield from found
    if any(each.severity == "problem" for each in found):
        return
    if tokens.validation_tokens < 2:
        yield problem("data.validation_fraction", "no validation tokens are held out, need at least 2", raise_it)
        return
    limit = known.experiment.config.evaluation.max_validation_tokens
    seen = min(tokens.validation_tokens, limit)
    error = _TOKEN_DEVIATION / math.sqrt(seen)
    if error > _SURE:
        text = f"a loss on {seen:,} held-out tokens is only accurate to about ±{error:.2f} nats"
        if limit < tokens.validation_tokens:
            yield warning("evaluation.max_validation_tokens", text, f"raise it from {limit:,}")
        else:
            yield warning("data.validation_fraction", text, raise_it)


def _hardly_held_out(known: Known) -> Iterator[Finding]:
    """Find data of which so few documents are held out, each by chance, that it may be none: the run would end."""
    share = known.experiment.config.data.validation_fraction
    for name, part in known.experiment.parts.items():
        tokens, of = known.tokens.parts.get(name, known.tokens), f" of {name}" if name else ""
        if tokens.documents == 1:
            text = f"found 1 document{of}, need at least two, one of which is held out"
            yield problem(as_of_part("data.num_samples", name), text, as_of_part(part.data.way_to_two, name))
        elif not tokens.exact and 0 < tokens.documents * share < _FEW_HELD_OUT:
            text = f"{tokens.documents * share:.1f} of {tokens.documents:,} documents{of} are held out, perhaps none"
            more = as_of_part(part.data.way_to_more, name)
            yield warning("data.validation_fraction", text, f"raise it from {share:g}, or {more}")


def _schedule(known: Known) -> Iterator[Finding]:
    if known.size is None:
        return
    config, steps = known.experiment.config, known.size.layout.max_steps
    warmup = config.training.warmup_steps
    if warmup >= steps:
        of_all = f"the {counted(steps, 'step')} of the training"
        text = f"{warmup:,} is not below {of_all}: the learning rate never reaches its peak"
        yield warning("training.warmup_steps", text, f"use {steps // 10}")
    elif steps > 1 and _ends_at_the_peak(config.training, steps):
        text = f"the decay is the last of {counted(steps, 'step')} alone, which is made at the peak rate"
        yield warning("training.lr_schedule", text, "leave room for a decay: more steps, or a larger decay_share")
    epochs = steps / known.size.steps_per_epoch
    if epochs > _EPOCHS:
        text = f"{epochs:.1f} epochs: beyond {_EPOCHS}, repeated text helps less and less (Muennighoff et al. 2023)"
        yield warning("training.num_epochs", text, f"{config.data.way_to_more} instead")


def _ends_at_the_peak(config: TrainingConfig, steps: int) -> bool:
    """Whether a rate that is to fall never does."""
    falls = config.lr_schedule != "constant" and config.final_learning_rate < config.learning_rate
    return falls and learning_rate_at(steps - 1, config, max_steps=steps) == config.learning_rate


def _answers(known: Known) -> Iterator[Finding]:
    """Find what a training on answers alone lacks: weights that know the language, or room for the answers."""
    config = known.experiment.config
    if not config.training.answers_only:
        return
    if config.start_from is None:
        text = "answers alone are trained on, beginning with random weights, which can neither read nor write"
        yield warning("start_from", text, "name what to start from: an experiment, a file or a model of the hub")
    answers = None if known.size is None else known.size.answers
    if answers is None:
        return
    key = "data.max_length"
    try:
        require_answers(answers, config.data.max_length)
        _require_estimates(known.experiment)
    except UserError as error:
        yield problem_of(error, "token_shards" if isinstance(error, DamagedFileError) else key)
        return
    if answers.left_out > _CUT * (answers.tokens + answers.left_out):
        text = f"{answers.in_words(config.data.max_length)}, and how those end is not learnt"
        longest = config.model.context_length
        remedy = f"raise it (model.context_length={longest})"
        if config.data.max_length == longest:
            remedy = "start from a model with a larger context_length, or leave long documents out"
        yield warning(key, text, remedy)


def _rewards(known: Known) -> Iterator[Finding]:
    """Find data that a training on rewards cannot use, until its questions are chosen."""
    if known.experiment.config.has_rollouts and known.stages[-1].state != "finished":
        yield from without_candidates(known.experiment)


def _require_estimates(experiment: Experiment) -> None:
    """Raise UserError where the trainer would, before its first update: no held-out answer can be measured."""
    shards = known_shards(experiment.data, experiment.data_folder)
    if shards is None:
        return
    stream, config = open_shards(shards.folder).validation, experiment.config
    if stream.n_tokens < 2:  # which `_validation` says
        return
    windows = config.evaluation.eval_iters * config.training.batch_size
    require_answers_to_estimate(stream, n_windows=windows, row_length=config.data.max_length)


def _regularisation(known: Known) -> Iterator[Finding]:
    dropout = known.experiment.config.trained_model.drop_rate
    repeats = any(times > 1 for times in known.tokens.epochs.values())
    if known.size is None or dropout == 0 or repeats or known.size.layout.max_steps > known.size.steps_per_epoch:
        return
    text = f"{dropout:g}, but no text is seen twice: there is nothing to overfit (Liu et al. 2025, Drop Dropout)"
    yield warning("model.dropout", text, "use 0.0, which is also faster")


def _sampling(known: Known) -> Iterator[Finding]:
    if not known.experiment.config.has_rollouts:
        return
    time, longest = known.duration, known.experiment.config.rl.max_new_tokens
    if time is not None and time.training_seconds is not None and not known.is_measured:
        yield note(
            "training.objective",
            "time is that of the training's own updates and estimates; tokens are those of full sequences, most of "
            "which are shorter",
        )
    elif time is None or time.sampling_seconds is None or time.prompts_seconds is None:
        yield note(
            "training.objective",
            "time and tokens are those of updates on full sequences alone: sampling answers, measuring them, and "
            "rl_prompts come on top, and most answers are shorter",
        )
    else:
        yield note(
            "training.objective",
            f"time is estimated for updates on full sequences and answers of rl.max_new_tokens={longest}, which those "
            f"that end early undercut: {wording.duration(time.sampling_seconds)} of the training's is sampling, and "
            f"rl_prompts takes {wording.duration(time.prompts_seconds)} before it unless it is made",
        )


def _time(known: Known) -> Iterator[Finding]:
    time = known.duration
    if time is None or time.training_seconds is None:
        return
    interval = time.checkpoint_interval_seconds or 0.0
    if interval > _LONG_INTERVAL:
        text = f"{wording.duration(interval)} between two checkpoints, which a crash can cost"
        yield warning("evaluation.save_every_n_iterations", text, "lower it")
    if known.device is not None:
        yield from too_long(known.device, time.training_seconds, how="about")
    if time.evaluation_seconds is not None and time.evaluation_seconds > time.training_seconds > 0:
        text = (
            f"about {wording.duration(time.evaluation_seconds)} for {counted(time.evaluations, 'evaluation')}, longer "
            f"than the training, {wording.duration(time.training_seconds)}"
        )
        yield warning(
            "evaluation",
            text,
            "raise save_every_n_iterations, or lower num_questions, samples_per_question or max_new_tokens",
        )


def too_long(device: Device, seconds: float, *, how: str) -> Iterator[Finding]:
    """Yield a warning if a training of `seconds`, which are `how` exact, is hardly what one meant for a CPU."""
    if not device.precision.cuda and seconds > _LONG_ON_CPU:
        text = f"the training takes {how} {wording.duration(seconds)} on this CPU, longer than a week"
        yield warning("time", text, "use a machine with a GPU, or a smaller model: `init --recipe cpu` writes one")
