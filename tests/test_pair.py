"""A model and a guide that do not fit each other: the message names the site and both sides."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vae.estimators import Trace_ELBO, TraceAnalyticKL_ELBO
from ppl_vae.estimators.densities import per_datum, plate_scale
from ppl_vae.estimators.pair import trace_pair
from ppl_vae.evaluate import elbo_terms
from ppl_vae.guides import DeltaGuide, MeanFieldGuide
from ppl_vae.handlers import scale_latents
from ppl_vae.models import VAE

X = torch.zeros(3, 2, dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)


def guide_of(*names, obs=(), event=2):
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            for name in names:
                fn = dist.Normal(0.0, 1.0).expand([event]).to_event(1)
                pyro.sample(name, fn, obs=x if name in obs else None)

    return guide


@pytest.mark.parametrize(
    "guide, message",
    [
        (guide_of("z1"), "the model samples 'z2' which the guide does not"),
        (guide_of(), "the model samples 'z2', 'z1' which the guide does not"),
        (guide_of("z1", "z2", "w"), "the guide samples 'w' which the model does not"),
        (guide_of("z1", "z2", "x"), "the guide samples 'x' which the model observes"),
        (
            guide_of("z1", "z2", "y", obs=("y",)),
            "the guide observes 'y'; a guide observes nothing",
        ),
        (guide_of("z1", "z2", obs=("z2",)), "the guide observes 'z2'; a guide observes nothing"),
        (
            guide_of("z1", "w"),
            "the model samples 'z2' which the guide does not; the guide samples 'w'",
        ),
        (
            guide_of("z1", "z2", event=1),
            r"at 'z2' the model's event has shape \(2,\), the guide's \(1,\); check",
        ),
    ],
)
@pytest.mark.parametrize("how", [(1, True), (3, True), (3, False)])
def test_a_pair_that_does_not_fit_is_refused(guide, message, how):
    elbo = Trace_ELBO(num_particles=how[0], vectorize_particles=how[1])
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        with pytest.raises(ValueError, match=f"model and guide do not fit: .*{message}"):
            method(model, guide, X)


def test_a_latent_of_the_wrong_size_is_named_before_a_network_chokes_on_it():
    vae = VAE((2,), latent_dim=3, hidden=(4,))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))

    message = r"do not fit: at 'z' the model's event has shape \(3,\), the guide's \(5,\)"
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=2)):
        with pytest.raises(ValueError, match=message):
            elbo.loss(vae, guide, X)


def test_a_site_that_is_not_reparameterized_names_the_way_out():
    def discrete(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(
        ValueError, match="Trace_ELBO needs reparam.* 'k' from Bernoulli.*pyro.infer.Trace_ELBO"
    ):
        Trace_ELBO().loss(discrete, discrete, X)


def test_a_pair_knows_its_sites():
    pair = trace_pair(model, guide_of("z1", "z2"), (X,), {})
    assert [name for name, _, _ in pair.latents] == ["z1", "z2"]  # the guide's order
    assert [name for name, _ in pair.observed] == ["x"]
    for _, model_site, guide_site in pair.latents:
        assert model_site["value"] is guide_site["value"]
        assert model_site["log_prob"].shape == guide_site["log_prob"].shape == (3,)
    assert pair.has_density and pair.data_plate.name == "data"


def test_a_point_mass_has_no_density():
    vae = VAE((2,), 2, (3,))
    assert trace_pair(vae, MeanFieldGuide(vae), (X,), {}).has_density
    assert not trace_pair(vae, DeltaGuide(vae), (X,), {}).has_density


def test_the_data_plate_is_named_data_or_the_outermost_of_the_observed():
    def unnamed(x):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def nothing(x):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x)

    guide = poutine.block(unnamed, hide=["x"])
    assert trace_pair(unnamed, guide, (X,), {}).data_plate.name == "rows"
    with pytest.raises(ValueError, match="the model has no plate over the data; write"):
        trace_pair(nothing, lambda x: None, (X,), {}).data_plate  # noqa: B018


def test_a_hidden_likelihood_leaves_the_kl():
    torch.manual_seed(0)
    model = VAE((6,), latent_dim=3, hidden=(5,))
    guide, x = MeanFieldGuide(model, hidden=(5,)), torch.rand(8, 6)

    def blind(x):
        with poutine.block(hide=["x"]):
            return model(x)

    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist
    kl = (q.loc**2 + q.scale**2 - 1).sum() / 2 - q.scale.log().sum()
    assert TraceAnalyticKL_ELBO().loss(blind, guide, x) == pytest.approx(kl.item(), rel=1e-5)
    terms = elbo_terms(blind, guide, x)
    assert torch.equal(terms.reconstruction, torch.zeros(8))
    assert trace_pair(blind, guide, (x,), {}).data_plate.name == "data"


def test_per_datum_keeps_masks_and_scales_but_not_the_plates():
    mask = torch.tensor([True, False, True])

    def program(x):
        pyro.sample("w", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))
        with pyro.plate("data", 12, subsample=torch.arange(3), dim=-1):
            with poutine.scale(scale=5.0), poutine.mask(mask=mask):
                pyro.sample("a", dist.Normal(0.0, 1.0), obs=x[:, 0] + 1)
            with pyro.plate("part", 4, dim=-2):
                pyro.sample("b", dist.Normal(0.0, 1.0), obs=torch.arange(12.0).view(4, 3))

    with scale_latents(0.3):
        pair = trace_pair(program, lambda x: None, (X,), {})
    sites, plate = dict(pair.observed), pair.data_plate
    assert plate_scale(sites["a"]) == plate_scale(sites["b"]) == 4.0
    assert plate_scale(sites["w"]) == 1.0
    standard = dist.Normal(0.0, 1.0).log_prob
    torch.testing.assert_close(per_datum(sites["a"], plate), 5 * standard(X[:, 0] + 1) * mask)
    torch.testing.assert_close(
        per_datum(sites["b"], plate), standard(torch.arange(12.0).view(4, 3)).sum(0)
    )
    # A global site is shared out over all data, so that their sum counts it once.
    assert per_datum(sites["w"], plate) == standard(torch.tensor(0.5)) / 12
