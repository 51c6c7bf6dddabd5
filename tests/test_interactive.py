"""Programs that a page runs, and what a page is given: against the models that they stand for."""

import json
import math
import re

import pytest
import torch
from pages import without_scripts
from torch import nn

from ppl_vae import page
from ppl_vae.evaluate import aggregate_posterior, decode, posterior_means
from ppl_vae.guides import FullRankGuide, MeanFieldGuide, TopDownGuide
from ppl_vae.interactive import curves, explorer
from ppl_vae.interactive.arrays import Arrays
from ppl_vae.interactive.program import program_of
from ppl_vae.models import (
    VAE,
    ConvDecoder,
    GatedDecoder,
    Gaussian,
    GaussianMixtureVAE,
    HierarchicalVAE,
)

IMAGE = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 4, 3))
LAYERS = {
    "dense": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid()),
    **{type(layer).__name__.lower(): (lambda layer=layer: layer) for layer in (
        nn.ELU(), nn.CELU(0.7), nn.GELU(), nn.GLU(0), nn.Hardswish(), nn.Hardtanh(),
        nn.LayerNorm(3), nn.LeakyReLU(0.3), nn.LogSigmoid(), nn.LogSoftmax(-1), nn.Mish(),
        nn.PReLU(), nn.RMSNorm(3),
        nn.ReLU6(), nn.SELU(), nn.SiLU(), nn.Softmax(-1), nn.Softplus(2.0), nn.Softsign(),
        nn.Tanh(), nn.Threshold(0.1, 2.0),
    )},
    "gelu, tanh": lambda: nn.GELU("tanh"),
    "batch norm": lambda: nn.BatchNorm1d(3),
    "transposed": lambda: nn.Sequential(*IMAGE, nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)),
    "convolution": lambda: nn.Sequential(*IMAGE, nn.Conv2d(4, 2, (3, 2), 2, (1, 0), (1, 2), 2)),
    "image": lambda: nn.Sequential(
        *IMAGE, nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(scale_factor=2),
        nn.ZeroPad2d((1, 2, 0, 1)), nn.PixelShuffle(2), nn.GroupNorm(1, 1), nn.Flatten(),
    ),
}  # fmt: skip
# A module of two rows where halves are taken of them.
SHAPES = {"glu": (2, 3)}


def lambdas():
    """What decoders do that no layer of torch is."""
    yield "slices", lambda z: torch.cat([z[:, 1:], z[:, :1].flip(0), z.new_ones(1, 2)], dim=1)
    yield "chosen", lambda z: torch.where(z > 0.2, z.clamp(max=0.7), z.abs().sqrt())
    yield "reduced", lambda z: torch.stack([z.sum(-1), z.mean(-1), z.amax(-1), z.var(-1)], -1)
    yield "powers", lambda z: (z**2).exp().log1p() / (2 - z.sin() * z.cos()) - z.square().rsqrt()
    yield "outer", lambda z: (z.unsqueeze(-1) @ z.unsqueeze(-2)).tril().erf()
    yield "linear", lambda z: torch.einsum("bi,ij->bj", z, torch.arange(6.0).reshape(3, 2).to(z))
    yield "constant first", lambda z: 3.0 - 2.0 / (1 + z.exp()) + torch.linspace(0, 1, 3).to(z)


CASES = {
    **LAYERS,
    **{n: lambda f=f: f for n, f in lambdas()},
}


def case(name):
    """A function, fixed by a seed, and inputs for it."""
    torch.manual_seed(1)
    function = CASES[name]()
    if isinstance(function, nn.Module):
        for parameter in function.parameters():
            parameter.data.normal_().mul_(0.7)
        function.float().eval()
        for module in function.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    shape = SHAPES.get(name, (1, 3))
    return function, [2 * torch.randn(shape, dtype=torch.float32) for _ in range(8)]


@pytest.mark.parametrize("name", CASES)
def test_a_program_is_its_function(name):
    function, inputs = case(name)
    program = program_of(function, inputs[0])
    json.dumps(program.steps)
    with torch.no_grad():
        for z in inputs:
            torch.testing.assert_close(program.run(z), function(z), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: z if z.sum() > 0 else -z, "looks at the value"),
        (lambda z: torch.cumsum(z, 1), "knows no aten.cumsum"),
        (lambda z: torch.nn.functional.max_pool1d(z, 2), "knows no aten.max_pool"),
        (lambda z: torch.ones(3), "does not hang on the latent"),
        (nn.BatchNorm1d(3), "training mode"),
        (lambda z: torch.conv1d(z[None], torch.ones(1, 1, 2)), "convolutions of"),
    ],
)
def test_what_no_page_can_run_is_refused_by_name(function, message):
    z = torch.zeros(2 if isinstance(function, nn.Module) else 1, 3)
    with pytest.raises(ValueError, match=message):
        program_of(function, z)


