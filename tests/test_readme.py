"""Every fenced command of the README and of `docs/`, as it stands there, in a checkout that is tiny
by default. A command that stands in several places is run in the first.

The checkout is a copy of this one in which `SMALL` takes the place of the defaults and of the
preset's values, and everything that a page only names (a model, data, earlier runs) is there under
that name. What a command needs on top of its text stands in `APPENDED`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import pytest
from instruction_files import write_dolly, write_superni

from experiments.golden.tiny import save_tiny_llama
from mops_fl.config import app_folder
from mops_fl.data.dolly import TASKS

T = TypeVar("T")

ROOT = app_folder()

PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
"""The README, then the pages of `docs/` by their names."""

LINKED = (*PAGES, "CONTRIBUTING.md", "experiments/README.md", "experiments/PAPERS.md")
"""Whose links are followed."""

LANGUAGES = {"", "sh", "text", "python", "toml", "json"}
"""After the fence of a block, and the end of one; ``sh`` is run here."""

SMALL = {
    "num-samples": "1200",
    "eval-samples": "1",
    "num-server-rounds": "2",
    "local-steps": "2",
    "experts": "2",
    "prompts-per-expert": "3",
    "pretrain-prompt-steps": "3",
    "pretrain-gate-steps": "3",
}
"""In place of the defaults, and of the values of `experiments/quick.toml`; the model besides."""

FEW = {"num-clients": "30"}
"""In place of more values of `experiments/quick.toml`."""

APPENDED = {
    "mops-fl train": "-c local-steps=20",
    "mops-fl compress": "--samples 16 --data-path dolly.jsonl",  # there is no hub
    "python experiments/compression.py measure": "--model M --compressions none,2:4 --rows 20",
}
"""What is appended to the commands that begin so."""

NOT_RUN = {"make test": "runs these tests again"}
"""The commands that begin so are left out, and why."""

KILLED = "mops-fl simulate -c method=mops"
"""The command that begins so is killed after its first round, for ``--resume`` to carry on."""

NAMES = {KILLED: ("NAME",), "mops-fl compare": ("A", "B")}
"""What the pages call the runs that the commands that begin so have made."""

SETS_UP = ("export", ".", "cd")
"""Lines that prepare the shell for the commands after them."""


def blocks(page: str) -> list[str]:
    """What the page has the shell do."""
    return re.findall(r"^```sh\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A line of a block, and the lines before it that prepare the shell."""

    setup: str
    line: str

    @property
    def script(self) -> str:
        return f"{self.setup}exec {self.line} {self.entry(APPENDED, '')}"

    def entry(self, table: dict[str, T], default: T) -> T:
        """What a table says of this command."""
        return next((v for start, v in table.items() if self.line.startswith(start)), default)


def commands(block: str) -> list[Command]:
    found: list[Command] = []
    setup = ""
    for line in filter(None, re.sub(r"\s*\\\n\s*", " ", block).splitlines()):
        text = re.sub(r"\s+# .*", "", line)
        if text.split()[0] in SETS_UP:
            setup += f"{text}\n"
        else:
            found.append(Command(setup, text))
    return found


@dataclass(frozen=True)
class Block:
    """A block, and of its commands those that no block before it has."""

    name: str
    text: str
    commands: tuple[Command, ...]


def all_blocks() -> list[Block]:
    found: list[Block] = []
    seen: set[str] = set()
    for name, page in PAGES.items():
        for number, text in enumerate(blocks(page), 1):
            fresh = tuple(each for each in commands(text) if each.line not in seen)
            seen |= {command.line for command in fresh}
            found.append(Block(f"{name}-{number}", text, fresh))
    return found


BLOCKS = [block for block in all_blocks() if block.commands]
LINES = [command.line for block in BLOCKS for command in block.commands]


