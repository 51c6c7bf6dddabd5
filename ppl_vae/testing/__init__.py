"""The conformance kit: what the library asks of a model, guide or estimator, to ask of your own.

Call the checks in a test, or in a notebook. Each runs the programs small, a few times, and returns
nothing, or raises a `ConformanceError`, which is an `AssertionError`, whose one sentence says what
broke, at which site or parameter, what was expected, and what was found. Whatever a check does, it
leaves random streams, Pyro's parameter store and settings, the default type, and the programs'
parameters, gradients and buffers as it found them.

Import it by its name, `import ppl_vae.testing`: `import ppl_vae` alone does not.
"""

from ppl_vae.testing.bound import check_bound
from ppl_vae.testing.estimator import check_estimator
from ppl_vae.testing.guide import check_guide
from ppl_vae.testing.isolation import ConformanceError
from ppl_vae.testing.model import check_model
from ppl_vae.testing.svi import check_svi
from ppl_vae.testing.unbiased import check_unbiased

__all__ = [
    "ConformanceError",
    "check_bound",
    "check_estimator",
    "check_guide",
    "check_model",
    "check_svi",
    "check_unbiased",
]
