"""What to cite for a run: the papers of its model, guide, estimator, schedule and data."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

__all__ = ["CITATIONS", "cite"]

CITATIONS: dict[str, tuple[str, ...]] = {
    # Models, likelihoods, networks.
    "VAE": ("kingma2014auto",),
    "HierarchicalVAE": ("burda2016importance", "sonderby2016ladder", "tomczak2018vae"),
    "GaussianMixtureVAE": ("kingma2014semi", "dilokthanakul2016deep", "jiang2017variational"),
    "VampPrior": ("tomczak2018vae",),
    "LinearGaussian": ("tipping1999probabilistic",),
    "HierarchicalLinearGaussian": ("tipping1999probabilistic",),
    "Bernoulli": (),
    "ContinuousBernoulli": ("loaizaganem2019continuous",),
    "Gaussian": (),
    "Laplace": (),
    "DenseEncoder": (),
    "DenseDecoder": (),
    "ConvEncoder": (),
    "ConvDecoder": (),
    "GatedEncoder": ("dauphin2017language", "tomczak2018vae"),
    "GatedDecoder": ("dauphin2017language", "tomczak2018vae"),
    # Guides.
    "MeanFieldGuide": ("kingma2014auto",),
    "FullRankGuide": ("titsias2014doubly",),
    "LowRankGuide": ("ong2018gaussian",),
    "MixtureGuide": ("jankowiak2019pathwise",),
    "IAFGuide": ("kingma2016improved",),
    "NeuralSplineGuide": ("durkan2019neural",),
    "PlanarGuide": ("rezende2015variational",),
    "SylvesterGuide": ("vandenberg2018sylvester",),
    "FamilyGuide": (),
    "TopDownGuide": ("sonderby2016ladder",),
    "BottomUpGuide": ("burda2016importance",),
    "LadderGuide": ("sonderby2016ladder",),
    "SemiAmortizedGuide": ("kim2018semi",),
    "PerDatumGuide": ("cremer2018inference",),
    "FrozenGuide": (),
    "GaussianMixtureGuide": ("kingma2014semi", "dilokthanakul2016deep"),
    "DeltaGuide": (),
    # Families.
    "DiagonalNormal": ("kingma2014auto",),
    "FullRankNormal": ("titsias2014doubly",),
    "LowRankNormal": ("ong2018gaussian",),
    "Mixture": ("jankowiak2019pathwise",),
    "InverseAutoregressive": ("kingma2016improved", "germain2015made"),
    "MaskedAutoregressive": ("papamakarios2017masked", "germain2015made"),
    "NeuralSpline": ("durkan2019neural", "germain2015made"),
    "Planar": ("rezende2015variational",),
    "Sylvester": ("vandenberg2018sylvester",),
    # Estimators, baselines.
    "Trace_ELBO": ("kingma2014auto", "ranganath2014black", "wingate2013automated"),
    "TraceAnalyticKL_ELBO": ("kingma2014auto",),
    "TraceSTL_ELBO": ("roeder2017sticking",),
    "TraceIWAE_ELBO": ("burda2016importance",),
    "TraceMIWAE_ELBO": ("rainforth2018tighter",),
    "TracePIWAE_ELBO": ("rainforth2018tighter",),
    "TraceCIWAE_ELBO": ("rainforth2018tighter",),
    "TraceRenyi_ELBO": ("li2016renyi",),
    "TraceDReG_ELBO": ("tucker2019doubly", "bauer2021generalized"),
    "TraceIWAESTL_ELBO": ("roeder2017sticking", "tucker2019doubly"),
    "TraceScoreFunction_ELBO": (
        "williams1992simple", "ranganath2014black", "mnih2014neural", "kool2019buy"),
    "TraceVIMCO_ELBO": ("mnih2016variational",),
    "TraceOVIS_ELBO": ("lievin2020optimal",),
    "TraceRWS_ELBO": ("bornschein2015reweighted", "le2020revisiting"),
    "TraceTVO_ELBO": ("masrani2019thermodynamic",),
    "TraceFreeBits_ELBO": ("kingma2016improved",),
    "TraceCapacity_ELBO": ("burgess2018understanding",),
    "LeaveOneOut": ("kool2019buy",),
    "DecayingAverage": ("mnih2014neural",),
    # Schedules.
    "Constant": (),
    "Linear": ("bowman2016generating", "sonderby2016ladder"),
    "Sigmoid": ("bowman2016generating",),
    "Cosine": (),
    "Cyclical": ("fu2019cyclical",),
    "PerSite": (),
    # Optimizers of torch.
    "Adam": ("kingma2015adam",),
    "AdamW": ("loshchilov2019decoupled",),
    # Data.
    "digits": ("pedregosa2011scikit", "alpaydin1998optical"),
    "mnist": ("lecun1998gradient",),
    "fashion_mnist": ("xiao2017fashion",),
    "binarized_mnist": (
        "lecun1998gradient", "salakhutdinov2008quantitative", "larochelle2011neural"),
    "omniglot": ("lake2015human",),
    "sprites": ("matthey2017dsprites",),
}  # fmt: skip
"""Of each class, and of each data set by name, the keys of its papers in `references.bib`."""

_ALWAYS = {"Pyro": ("bingham2019pyro",), "PyTorch": ("paszke2019pytorch",)}


def cite(config: Mapping[str, Any]) -> str:
    """BibTeX of what a run used, with a comment that says which paper is whose.

    Classes that are not the library's are named in a comment, for you to fill in. A KL weight that
    stays at another value than 1 is beta-VAE's.

    Args:
        config: What `config.yaml` of a run holds; `ppl_vae.load_run(path).config`.

    Example:
        >>> print(cite({"data": "mnist"}).splitlines()[1])
        % data mnist: lecun1998gradient
    """
    used: dict[str, tuple[str, ...]] = {}
    unknown = []
    for role, name, ours in _parts(config):
        if ours and name in CITATIONS:
            used[f"{role} {name}"] = CITATIONS[name]
        elif role != "data":
            unknown.append(f"{role} {name}")
    if (weight := _constant_weight(config)) not in (None, 0, 1):
        used[f"KL weight {weight}"] = ("higgins2017beta",)
    used |= _ALWAYS
    keys = dict.fromkeys(key for papers in used.values() for key in papers)
    comments = [f"% {what}: {', '.join(papers)}" for what, papers in used.items() if papers]
    comments += [f"% {what}: not of ppl_vae; its own paper, where it has one" for what in unknown]
    entries = _entries()
    return "\n".join(["% ppl_vae: ppl_vae", *comments, "", _own(), *(entries[k] for k in keys)])


def _parts(entry: Any, role: str = "") -> Iterator[tuple[str, str, bool]]:
    """Role, name, and whether its papers are known, of every class and of the data."""
    if isinstance(entry, Mapping):
        if path := entry.get("class_path"):
            module, _, name = str(path).rpartition(".")
            yield role, name, module.split(".")[0] == "ppl_vae" or module.startswith("torch.optim")
        for key, value in entry.items():
            if key == "data" and isinstance(value, str) and not role:
                yield "data", value, True
            elif key != "class_path":
                yield from _parts(value, role or key)
    elif isinstance(entry, list | tuple):
        for value in entry:
            yield from _parts(value, role)


def _constant_weight(config: Mapping[str, Any]) -> float | None:
    schedule = config.get("schedule")
    if isinstance(schedule, Mapping) and str(schedule.get("class_path")).endswith(".Constant"):
        return (schedule.get("init_args") or {}).get("value", 1.0)
    return None


def _entries() -> dict[str, str]:
    text = (files("ppl_vae") / "references.bib").read_text(encoding="utf-8")
    blocks = [block.strip() + "\n" for block in re.split(r"\n\n+(?=@)", text)]
    return {re.match(r"@\w+\{([^,]+),", block)[1]: block for block in blocks}  # type: ignore[index]


def _own() -> str:
    return (
        "@software{ppl_vae,\n"
        "  title = {{ppl\\_vae}: Variational Autoencoders as {P}yro Model/Guide Pairs},\n"
        "  author = {{The ppl\\_vae developers}},\n"
        f"  version = {{{version('ppl_vae')}}}\n"
        "}\n"
    )