@dataclass(frozen=True)
class Checkout:
    """A tiny checkout and the shell in which its user types."""

    folder: Path
    environment: dict[str, str]

    def start(self, script: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "-ec", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str) -> str:
        """Run commands to their end; what they printed."""
        process = self.start(script)
        printed, _ = process.communicate()
        assert process.returncode == 0, f"{script}\n{printed[-5000:]}"
        return printed

    def kill_after_first_round(self, script: str) -> None:
        """Run a command that trains, and kill it in its second round."""
        before = set(self.checkpoints())
        process = self.start(script)
        while not (made := set(self.checkpoints()) - before):
            assert process.poll() is None, f"{script}\n{process.communicate()[0][-5000:]}"
            time.sleep(0.05)
        process.kill()
        process.communicate()
        (run,) = (file.parents[1].name for file in made)
        deadline = time.monotonic() + 60
        while self.statuses()[run] != "failed":
            assert time.monotonic() < deadline, f"{run} does not say that it was killed"
            time.sleep(0.2)

    def checkpoints(self) -> list[Path]:
        """The first round's of every run."""
        return list(self.folder.glob("runs/*/checkpoints/round-001.safetensors"))

    def statuses(self) -> dict[str, str]:
        """How every run folder says that its run ended, the latest last."""
        files = sorted(self.folder.glob("runs/*/run.json"), key=lambda file: file.stat().st_mtime)
        facts = {file.parent: json.loads(file.read_text()) for file in files}
        return {run.name: f["status"] for run, f in facts.items() if not run.is_symlink()}

    def name_runs(self, *names: str) -> None:
        """Give the latest runs the names that the pages have for them."""
        latest = list(self.statuses())[::-1]
        for name, run in zip(names, latest, strict=False):
            (self.folder / "runs" / name).symlink_to(run)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("readme") / "checkout"  # no underscore: Flower's wish
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(app_folder(), folder, ignore=ignored)
    (folder / ".venv").symlink_to(sys.prefix)
    identity = "-c user.name=tests -c user.email=tests@localhost -c commit.gpgsign=false"
    for command in ("init -q", f"{identity} commit -q --allow-empty -m copied"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    make_small(folder)
    home = folder.parent
    # what the shell of a user has not: proxies of the machine, and a make that is already running
    ours = re.compile(r".*_proxy|MAKE\w*|MFLAGS", flags=re.IGNORECASE)
    environment = {k: v for k, v in os.environ.items() if not ours.fullmatch(k)} | {
        "HOME": str(home),
        "MOPS_FL_CACHE": str(home / "cache"),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "PYTHONPATH": str(folder),
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
        "NO_COLOR": "1",
    }
    yield Checkout(folder, environment)
    for process in left_of(environment):
        process.kill()


def make_small(folder: Path) -> None:
    """Small defaults, and all that the pages name."""
    # widths that nf4's blocks divide
    shape = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128}
    model = save_tiny_llama(folder / "M", **shape)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "llama").symlink_to(model)
    write_dolly(folder / "rows.jsonl", ("ask", "tell"), 1100)
    write_dolly(folder / "dolly.jsonl", TASKS, 400)
    (tasks,) = [t for line in LINES for t in re.findall(r"--tasks (\S+)", line)]
    write_superni(folder / "FOLDER", tasks.split(","), 60)
    for name, more in (("pyproject.toml", {}), ("experiments/quick.toml", FEW)):
        file = folder / name
        text = file.read_text(encoding="utf-8")
        for key, value in {**SMALL, **more, "model": f'"{model}"'}.items():
            text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        file.write_text(text, encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def left_of(environment: dict[str, str]) -> list[psutil.Process]:
    """The processes that have this FLWR_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == environment["FLWR_HOME"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def stop_superlink(environment: dict[str, str]) -> None:
    """Stop the local SuperLink that ``flwr run`` leaves; nothing of it may stay."""
    links = [p for p in left_of(environment) if "flower-superlink" in " ".join(p.cmdline())]
    assert links
    for link in links:
        link.terminate()
    deadline = time.monotonic() + 60
    while left := left_of(environment):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)


def anchors(page: str) -> set[str]:
    """What links into a page may end with: its headings as GitHub has them."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_these_tests_know(page):
    fences = re.findall(r"^```(.*)$", PAGES[page], flags=re.MULTILINE)
    assert set(fences) <= LANGUAGES
    assert all(fences[::2]), "a block without a language"
    assert not any(fences[1::2])


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    here = ROOT / page
    links = re.findall(r"\]\(([^)\s]+)\)", here.read_text(encoding="utf-8"))
    dead = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = here.parent / path if path else here
        if link.startswith(("http://", "https://")):
            continue
        there = anchors(target.read_text(encoding="utf-8")) if anchor and target.exists() else ()
        if not target.exists() or (anchor and anchor not in there):
            dead.append(link)
    assert not dead


def test_every_page_is_linked_from_the_readme():
    assert [name for name in PAGES if name != "README.md" and name not in PAGES["README.md"]] == []


@pytest.mark.parametrize("start", [*APPENDED, *NOT_RUN, *NAMES])
def test_what_the_tables_name_is_on_a_page(start):
    assert [line for line in LINES if line.startswith(start)]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_the_commands_of_a_block(checkout, block):
    for command in block.commands:
        if command.entry(NOT_RUN, None):
            continue
        if command.line.startswith("make "):
            recipe = checkout.run(command.line.replace("make ", "make -n -o .venv/installed "))
            assert recipe.strip().removeprefix(".venv/bin/") in LINES, "a command that is run here"
        elif command.line.startswith(KILLED):
            checkout.kill_after_first_round(command.script)
        else:
            checkout.run(command.script)
        checkout.name_runs(*command.entry(NAMES, ()))
    assert set(checkout.statuses().values()) <= {"completed"}
    for picture in re.findall(r"\S+\.png", "\n".join(each.line for each in block.commands)):
        assert (checkout.folder / picture).stat().st_size > 1000
    if "flwr run" in block.text:
        listed = json.loads(checkout.run("flwr list --format json"))["runs"]
        assert [run["status"] for run in listed] == ["finished:completed"]
        stop_superlink(checkout.environment)
