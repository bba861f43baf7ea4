"""Trainings as jobs of Slurm: a batch script, submitted and watched through Slurm's own commands.

The commands run here or, through ssh, on a login node. The script starts the trainer on each node by `srun`, passes a
request to stop on, and puts itself back into the queue when the time limit comes.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from gpt_pipeline.launchers.config import SlurmConfig
from gpt_pipeline.launchers.protocol import JobState, LauncherError, Observed, TrainingCommand, UnreachableError
from gpt_pipeline.storage.atomic import write_text

_COMMANDS = ("sbatch", "squeue", "scontrol", "scancel")

_OUT_OF_TIME = 124
"""Exit code of a script that was warned of its limit and is not back in the queue, as of coreutils' `timeout`."""

_STOPPED = 143  # as of the trainer that SIGTERM stopped
_UNHEARD = 128 + 12  # of a script that was asked to stop, by Linux's SIGUSR2, before it heeded that
_SECONDS = 60.0  # for one command; Slurm's own give up after some 100
_SSH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20")
_SSH_FAILED = 255
_UNREACHABLE = re.compile(
    r"unable to contact|connection (refused|failure)|timed out|zero bytes were|temporarily unavailable|standby mode"
    r"|protocol authentication",
    re.IGNORECASE,
)
_FORGOTTEN = re.compile(r"invalid job id", re.I)
_OVER = re.compile(r"invalid job id|already complet|job.* is pending", re.I)
_STATES: Mapping[str, JobState] = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_FED": "waiting",
    "REQUEUE_HOLD": "waiting",
    "SPECIAL_EXIT": "waiting",
    "RESV_DEL_HOLD": "waiting",
    "SUSPENDED": "waiting",
    "STOPPED": "waiting",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "RESIZING": "running",
    "COMPLETED": "succeeded",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "timed_out",
    "PREEMPTED": "timed_out",
    "NODE_FAIL": "timed_out",
    "BOOT_FAIL": "timed_out",
    "DEADLINE": "failed",
    "FAILED": "failed",
    "OUT_OF_MEMORY": "failed",
}
"""As `man squeue` and `man sacct` list them."""

_CODES: Mapping[int, JobState] = {_OUT_OF_TIME: "timed_out", _STOPPED: "cancelled", _UNHEARD: "cancelled"}
"""What the script's exit codes say of a job that Slurm calls failed."""

_SCRIPT = """\
#!/bin/bash
{options}

# Written by gpt_pipeline.
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT  # whatever the process had that submitted this
{environment}
{setup}

# srun no longer takes this from the job itself (Slurm 22.05).
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

newest_checkpoint() {{ find {checkpoints} -name '*.json' -printf '%T@ %p\\n' 2>/dev/null | sort -n | tail -n 1; }}
before=$(newest_checkpoint) began=$(date +%s)

# USR2: whoever follows the job asks it to stop. USR1: the time limit is near. TERM: Slurm takes the nodes away. In each
# case all processes of the trainer get SIGTERM, save and leave. Not through srun, which would kill them.
trainer= why=
stop() {{
  why=$1
  [ -n "$trainer" ] || return 0
  # The trainer is a step of the job from a moment after srun was called; before, the signal reaches nobody. A squeue
  # that fails time and again has nobody wait: the trainer must hear of it before the job's time is over.
  local steps failures=0
  while kill -0 "$trainer" 2>/dev/null; do
    if steps=$(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i); then
      [[ "$steps" != *.[0-9]* ]] || break
    elif ((++failures == 5)); then
      break
    fi
    sleep 0.5
  done
  scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap 'stop asked' USR2
trap 'stop limit' USR1
trap 'stop taken' TERM

# Each start of the job meets at a port of its own. A node whose trainer was stopped ends well: a bad end has srun kill
# the others, of which one may still be saving. PET_LOCAL_ADDR is torchrun's --local-addr: without it, torchrun asks the
# node's /etc/hosts, which may call the node localhost, where no other one finds it.
export RENDEZVOUS="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}"
export ENDPOINT="$(hostname):$((20000 + (SLURM_JOB_ID * 8 + ${{SLURM_RESTART_COUNT:-0}} % 8) % 12000))"
srun --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 \\
  bash -c 'export PET_LOCAL_ADDR="$(hostname)"; trap "stopped=yes" TERM
    "$@"; code=$?; [ -z "${{stopped:-}}" ] || exit 0; exit "$code"' trainer \\
  {command} &
trainer=$!
[ -z "$why" ] || stop "$why"
while kill -0 "$trainer" 2>/dev/null; do wait "$trainer"; done  # a signal ends `wait`, not the trainer
wait "$trainer"
code=$?

[ -n "$why" ] && [ -z "$(find {finished} -newermt "@$began" 2>/dev/null)" ] || exit "$code"
echo "Stopped ($why); the newest checkpoint: $(newest_checkpoint | cut -d ' ' -f 2-)"
[ "$why" != asked ] || exit {stopped}
# Without a new checkpoint, the next time would end the same way.
[ "$why" = taken ] || [ "$(newest_checkpoint)" = "$before" ] || scontrol requeue "$SLURM_JOB_ID"
exit {out_of_time}
"""


