"""The model and guide with a discrete latent, against sums over y written out in this file.

Shapes: C components, K particles, B data, X dimensions of x, D of z, F features.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch.optim import Adam
from torch.utils.data import TensorDataset

import ppl_vae
from ppl_vae.config import describe, instantiate
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.estimators.sites import samples
from ppl_vae.evaluate import log_marginal
from ppl_vae.guides import GaussianMixtureGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE, Gaussian, GaussianMixtureVAE, LinearGaussian
from ppl_vae.models.gaussian_mixture import IMPOSSIBLE, point_logits
from ppl_vae.schedules import Linear

C, B, X, D, SIGMA = 3, 5, 4, 2, 0.7
ALL = torch.tensor([0, 1, 2, 1, 0])
SOME = torch.tensor([-1, 1, 2, -1, 0])
NONE = torch.tensor([-1, -1, -1, -1, -1])


def make_pair(**options):
    """A pair whose every parameter is far from where it starts."""
    model = GaussianMixtureVAE((X,), C, D, (6,), activation="tanh", likelihood=Gaussian(SIGMA))
    guide = GaussianMixtureGuide(model, (5,), activation="tanh", **options)
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, guide


def enumerating(**options):
    return TraceEnum_ELBO(max_plate_nesting=1, **options)


@pytest.fixture
def play(monkeypatch):
    """`play(noise)`: every normal draws this noise from now on."""

    def play(noise):
        def taped(shape, dtype, device):
            return noise.expand(shape)

        monkeypatch.setattr(torch.distributions.normal, "_standard_normal", taped)

    return play


def normal(value, loc, scale):
    """log N(value; loc, diag scale^2), summed over the last dimension."""
    return (-0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def terms(model, guide, x, noise):
    """log q(y|x), log p(x|z), and log p(y) + log p(z|y) - log q(z|x,y), each `[C, B]`.

    `noise` is `[C, B, D]`, the standard normal of z at each y. From the parameters alone.
    """
    p, q = dict(model.named_parameters()), dict(guide.named_parameters())
    features = torch.tanh(x @ q["encoder.layers.0.weight"].mT + q["encoder.layers.0.bias"])
    logits = features @ q["classifier.weight"].mT + q["classifier.bias"]
    log_q_y = (logits - logits.exp().sum(1, keepdim=True).log()).mT
    reconstruction, latent = [], []
    for y in range(C):
        inner = features @ q["head.from_x.weight"].mT + q["head.from_x.bias"]
        inner = torch.tanh(inner + q["head.from_y.weight"][y])
        both = inner @ q["head.rest.1.weight"].mT + q["head.rest.1.bias"]
        loc, scale = both[:, :D], (0.5 * both[:, D:]).exp()
        z = loc + scale * noise[y]
        hidden = torch.tanh(z @ p["decoder.layers.0.weight"].mT + p["decoder.layers.0.bias"])
        mean = hidden @ p["decoder.layers.2.weight"].mT + p["decoder.layers.2.bias"]
        reconstruction.append(normal(x, mean, torch.full_like(mean, SIGMA)))
        log_p_y = p["logits"][y] - p["logits"].exp().sum().log()
        log_p_z = normal(z, p["loc"][y], p["log_scale"][y].exp())
        latent.append(log_p_y + log_p_z - normal(z, loc, scale))
    return log_q_y, torch.stack(reconstruction), torch.stack(latent)


def loss_by_hand(model, guide, x, y, noise, weight=1.0):
    """Minus the sum of the data's ELBOs; of a row without a label, summed over y."""
    log_q_y, reconstruction, latent = terms(model, guide, x, noise)
    loss = 0.0
    for row in range(B):
        if y[row] >= 0:
            loss = loss - reconstruction[y[row], row] - weight * latent[y[row], row]
        else:
            gain = reconstruction[:, row] + weight * (latent[:, row] - log_q_y[:, row])
            loss = loss - (log_q_y[:, row].exp() * gain).sum()
    return loss


