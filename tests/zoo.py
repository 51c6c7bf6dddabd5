"""Every public model, guide, estimator and schedule, built small. A new one is one line here."""

import inspect
from functools import partial

import torch

from ppl_vae import estimators, families, guides, models, schedules

IMAGE = (1, 6, 6)

_conv_decoder = partial(models.ConvDecoder, channels=(3, 2), features=5)
_W1 = [[1.0, -0.5], [0.3, 0.8], [0.0, 1.2]]
_W2 = [[0.7], [-0.4]]


def _conv_encoder(model):
    """Convolutions where the data are images."""
    if len(model.data_shape) < 3:
        return partial(models.DenseEncoder, hidden=(5,))
    return partial(models.ConvEncoder, channels=(2, 3), features=5)


MODELS = {
    "VAE": lambda: models.VAE(IMAGE, latent_dim=3, hidden=(5,)),
    "VAE-linear": lambda: models.VAE((4,), latent_dim=1, hidden=()),
    "VAE-conv": lambda: models.VAE(IMAGE, latent_dim=3, decoder=_conv_decoder),
    "VAE-ContinuousBernoulli": lambda: models.VAE(
        IMAGE, 2, (5,), activation="tanh", likelihood=models.ContinuousBernoulli()
    ),
    "VAE-Gaussian": lambda: models.VAE((2, 3), 2, (5,), likelihood=models.Gaussian(0.5)),
    "VAE-Laplace": lambda: models.VAE(
        IMAGE, 2, (5,), likelihood=models.Laplace(0.5, learn_scale=True)
    ),
    "VAE-mixture": lambda: models.VAE(IMAGE, 2, (5,), prior=families.Mixture(3)),
    "VampPrior": lambda: models.VampPrior(models.VAE(IMAGE, 2, (5,)), num_components=4),
    "HierarchicalVAE": lambda: models.HierarchicalVAE(IMAGE, (3, 2), (5,), (4,)),
    "HierarchicalVAE-3": lambda: models.HierarchicalVAE(
        IMAGE, (4, 3, 2), latent_hidden=(), decoder=_conv_decoder, skip=True
    ),
    "LinearGaussian": lambda: models.LinearGaussian(_W1, [0.5, 1.0, 2.0], [0.1, 0.2, 0.3]),
    "HierarchicalLinearGaussian": lambda: models.HierarchicalLinearGaussian((_W1, _W2), (0.6, 0.9)),
    "GaussianMixtureVAE": lambda: models.GaussianMixtureVAE(IMAGE, 3, 2, (5,), activation="tanh"),
}

GUIDES = {
    "MeanFieldGuide": lambda model: guides.MeanFieldGuide(model, hidden=(5,)),
    "MeanFieldGuide-conv": lambda model: guides.MeanFieldGuide(model, encoder=_conv_encoder(model)),
    "FamilyGuide": lambda model: guides.FamilyGuide(model, (5,), families.DiagonalNormal()),
    "FullRankGuide": lambda model: guides.FullRankGuide(model, hidden=(5,)),
    "LowRankGuide": lambda model: guides.LowRankGuide(model, hidden=(5,), rank=1),
    "MixtureGuide": lambda model: guides.MixtureGuide(model, hidden=(5,), num_components=2),
    "IAFGuide": lambda model: guides.IAFGuide(model, (5,), context_dim=3, flow_hidden=(6,)),
    "NeuralSplineGuide": lambda model: guides.NeuralSplineGuide(
        model, (5,), num_flows=1, num_bins=3, context_dim=3, flow_hidden=(6,)
    ),
    "PlanarGuide": lambda model: guides.PlanarGuide(model, (5,), num_flows=2),
    "SylvesterGuide": lambda model: guides.SylvesterGuide(model, (5,), num_flows=2),
    "TopDownGuide": lambda model: guides.TopDownGuide(model, (5,), (4,), activation="tanh"),
    "BottomUpGuide": lambda model: guides.BottomUpGuide(
        model, (5,), (), families.FullRankNormal(), activation="tanh"
    ),
    "LadderGuide": lambda model: guides.LadderGuide(model, (5,), (4,), activation="tanh"),
    "SemiAmortizedGuide": lambda model: guides.SemiAmortizedGuide(
        guides.MeanFieldGuide(model, (5,)), num_steps=2
    ),
    "FrozenGuide": lambda model: guides.FrozenGuide(guides.MeanFieldGuide(model, (5,))),
    "DeltaGuide": lambda model: guides.DeltaGuide(model, hidden=(5, 4), activation="tanh"),
    "GaussianMixtureGuide": lambda model: guides.GaussianMixtureGuide(
        model, hidden=(5,), activation="tanh"
    ),
}


