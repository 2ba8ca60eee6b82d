"""`mops-fl report` from the command line."""

from synthetic import write_run


def test_a_page_of_two_runs(run, tmp_path):
    for name, method in (("[a]", "mops"), ("b", "lora")):
        write_run(tmp_path / "runs" / name, method=method)
    code, out, err = run("report", "runs/[a]", "runs/b", "--out", "pages/report.html")
    assert (code, out, err) == (0, f"{tmp_path / 'pages' / 'report.html'}\n", "")
    assert (tmp_path / "pages" / "report.html").read_text().startswith("<!doctype html>")


def test_what_is_no_run_is_one_line(run, tmp_path):
    code, out, err = run("report", "nowhere", "--out", "report.html")
    assert (code, out) == (2, "")
    assert err == (
        "mops-fl: RUN 'nowhere' is not a run folder: there is no such folder; name folders that a "
        "run was written to, as runs/NAME\n"
    )
    assert not list(tmp_path.iterdir())