def assert_same_with_gradients(found, expected, *modules):
    parameters = [p for module in modules for p in module.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(found, parameters, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, other, parameter in zip(ours, theirs, parameters, strict=True):
        one, other = (torch.zeros_like(parameter) if g is None else g for g in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# -------------------------------------------------------------------------------- y summed out


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0, 2.0])
@pytest.mark.parametrize("y", [None, NONE, SOME, ALL], ids=["no y", "none", "some", "all"])
def test_the_enumerated_loss_is_the_sum_over_y(play, y, weight):
    model, guide = make_pair(enumerate=True)
    x, noise = torch.randn(B, X), torch.randn(C, B, D)
    play(noise)
    args = (x,) if y is None else (x, y)
    with scale_latents(weight):
        found = enumerating().differentiable_loss(model, guide, *args)
    expected = loss_by_hand(model, guide, x, NONE if y is None else y, noise, weight)
    assert_same_with_gradients(found, expected, model, guide)


def test_a_weight_for_each_site_stays_with_it(play):
    model, guide = make_pair(enumerate=True)
    x, noise = torch.randn(B, X), torch.randn(C, B, D)
    play(noise)
    with scale_latents({"y": 0.3}):
        found = enumerating().differentiable_loss(model, guide, x)
    log_q_y, reconstruction, latent = terms(model, guide, x, noise)
    log_p_y = model.logits.log_softmax(0).unsqueeze(1)
    gain = reconstruction + latent - log_p_y + 0.3 * (log_p_y - log_q_y)
    assert_same_with_gradients(found, -(log_q_y.exp() * gain).sum(), model, guide)


@pytest.mark.parametrize("vectorize", [True, False])
def test_particles_are_averaged(play, vectorize):
    model, guide = make_pair(enumerate=True)
    x, noise = torch.randn(B, X), torch.randn(C, 4, B, D)
    if vectorize:
        play(noise)
    else:
        noise = noise[:, :1].expand_as(noise)
        play(noise[:, 0])
    elbo = enumerating(num_particles=4, vectorize_particles=vectorize)
    found = elbo.differentiable_loss(model, guide, x, SOME)
    each = [loss_by_hand(model, guide, x, SOME, noise[:, k]) for k in range(4)]
    assert_same_with_gradients(found, torch.stack(each).mean(), model, guide)


def test_without_enumeration_the_loss_is_right_in_expectation():
    model, guide = make_pair()
    x = torch.randn(B, X)
    elbos = pyro.infer.Trace_ELBO(), enumerating()
    guides = guide, pyro.infer.config_enumerate(guide)
    runs = [
        torch.tensor([elbo.loss(model, program, x, SOME) for _ in range(300)])
        for elbo, program in zip(elbos, guides, strict=True)
    ]
    error = sum(run.var() / len(run) for run in runs).sqrt()
    assert abs(runs[0].mean() - runs[1].mean()) <= 5 * error
    assert runs[1].var() < runs[0].var()


# --------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("enumerate_", [True, False])
def test_a_known_label_leaves_nothing_of_y_to_chance(play, enumerate_):
    model, guide = make_pair(enumerate=enumerate_)
    x, noise = torch.randn(B, X), torch.randn(B, D)
    play(noise)
    elbo = enumerating() if enumerate_ else pyro.infer.Trace_ELBO()
    found = elbo.differentiable_loss(model, guide, x, ALL)
    expected = loss_by_hand(model, guide, x, ALL, noise.expand(C, B, D))
    assert_same_with_gradients(found, expected, model, guide)


def test_a_mixed_batch_is_the_sum_of_its_two_kinds(play):
    model, guide = make_pair(enumerate=True)
    x, noise, known = torch.randn(B, X), torch.randn(C, B, D), SOME >= 0
    losses = {}
    for name, rows in (("both", known | ~known), ("known", known), ("unknown", ~known)):
        play(noise[:, rows])
        args = (x[rows],) if name == "unknown" else (x[rows], SOME[rows])
        losses[name] = enumerating().differentiable_loss(model, guide, *args)
    expected = losses["known"] + losses["unknown"]
    assert_same_with_gradients(losses["both"], expected, model, guide)


@pytest.mark.parametrize("enumerate_", [True, False])
def test_the_classifier_learns_nothing_from_known_rows(enumerate_):
    model, guide = make_pair(enumerate=enumerate_)
    elbo = enumerating() if enumerate_ else pyro.infer.Trace_ELBO()
    elbo.loss_and_grads(model, guide, torch.randn(B, X), ALL)
    assert all((p.grad == 0).all() for p in guide.classifier.parameters())
    assert all((p.grad != 0).any() for p in guide.head.parameters())
    elbo.loss_and_grads(model, guide, torch.randn(B, X), SOME)
    assert all((p.grad != 0).all() for p in guide.classifier.parameters())


def test_a_known_label_is_a_point_however_sure_the_classifier_is_of_another():
    _, guide = make_pair()
    with torch.no_grad():
        guide.classifier.bias.copy_(torch.tensor([1e6, 0.0, -1e6]))
    trace = poutine.trace(guide).get_trace(torch.randn(B, X), ALL)
    trace.compute_log_prob()
    assert torch.equal(trace.nodes["y"]["value"], ALL)
    assert (trace.nodes["y"]["log_prob"] == 0).all()


def test_a_guide_that_ignores_the_labels_is_loud(play):
    model, guide = make_pair(enumerate=True)
    x, noise = torch.randn(B, X), torch.randn(C, B, D)
    play(noise)
    loss = enumerating().loss(model, lambda x, y: guide(x), x, ALL)
    wrong = 1 - guide.classify(x).exp()[range(B), ALL]
    expected = loss_by_hand(model, guide, x, NONE, noise) + 1e4 * wrong.sum()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    assert loss > 1e4


def joint(model, x, y, values):
    """The sum of all log-densities of a run at given latents."""
    return poutine.trace(poutine.condition(model, data=values)).get_trace(x, y).log_prob_sum()


def test_a_label_is_y_seen_without_error():
    model, _ = make_pair()
    x, z = torch.randn(B, X), torch.randn(B, D)
    free = joint(model, x, None, {"y": ALL, "z": z})
    assert joint(model, x, ALL, {"y": ALL, "z": z}) == free
    assert joint(model, x, SOME, {"y": ALL, "z": z}) == free
    assert joint(model, x, NONE, {"y": ALL, "z": z}) == free
    other = torch.tensor([0, 1, 0, 1, 2])
    expected = joint(model, x, None, {"y": other, "z": z}) + 2 * IMPOSSIBLE
    torch.testing.assert_close(joint(model, x, ALL, {"y": other, "z": z}), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_components", [2, 1000])
def test_a_point_mass_is_exactly_one(dtype, num_components):
    y = torch.arange(num_components)
    point = dist.Categorical(
        logits=point_logits(y, num_components, like=torch.ones((), dtype=dtype))
    )
    log_prob = point.log_prob(y)
    assert log_prob.dtype == dtype and (log_prob == 0).all()
    assert (point.probs == torch.eye(num_components, dtype=dtype)).all()
    other = point.log_prob(y.roll(1))
    assert other.isfinite().all() and (other < -9e3).all()
    # What the number is finite for.
    assert (other.exp() * other == 0).all()


def test_the_models_label_is_a_draw_of_its_y():
    model, _ = make_pair()
    trace = poutine.trace(poutine.uncondition(model)).get_trace(torch.zeros(50, X), NONE.repeat(10))
    assert torch.equal(trace.nodes["label"]["value"], trace.nodes["y"]["value"])
    assert trace.nodes["x"]["value"].abs().min() > 0
    assert set(trace.nodes["y"]["value"].tolist()) == {0, 1, 2}


BAD_FORM = [
    (ALL.double(), r"the labels are torch.float64; accepted are integers \[5\], .* -1 where"),
    (ALL > 0, r"the labels are torch.bool; accepted are integers"),
    (ALL.unsqueeze(1), r"the labels have shape \(5, 1\); accepted are integers \[5\]"),
    (ALL[:4], r"the labels have shape \(4,\); accepted are integers \[5\]"),
    (ALL.tolist(), r"the labels are of type list; accepted are integers \[5\]"),
]


@pytest.mark.parametrize("y, message", BAD_FORM)
def test_labels_of_another_form_are_refused(y, message):
    for program in make_pair():
        with pytest.raises(ValueError, match=f"{type(program).__name__}: {message}"):
            program(torch.randn(B, X), y)


def test_values_of_labels_are_checked_on_demand():
    model, _ = make_pair()
    for y in (ALL, SOME, NONE, ALL.to(torch.uint8), SOME.to(torch.int8)):
        model.check_labels(y)
    # The type of the integers makes no difference, be it one that has no -1.
    model, guide = make_pair(enumerate=True)
    x = torch.randn(B, X)
    for y, dtypes in ((ALL, ("uint8", "int8", "int32")), (SOME, ("int8", "int16"))):
        losses = set()
        for dtype in ("int64", *dtypes):
            torch.manual_seed(0)
            losses.add(enumerating().loss(model, guide, x, y.to(getattr(torch, dtype))))
        assert len(losses) == 1
    match = r"GaussianMixtureVAE: the labels hold 2 value\(s\) outside \[-1, 2\], the first is 3"
    with pytest.raises(ValueError, match=match):
        model.check_labels(torch.tensor([0, 3, -1, -2]))
    with pytest.raises(ValueError, match=r"the labels are torch.float64; .*integers \[N\]"):
        model.check_labels(ALL.double())


@pytest.mark.parametrize("bad", [3, -2])
def test_labels_that_no_component_has_do_not_train(bad):
    pyro.enable_validation(False)
    model, guide = make_pair(enumerate=True)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        enumerating().loss(model, guide, torch.randn(B, X), torch.full((B,), bad))


# -------------------------------------------------------------- closed forms, with a linear decoder


def linear_model(log_scales):
    """x | y is normal: `[W mu_y + b, s_y^2 W W^T + sigma^2 I]`, one z."""
    model = GaussianMixtureVAE((2,), C, 1, (), likelihood=Gaussian(SIGMA))
    with torch.no_grad():
        model.logits.copy_(torch.tensor([0.5, -0.4, 0.1]))
        model.loc.copy_(torch.tensor([[-2.0], [0.5], [1.5]]))
        model.log_scale.copy_(torch.tensor(log_scales).unsqueeze(1))
        model.decoder.layers[0].weight.copy_(torch.tensor([[1.2], [-0.7]]))
        model.decoder.layers[0].bias.copy_(torch.tensor([0.3, 0.1]))
    return model


def log_joint(model, x):
    """log p(x, y), `[C, B]`, z integrated in closed form."""
    weight, bias = (p.detach() for p in model.decoder.parameters())
    rows = []
    for y in range(C):
        variance = (2 * model.log_scale[y].detach()).exp()
        covariance = variance * weight @ weight.mT + SIGMA**2 * torch.eye(2)
        diff = x - (weight @ model.loc[y].detach() + bias)
        quadratic = ((diff @ torch.linalg.inv(covariance)) * diff).sum(-1)
        density = -0.5 * (quadratic + torch.logdet(covariance)) - math.log(2 * math.pi)
        rows.append(model.logits.detach().log_softmax(0)[y] + density)
    return torch.stack(rows)


def test_the_closed_form_is_the_quadrature():
    model = linear_model([0.2, -0.5, 0.0])
    x, z = torch.randn(4, 2), torch.linspace(-15, 15, 6001)
    weight, bias = (p.detach() for p in model.decoder.parameters())
    likelihood = normal(
        x.unsqueeze(1), z.unsqueeze(-1) * weight[:, 0] + bias, torch.full((1, 1, 2), SIGMA)
    )
    for y in range(C):
        prior = normal(z.unsqueeze(-1), model.loc[y].detach(), model.log_scale[y].detach().exp())
        integral = torch.trapezoid((likelihood + prior).exp(), z).log()
        expected = integral + model.logits.detach().log_softmax(0)[y]
        torch.testing.assert_close(log_joint(model, x)[y], expected, rtol=1e-10, atol=1e-10)


def exact_guide(model):
    """The posterior: with one scale for all components it is linear in x, as is this guide."""
    guide = GaussianMixtureGuide(model, (), enumerate=True)
    with torch.no_grad():
        weight, bias = model.decoder.parameters()
        prior_variance = (2 * model.log_scale[0]).exp()
        variance = 1 / (1 / prior_variance + (weight**2).sum() / SIGMA**2)
        head = guide.head
        head.from_x.weight.copy_(torch.cat([variance * weight.mT / SIGMA**2, torch.zeros(1, 2)]))
        offset = -variance * (weight.mT @ bias) / SIGMA**2
        head.from_x.bias.copy_(torch.cat([offset, variance.log()]))
        shift = variance * model.loc / prior_variance
        head.from_y.weight.copy_(torch.cat([shift, torch.zeros(C, 1)], 1))
        precision = torch.linalg.inv(prior_variance * weight @ weight.mT + SIGMA**2 * torch.eye(2))
        means = model.loc @ weight.mT + bias
        guide.classifier.weight.copy_(means @ precision)
        quadratic = ((means @ precision) * means).sum(-1)
        guide.classifier.bias.copy_(model.logits - 0.5 * quadratic)
    return guide


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("y", [NONE, SOME, ALL], ids=["none", "some", "all"])
def test_at_the_exact_posterior_the_loss_is_log_p_for_every_draw(y, seed):
    model = linear_model([-0.3, -0.3, -0.3])
    guide, x = exact_guide(model), torch.randn(B, 2)
    log_xy = log_joint(model, x)
    truth = torch.where(y >= 0, log_xy[y.clamp(min=0), range(B)], log_xy.logsumexp(0))
    torch.manual_seed(seed)
    loss = enumerating().loss(model, guide, x, y)
    assert loss == pytest.approx(-truth.sum().item(), abs=1e-10)
    torch.testing.assert_close(guide.classify(x), (log_xy - log_xy.logsumexp(0)).mT)
    found = log_marginal(model, guide, x, num_particles=20)
    torch.testing.assert_close(found.value, log_xy.logsumexp(0), rtol=0, atol=1e-10)


def test_log_marginal_is_within_its_standard_error_of_the_truth():
    model = linear_model([0.2, -0.5, 0.0])
    guide = exact_guide(model)
    with torch.no_grad():
        guide.head.from_x.bias[1] += 1.0
        guide.classifier.weight.mul_(0.5)
    x = torch.randn(B, 2)
    truth = log_joint(model, x).logsumexp(0)
    assert (enumerating().loss(model, guide, x) / B) > -truth.mean()
    found = log_marginal(model, guide, x, num_particles=20_000, chunk_size=50_000)
    assert (found.standard_error > 0).all() and (found.standard_error < 0.05).all()
    assert ((found.value - truth).abs() <= 5 * found.standard_error).all()


# ------------------------------------------------------------------------------------- training


def clusters(num_labels):
    """Three clusters far apart; `num_labels` of each have a label."""
    centers = 4 * torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
    truth = torch.arange(3).repeat(50)
    x = centers[truth] + 0.4 * torch.randn(150, 2)
    y = torch.where(torch.arange(150) < 3 * num_labels, truth, -1)
    return x, y, truth


@pytest.mark.parametrize("schedule", [None, Linear(150)], ids=["constant", "warm-up"])
@pytest.mark.parametrize("num_labels", [0, 25])
def test_fit_trains_a_mixture(num_labels, schedule):
    x, y, truth = clusters(num_labels)
    model = GaussianMixtureVAE((2,), 3, 2, (), likelihood=Gaussian(0.5))
    guide = GaussianMixtureGuide(model, (16,), enumerate=True)
    if num_labels:
        model.check_labels(y)
    result = ppl_vae.fit(
        model, guide, TensorDataset(x, y) if num_labels else x, estimator=enumerating(),
        schedule=schedule, optimizer=partial(Adam, lr=2e-2), num_steps=300, batch_size=75,
        log_every=50, progress=False,
    )  # fmt: skip
    first, last = result.metrics[0], result.metrics[-1]
    assert last["bound"] > first["bound"] + 5 and last["elbo"] > first["elbo"] + 5
    assert set(last["kl"]) == {"y", "z"}
    if num_labels:
        # With few labels it would be a matter of luck: they do not teach the classifier itself.
        found = guide.classify(x).argmax(-1)
        assert (found == truth)[y < 0].double().mean() > 0.9
        # Drawn and enumerated z are the same draws, but where y is drawn.
        assert last["bound"] == pytest.approx(last["elbo"], abs=0.5)


def guide_without_y(x, y=None):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))