def _around(cls, **options):
    """A modifier around `TraceAnalyticKL_ELBO`, which then takes the particles."""
    return lambda **how: cls(estimator=estimators.TraceAnalyticKL_ELBO(**how), **options)


ESTIMATORS = {
    "Trace_ELBO": estimators.Trace_ELBO,
    "TraceAnalyticKL_ELBO": estimators.TraceAnalyticKL_ELBO,
    "TraceSTL_ELBO": estimators.TraceSTL_ELBO,
    "TraceIWAE_ELBO": estimators.TraceIWAE_ELBO,
    "TraceIWAESTL_ELBO": estimators.TraceIWAESTL_ELBO,
    "TraceDReG_ELBO": estimators.TraceDReG_ELBO,
    "TraceMIWAE_ELBO": partial(estimators.TraceMIWAE_ELBO, num_outer=3),
    "TracePIWAE_ELBO": partial(estimators.TracePIWAE_ELBO, num_outer=3),
    "TraceCIWAE_ELBO": partial(estimators.TraceCIWAE_ELBO, elbo_weight=0.3),
    "TraceRenyi_ELBO": partial(estimators.TraceRenyi_ELBO, alpha=0.4),
    "TraceTVO_ELBO": partial(estimators.TraceTVO_ELBO, num_partitions=3),
    "TraceScoreFunction_ELBO": estimators.TraceScoreFunction_ELBO,
    "TraceVIMCO_ELBO": estimators.TraceVIMCO_ELBO,
    "TraceOVIS_ELBO": partial(estimators.TraceOVIS_ELBO, gamma=0.5),
    "TraceRWS_ELBO": partial(estimators.TraceRWS_ELBO, insomnia=0.5),
    "TraceCapacity_ELBO": _around(
        estimators.TraceCapacity_ELBO, gamma=3.0, capacity=schedules.Constant(0.5)
    ),
    "TraceFreeBits_ELBO": _around(estimators.TraceFreeBits_ELBO, nats=0.1),
}

SCHEDULES = {
    "Constant": lambda: schedules.Constant(0.7),
    "Linear": lambda: schedules.Linear(10, start=0.2, end=2.0),
    "Cosine": lambda: schedules.Cosine(10),
    "Sigmoid": lambda: schedules.Sigmoid(10, start=1.0, end=0.1, steepness=6.0),
    "Cyclical": lambda: schedules.Cyclical(num_cycles=3, num_steps=12, ratio=0.5),
    "PerSite": lambda: schedules.PerSite({"z1": schedules.Linear(4), "z2": schedules.Constant(1)}),
}

# Models with a discrete latent, guides for these alone, and estimators that take such pairs.
DISCRETE_MODELS = {"GaussianMixtureVAE"}
_DISCRETE_GUIDES = {"GaussianMixtureGuide"}
_SCORE = {
    "TraceScoreFunction_ELBO",
    "TraceVIMCO_ELBO",
    "TraceOVIS_ELBO",
    "TraceRWS_ELBO",
    "TraceTVO_ELBO",
}
# Guides that have no use for a discrete site.
_CONTINUOUS = {"DeltaGuide", "LadderGuide", "SemiAmortizedGuide"}
# Guides that are points, that have a density at their own draws alone, and who cannot do with that.
_POINTS = {"DeltaGuide"}
NO_INVERSE = {"PlanarGuide", "SylvesterGuide"}
AT_GIVEN_VALUES = {"TraceSTL_ELBO", "TraceDReG_ELBO", "TraceIWAESTL_ELBO", *_SCORE}


