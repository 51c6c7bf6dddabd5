"""What is to be known of each guide before it is chosen: the table of the README, and of `list`."""

from dataclasses import dataclass

__all__ = ["CARDS", "Card"]

ALL = "all"
AT_OWN_DRAWS = "all that take no density at given values (not STL, DReG, scores, RWS, TVO)"
POINT = "`Trace_ELBO`, Pyro's"
SCORES = "scores, RWS, TVO, Pyro's `TraceEnum_ELBO`"


@dataclass(frozen=True)
class Card:
    """One guide.

    Attributes:
        q: The guide, for two levels where that says more than one.
        represents: What it can.
        cost: Numbers a site, or what it does besides.
        reparameterized: Whether its draws are differentiable.
        estimators: Which take it; for models whose sites are all continuous.
        paper: Where it is from.
    """

    q: str
    represents: str
    cost: str
    reparameterized: str
    estimators: str
    paper: str

    def __iter__(self):
        return iter(vars(self).items())


CARDS: dict[str, Card] = {
    "MeanFieldGuide": Card(
        "q(z1 | x) q(z2 | x)", "diagonal normals; any support", "2 D numbers", "yes", ALL,
        "Kingma & Welling 2014"),
    "FullRankGuide": Card(
        "q(z1 | x) q(z2 | x)", "any covariance within a site", "D (D + 3) / 2 numbers", "yes", ALL,
        "Titsias & Lázaro-Gredilla 2014"),
    "LowRankGuide": Card(
        "q(z1 | x) q(z2 | x)", "R directions of correlation within a site", "D (R + 2) numbers",
        "yes", ALL, "Ong et al. 2018"),
    "MixtureGuide": Card(
        "q(z1 | x) q(z2 | x)", "C modes within a site", "C (2 D + 1) numbers", "yes", ALL,
        "Jankowiak & Karaletsos 2019"),
    "IAFGuide": Card(
        "q(z1 | x) q(z2 | x)", "autoregressive maps of a normal; any covariance",
        "2 D + C numbers, T networks a draw; a density elsewhere, D passes", "yes", ALL,
        "Kingma et al. 2016"),
    "NeuralSplineGuide": Card(
        "q(z1 | x) q(z2 | x)", "autoregressive splines: modes, skew, any covariance",
        "2 D + C numbers, T networks a draw; a density elsewhere, D passes", "yes", ALL,
        "Durkan et al. 2019"),
    "PlanarGuide": Card(
        "q(z1 | x) q(z2 | x)", "T stretches across hyperplanes", "2 D + T (2 D + 1) numbers", "yes",
        AT_OWN_DRAWS, "Rezende & Mohamed 2015"),
    "SylvesterGuide": Card(
        "q(z1 | x) q(z2 | x)", "T residual maps of triangular matrices",
        "2 D + T D (D + 2) numbers", "yes", AT_OWN_DRAWS, "van den Berg et al. 2018"),
    "FamilyGuide": Card(
        "q(z1 | x) q(z2 | x)", "what its family can", "the family's", "the family's",
        "the family's", "-"),
    "TopDownGuide": Card(
        "q(z2 | x) q(z1 | z2, x)", "a posterior that factorizes as the model; any family",
        "a small network a site", "as the family", ALL, "Sønderby et al. 2016"),
    "BottomUpGuide": Card(
        "q(z1 | x) q(z2 | z1)", "the posterior of a chain, from below; any family",
        "a small network a site", "as the family", ALL, "Burda et al. 2016"),
    "LadderGuide": Card(
        "q(z2 | x) q(z1 | z2, x)", "normals merged with the model's own p(z1 | z2)",
        "a run of the model's prior; reads the model's parameters", "yes", ALL,
        "Sønderby et al. 2016"),
    "SemiAmortizedGuide": Card(
        "that of another, refined", "what the other can, nearer to its optimum",
        "T runs of model and guide with gradients; reads the model's parameters", "as the other",
        ALL, "Kim et al. 2018"),
    "PerDatumGuide": Card(
        "that of another, numbers free", "what the other can, at its optimum; evaluation only",
        "an optimization for each datum", "as the other", ALL, "Cremer et al. 2018"),
    "FrozenGuide": Card(
        "that of another, in part frozen", "what the other can", "the other's", "as the other", ALL,
        "-"),
    "GaussianMixtureGuide": Card(
        "q(y | x) q(z | x, y)", "a discrete y, sampled or enumerated, and a normal for each",
        "C + 2 D numbers a class", "z only", SCORES, "Kingma et al. 2014"),
    "DeltaGuide": Card(
        "δ(z − f(x))", "a point: deterministic autoencoder, amortized MAP", "D numbers", "yes",
        POINT, "-"),
}  # fmt: skip
"""By name. Numbers are the encoder's, for a site of D dimensions."""