def test_a_model_can_sum_y_out_by_itself_but_not_under_a_weight_with_labels(play):
    model, _ = make_pair()
    x, z = torch.randn(B, X), torch.randn(B, D)
    play(z)
    program = pyro.infer.config_enumerate(model)
    with scale_latents(0.3):
        loss = enumerating().loss(program, guide_without_y, x)
        # x does not depend on y given z, so y and z alone are in the sum, and share one weight.
        prior = normal(z.unsqueeze(1), model.loc, model.log_scale.exp())
        log_p_z = (model.logits.log_softmax(0) + prior).logsumexp(1)
        log_q = normal(z, torch.zeros(D), torch.ones(D))
        mean = model.decoder(z)
        gain = normal(x, mean, torch.full_like(mean, SIGMA)) + 0.3 * (log_p_z - log_q)
        assert loss == pytest.approx(-gain.sum().item(), rel=1e-10)
        with pytest.raises(ValueError, match="share a common poutine.scale, but found 2 different"):
            enumerating().loss(program, guide_without_y, x, SOME)


def test_fit_refuses_a_guide_without_y():
    model, _ = make_pair()

    for program in (model, pyro.infer.config_enumerate(model)):
        with pytest.raises(ValueError, match="the model samples 'y' which the guide does not"):
            ppl_vae.fit(
                program, guide_without_y, torch.randn(B, X), estimator=enumerating(), num_steps=1
            )


