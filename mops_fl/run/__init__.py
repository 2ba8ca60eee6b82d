"""All that a run leaves and how it is read: folder, recorder, results, plots, provenance."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mops_fl.run.results import Run


def read(folder: str | Path) -> "Run":
    """The run in a run folder, for whoever analyses it: complete or not, simulated or deployed.

    ``facts`` is its `run.json`. Tables are pandas DataFrames, a row for each of what is named
    first; ``nll`` is a sum of negative log-likelihoods in nats, so a loss is ``nll / tokens`` and a
    perplexity ``exp`` of that. Round 0 is before training. `Run.table` has them all by name:

    ============== ========================== ====================================================
    ``rounds``     round, task                nll, tokens, perplexity; share (of the held-out
                                              tokens); a round's first row is the total
    ``train``      round                      clients, failures, steps, nll, tokens, seconds,
                                              bytes_up, bytes_down (both of all clients);
                                              epsilon, delta, clip, noise, clipped_share, snr
    ``evaluations`` round                     clients, failures, tokens, seconds, bytes_down
    ``evaluation`` round, partition, task     nll, tokens; a partition is a client
    ``validation`` round, partition, task     the same on the rows held back for choosing
    ``personal``   round, partition, task     the same after each client's own last steps
    ``gate``       round, task, expert        weight: mean over the task's examples
    ============== ========================== ====================================================

    Curves and measures: `Run.perplexity` (by round, of all tasks or of one), `Run.share`,
    `Run.standard_error` (nats a token), `Run.costs` (bytes and seconds so far),
    `Run.diagnostics`, `Run.spread` and `Run.measures`. Several seeds of one configuration:
    `mops_fl.run.results.Replicates`.

    Raises:
        RunError: it is not a run folder, or its `run.json` is malformed; a table that is missing
            or malformed is found when it is first asked for.
    """
    from mops_fl.run.results import Run

    return Run.read(Path(folder))
