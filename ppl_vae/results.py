"""The figures of a run: what goes into `results.json`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data import Rows, Splits
from ppl_vae.data.rows import some_rows
from ppl_vae.evaluate import (
    Estimate,
    active_units,
    average_terms,
    class_probabilities,
    log_marginal,
)
from ppl_vae.evaluate.importance import LEAST_PARTICLES, ImportanceDiagnostics, diagnose
from ppl_vae.randomness import check_seed
from ppl_vae.runs import Run

__all__ = ["choose", "evaluate_run", "notes", "results_table"]

# The share of the data above the threshold of k-hat from which on a note warns. Of few particles
# k-hat is uncertain by a third, so that a fifth or so of the data are above for no reason.
_TOLERATED = 1 / 3
# What comes of reading a file that does not hold what was written.
_NONE_OF_OURS = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


def evaluate_run(
    run: Run,
    data: Splits,
    *,
    split: str = "test",
    num_particles: int = 5000,
    num_data: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates a run on one split, and writes `results.json`.

    Args:
        run: The run.
        data: Its data.
        split: `"train"`, `"valid"` or `"test"`. Grey training data under `binarize="dynamic"` are
            drawn once.
        num_particles: K of the importance-weighted log p(x).
        num_data: Evaluate on this many data, drawn at random by `seed`; all if not given.
        seed: Of the draws.

    Returns:
        `elbo`, `reconstruction`, `kl` by site, `log_marginal`: means over data in nats per datum,
        each `{"value", "standard_error"}`; `importance`, what the weights of `log_marginal` are
        like, from 25 particles on: the median of Pareto k-hat over data (null where it is not
        finite), its threshold at K, the share of the data above it, and the median effective sample
        size; `active_units` by real-valued site; `classes` by
        categorical site, if there is any; and what they were computed on. Classes in use are the
        exponential of the entropy of the guide's mean probabilities: C classes of equal shares of
        the data are C, and one class that takes all of them is 1.
        A run whose guide has no density has `log_prior` in place of `elbo`, `kl`, `log_marginal`.

    Raises:
        ValueError: An unknown or empty split, `num_data` beyond it, or K below 1.
    """
    x = run.like(choose(data, split, num_data, seed))
    proper = run.model.is_proper(x) if hasattr(run.model, "is_proper") else True
    terms = average_terms(run.model, run.guide, x, num_particles=10, seed=seed)
    results: dict[str, Any] = {
        "split": split,
        "num_data": len(x),
        "step": run.step,
        "seed": seed,
        "is_proper": proper,
    }
    for name, value in terms.summary().items():
        nested = isinstance(value, Mapping)
        results[name] = {k: _entry(v) for k, v in value.items()} if nested else _entry(value)
    if terms.elbo is not None:
        weights = {}
        if num_particles < LEAST_PARTICLES:
            estimate = log_marginal(run.model, run.guide, x, num_particles=num_particles, seed=seed)
        else:
            found = diagnose(run.model, run.guide, x, num_particles, seed)
            estimate, weights = found.log_marginal, {"importance": _of_weights(found)}
        results["log_marginal"] = {**_entry(estimate.mean()), "num_particles": num_particles}
        results |= weights
    if len(x) > 1:
        units = active_units(run.guide, x, seed=seed)
        results["active_units"] = {
            name: {"active": count, "of": len(units.variance[name])}
            for name, count in units.count.items()
        }
    if classes := class_probabilities(run.guide, x, seed=seed):
        results["classes"] = {name: _in_use(probs) for name, probs in classes.items()}
    run.directory.write_results(results)
    return results


