"""The parameters and buffers of a pair, as a tree for `ppl_vae.checkpoint`, and back."""

from collections.abc import Mapping
from typing import Any

import pyro
from torch import Tensor, nn

from ppl_vae.checkpoint import CheckpointError
from ppl_vae.optimizers import named_parameters

__all__ = ["load_parameters", "parameters_of"]


def parameters_of(model: Any, guide: Any) -> dict[str, Any]:
    """Copies of what the modules hold, and of what lies in Pyro's parameter store alone."""
    state = {
        name: {key: value.detach().clone() for key, value in program.state_dict().items()}
        for name, program in (("model", model), ("guide", guide))
        if isinstance(program, nn.Module)
    }
    stored = _stored(model, guide).items()
    return {**state, "param": {name: value.detach().clone() for name, value in stored}}


def load_parameters(model: Any, guide: Any, state: Mapping[str, Any]) -> None:
    """Takes `parameters_of` back, in place.

    Raises:
        CheckpointError: It has parameters that the pair does not make in its first run.
    """
    for name, program in (("model", model), ("guide", guide)):
        if isinstance(program, nn.Module):
            program.load_state_dict(state[name])
    saved = dict(state["param"])
    for name, parameter in _stored(model, guide).items():
        parameter.data.copy_(saved.pop(name))
    for name, value in saved.items():
        # Pyro's baselines come into being in the first step.
        if not name.startswith("param.__baseline"):
            raise CheckpointError(
                f"the checkpoint has the parameter '{name}', which model and guide do not make in "
                "their first run; it cannot be resumed exactly"
            )
        pyro.get_param_store().setdefault(name.removeprefix("param."), value)


def _stored(model: Any, guide: Any) -> dict[str, Tensor]:
    named = named_parameters(model, guide)
    return {name: value for name, value in named.items() if name.startswith("param.")}