def fits(model_name, guide_name):
    """Whether a guide is made for a model; else its constructor refuses the model."""
    if model_name in DISCRETE_MODELS:
        return guide_name not in _CONTINUOUS
    if model_name == "VampPrior" and guide_name in {*NO_INVERSE, *_POINTS, *BY_BATCH}:
        return False
    return guide_name not in _DISCRETE_GUIDES


def refusal(model_name, estimator, guide_name):
    """What an estimator says of a pair that it refuses on purpose; nothing if it takes it."""
    if guide_name in _POINTS and estimator != "Trace_ELBO":
        return f"{estimator}.*DeltaGuide"
    reasons = []
    if model_name in DISCRETE_MODELS and estimator not in _SCORE:
        # A modifier's terms are those of the estimator in it, which speaks for itself.
        reasons.append(r"_ELBO needs reparameterized guides, and the guide samples 'y'")
    if guide_name in NO_INVERSE and estimator in AT_GIVEN_VALUES:
        reasons.append(
            "needs the guide's density at given values, and the guide has a flow without"
        )
    return "|".join(reasons) or None


# Bounds that at the exact posterior are log p(x) in mean only: a KL in closed form beside a sampled
# reconstruction.
EXACT_IN_MEAN = {"TraceAnalyticKL_ELBO", "TraceFreeBits_ELBO"}

#: Guides whose q of a datum hangs on the batch; for data that they are made with; that use the
#: model's parameters as their own.
BY_BATCH, EVALUATION_ONLY, READS_MODEL = {"SemiAmortizedGuide"}, {"PerDatumGuide"}, {"LadderGuide"}

#: The legal pairs of a model and a guide.
PAIRS = [(model, guide) for model in MODELS for guide in GUIDES if fits(model, guide)]


def accepted(*model_names):
    """The legal triples of a model (of all, if none is named), an estimator and a guide."""
    return [
        (model, estimator, guide)
        for model, guide in PAIRS
        for estimator in ESTIMATORS
        if model in (model_names or MODELS) and refusal(model, estimator, guide) is None
    ]


def refused():
    """A triple for each reason, estimator and guide that do not go together."""
    found = {
        (refusal(model, estimator, guide), estimator, guide): (model, estimator, guide)
        for model, guide in PAIRS
        for estimator in ESTIMATORS
        if refusal(model, estimator, guide) is not None
    }
    return sorted(found.values())


def along_the_axes():
    """Every legal pair with one estimator, and every estimator with one guide of each model."""
    first = {model: next(g for m, g in PAIRS if m == model) for model in MODELS}
    plain = {"Trace_ELBO", "TraceScoreFunction_ELBO"}
    return [
        (model, estimator, guide)
        for model, estimator, guide in accepted()
        if guide == first[model] or estimator in plain
    ]


def pair(model_name, guide_name):
    """A model and a guide for it; bound to each other where the model asks for that."""
    model = MODELS[model_name]()
    guide = GUIDES[guide_name](model)
    if hasattr(model, "bind"):
        model.bind(guide)
    return model, guide


def any_guide(model_name):
    """A guide for a model."""
    return next(GUIDES[guide] for model, guide in PAIRS if model == model_name)


def any_model(guide_name):
    """A model for a guide."""
    return next(MODELS[model] for model, guide in PAIRS if guide == guide_name)


def any_estimator(model_name, **how):
    """The evidence lower bound, by an estimator that takes every guide of the model."""
    if model_name in DISCRETE_MODELS:
        return estimators.TraceScoreFunction_ELBO(pathwise=True, **how)
    return estimators.Trace_ELBO(**how)


def estimator(name, num_particles, **how):
    """An estimator with so many particles, or as few as it takes."""
    return ESTIMATORS[name](num_particles=max(num_particles, min_particles(name)), **how)


def min_particles(name):
    """The fewest particles that an estimator takes."""
    return ESTIMATORS[name]().min_particles


def batch(model, num_data=5, seed=1):
    """Data that the model takes, drawn from the unit cube; binary where it must be."""
    shape = (num_data, *model.data_shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if model.is_proper(x) else x.round()


def concrete(package, base):
    """The public classes of a package that can be instantiated, by name."""
    found = {name: getattr(package, name) for name in package.__all__}
    return {
        name: cls
        for name, cls in found.items()
        if inspect.isclass(cls) and issubclass(cls, base) and not inspect.isabstract(cls)
    }