# ------------------------------------------------------------------------------ shapes and types


def trace_of(program, *args):
    trace = poutine.trace(program).get_trace(*args)
    trace.compute_log_prob()
    return trace


def test_sites_and_their_shapes():
    model, guide = make_pair()
    x = torch.randn(B, X)
    for args, names in (((x,), ["y", "z", "x"]), ((x, SOME), ["y", "label", "z", "x"])):
        trace = trace_of(model, *args)
        assert [name for name, _ in samples(trace) if name != "data"] == names
        assert trace.nodes["_RETURN"]["value"] is trace.nodes["x"]["value"] is x
        for name in names:
            site = trace.nodes[name]
            assert site["log_prob"].shape == site["fn"].batch_shape == (B,)
            assert site["is_observed"] == (name in ("x", "label"))
        trace = trace_of(guide, *args)
        assert [name for name, _ in samples(trace) if name != "data"] == ["y", "z"]
        assert all(trace.nodes[name]["log_prob"].shape == (B,) for name in ("y", "z"))
    values = trace.nodes["_RETURN"]["value"]
    assert torch.equal(values["y"][SOME >= 0], SOME[SOME >= 0])
    assert all(values[name] is trace.nodes[name]["value"] for name in ("y", "z"))


@pytest.mark.parametrize("y", [None, SOME], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_particles_are_drawn_at_once(lead, y):
    model, guide = programs = make_pair()
    x = torch.randn(B, X)
    for i, k in enumerate(reversed(lead)):
        plate = pyro.plate(f"k{i}", k, dim=-2 - i)
        programs = [plate(program) for program in programs]
    pair = trace_pair(*programs, (x, y), {})
    for trace in (pair.model_trace, pair.guide_trace):
        for _, site in samples(trace):
            assert site["value"].shape[: len(lead) + 1] == (*lead, B) or site["is_observed"]
            assert site["log_prob"].shape == (*lead, B)
    # Each particle is what the programs give for it alone.
    last = tuple(k - 1 for k in lead)
    values = {name: site["value"][last] for name, site in samples(pair.guide_trace)}
    for program, trace in ((model, pair.model_trace), (guide, pair.guide_trace)):
        alone = trace_of(poutine.condition(program, data=values), x, y)
        for name, site in samples(trace):
            one, other = site["log_prob"][last], alone.nodes[name]["log_prob"]
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_an_enumerated_y_stands_left_of_the_particles():
    model, guide = make_pair(enumerate=True)
    elbo = enumerating(num_particles=4, vectorize_particles=True)
    ((model_trace, guide_trace),) = elbo._get_traces(model, guide, (torch.randn(B, X), SOME), {})
    assert guide_trace.nodes["y"]["value"].shape == (C, 1, 1)
    assert guide_trace.nodes["z"]["value"].shape == (C, 4, B, D)
    assert model_trace.nodes["x"]["log_prob"].shape == (C, 4, B)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_encoder_runs_once_per_datum(num_particles):
    model, guide = make_pair(enumerate=True)
    shapes = []
    guide.encoder.register_forward_hook(
        lambda _, args, out: shapes.append((args[0].shape, out.shape))
    )
    guide.head.from_x.register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    elbo = enumerating(num_particles=num_particles, vectorize_particles=num_particles > 1)
    elbo.loss(model, guide, torch.randn(B, X), SOME)
    assert shapes == [((B, X), (B, 5)), (B, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_computes_in_the_models_type_whatever_the_default(dtype):
    model = make_pair()[0].to(dtype)
    torch.set_default_dtype(torch.float64 if dtype == torch.float32 else torch.float32)
    guide = GaussianMixtureGuide(model, (5,), enumerate=True)
    assert {p.dtype for p in guide.parameters()} == {dtype}
    x = torch.randn(B, X, dtype=dtype)
    loss = enumerating().differentiable_loss(model, guide, x, SOME)
    assert loss.dtype == dtype and loss.isfinite()
    pair = trace_pair(model, guide, (x, SOME), {})
    for trace in (pair.model_trace, pair.guide_trace):
        assert {site["log_prob"].dtype for _, site in samples(trace)} == {dtype}
        assert trace.nodes["z"]["value"].dtype == dtype
    assert pair.model_trace.nodes["label"]["log_prob"].tolist() == [0.0] * B


def test_a_pair_runs_on_the_meta_device():
    # Nothing on this device has a value: a tensor on another device, or a look at a value, fails.
    pyro.enable_validation(False)
    model = make_pair()[0].to("meta")
    guide = GaussianMixtureGuide(model, (5,))
    assert {p.device.type for p in guide.parameters()} == {"meta"}
    x = torch.empty(B, X, device="meta")
    for args in ((x,), (x, torch.empty(B, dtype=torch.long, device="meta"))):
        for lead in ((), (3,)):
            plate = pyro.plate("k", 3, dim=-2)
            programs = (plate(model), plate(guide)) if lead else (model, guide)
            pair = trace_pair(*programs, args, {})
            loss = 0.0
            for trace in (pair.model_trace, pair.guide_trace):
                for _, site in samples(trace):
                    assert site["log_prob"].shape == (*lead, B)
                    loss = loss + site["log_prob"].sum()
            assert loss.device.type == "meta"
            loss.backward()
    assert all(p.grad.device.type == "meta" for p in (*model.parameters(), *guide.parameters()))


def test_a_guide_is_written_down_and_made_again():
    model, guide = make_pair(enumerate=True)
    entry = describe(guide, omit=("model",))
    assert entry == {
        "class_path": "ppl_vae.guides.GaussianMixtureGuide",
        "init_args": {"hidden": [5], "activation": "tanh", "enumerate": True},
    }
    again = instantiate(entry, model)
    again.load_state_dict(guide.state_dict())
    x = torch.randn(B, X)
    assert torch.equal(again.classify(x), guide.classify(x)) and again.enumerate
    other = instantiate(describe(model))
    assert other.num_components == C and other.loc.shape == (C, D)


def test_an_encoder_of_ones_own():
    model, _ = make_pair()
    for encoder in (torch.nn.Linear(X, 7), lambda shape: torch.nn.Linear(*shape, 7)):
        guide = GaussianMixtureGuide(model, (5,), encoder=encoder)
        assert guide.classifier.in_features == 7 and guide.head.rest[1].in_features == 5
        assert guide(torch.randn(B, X))["z"].shape == (B, D)
    with pytest.raises(ValueError, match=r"the encoder turns \[1, 4\] into \[1, 1, 4\]"):
        GaussianMixtureGuide(model, encoder=torch.nn.Unflatten(1, (1, X)))


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((4,), 1), "num_components is 1; accepted is an integer >= 2. For one component use VAE"),
        (((4,), 0), "GaussianMixtureVAE: num_components is 0"),
        (((4,), 2.0), "num_components is 2.0; accepted is an integer"),
        (((4,), 2, 0), "GaussianMixtureVAE: latent_dim is 0; accepted is an integer >= 1"),
        (((0,), 2, 1), r"GaussianMixtureVAE: data_shape is \[0\]"),
        (((4,), 2, 1, (0,)), r"GaussianMixtureVAE: hidden is \[0\]"),
    ],
)
def test_arguments_that_make_no_model_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureVAE(*arguments)


