"""The command `mops-fl`. Each command is a module of this package, registered below.

Modules of commands import heavy things inside their functions, so that `mops-fl --help` is quick.
"""

import re
import sys
import textwrap

import typer

from mops_fl.cli.compare import compare
from mops_fl.cli.compress import compress
from mops_fl.cli.deploy import app as deploy
from mops_fl.cli.evaluate import evaluate
from mops_fl.cli.experiment import experiment
from mops_fl.cli.export import export
from mops_fl.cli.generate import generate
from mops_fl.cli.partition import partition
from mops_fl.cli.plot import plot
from mops_fl.cli.report_page import report
from mops_fl.cli.run import RunFailedError, StoppedError
from mops_fl.cli.serve import serve
from mops_fl.cli.show import show
from mops_fl.cli.simulate import simulate, train
from mops_fl.cli.watch import watch
from mops_fl.errors import MopsError

COMMANDS = (
    *(simulate, train, compare, experiment, watch, plot, report, show),
    *(generate, serve, evaluate, export, partition, compress),
)

BAD_INPUT, RUN_FAILED, STOPPED = 2, 1, 130
"""Exit codes."""

app = typer.Typer(
    help="Federated Mixture of Prompts: expert prompts and a gate over a frozen, compressed LLaMA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(deploy, name="deploy")


def main() -> None:
    """Run a command; an error that the user can mend is one line on standard error."""
    try:
        app()
    except (StoppedError, KeyboardInterrupt) as error:
        _exit(STOPPED, str(error) or "stopped")
    except RunFailedError as error:
        _exit(RUN_FAILED, str(error))
    except MopsError as error:
        _exit(BAD_INPUT, str(error))


def _exit(code: int, message: str) -> None:
    # A client's exception comes through Ray, in colours and with its traceback.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message)
    print("mops-fl:", textwrap.shorten(plain, 2000, placeholder=" ..."), file=sys.stderr)
    raise SystemExit(code)
