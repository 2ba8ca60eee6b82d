"""A run that is given to a federation's server leaves its log, however it ends."""

import pytest

from mops_fl.deploy.folders import server_folder
from mops_fl.deploy.submit import staged
from mops_fl.errors import RunError


def test_the_log_that_an_error_names_is_there(tmp_path):
    place = server_folder(tmp_path / "federation")
    place.make(["localhost"])
    place.connect("127.0.0.1", 1)
    run = place.runs / "one"
    run.mkdir(parents=True)

    def fail(number: int) -> None:
        with staged(place, {"run-dir": str(run)}) as submission:
            submission.commands.log.write_text(f"try {number}\n")
            raise RunError("it failed")

    for number in range(2):
        with pytest.raises(RunError, match="it failed"):
            fail(number)
    assert (run / "flower.log").read_text() == "try 0\ntry 1\n"
    assert list(place.staged.iterdir()) == []
