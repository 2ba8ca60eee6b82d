"""databricks-dolly-15k (Conover et al. 2023), from the hub or from a file (see `jsonl`)."""

from collections.abc import Sequence
from pathlib import Path

from mops_fl.config import DataConfig
from mops_fl.data import jsonl
from mops_fl.data.examples import Rows
from mops_fl.errors import DataError

HUB_ID = "databricks/databricks-dolly-15k"

TASKS = (
    "creative_writing",
    "closed_qa",
    "open_qa",
    "summarization",
    "information_extraction",
    "classification",
    "brainstorming",
)
"""The paper's seven (Table 1, in its order); `general_qa` is the category that it leaves out."""


def load(data: DataConfig, _seed: int, owner_column: str) -> tuple[Rows, tuple[str, ...]]:
    """The rows of `data-path`, or the hub's; tasks are the paper's seven unless `tasks` names some.

    Raises:
        DataError: the file or the hub cannot be read, or the columns are not known.
    """
    rows = jsonl.read(Path(data.data_path)) if data.data_path else _from_hub()
    where = f"data-path={data.data_path}" if data.data_path else HUB_ID
    return jsonl.collect(rows, data, owner_column, where, TASKS)


def _from_hub() -> Sequence[object]:
    import datasets  # here, because only this path needs it and it takes a second to import

    try:
        return list(datasets.load_dataset(HUB_ID, split="train"))
    except OSError as error:
        raise DataError(
            f"dataset=dolly: the hub's {HUB_ID} cannot be reached ({error}): set data-path to a "
            "JSONL file with Dolly's schema, or use dataset=skills, which needs no download"
        ) from error