MODELS = {
    "one level": lambda: VAE((1, 8, 8), latent_dim=5),
    "two levels": lambda: HierarchicalVAE((1, 8, 8), latent_dims=(5, 3)),
    "skips": lambda: HierarchicalVAE((1, 8, 8), latent_dims=(5, 3), skip=True),
    "gated": lambda: VAE((1, 8, 8), latent_dim=5, decoder=GatedDecoder),
    "convolutions": lambda: VAE((1, 28, 28), latent_dim=5, decoder=ConvDecoder),
    "colours": lambda: VAE((3, 8, 8), latent_dim=5, likelihood=Gaussian()),
    "vectors": lambda: VAE((30,), latent_dim=5, likelihood=Gaussian(scale=0.3)),
    "classes": lambda: GaussianMixtureVAE((1, 8, 8), latent_dim=5),
}


def shown(name, num=40):
    """A model, data, codes, and the explorer of them."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    guide = (TopDownGuide if name == "two levels" else MeanFieldGuide)(model)
    x = torch.rand(num, *model.data_shape)
    means = posterior_means(guide, x)
    given = explorer(model, x, means, aggregate_posterior(guide, x), torch.arange(num) % 3, "kind")
    return model, guide, x, means, given


@pytest.mark.parametrize("name", MODELS)
def test_an_explorer_holds_what_the_model_decodes(name):
    model, _, x, means, given = shown(name)
    assert [site["name"] for site in given["sites"]] == list(means)
    for site, z in means.items():
        found = next(s for s in given["sites"] if s["name"] == site)
        expected = decode(model, {site: z[:1]}, x[:1])
        torch.testing.assert_close(
            torch.tensor(found["check"]), expected.flatten(), rtol=1e-6, atol=1e-7
        )
        assert sorted(found["units"]) == list(range(z.shape[1]))
        torch.testing.assert_close(torch.tensor(found["points"]), z, rtol=0, atol=6e-5)
    assert json.loads(json.dumps(given, allow_nan=False)) is not None


def test_weights_are_halved_where_that_changes_next_to_nothing():
    model, guide, x, means, given = shown("one level")
    assert given["half"]
    with torch.no_grad():
        model.decoder.layers[0].weight.mul_(300)
    given = explorer(model, x, means, aggregate_posterior(guide, x))
    assert not given["half"] and given["labels"] is None
    assert {a["type"] for a in given["arrays"]["list"]} <= {"float32", "int32"}


def test_two_sites_share_the_weights_that_they_share():
    _, _, _, _, given = shown("two levels")
    below, above = sorted(given["sites"], key=lambda site: site["name"])
    common = set(below["program"]["constants"]) & set(above["program"]["constants"])
    large = [i for i in common if math.prod(given["arrays"]["list"][i]["shape"]) > 1000]
    assert len(large) >= 2


def test_arrays_are_kept_once_and_little_endian():
    arrays = Arrays(half=True)
    x = torch.tensor([1.0, -2.5])
    assert arrays.add(x) == arrays.add(x.clone()) == 0
    assert arrays.add(torch.tensor([1, 2], dtype=torch.int32)) == 1
    assert len(arrays) == 4 + 8
    assert arrays.as_json()["list"][1] == {"shape": [2], "type": "int32", "at": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, means: (x[:, 0, 0, :2], means), "data of 2 numbers"),
        (lambda x, means: (x, {}), "no site is real-valued"),
        (lambda x, means: (x, {s: z / 0 for s, z in means.items()}), "not finite"),
    ],
)
def test_what_cannot_be_explored_is_refused(change, message):
    model, guide, x, means, _ = shown("one level")
    changed, codes = change(x, means)
    with pytest.raises(ValueError, match=message):
        explorer(model, changed, codes, aggregate_posterior(guide, x))


def test_what_a_decoder_raises_is_the_reason():
    class Two(nn.Module):
        """One datum is too few for it."""

        def forward(self, z):
            if len(z) < 2:
                raise RuntimeError("two or more, please")
            return torch.zeros(*z.shape[:-1], 1, 8, 8)

    model, guide, x, means, _ = shown("one level")
    model.decoder = Two()
    with pytest.raises(ValueError, match="RuntimeError: two or more, please"):
        explorer(model, x, means, aggregate_posterior(guide, x))


def test_fewer_are_shown_of_large_data():
    model = VAE((3, 300, 300), latent_dim=2, hidden=(2,), likelihood=Gaussian()).eval()
    guide = MeanFieldGuide(model, hidden=(2,))
    x = torch.rand(9, 3, 300, 300)
    given = explorer(model, x, posterior_means(guide, x), aggregate_posterior(guide, x))
    assert given["num"] == 7 == len(given["sites"][0]["points"])


def test_a_decoder_too_large_for_a_page_is_refused():
    model = VAE((1, 64, 64), latent_dim=2, hidden=(1700,)).eval()
    x = torch.rand(3, 1, 64, 64)
    guide = MeanFieldGuide(model, hidden=(8,))
    means = posterior_means(guide, x)
    with pytest.raises(ValueError, match=r"the decoder takes \d\d MB, and a page up to 12"):
        explorer(model, x, means, aggregate_posterior(guide, x))


def test_a_decoder_that_hangs_on_the_value_of_its_latent_is_found_out():
    class Fickle(nn.Module):
        """Remembers how often it was run: its graph is of one of these times."""

        times = 0

        def forward(self, z):
            self.times += 1
            return z.mean(-1, keepdim=True).expand(*z.shape[:-1], 64).unflatten(-1, (1, 8, 8)) * (
                self.times % 5
            )

    model, guide, x, means, _ = shown("one level")
    model.decoder = Fickle()
    with pytest.raises(ValueError, match="differs from the decoder"):
        explorer(model, x, means, aggregate_posterior(guide, x))


def test_full_covariances_have_explorers_too():
    model = VAE((1, 8, 8), latent_dim=3)  # of doubles
    guide = FullRankGuide(model)
    x = torch.rand(10, 1, 8, 8)
    means = posterior_means(guide, x)
    given = explorer(model, x, means, aggregate_posterior(guide, x), torch.rand(10), "scale")
    assert len(given["labels"]["legend"]) == 2 and len(set(given["labels"]["colors"])) > 5


# ------------------------------------------------------------------------------------------ curves


def metrics(num=40):
    for step in range(num):
        yield {"split": "train", "step": step, "bound": -100.0 + step, "kl": {"z": step / 2.0},
               "reconstruction": -90.0, "weight": {"z": 1.0}}  # fmt: skip
    yield {"split": "valid", "step": num, "elbo": -60.0, "elbo_standard_error": 0.5,
           "kl": {"z": 20.0}, "reconstruction": None}  # fmt: skip


def test_curves_are_the_metrics():
    panels = {p["title"].split(",")[0]: p["series"] for p in curves(list(metrics()))["panels"]}
    assert list(panels) == ["Bound on log p(x)", "KL", "Reconstruction"]  # the weight is 1
    training, validation = panels["Bound on log p(x)"]
    assert training["steps"] == list(range(40)) and training["values"][3] == -97.0
    assert validation["values"] == [-60.0] and validation["errors"] == [0.5]
    assert [s["values"][-1] for s in panels["KL"]] == [19.5, 20.0]
    assert panels["Reconstruction"][1]["values"] == [None]


def test_a_weight_that_changes_has_a_panel_and_long_curves_are_thinned():
    lines = [{"step": i, "bound": math.nan, "weight": min(1.0, i / 100)} for i in range(5000)]
    *_, last = curves(lines)["panels"]
    (series,) = last["series"]
    assert last["title"] == "KL weight" and len(series["steps"]) == 1000
    assert series["steps"][:2] == [0, 5] and series["values"][1] == 0.05


def test_data_of_a_page_end_no_script_and_are_the_same_json():
    evil = "</script><script>alert(1)</script><!--"
    given = curves([{"step": 0, "bound": 1.0, "kl": {evil: 1.0}}])
    picture = page.Picture("t", "c", PNG, still="curves")
    html = page.render(title="", summary={}, config="", results={}, figures=[picture], curves=given)
    assert "<script" not in without_scripts(html)
    (text,) = re.findall(r'id="curves-data">(.*?)</script>', html, re.S)
    assert json.loads(text) == given


PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\0\0\x01\0\0\0\x01"
