"""What a grid of trainings has come to: rows of means, errors and differences."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ppl_vae.evaluate import Estimate
from ppl_vae.laboratory.cells import Record
from ppl_vae.laboratory.statistics import Paired, holm, mean_of, paired

__all__ = ["Comparison", "Row"]

# The axis whose values are repeats of one way.
REPEATS = "seed"


@dataclass(frozen=True)
class Row:
    """One way of training, over its repeats.

    Attributes:
        labels: What it is on each axis but the repeats.
        metrics: Mean and standard error over repeats.
        paired: For each metric the mean difference to the baseline, repeat by repeat; none of the
            baseline itself.
        num: How many repeats are done.
        failed: What failed, by repeat.
    """

    labels: dict[str, str]
    metrics: dict[str, Estimate]
    paired: dict[str, Paired]
    num: int
    failed: dict[str, str]

    @property
    def name(self) -> str:
        """Its labels, joined."""
        return ", ".join(self.labels.values())

    @property
    def short_name(self) -> str:
        """Its name for a figure, arguments without their names: `TraceIWAE_ELBO(5)`."""
        return re.sub(r"\b\w+=", "", self.name)


@dataclass(frozen=True)
class Comparison:
    """A grid of trainings, compared.

    Attributes:
        axes: The names of the axes.
        records: What is done and what has failed, in the order of the grid.
        baseline: The labels of the row that the others are compared with.
        metrics: What is compared: names of results, `seconds`, `num_steps`, and `elbo_at_time`.
        missing: How many cells have not been run.
    """

    axes: list[str]
    records: list[Record]
    baseline: dict[str, str]
    metrics: list[str]
    missing: int = 0

    @property
    def equal_time(self) -> float:
        """The time of the fastest training, in seconds: `elbo_at_time` is what all had by then."""
        return min((r.seconds for r in self.records if r.is_done), default=math.nan)

    def rows(self) -> list[Row]:
        """A row for each way; p-values are corrected for the number of rows (Holm, 1979)."""
        ways: dict[tuple[str, ...], dict[str, Record]] = {}
        for record in self.records:
            way = tuple(v for name, v in record.labels.items() if name != REPEATS)
            ways.setdefault(way, {})[record.labels.get(REPEATS, "")] = record
        kept = [name for name in self.axes if name != REPEATS]
        against = ways.get(tuple(self.baseline[name] for name in kept), {})
        rows = [self._row(dict(zip(kept, way, strict=True)), w, against) for way, w in ways.items()]
        for metric in self.metrics:
            raised = holm(
                [r.paired[metric].p_value if metric in r.paired else math.nan for r in rows]
            )
            for row, p_value in zip(rows, raised, strict=True):
                if metric in row.paired:
                    row.paired[metric] = replace(row.paired[metric], p_value=p_value)
        return rows

    def values(self, records: Mapping[str, Record], metric: str) -> dict[str, float]:
        """A metric of each repeat that is done."""
        return {
            repeat: record.elbo_after(self.equal_time)
            if metric == "elbo_at_time"
            else record.metric(metric)
            for repeat, record in records.items()
            if record.is_done
        }

    def _row(
        self,
        labels: dict[str, str],
        records: Mapping[str, Record],
        against: Mapping[str, Record],
    ) -> Row:
        values = {metric: self.values(records, metric) for metric in self.metrics}
        differences = {}
        if records is not against:
            for metric in self.metrics:
                differences[metric] = paired(values[metric], self.values(against, metric))
        return Row(
            labels,
            {metric: mean_of(list(found.values())) for metric, found in values.items()},
            differences,
            sum(record.is_done for record in records.values()),
            {repeat: r.error for repeat, r in records.items() if not r.is_done},
        )


def metrics_of(records: Sequence[Record]) -> list[str]:
    """What there is to compare: bounds, latents, cost."""
    found: list[str] = []
    for record in records:
        names = [
            name for name in ("log_marginal", "elbo", "reconstruction") if name in record.results
        ]
        for nested in ("kl", "log_prior", "active_units", "classes", "measures"):
            names += [f"{nested}.{site}" for site in record.results.get(nested, {})]
        found += [name for name in names if name not in found]
    order = ("log_marginal", "elbo", "elbo_at_time")
    found += ["elbo_at_time"] if any(r.validations for r in records) else []
    first = [name for name in order if name in found]
    return [*first, *(name for name in found if name not in first), "seconds"]