def results_table(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The results as rows of name and text, `("elbo", "-23.94 ± 0.31 nats")`.

    Raises:
        ValueError: They are none of an evaluation, as in a file that somebody has changed.
    """
    try:
        return _rows(results)
    except _NONE_OF_OURS as error:
        raise _changed(error) from None


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before comparing the figures; raises as `results_table`."""
    try:
        return _notes(results)
    except _NONE_OF_OURS as error:
        raise _changed(error) from None


def _changed(error: Exception) -> ValueError:
    return ValueError(
        f"the results are none of an evaluation ({type(error).__name__}: {error}); evaluate the "
        "run again to replace results.json"
    )


def _rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in results.items():
        if not isinstance(value, Mapping):
            continue
        if "value" in value:
            rows.append((_title(name, value), f"{_estimate(value)} nats"))
        elif name == "active_units":
            for site, units in value.items():
                rows.append((f"active units of {site}", f"{units['active']} of {units['of']}"))
        elif name == "importance":
            rows += _weight_rows(value)
        elif name == "classes":
            for site, used in value.items():
                rows.append((f"classes of {site} in use", f"{used['in_use']:.1f} of {used['of']}"))
        else:
            title = {"kl": "KL", "log_prior": "log p"}.get(name, name)
            rows += [(f"{title} of {site}", f"{_estimate(v)} nats") for site, v in value.items()]
    return rows


def _notes(results: Mapping[str, Any]) -> list[str]:
    found = []
    if results.get("is_proper") is False and "elbo" in results:
        found.append(
            "The data are grey and the likelihood is a Bernoulli: outside its support, so `elbo`, "
            "`reconstruction` and `log p(x)` are scores and no log-probabilities (improper). They "
            "compare with figures on the same grey data only. For log-probabilities binarize the "
            "data (`--binarize dynamic`), or take the likelihood `ContinuousBernoulli`."
        )
    elif results.get("is_proper") is False:
        found.append(
            "The data are grey and the likelihood is a Bernoulli: `reconstruction` is a score."
        )
    if "elbo" not in results and "log_prior" in results:
        found.append("The guide is a point mass and has no density: there is no elbo, no log p(x).")
    if (weights := results.get("importance")) is not None:
        shape = weights["pareto_k"]
        if shape["share_above"] >= _TOLERATED:
            found.append(
                f"log p(x) cannot be trusted: Pareto k-hat is above {shape['threshold']:.2g} for "
                f"{shape['share_above']:.0%} of the data, where the value is too low and its "
                "standard error too small. Take more particles, a better guide, or "
                "`ppl_vae.evaluate.ais`."
            )
    return found


def choose(data: Splits, split: str, num_data: int | None, seed: int) -> Tensor:
    """Data of a split, `[num_data, *data_shape]`: all, or drawn at random by `seed`.

    Raises:
        ValueError: An unknown or empty split, `num_data` beyond it, or all of what lies on a disk.
    """
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split is {split!r}; accepted are train, valid, test")
    x = getattr(data, split)
    if len(x) == 0:
        raise ValueError(f"the split '{split}' of {data.name} is empty; name another with --split")
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if num_data is not None and not 1 <= num_data <= len(x):
        raise ValueError(f"num_data is {num_data}; accepted are 1 to {len(x)}, the size of {split}")
    if isinstance(x, Rows):
        if num_data is None:
            raise ValueError(
                f"the split '{split}' of {data.name} has {len(x)} rows on a disk, which are not "
                "evaluated all; say how many with num_data (--num_data)"
            )
        x = some_rows(x, num_data, seed)
    if split == "train" and data.binarize == "dynamic":
        x = torch.bernoulli(x, generator=generator)
    if num_data in (None, len(x)):
        return x
    # Drawn, not the first ones: a split may be sorted by label.
    return x[torch.randperm(len(x), generator=generator)[:num_data]]


def _of_weights(found: ImportanceDiagnostics) -> dict[str, dict[str, float | None]]:
    # Without a positive weight there is neither: no better than the largest, and the smallest.
    shape = found.pareto_k.nan_to_num(math.inf, math.inf, -math.inf).median().item()
    return {
        "pareto_k": {
            "median": shape if math.isfinite(shape) else None,
            "threshold": found.threshold,
            "share_above": found.share_unreliable,
        },
        "effective_size": {
            "median": found.effective_size.nan_to_num(0.0).median().item(),
            "of": found.num_particles,
        },
    }


def _weight_rows(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    shape, size = entry["pareto_k"], entry["effective_size"]
    median = "" if shape["median"] is None else f"median {shape['median']:.2f}, "
    share = f"{shape['share_above']:.0%} of the data above {shape['threshold']:.2g}"
    text = f"median {size['median']:.0f} of {size['of']}"
    return [("Pareto k-hat", median + share), ("effective sample size", text)]


def _in_use(probs: Tensor) -> dict[str, float]:
    """How many classes the data spread over, by `[N, C]` probabilities."""
    share = probs.double().mean(0)
    return {"in_use": torch.special.entr(share).sum().exp().item(), "of": len(share)}


def _entry(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "standard_error": estimate.standard_error}


def _estimate(entry: Mapping[str, float]) -> Estimate:
    return Estimate(entry["value"], entry["standard_error"])


def _title(name: str, entry: Mapping[str, Any]) -> str:
    if name == "log_marginal":
        return f"log p(x), {entry['num_particles']} particles"
    return name