class Program:
    """A plain callable of a known data shape, with one y and one z."""

    data_shape = (X,)

    def __init__(self, y, z, size=None):
        self.y, self.z, self.size = y, z, size

    def __call__(self, x):
        with pyro.plate("data", self.size or len(x), dim=-1, subsample_size=len(x)):
            pyro.sample("y", self.y)
            pyro.sample("z", self.z)


CATEGORY, VECTOR = dist.Categorical(torch.ones(3)), dist.Normal(torch.zeros(2), 1.0).to_event(1)


@pytest.mark.parametrize(
    "model, message",
    [
        (VAE((4,), 2), r"the model VAE has the latent sites 'z' \(continuous, event \[2\]"),
        (LinearGaussian([[1.0]], 1.0), r"LinearGaussian has the latent sites 'z' .*; accepted are"),
        (Program(dist.Normal(0.0, 1.0), VECTOR), r"'y' \(continuous, event \[\]"),
        (Program(dist.Bernoulli(0.5), VECTOR), r"'y' \(discrete"),
        (Program(dist.Categorical(torch.ones(2, 3)).to_event(1), VECTOR), r"'y' .*event \[2\]"),
        (Program(CATEGORY, dist.Normal(0.0, 1.0)), r"'z' \(continuous, event \[\], plates"),
        (Program(CATEGORY, dist.Dirichlet(torch.ones(3))), r"'z' \(continuous, event \[3\]"),
        (Program(CATEGORY, VECTOR, size=100), "both in the plate 'data' alone"),
        (lambda x: None, "<lambda> has no data_shape; accepted is a model that has one"),
        (None, "model is None; accepted is a Pyro program"),
    ],
)
def test_a_model_of_other_sites_is_refused(model, message):
    with pytest.raises(ValueError, match=f"GaussianMixtureGuide: .*{message}"):
        GaussianMixtureGuide(model)


def test_a_plain_program_of_these_sites_is_accepted():
    guide = GaussianMixtureGuide(Program(CATEGORY, VECTOR))
    assert guide.classify(torch.zeros(B, X)).shape == (B, 3)
    with pytest.raises(ValueError, match="GaussianMixtureGuide: hidden is"):
        GaussianMixtureGuide(Program(CATEGORY, VECTOR), (0,))