@dataclass(frozen=True)
class Slurm:
    """The cluster that Slurm's commands reach."""

    config: SlurmConfig
    gpus: int = 0
    """On each node."""

    @property
    def name(self) -> str:
        return "slurm"

    @property
    def where(self) -> str:
        return self.config.ssh or ""

    def check(self) -> str:
        partition = self.config.partition
        for command in _COMMANDS:
            version = self._run(command, "--version").strip()
        chosen = [] if partition is None else [f"--partition={partition}"]
        answer = self._run("sinfo", "--noheader", "--summarize", "--format=%P %D", *chosen)
        rows = [line.split() for line in answer.splitlines()]
        row = next((row for row in rows if partition is not None or row[0].endswith("*")), None)  # *: the default
        if row is None:
            raise LauncherError(
                f"hardware.slurm.partition: found {partition!r}, need a partition of the cluster; see `sinfo`"
            )
        has_accounts = self._accounting("--starttime=now") is not None
        accounts = "accounts" if has_accounts else "no accounts (sacct): what it forgets is known from the folder alone"
        return f"{version}, partition {row[0].rstrip('*')} of {row[1]} nodes, {accounts}"

    def submit(self, command: TrainingCommand) -> str:
        path = command.log_file.with_name(_script_name(command.name))
        write_text(path, self.script(command))
        answer = self._run(
            "sbatch", "--parsable", f"--job-name={command.name}", str(path)
        )  # whatever SBATCH_JOB_NAME is
        found = answer.strip().splitlines()[-1:] or [""]
        job_id = found[0].split(";")[0]  # a federation adds its cluster
        if not job_id.isdecimal():
            raise LauncherError(f"sbatch answered {answer.strip()!r}, need the id of a job; see the cluster's handbook")
        return job_id

    def script(self, command: TrainingCommand) -> str:
        """Return the batch script of a training."""
        command = dataclasses.replace(command, python=self.config.python or command.python)
        exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(command.variables.items())]
        return _SCRIPT.format(
            options="\n".join(f"#SBATCH {_quoted_for_sbatch(option)}" for option in self._options(command)),
            environment="\n".join(exports),
            setup="\n".join(self.config.setup or ()),
            checkpoints=shlex.quote(str(command.folder / "checkpoints")),
            nodes=command.nodes,
            command=_line(command),
            finished=shlex.quote(str(command.folder / "training.json")),
            out_of_time=_OUT_OF_TIME,
            stopped=_STOPPED,
        )

    def _options(self, command: TrainingCommand) -> list[str]:
        config = self.config
        given = {
            "job-name": command.name,
            "partition": config.partition,
            "account": config.account,
            "time": config.time,
            "nodes": str(command.nodes),
            "ntasks-per-node": "1",
            "gpus-per-node": config.gpus_per_node or (str(self.gpus) if self.gpus else None),
            "chdir": str(command.folder),
            "output": str(command.log_file).replace("%", "%%"),
            "open-mode": "append",
            "signal": f"B:USR1@{config.warning_seconds}",
            # Of two jobs of one name, should there ever be two, the second waits for the end of the first.
            "dependency": "singleton",
        }
        options = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return [*options, "--requeue", *(config.options or ())]

    def find(self, name: str) -> str | None:
        listed = ("squeue", "--noheader", "--me", "--all", "--states=all")
        known = self._run(*listed, f"--name={name}", "--format=%A").split()
        if not known:
            script = f"/{_script_name(name)}"
            commands = (line.split(maxsplit=1) for line in self._run(*listed, "--format=%A %o").splitlines())
            known = [job_id for job_id, *command in commands if command and command[0].endswith(script)]
        if not known:
            known = self._accounts(name, "JobIDRaw", "--starttime=now-30days")
        return max(known, key=int, default=None)

    def state(self, job_id: str, *, name: str | None = None) -> Observed:
        try:
            answer = self._run("scontrol", "--oneliner", "show", "job", job_id)
        except LauncherError as error:
            if isinstance(error, UnreachableError) or not _FORGOTTEN.search(str(error)):
                raise
            return self._remembered(job_id, name)
        values = dict(re.findall(r"(\w+)=(\S*)", answer))
        if name is not None and not _bears(name, answer):
            return Observed(state="unknown", reason=f"job {job_id} is {values['JobName']} now, not {name}")
        nodes = values.get("NodeList", "").replace("(null)", "")
        return _observed(values["JobState"], values.get("Reason", ""), nodes, values.get("ExitCode", ""))

    def _remembered(self, job_id: str, name: str | None) -> Observed:
        """Return what the cluster's accounting, if it has one, knows of a job that the controller has forgotten."""
        rows = self._accounts(name, "State,ExitCode", f"--jobs={job_id}")
        if not rows:
            return Observed(state="unknown", reason="Slurm has forgotten it")
        state, _, code = rows[0].partition("|")
        return _observed(state.split()[0].rstrip("+"), "", "", code)

    def _accounts(self, name: str | None, columns: str, *options: str) -> list[str]:
        """Return the accounts' rows of the jobs of this name, else of those submitted under it; None: of all."""
        chosen = [] if name is None else [f"--name={name}"]
        rows = (self._accounting(*options, *chosen, f"--format={columns}") or "").split("\n")
        if name is not None and not any(rows):
            submitted = (self._accounting(*options, f"--format={columns},SubmitLine") or "").split("\n")
            script = f"/{_script_name(name)}"
            rows = [row.rsplit("|", maxsplit=1)[0] for row in submitted if script in row]
        return [row for row in rows if row]

    def _accounting(self, *options: str) -> str | None:
        try:
            return self._run("sacct", "--noheader", "--parsable2", "--allocations", *options)
        except UnreachableError:
            raise
        except LauncherError:  # most small clusters keep no accounts
            return None

    def cancel(self, job_id: str, *, name: str | None = None) -> None:
        # One that waits is withdrawn. One that runs is asked through its script, which gives the trainer time to save.
        self._end(job_id, name, "--state=PENDING")
        self._end(job_id, name, "--state=RUNNING", "--batch", "--signal=USR2")

    def kill(self, job_id: str, *, name: str | None = None) -> None:
        self._end(job_id, name, "--signal=KILL", "--full")
        self._end(job_id, name)

    def _end(self, job_id: str, name: str | None, *options: str) -> None:
        """Run scancel, unless the job is of another name; one that has ended meanwhile is no failure."""
        try:
            if name is None or _bears(name, self._run("scontrol", "--oneliner", "show", "job", job_id)):
                self._run("scancel", *options, job_id)
        except LauncherError as error:
            if isinstance(error, UnreachableError) or not _OVER.search(str(error)):
                raise

    def _run(self, *command: str) -> str:
        """Return what a command prints.

        Raises:
            UnreachableError: no answer, from the login node or from Slurm's controller.
            LauncherError: it was refused.
        """
        whole = command if self.config.ssh is None else ("ssh", *_SSH, self.config.ssh, shlex.join(command))
        where = "" if self.config.ssh is None else f" on {self.config.ssh}"
        try:
            done = subprocess.run(
                whole,
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # a login node may greet in another encoding
                timeout=_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise LauncherError(
                f"{whole[0]} is not installed here; run on a login node of the cluster, or name one in "
                "hardware.slurm.ssh"
            ) from None
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"{command[0]}{where} did not answer within {_SECONDS:.0f} s") from None
        if done.returncode == 0:
            return done.stdout
        words = _words(done.stderr) or f"exit code {done.returncode}"
        if self.config.ssh is not None and done.returncode == _SSH_FAILED:
            raise UnreachableError(
                f"{command[0]}{where}: {words}; `ssh {self.config.ssh} true` has to work here without a question"
            )
        if _UNREACHABLE.search(words):
            raise UnreachableError(f"{command[0]}{where}: {words}")
        raise LauncherError(f"{command[0]}{where}: {words}; mend hardware.slurm, or ask the cluster's administrators")


