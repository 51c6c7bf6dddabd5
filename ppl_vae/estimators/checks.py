"""What an estimator may ask of a pair; each refusal names both sides and the way out."""

from ppl_vae.estimators.pair import Pair
from ppl_vae.estimators.sites import family_of, is_auxiliary, samples
from ppl_vae.handlers import is_weighted

__all__ = [
    "check_density",
    "check_local",
    "check_reparameterized",
    "check_unmasked",
    "check_unweighted",
]


def check_reparameterized(pair: Pair, estimator: str) -> None:
    """Refuses a guide with a site that has no pathwise derivative."""
    for name, site in samples(pair.guide_trace):
        if not site["fn"].has_rsample:
            raise ValueError(
                f"{estimator} needs reparameterized guides, and the guide samples '{name}' from "
                f"{family_of(site['fn'])}, which is not. Accepted are TraceScoreFunction_ELBO, "
                "TraceVIMCO_ELBO, TraceOVIS_ELBO, TraceRWS_ELBO, TraceTVO_ELBO, or Pyro's own: "
                "pyro.infer.Trace_ELBO, and TraceEnum_ELBO for a discrete site that can be "
                "enumerated"
            )


def check_density(pair: Pair, estimator: str) -> None:
    """Refuses a guide that is a point mass."""
    if not pair.has_density:
        raise ValueError(
            f"{estimator} needs the density of the guide, and a point mass (DeltaGuide) has none; "
            "use MeanFieldGuide or another guide with a density"
            + (", or Trace_ELBO" if estimator.endswith("_ELBO") else "")
        )


def check_unweighted(pair: Pair, estimator: str, way_out: str) -> None:
    """Refuses a KL weight."""
    if any(is_weighted(site) for _, site in samples(pair.guide_trace)):
        raise ValueError(
            f"{estimator} takes no KL weight; use the schedule Constant(1.0), {way_out}"
        )


def check_unmasked(pair: Pair, estimator: str) -> None:
    """Refuses a mask on what the guide samples."""
    for name, site in samples(pair.guide_trace):
        if site["mask"] is not None and site["mask"] is not True:
            raise ValueError(
                f"{estimator} takes no mask on what the guide samples, and '{name}' has one; "
                "accepted there is TraceIWAE_ELBO. A mask on what the model observes is fine"
            )


def check_local(pair: Pair, estimator: str) -> None:
    """Refuses a pair that has no weight for each datum: a site outside the data plate.

    And other plates that are subsampled: the N/B of a plate within a datum would stand inside the
    logarithm, where an unbiased estimate does not stay one.
    """
    plate = pair.data_plate
    where = f"the plate '{plate.name}'"
    if not plate.vectorized:
        raise ValueError(
            f"{estimator} needs a vectorized data plate, and {where} is a loop; write "
            '`with pyro.plate("data", len(x), dim=-1):` in place of `for`'
        )
    for trace in (pair.model_trace, pair.guide_trace):
        for name, site in samples(trace):
            frames = {frame.name: frame for frame in site["cond_indep_stack"]}
            if plate.name not in frames:
                what = "auxiliary site" if is_auxiliary(site) else "site"
                raise ValueError(
                    f"{estimator} weighs each datum by itself, and the {what} '{name}' lies "
                    f"outside {where}. Accepted there are Trace_ELBO, TraceAnalyticKL_ELBO, "
                    "TraceSTL_ELBO"
                )
            for frame in frames.values():
                if frame.name != plate.name and frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"{estimator} weighs each datum by itself, and the plate '{frame.name}' "
                        f"around '{name}' is subsampled; accepted are a subsampled {where} alone, "
                        "and Trace_ELBO"
                    )
