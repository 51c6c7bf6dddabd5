"""Names that the examples in docstrings use, and a fixed seed for each of them."""

import pytest
import torch
from pyro import poutine

import ppl_vae


@pytest.fixture(autouse=True)
def _examples(doctest_namespace):
    doctest_namespace.update(ppl_vae=ppl_vae, torch=torch, poutine=poutine)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
