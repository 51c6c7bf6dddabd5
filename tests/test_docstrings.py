"""Every public name says what it is; what takes or gives tensors says their shapes, and units."""

import importlib
import inspect
import re

import pytest
import torch

import ppl_vae

MODULES = (
    "ppl_vae", "ppl_vae.models", "ppl_vae.guides", "ppl_vae.families", "ppl_vae.estimators",
    "ppl_vae.schedules", "ppl_vae.handlers", "ppl_vae.data", "ppl_vae.evaluate", "ppl_vae.plots",
    "ppl_vae.laboratory", "ppl_vae.testing", "ppl_vae.ranks", "ppl_vae.citations",
)  # fmt: skip


def public():
    """Module and name, and the object, of all that is public and documented in words."""
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            member = getattr(module, name)
            if inspect.isclass(member) or inspect.isfunction(member):
                yield f"{module.__name__}.{name}", member


PUBLIC = dict(public())
FUNCTIONS = {name: o for name, o in PUBLIC.items() if inspect.isfunction(o)}


def members(cls):
    """What a class of ours defines itself for others to call or to read."""
    for name, member in vars(cls).items():
        wrapped = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(wrapped, property):
            wrapped = wrapped.fget
        if not name.startswith("_") and inspect.isfunction(wrapped):
            yield name, wrapped


def named_arguments(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    named = (p for p in parameters if p.name != "self" and p.kind not in kinds)
    return [p for p in named if not p.name.startswith("_")]


def described(text):
    """The names that a docstring has a line for."""
    return set(re.findall(r"^ +\*{0,2}(\w+): ", text, re.MULTILINE))


def words(text):
    return set(re.findall(r"\w+", text))


def test_there_are_as_many_public_names_as_there_were():
    assert len(PUBLIC) >= 150


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name):
    text = inspect.getdoc(PUBLIC[name]) or ""
    assert text and text.split("\n")[0].endswith((".", ":", "?"))
    if inspect.isclass(PUBLIC[name]):
        # Not that of a base, which `getdoc` gives as well.
        assert PUBLIC[name].__doc__
        missing = [n for n, f in members(PUBLIC[name]) if not inspect.getdoc(f)]
        assert not missing


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name):
    member = PUBLIC[name]
    text = inspect.getdoc(member)
    if inspect.isclass(member):
        if member.__init__ is object.__init__ or "__init__" not in vars(member):
            return  # Its base's, which describes them.
        text = "\n".join(inspect.getdoc(base) or "" for base in member.__mro__[:-1])
        member = member.__init__
    known = described(text) | words("\n".join(re.findall(r"`([^`]*)`", text)))
    # In one line of a docstring an argument may be a word of its own.
    known |= words(text.split("\n")[0])
    missing = [p.name for p in named_arguments(member) if p.name not in known]
    assert not missing


def annotated_with_tensors(function):
    annotations = [p.annotation for p in inspect.signature(function).parameters.values()]
    returned = inspect.signature(function).return_annotation
    return any(a is torch.Tensor or "Tensor" in str(a) for a in (*annotations, returned))


WITH_TENSORS = [n for n, f in FUNCTIONS.items() if annotated_with_tensors(f)]


@pytest.mark.parametrize("name", WITH_TENSORS)
def test_what_takes_or_gives_tensors_says_their_shapes(name):
    assert re.search(r"`\[[^`]*\]`", inspect.getdoc(FUNCTIONS[name]))


CLASSES = {name: o for name, o in PUBLIC.items() if inspect.isclass(o)}
BOUNDS = [n for n, o in CLASSES.items() if issubclass(o, ppl_vae.estimators.Estimator)]
IN_NATS = ("log_marginal", "average_terms", "elbo_terms", "unit_kl", "kl_split", "bound_at", "bdmc",
           "ais", "bracket", "inference_gaps", "importance_diagnostics", "reconstruction_error",
           "fit", "fit_replicas")  # fmt: skip


@pytest.mark.parametrize("name", IN_NATS)
def test_what_gives_log_densities_says_that_they_are_nats(name):
    function = getattr(ppl_vae, name, None) or getattr(ppl_vae.evaluate, name)
    returned = inspect.signature(function).return_annotation
    texts = [inspect.getdoc(function), getattr(returned, "__doc__", "") or ""]
    assert any("nats" in text.lower() for text in texts)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_estimator_has_a_formula_and_a_paper(name):
    if inspect.isabstract(PUBLIC[name]):
        return
    text = inspect.getdoc(PUBLIC[name])
    assert ".. math::" in text and "References:" in text and "Example:" in text


def test_the_tests_above_can_fail():
    def bare(x: torch.Tensor, y: int) -> torch.Tensor:
        """Does something."""
        return x

    assert annotated_with_tensors(bare)
    assert not re.search(r"`\[[^`]*\]`", inspect.getdoc(bare))
    assert [p.name for p in named_arguments(bare) if p.name not in described(bare.__doc__)] == [
        "x", "y",
    ]  # fmt: skip
