import pytest
import torch

from experiments.benchmarks.sparse_product import time_product
from mops_fl.errors import ConfigError


def test_without_cuda_it_is_refused():
    with pytest.raises(ConfigError, match="device=cpu: sparse tensor cores need CUDA"):
        time_product(64, 64, 8, torch.float16, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_product_is_timed():
    timing = time_product(256, 256, 64, torch.float16, torch.device("cuda"))
    assert timing.speedup > 0
