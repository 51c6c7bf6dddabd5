"""The training step as one compiled graph."""

from ppl_vae.compiled.loss import CompiledLoss
from ppl_vae.compiled.lowering import CompileError
from ppl_vae.compiled.step import CompiledStep
from ppl_vae.compiled.tracing import TraceError, trace_loss

__all__ = ["CompileError", "CompiledLoss", "CompiledStep", "TraceError", "trace_loss"]
