import subprocess
import sys

import pytest

from mops_fl.compression_spec import Compression, parse
from mops_fl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "sparsity", "n", "m", "quantisation"),
    [
        ("none", 0.0, 0, 0, ""),
        ("unstructured-50", 0.5, 0, 0, ""),
        ("unstructured-90", 0.9, 0, 0, ""),
        ("unstructured-62.5", 0.625, 0, 0, ""),
        ("2:4", 0.5, 2, 4, ""),
        ("7:8", 0.875, 7, 8, ""),
        ("int8", 0.0, 0, 0, "int8"),
        ("nf4", 0.0, 0, 0, "nf4"),
        ("2:4+nf4", 0.5, 2, 4, "nf4"),
        ("unstructured-75+int8", 0.75, 0, 0, "int8"),
    ],
)
def test_every_form_is_parsed_and_written_back(text, sparsity, n, m, quantisation):
    compression = parse(text)
    assert compression == Compression(sparsity, n, m, quantisation)
    assert str(compression) == text


@pytest.mark.parametrize("percent", range(1, 100))
def test_every_percentage_comes_back_as_written(percent):
    assert str(parse(f"unstructured-{percent}")) == f"unstructured-{percent}"


def test_the_pruning_apart_from_the_quantisation():
    assert parse("2:4+nf4").pruned_only == parse("2:4")
    assert parse("2:4+nf4").pruning == "2:4"
    assert parse("nf4").pruning == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int4",
        "None",
        "unstructured",
        "unstructured-",
        "unstructured-0",
        "unstructured-100",
        "unstructured-0.5",
        "unstructured--5",
        "unstructured-50%",
        "0:4",
        "4:4",
        "5:4",
        "0:0",
        "2:0",
        "-1:4",
        "2:4:8",
        "2:4+4:8",
        "2:4+unstructured-50",
        "int8+nf4",
        "nf4+2:4",
        "none+int8",
        "2:4+",
        "+nf4",
        "2:4+nf4+int8",
        "2:4+none",
        " 2:4",
    ],
)
def test_nonsense_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="compression="):
        parse(text)


def test_sparsity_and_pattern_must_agree():
    with pytest.raises(ConfigError, match=r"has sparsity 0\.5"):
        Compression(sparsity=0.75, n=2, m=4)
    with pytest.raises(ConfigError, match="quantisation='fp4'"):
        Compression(quantisation="fp4")


def test_parsing_needs_no_torch():
    code = "import sys, mops_fl.compression; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
