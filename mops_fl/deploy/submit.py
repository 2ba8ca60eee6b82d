"""One run of a federation: given to its server, followed, and its true status."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mops_fl.config import Scalar, app_folder
from mops_fl.deploy.folders import ServerFolder
from mops_fl.errors import RunError
from mops_fl.flower.commands import Commands, read_log
from mops_fl.flower.guard import Verdict, settle
from mops_fl.flower.home import copy_app, toml
from mops_fl.flower.launch import Outcome, Stopped, Watch, signals_raise
from mops_fl.flower.verdict import judge

_SILENCE = "the server's process died without a word: superlink's output may say why"


@dataclass
class Submission:
    """A staged app and what `flwr run` printed."""

    server: ServerFolder
    stage: Path
    run_dir: Path
    options: tuple[str, ...] = field(default=())

    @property
    def commands(self) -> Commands:
        """Those that speak to the server; the log is this run's."""
        return self.server.commands(self.stage / "flower.log")

    @property
    def command(self) -> list[str]:
        """What gives the run to the server."""
        return self.commands.run_command(self.stage / "app", self.run_config, *self.options)

    @property
    def run_config(self) -> Path:
        """The flat configuration, as Flower reads it."""
        return self.stage / "run.toml"

    def start(self) -> subprocess.Popen:
        """Give the run to the server."""
        return self.commands.start_run(self.stage / "app", self.run_config, *self.options)

    def wait_for_id(self, process: subprocess.Popen) -> str:
        """The run's id; also noted, with its folder, for `status` and `stop`.

        Raises:
            RunError: the server took none.
        """
        while (run_id := self.commands.run_id()) is None:
            if process.poll() is not None and self.commands.run_id() is None:
                text = " ".join(read_log(self.commands.log).split())
                raise RunError(f"`flwr run` was refused: {text or 'it printed nothing'}")
            time.sleep(0.1)
        known = self.server.noted("run-ids")
        self.server.note("run-ids", {**known, run_id: str(self.run_dir)})
        return run_id


@contextlib.contextmanager
def staged(server: ServerFolder, flat: Mapping[str, Scalar], *options: str) -> Iterator[Submission]:
    """The app and its configuration where Flower can take them, for the length of the block.

    Raises:
        RunError: they cannot be written.
    """
    server.commands()
    run_dir = Path(str(flat["run-dir"]))
    stage = Path(tempfile.mkdtemp(dir=server.staged))
    submission = Submission(server, stage, run_dir, options)
    try:
        try:
            copy_app(app_folder(), stage / "app")
            submission.run_config.write_text(toml(flat), encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot stage the Flower app in {stage}: {error}") from error
        yield submission
    finally:
        if run_dir.is_dir() and submission.commands.log.is_file():
            with (run_dir / "flower.log").open("a", encoding="utf-8") as kept:
                kept.write(read_log(submission.commands.log))
        shutil.rmtree(stage, ignore_errors=True)


def hand_over(submission: Submission) -> str:
    """Give a run to the server and leave it to it; its id.

    Raises:
        RunError: the server took none.
    """
    process = submission.start()
    run_id = submission.wait_for_id(process)
    process.wait()
    return run_id


def follow(submission: Submission, watch: Watch) -> Outcome:
    """Run to the end, calling `watch` several times a second.

    SIGINT and SIGTERM stop the run for real, and are an outcome like others. Where this process is
    killed, the run goes on.

    Raises:
        RunError: the server took no run.
    """
    since, commands = submission.run_config.stat().st_mtime, submission.commands
    run_dir, activity = submission.run_dir, submission.server.activity

    def ended() -> Verdict:
        try:
            return judge(commands, run_dir, since, alive=True, silence=_SILENCE)
        except RunError as error:
            text = f"{error}: the SuperLink does not answer; a run does not outlive it"
            return Verdict("failed", text)

    with signals_raise():
        process = submission.start()
        try:
            submission.wait_for_id(process)
            _watch(process, run_dir, since, lambda note: watch(activity, note))
            verdict = ended()
        except Stopped:
            watch(activity, "stopping")
            verdict = Verdict("stopped")
            if run_id := commands.run_id():
                commands.stop(run_id)
                verdict = verdict if ended().status != "completed" else Verdict("completed")
        finally:
            process.terminate()
            process.wait()
    settle(run_dir, verdict)
    return Outcome(verdict, run_dir / "flower.log")


def _watch(
    process: subprocess.Popen, run_dir: Path, since: float, tell: Callable[[str], None]
) -> None:
    """Return when the log ends."""
    while process.poll() is None:
        tell("" if _newer(run_dir / "progress.json", since) else "waiting for the server")
        time.sleep(0.5)
    tell("")


def _newer(path: Path, since: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= since


def stop(server: ServerFolder, run_id: str) -> None:
    """Stop a run, and write so into its folder."""
    server.commands().stop(run_id)
    settle_ended(server, {run_id: "finished:stopped"})


def settle_ended(server: ServerFolder, statuses: Mapping[str, str]) -> None:
    """Make `run.json` tell the truth of runs that ended while nobody followed them.

    Args:
        server: whose.
        statuses: Flower's, by run id.
    """
    verdicts = {
        "finished:stopped": Verdict("stopped"),
        "finished:failed": Verdict("failed", _SILENCE),
    }
    latest = {folder: run_id for run_id, folder in server.noted("run-ids").items()}
    for folder, run_id in latest.items():
        if verdict := verdicts.get(statuses.get(run_id, "")):
            settle(Path(folder), verdict)
