"""The pictures of a run, and the page that shows them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae import interactive, page, plots
from ppl_vae.data import Rows, Splits
from ppl_vae.data.rows import some_rows
from ppl_vae.evaluate import (
    active_units,
    aggregate_posterior,
    class_probabilities,
    posterior_means,
    reconstruct,
    sample_prior,
    traverse,
    unit_kl,
)
from ppl_vae.results import notes, results_table
from ppl_vae.runs import Run

__all__ = ["sample_run", "write_report"]

_MAX_POINTS = 3000
_NUM_ROWS = 10
_MAX_CLASSES = 20
# Of a class; as pictures fewer are drawn than as points.
_NUM_SAMPLES = 50


def write_report(run: Run, data: Splits, *, split: str = "test", seed: int = 0) -> page.Path:
    """Draws every figure of a run into `figures/`, and writes `report.html`.

    Args:
        run: The run; its `results.json` is shown if there is one.
        data: Its data.
        split: The split whose data are shown; the training data where it is empty.
        seed: Of the draws.

    Returns:
        The path of the page, one self-contained file.
    """
    x, labels = _shown(run, data, split)
    pictures = [
        ("learning_curves", "Learning curves", _CURVES, plots.learning_curves(run.metrics)),
        (
            "reconstructions",
            "Reconstructions",
            "Data above the mean of p(x | z) at one draw z of the guide.",
            plots.reconstructions(x[:_NUM_ROWS], reconstruct(run.model, run.guide, x[:_NUM_ROWS])),
        ),
        (
            "samples",
            "Samples from the model",
            "The mean of p(x | z) for z drawn from the prior: what the model believes data to be.",
            plots.samples(sample_prior(run.model, x[:1].expand(64, *x.shape[1:]), mean=True)),
        ),
    ]
    for site, probs in class_probabilities(run.guide, x, seed=seed).items():
        pictures.append(_of_classes(run, x, site, probs))
    kl = unit_kl(run.model, run.guide, x, seed=seed)
    units = active_units(run.guide, x, seed=seed) if len(x) > 1 else None
    means = posterior_means(run.guide, x, seed=seed)
    aggregate = aggregate_posterior(run.guide, x, seed=seed)
    for site, z in means.items():
        pictures += _of_site(run, x, labels, data, site, z, aggregate[site], kl.get(site))
    if units is not None and units.variance:
        # Units that are not normal have no KL of their own.
        known = kl if kl.keys() == units.variance.keys() else None
        figure = plots.active_units(units.variance, units.threshold, known)
        pictures.append(("active_units", "Active units", _UNITS, figure))
    entries = []
    for name, title, caption, figure in pictures:
        path = plots.save(figure, run.directory.figure_path(name))
        still = "curves" if name == "learning_curves" else ""
        entries.append(page.Picture(title, caption, path.read_bytes(), still))
    results = run.directory.results()
    walk, why_not = _explorer(run, x, labels, data, means, aggregate)
    return page.write(
        run.directory.report_path,
        title=f"{_class(run, 'model')} with {_class(run, 'guide')} on {data.name}",
        verdict=f"{run.step} steps; figures on the {results.get('split', split)} split.",
        summary=dict(results_table(results)),
        pair={name: _name(run, name) for name in ("model", "guide", "estimator", "schedule")},
        config=run.directory.config_path.read_text(),
        results=results,
        figures=entries,
        notes=[*notes(results), *why_not],
        curves=interactive.curves(run.metrics),
        explorer=walk,
    )


def sample_run(run: Run, *, num: int = 64, mean: bool = False, seed: int = 0) -> Tensor:
    """Draws from a run's model, `[num, *data_shape]`.

    Args:
        run: The run.
        num: How many.
        mean: The mean of p(x | z) in place of a draw of x; z is drawn all the same.
        seed: Of the draws.

    Raises:
        ValueError: `num` is below 1.
    """
    if num < 1:
        raise ValueError(f"num is {num}; accepted is >= 1")
    like = run.example.expand(num, *run.example.shape[1:])
    return sample_prior(run.model, like, mean=mean, seed=seed)


_CURVES = (
    "Nats per datum. The bound of the training minibatches is at KL weight 1 whatever weight was "
    "in force; the validation elbo has a band of one standard error."
)
_UNITS = (
    "The variance over data of each unit's posterior mean. Units above the line carry information "
    "about the data; the others are switched off (Burda et al., 2016)."
)
_SCATTER = "Posterior means of the data; faint circles are 1, 2, 3 standard deviations of N(0, I). "


def _of_classes(run: Run, x: Tensor, site: str, probs: Tensor) -> tuple:
    """What the model believes data of each class to be, the classes of the most data first."""
    share = probs.mean(0)  # [C]
    classes = share.argsort(descending=True, stable=True)[:_MAX_CLASSES]
    given = classes.repeat_interleave(_NUM_SAMPLES)
    like = x[:1].expand(len(given), *x.shape[1:])
    means = sample_prior(run.model, like, mean=True, latents={site: given})
    means = means.unflatten(0, (len(classes), _NUM_SAMPLES))
    few = f" The {_MAX_CLASSES} classes of the most data." if len(share) > _MAX_CLASSES else ""
    return (
        f"classes_{site}",
        f"Samples from each class of {site}",
        f"The mean of p(x | z) for z drawn from the prior given {site}, and the share of the data "
        f"that the guide gives to the class: the mean of its probability over data.{few}",
        plots.class_samples(means, classes.tolist(), share[classes], site=site),
    )


def _of_site(
    run: Run,
    x: Tensor,
    labels: Tensor | None,
    data: Splits,
    site: str,
    z: Tensor,
    aggregate: tuple[Tensor, Tensor],
    kl: Any,
) -> list[tuple]:
    """A site's scatter, and its traversals."""
    points, names, how = _two_dimensions(z, site)
    color, label = _color(labels, data)
    scatter = plots.latent_scatter(points, color, names=names, label_name=label)
    units = z.var(0).argsort(descending=True)[:_NUM_ROWS].tolist() if len(z) > 1 else [0]
    steps = torch.linspace(-3, 3, 9)
    mean, deviation = (moment[units, None] for moment in aggregate)
    grid = traverse(run.model, run.guide, x[:1], site, units, mean + deviation * steps.to(mean))
    unit_kl = None if kl is None else kl[units]
    figure = plots.traversals(grid, units, steps.tolist(), kl=unit_kl, site=site)
    return [
        (f"latents_{site}", f"Latent space of {site}", _SCATTER + how, scatter),
        (
            f"traversals_{site}",
            f"Traversals of {site}",
            "One unit a row, moved by -3 to 3 standard deviations of the aggregate posterior from "
            "its mean, while the others stay at the posterior mean of one datum; units in order "
            "of their variance over data.",
            figure,
        ),
    ]


