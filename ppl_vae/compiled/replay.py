"""Several steps in a row without the host: one CUDA graph, replayed.

Shapes: S steps, B data of a minibatch, N numbers of an update.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.compiled.step import CompiledStep
from ppl_vae.compiled.tracing import TraceError, sites_of, tensors_of, with_tensors
from ppl_vae.handlers import Weight
from ppl_vae.randomness import fork

__all__ = ["Replay"]


class Replay:
    """S steps of a training whose data lie on the device.

    All that differs from step to step lies in tensors that stay where they are: which data, the KL
    weight, the numbers of the optimizers. They are written before each replay, in one copy each,
    and nothing waits for the device. Gathering, binarization, noise, losses are part of the graph.

    Elsewhere than on CUDA the same steps are made one after the other.

    Args:
        step: The step; its optimizers' are part of it.
        take: From the numbers of data, `[B]`, to the programs' arguments.
        num_steps: S.
        batch_size: B.
        weight: A KL weight as the step takes it.
        device: Where the data are.

    Raises:
        TraceError: The step cannot be captured.
    """

    def __init__(
        self,
        step: CompiledStep,
        take: Callable[[Tensor], tuple[Any, ...]],
        num_steps: int,
        batch_size: int,
        weight: Weight,
        device: torch.device,
    ) -> None:
        self.num_steps = num_steps
        self._step, self._take, self._weight = step, take, weight
        self._index = torch.zeros(num_steps, batch_size, dtype=torch.long, device=device)
        with fork():
            made = step.made(take(self._index[0]), weight)
        if made is None or not step.is_whole:
            raise TraceError("the step is not made as a whole")
        self._made = made
        self._weights = [value.new_zeros(num_steps) for value in tensors_of(weight)]
        self._numbers = [
            members[0].detach().new_zeros(num_steps, update.num_numbers)
            for update, members in made.moved
        ]
        self._losses = self._numbers[0].new_zeros(num_steps)
        self._play = self._capture() if device.type == "cuda" else self._all

    def takes(self, weights: Sequence[Weight]) -> bool:
        """Whether these KL weights are of the sites that the graph weighs."""
        return all(sites_of(weight) == sites_of(self._weight) for weight in weights)

    def __call__(
        self, index: Tensor, weights: Sequence[Weight], advanced: Callable[[], None]
    ) -> Tensor:
        """Makes the steps.

        Args:
            index: Which data, `[S, B]`, on the host.
            weights: The KL weight of each step, in numbers.
            advanced: Is called after the numbers of each step are taken from the optimizers, and
                moves their learning rates on.

        Returns:
            The losses before each step, `[S]`, on the device; the next call writes over them.
        """
        numbers: list[list[list[float]]] = [[] for _ in self._numbers]
        for _ in range(self.num_steps):
            for rows, row in zip(numbers, self._made.numbers(), strict=True):
                rows.append(row)
            advanced()
        _write(self._index, index)
        for column, target in zip(self._columns(weights), self._weights, strict=True):
            _write(target, torch.tensor(column, dtype=target.dtype))
        for rows, target in zip(numbers, self._numbers, strict=True):
            _write(target, torch.tensor(rows, dtype=target.dtype))
        self._play()
        return self._losses

    def _columns(self, weights: Sequence[Weight]) -> Iterator[list[float]]:
        """What the weight's tensors are in each step."""
        if isinstance(self._weight, Tensor):
            yield [float(weight) for weight in weights]  # type: ignore[arg-type]
        elif isinstance(self._weight, Mapping):
            for name, value in self._weight.items():
                if isinstance(value, Tensor):
                    yield [float(weight[name]) for weight in weights]  # type: ignore[index]

    def _all(self) -> None:
        for i in range(self.num_steps):
            weight = with_tensors(self._weight, iter([column[i] for column in self._weights]))
            numbers = [rows[i] for rows in self._numbers]
            loss = self._step.run(self._made, self._take(self._index[i]), weight, numbers)
            self._losses[i].copy_(loss)

    def _capture(self) -> Callable[[], None]:
        """One CUDA graph of all steps; parameters, state and random stream are left as they are."""
        kept = [(value, value.clone()) for value in self._made.state()]
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            with fork():
                # What is made at the first run, such as workspaces, is not to be captured.
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self._all()
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(graph):
                    self._all()
        except RuntimeError as error:
            first = str(error).split("\n")[0]
            raise TraceError(f"the step cannot be captured as a CUDA graph ({first})") from error
        finally:
            torch.cuda.synchronize()
            with torch.no_grad():
                for value, before in kept:
                    value.copy_(before)
        return graph.replay


def _write(target: Tensor, source: Tensor) -> None:
    """Without waiting: the copy is queued behind the replay that still reads the target."""
    if target.is_cuda:
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)
