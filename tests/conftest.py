"""Every test starts from the same global state and leaves none behind."""

import random

import numpy as np
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def clean_globals():
    """float64, seeded, an empty parameter store, validation on; all of it put back afterwards."""
    dtype, settings = torch.get_default_dtype(), pyro.settings.get()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(dtype)
    pyro.settings.set(**settings)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
