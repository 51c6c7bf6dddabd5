"""Comparing at a point: what estimators are worth for one pair as it stands, without training.

Shapes: B data, n draws.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyro.infer import ELBO
from torch import Tensor

from ppl_vae.evaluate import (
    Bound,
    Estimate,
    GroupSignal,
    StepCost,
    bound_at,
    gradient_signal,
    log_marginal,
    step_cost,
)
from ppl_vae.laboratory.point_page import write_page
from ppl_vae.laboratory.rendering import Table, as_latex, as_markdown
from ppl_vae.writing import write_text, writing

__all__ = ["Contender", "PointComparison", "compare_at"]

Pair = tuple[Callable, Callable]


@dataclass(frozen=True)
class Contender:
    """One estimator at one pair.

    Attributes:
        pair: The pair's name.
        estimator: The estimator's name.
        bound: Its bound, or none where its loss is no bound.
        groups: What its gradients are worth, by group of parameters.
        cost: Of one gradient.
    """

    pair: str
    estimator: str
    bound: Bound | None
    groups: dict[str, GroupSignal]
    cost: StepCost


@dataclass(frozen=True)
class PointComparison:
    """Estimators at one or several pairs.

    Attributes:
        contenders: Each estimator at each pair.
        log_marginal: What gaps are distances to, by pair: log p(x) per datum, in the mean.
        truth: Where that is from, in words.
        num_draws: n.
    """

    contenders: list[Contender]
    log_marginal: dict[str, Estimate]
    truth: str
    num_draws: int

    def table(self) -> Table:
        """A row for each contender and group of parameters."""
        several = len(self.log_marginal) > 1
        names = ["pair"] * several + ["estimator", "parameters"]
        numbers = ["bound", "gap", "SNR", "DSNR", "√variance", "bias²", "ms", "MiB"]
        rows = []
        for one in self.contenders:
            for index, (group, signal) in enumerate(one.groups.items()):
                labels = [one.pair] * several + [one.estimator, group]
                first = index == 0
                rows.append([*labels, *_bound(one.bound, first), *_signal(signal),
                             f"{1e3 * one.cost.seconds:.3g}" if first else "",
                             f"{one.cost.peak_bytes / 2**20:.3g}" if first else ""])  # fmt: skip
        known = "; ".join(
            f"{value!s} ({name})" if several else str(value)
            for name, value in self.log_marginal.items()
        )
        remarks = [
            f"Values ± standard errors over {self.num_draws} draws of the guide at fixed data, in "
            f"nats per datum. Gap: to log p(x) = {known}, {self.truth}.",
            "SNR, DSNR and bias of the gradients of minus the bound; see "
            "`ppl_vae.evaluate.gradient_signal`. ms: one gradient, uncompiled.",
        ]
        return Table([*names, *numbers], rows, len(names), remarks)

    def as_csv(self) -> str:
        """A line for each contender and group, all figures with their errors."""
        buffer = io.StringIO()
        names = ("snr", "dsnr", "entry_snr", "variance", "norm", "squared_bias")
        head = [part for name in names for part in (name, f"{name}_error")]
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["pair", "estimator", "parameters", "bound", "bound_error", "gap",
                         "gap_error", *head, "seconds", "bytes"])  # fmt: skip
        for one in self.contenders:
            bound = [None, None] if one.bound is None else [one.bound.value, one.bound.gap]
            for group, signal in one.groups.items():
                values = [*bound, *(getattr(signal, name) for name in names)]
                cells = [cell for value in values for cell in _plain(value)]
                cost = [f"{one.cost.seconds:.6g}", str(one.cost.peak_bytes)]
                writer.writerow([one.pair, one.estimator, group, *cells, *cost])
        return buffer.getvalue()

    def write(self, out: str | Path) -> Path:
        """Writes `point.json`, `.csv`, `.md`, `.tex`, figures and one page; gives the folder."""
        out = Path(out)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        table = self.table()
        write_text(out / "point.json", json.dumps(asdict(self), indent=1) + "\n")
        write_text(out / "point.csv", self.as_csv())
        write_text(out / "point.md", as_markdown(table))
        write_text(out / "point.tex", as_latex(table))
        write_page(self, out)
        return out


def compare_at(
    pairs: Pair | Mapping[str, Pair],
    estimators: Mapping[str, ELBO] | Sequence[ELBO],
    x: Tensor,
    *,
    num_draws: int = 200,
    groups: Sequence[str] | None = None,
    reference: ELBO | None = None,
    log_p: Tensor | Estimate | float | None = None,
    num_particles: int = 5000,
    seed: int = 0,
) -> PointComparison:
    """Bounds, gradients and costs of estimators at pairs as they stand, trained or fresh.

    All estimators draw from the same seeds. Nothing is changed: neither parameters, nor random
    streams, nor what an estimator remembers.

    Args:
        pairs: A model and its guide, or several by name.
        estimators: Estimators, by name or by their class's.
        x: Data, `[B, *data_shape]`.
        num_draws: n, of bounds and of gradients.
        groups: Prefixes of parameter names; see `gradient_signal`.
        reference: An estimator whose mean gradient biases are distances to, from ten times as
            many draws; none are given without.
        log_p: log p(x), where it is known. If not given, the model's own `log_marginal(x)` where it
            has one; else the importance-weighted lower bound of each pair.
        num_particles: K of that.
        seed: Of the draws.

    Raises:
        ValueError: As `gradient_signal` and `bound_at`; or there is no pair or no estimator.

    Example:
        >>> model = ppl_vae.models.LinearGaussian([[1.0], [2.0]], 0.5)
        >>> pair = model, ppl_vae.guides.MeanFieldGuide(model, hidden=(4,))
        >>> elbos = [ppl_vae.estimators.TraceIWAE_ELBO(k) for k in (1, 8)]
        >>> found = compare_at(pair, {"1": elbos[0], "8": elbos[1]}, torch.ones(5, 2), num_draws=50)
        >>> found.contenders[0].bound.gap.value > found.contenders[1].bound.gap.value > 0
        True
    """
    named = pairs if isinstance(pairs, Mapping) else {"": pairs}
    if not isinstance(estimators, Mapping):
        estimators = {type(estimator).__name__: estimator for estimator in estimators}
    if not named or not estimators:
        raise ValueError("there is nothing to compare; accepted are at least a pair and an ELBO")
    contenders, known, truth = [], dict[str, Estimate](), "given"
    for pair_name, (model, guide) in named.items():
        value, truth = _truth(model, guide, x, log_p, num_particles, seed)
        for name, estimator in estimators.items():
            is_bound = getattr(estimator, "is_bound", True)
            bound = None
            if is_bound:
                bound = bound_at(
                    model, guide, estimator, x, num_draws, log_marginal=value, seed=seed
                )
            signal = gradient_signal(
                model, guide, estimator, x,
                num_draws=num_draws, groups=groups, reference=reference, seed=seed,
            )  # fmt: skip
            cost = step_cost(model, guide, estimator, x)
            contenders.append(Contender(pair_name, name, bound, signal.groups, cost))
        known[pair_name] = _in_mean(value)
    return PointComparison(contenders, known, truth, num_draws)


def _truth(
    model: Any, guide: Callable, x: Tensor, given: Any, num_particles: int, seed: int
) -> tuple[Any, str]:
    """log p(x), and where it is from."""
    if given is not None:
        return given, "as given"
    if hasattr(model, "log_marginal"):
        return model.log_marginal(x).detach(), "exact"
    value = log_marginal(model, guide, x, num_particles=num_particles, seed=seed + 1)
    return value, f"a lower bound, importance-weighted with {num_particles} samples"


def _in_mean(value: Any) -> Estimate:
    if isinstance(value, Estimate):
        if not isinstance(value.value, Tensor):
            return value
        error = value.standard_error.double().square().sum().sqrt().item() / len(value.value)
        return Estimate(value.value.double().mean().item(), error)
    if isinstance(value, Tensor):
        return Estimate(value.double().mean().item(), 0.0)
    return Estimate(float(value), 0.0)


def _bound(bound: Bound | None, first: bool) -> list[str]:
    if bound is None or not first:
        return ["–" if first else ""] * 2
    return [str(bound.value), "–" if bound.gap is None else str(bound.gap)]


def _signal(signal: GroupSignal) -> list[str]:
    bias = "–" if signal.squared_bias is None else str(signal.squared_bias)
    return [str(signal.snr), str(signal.dsnr), f"{signal.variance.value**0.5:.3g}", bias]


def _plain(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["", ""]
    return [f"{estimate.value:.9g}", f"{estimate.standard_error:.3g}"]
