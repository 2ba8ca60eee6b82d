"""How much of the held-out rows an evaluation lacks."""

from collections.abc import Collection, Mapping

Counts = Mapping[int, Mapping[str, int]]
"""By partition id and task."""


def missing_tokens(
    replied: Collection[int], rows: Counts, tokens: Counts, most: int
) -> dict[str, float]:
    """Answer tokens of each task of the clients that gave no valid reply.

    Those of a client that was never evaluated are estimated from its rows, by the tokens a row of
    the others.

    Args:
        replied: partition ids of valid replies.
        rows: held-out rows of all clients whose replies count.
        tokens: known from evaluations.
        most: rows that a client evaluates; 0 for all.
    """
    found: dict[str, float] = {}
    absent = rows.keys() - set(replied)
    if not absent:
        return found
    asked = {partition: _sampled(own, most) for partition, own in rows.items()}
    known = [partition for partition in rows if partition in tokens]
    counted = sum(sum(asked[partition].values()) for partition in known)
    each = sum(sum(tokens[p].values()) for p in known) / counted if counted else 1.0
    for partition in sorted(absent):
        estimate = {task: count * each for task, count in asked[partition].items()}
        for task, count in tokens.get(partition, estimate).items():
            found[task] = found.get(task, 0.0) + count
    return found


def _sampled(rows: Mapping[str, int], most: int) -> dict[str, float]:
    """Rows of each task that are expected in a sample of a client's."""
    whole = sum(rows.values())
    part = min(1.0, most / whole) if most and whole else 1.0
    return {task: own * part for task, own in rows.items()}