def _script_name(name: str) -> str:
    """Return the file name of the batch script of the job that is submitted under `name`."""
    return f"{name}.sh"


def _bears(name: str, job: str) -> bool:
    """Whether the job that scontrol shows was submitted under `name`.

    A cluster may rename jobs, by a plugin or an administrator's hand; then the script that it runs tells whose it is.
    """
    return f" JobName={name} " in job or f"/{_script_name(name)} " in job


def _observed(state: str, reason: str, nodes: str, exit_code: str) -> Observed:
    if state not in _STATES:
        raise LauncherError(
            f"Slurm says {state} of a job, which this version of gpt_pipeline does not know; update gpt_pipeline"
        )
    found = _STATES[state]
    code, _, signal = exit_code.partition(":")
    number = int(code) if code.isdecimal() else None
    if not number and signal.isdecimal() and int(signal):
        number = 128 + int(signal)
    if found == "failed":
        found = _CODES.get(number or 0, "failed")
    if found == "running":
        return Observed(state=found, reason=nodes)
    why = "" if reason in ("None", "") else reason
    if found != "waiting":
        why = ", ".join(each for each in (state, why, nodes and f"on {nodes}") if each)
    return Observed(state=found, reason=why, exit_code=number)


def _line(command: TrainingCommand) -> str:
    """Return the trainer's command as a line of shell, in which the script's own variables say where to meet."""
    words = [shlex.quote(word) for word in command.arguments(endpoint="ENDPOINT", rendezvous="RENDEZVOUS")]
    return " ".join(re.sub(r"^(--rdzv-\w+)=(ENDPOINT|RENDEZVOUS)$", r'"\1=$\2"', word) for word in words)


def _quoted_for_sbatch(option: str) -> str:
    """Return an option as sbatch reads it from a script: as a shell does, but a backslash escapes within quotes too.

    Raises:
        LauncherError: it has several lines; for the shell, of which the option is a comment, the second is a command.
    """
    if "\n" in option:
        raise LauncherError(
            f"found {option!r}, need an option of sbatch in one line; remove the line break from the folder's name"
        )
    return shlex.quote(option).replace("\\", "\\\\")


def _words(errors: str) -> str:
    """Return what a command complains of, in a line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return "; ".join(lines[-3:])
