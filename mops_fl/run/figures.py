"""The figures that a run leaves beside its tables."""

from pathlib import Path


def draw_figures(folder: Path) -> list[str]:
    """Draw the figures of a run folder that has ended; a figure never decides how a run ended.

    Returns:
        A warning for each figure that could not be drawn; nothing is raised.
    """
    warnings = []
    for draw in (_perplexity, _gate):
        try:
            draw(folder)
        except Exception as error:
            reason = str(error) or type(error).__name__
            warnings.append(f"no figure of{draw.__name__.replace('_', ' ')}: {reason}")
    return warnings


def _perplexity(folder: Path) -> None:
    from mops_fl.run.plots import perplexity_figure

    perplexity_figure([folder], folder / "perplexity.png")


def _gate(folder: Path) -> None:
    from mops_fl.run.plots import gate_figure
    from mops_fl.run.results import Run

    if (folder / "gate.csv").is_file():
        gate_figure(Run.read(folder), folder / "gate.png")
