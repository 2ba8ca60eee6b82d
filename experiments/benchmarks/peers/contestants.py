"""The contestants: each runs in processes of its own and answers what its rounds were."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.benchmarks.clients import Sampler
from experiments.benchmarks.peers.exchange import Answer, Round, Task
from mops_fl.config import Scalar, app_folder
from mops_fl.errors import ConfigError, RunError
from mops_fl.run.folder import read_facts

PEERS = "experiments.benchmarks.peers"


@dataclass(frozen=True)
class Place:
    """What a contestant has."""

    folder: Path
    """Its own, which is not there yet."""
    task: Path
    """The file of the peers' work."""
    workers: int
    """Processes that train at the same time."""
    threads: int
    """CPU threads of each."""


@dataclass(frozen=True)
class Ran:
    """What is known of a contestant that ran."""

    answer: Answer
    memory: float
    """The largest sum of the proportional set sizes of all its processes, in MB."""
    command: str


def ours(values: Mapping[str, Scalar], place: Place) -> Ran:
    """A real `mops-fl simulate` with these values."""
    command = [str(Path(sys.executable).with_name("mops-fl")), "simulate"]
    command += [f"--runs-dir={place.folder}", "--name=run", f"--workers={place.workers}"]
    command += [f"--cpus-per-client={place.threads}"]
    command += [f"-c{key}={value}" for key, value in values.items()]
    memory = _run(command, place)
    return Ran(_answer_of(place.folder / "run"), memory, " ".join(command))


def _answer_of(run: Path) -> Answer:
    """A run folder's rounds: between two checkpoints, without the evaluation."""
    facts, train = read_facts(run), pd.read_csv(run / "train.csv").set_index("round")
    evaluation = pd.read_csv(run / "evaluate.csv").set_index("round")["seconds"]
    training = pd.read_csv(run / "clients.csv").groupby("round")["seconds"].sum()
    ends = [file.stat().st_mtime for file in sorted((run / "checkpoints").iterdir())]
    rounds = [
        Round(
            seconds=ends[number] - ends[number - 1] - evaluation.get(number, 0.0),
            training=float(training[number]),
            steps=int(row["steps"]),
            nll=float(row["nll"]),
            tokens=int(row["tokens"]),
        )
        for number, row in train.iterrows()
    ]
    return Answer(facts["trainable_parameters"], rounds, facts["versions"])


def per_message(place: Place) -> Ran:
    """The Flower app that loads the model for each message."""
    answer = place.folder / "answer.json"
    command = [sys.executable, "-m", f"{PEERS}.per_message_run", str(place.task), str(answer)]
    nodes = len(Task.read(place.task).rounds[0])
    command += [str(place.folder / "logs"), str(nodes), str(place.workers), str(place.threads)]
    memory = _run(command, place)
    return Ran(Answer.read(answer), memory, " ".join(command))


def pfl(python: Path, place: Place) -> Ran:
    """The simulation of `pfl`, in as many processes as it is to have."""
    answer = place.folder / "answer.json"
    command = [str(python), "-m"]
    if place.workers > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={place.workers}"]
        command += ["-m"]
    command += [f"{PEERS}.pfl_run", str(place.task), str(answer)]
    memory = _run(command, place)
    return Ran(Answer.read(answer), memory, " ".join(command))


def check_pfl(python: Path) -> None:
    """Find out early.

    Raises:
        ConfigError: the interpreter lacks what the contestant needs.
    """
    asked = "import peft, pfl, safetensors, torch, transformers"
    try:
        done = subprocess.run(
            [str(python), "-c", asked], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ConfigError(f"--pfl-python {python} cannot be run: {error.strerror}") from error
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"--pfl-python {python} cannot run pfl: {reason}")


def _run(command: Sequence[str], place: Place) -> float:
    """Run to the end; the largest memory in MB.

    Raises:
        RunError: the command failed.
    """
    place.folder.mkdir()
    log = place.folder / "log"
    own = {"PYTHONPATH": str(app_folder()), "OMP_NUM_THREADS": str(place.threads)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=place.folder, stdout=stream, stderr=stream, env={**os.environ, **own}
        )
        sampler = Sampler(process, every=2.0)
        process.wait()
    if process.returncode:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise RunError(f"{' '.join(command)} failed:\n{text[-4000:]}")
    return sampler.most