def _explorer(
    run: Run,
    x: Tensor,
    labels: Tensor | None,
    data: Splits,
    means: Mapping[str, Tensor],
    aggregate: Mapping[str, tuple[Tensor, Tensor]],
) -> tuple[dict[str, Any] | None, list[str]]:
    """The latent explorer; or none, and why."""
    try:
        color, name = _color(labels, data)
        return interactive.explorer(run.model, x, means, aggregate, color, name), []
    except ValueError as error:
        return None, [f"There is no latent explorer: {error}."]


def _color(labels: Tensor | None, data: Splits) -> tuple[Tensor | None, str]:
    """The labels that points are coloured by, the first of several, and what they are called."""
    color = None if labels is None else labels[:, 0] if labels.dim() == 2 else labels
    return color, data.label_names[0] if labels is not None and data.label_names else ""


def _two_dimensions(z: Tensor, site: str) -> tuple[Tensor, tuple[str, str], str]:
    """Posterior means as points of a plane, the names of its axes, and how they were made."""
    if z.shape[1] == 1:
        z = torch.cat([z, torch.zeros_like(z)], dim=1)
        return z, (f"{site}[0]", ""), "One unit."
    if z.shape[1] == 2:
        return z, (f"{site}[0]", f"{site}[1]"), "Both units."
    first, second = z.var(0).argsort(descending=True)[:2].tolist()
    chosen = z[:, [first, second]]
    return (
        chosen,
        (f"{site}[{first}]", f"{site}[{second}]"),
        f"The two units of largest variance over data, of {z.shape[1]}.",
    )


def _shown(run: Run, data: Splits, split: str) -> tuple[Tensor, Tensor | None]:
    name = split if len(getattr(data, split)) else "train"
    x, labels = getattr(data, name), data.labels.get(name)
    if isinstance(x, Rows):
        x = some_rows(x, min(len(x), _MAX_POINTS), seed=0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:_MAX_POINTS]
    x, labels = x[order], None if labels is None else labels[order]
    return run.like(data.draw(x) if name == "train" else x), labels


def _name(run: Run, key: str) -> str:
    """A config entry in one line: the class and the arguments given."""
    entry = run.config.get(key)
    if not isinstance(entry, Mapping):
        return "a function given in Python" if entry is None else str(entry)
    given = {k: v for k, v in (entry.get("init_args") or {}).items() if v is not None}
    arguments = ", ".join(f"{name}={_short(value)}" for name, value in given.items())
    return f"{entry['class_path'].rpartition('.')[2]}({arguments})"


def _class(run: Run, key: str) -> str:
    return _name(run, key).partition("(")[0]


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        return value["class_path"].rpartition(".")[2]
    if isinstance(value, list) and len(str(value)) > 60:
        return "[...]"
    return str(value)
