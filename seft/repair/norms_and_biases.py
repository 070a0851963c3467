"""Trains norms and biases in addition to a repair method (PERP, Zimmer et al. 2023, arXiv 2312.15230).

These are the parameters without a weight matrix: scales and shifts of norm layers, biases of linears, and other vectors
such as attention sinks. Pruning does not change them, and they are few. Autograd computes their gradients.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from seft.dtypes import master_dtype
from seft.models.targets import norms_and_biases
from seft.repair import optimizer
from seft.repair.method import Method, Work
from seft.repair.values import Values, Vector
from seft.report import Evolved, Reporter

_PREFIX = "norms_and_biases:"
"""Prefix of the names of these tensors in a state. Target names contain no colon."""


class WithNormsAndBiases:
    """A repair method that also trains the norms and biases of the model. `method` does everything else."""

    def __init__(self, method: Method, work: Work) -> None:
        self._method, self._decay = method, work.config.weight_decay
        self._vectors = {name: TrainedVector(each) for name, each in norms_and_biases(work.model).items()}

    @property
    def trained_values(self) -> int:
        """Number of trained values: those of the method, and all entries of the norms and biases."""
        return self._method.trained_values + sum(len(each.change.values) for each in self._vectors.values())

    @property
    def grown_zeros(self) -> int:
        """Number of weights that were zero when pruning ended and are nonzero now."""
        return self._method.grown_zeros

    def before_step(self, step: int, /) -> None:
        """Let the method prepare a step."""
        self._method.before_step(step)

    def after_micro_batch(self) -> None:
        """Let the method do what must wait for the end of a backward pass."""
        self._method.after_micro_batch()

    def take_gradients(self) -> list[Tensor]:
        """Return the accumulated gradients of the method, then those of the norms and biases, and reset them."""
        return [*self._method.take_gradients(), *(each.take_gradient() for each in self._vectors.values())]

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take one optimizer step in the method, and in each norm and bias with the same learning rate."""
        count = len(gradients) - len(self._vectors)
        self._method.update(gradients[:count], rate, scale)
        for vector, gradient in zip(self._vectors.values(), gradients[count:], strict=True):
            vector.update(gradient, rate, self._decay)

    def evolve(self, step: int, /) -> Evolved | None:
        """Let the method run the topology event that is due after a step."""
        return self._method.evolve(step)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the method, and the changes of the norms and biases with Adam's moments."""
        parts = {
            f"{_PREFIX}{name}/{part}": tensor
            for name, vector in self._vectors.items()
            for part, tensor in vector.change.tensors().items()
        }
        return {**self._method.tensors(), **parts}

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Replace the present state by saved tensors."""
        own = {name for name in tensors if name.startswith(_PREFIX)}
        self._method.resume({name: tensor for name, tensor in tensors.items() if name not in own})
        for name, vector in self._vectors.items():
            vector.resume({part: tensors[f"{_PREFIX}{name}/{part}"] for part in vector.change.tensors()})

    def finish(self, report: Reporter, /) -> None:
        """Stop collecting gradients, and let the method restore the model's modules."""
        for vector in self._vectors.values():
            vector.release()
        self._method.finish(report)


class TrainedVector:
    """A parameter whose change from its initial values is trained, in float32 or wider.

    The parameter always has the present values. Gradients of micro-batches are summed in float32 or wider.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter, self._initial = parameter, parameter.detach().clone()
        self.change = Values.start(torch.zeros_like(self._initial, dtype=master_dtype(parameter.dtype)).flatten())
        self._gradient = torch.zeros_like(self.change.values)
        self._trained_before = parameter.requires_grad
        parameter.requires_grad_(True)
        self._hook = parameter.register_post_accumulate_grad_hook(self._accumulate)  # type: ignore[no-untyped-call]

    def take_gradient(self) -> Vector:
        """Return the gradient accumulated since the last call, and reset it."""
        gradient, self._gradient = self._gradient, torch.zeros_like(self._gradient)
        return gradient

    def update(self, gradient: Vector, rate: float, weight_decay: float) -> None:
        """Take one optimizer step with this gradient, and write the new values into the parameter."""
        optimizer.step(self.change, gradient, rate, weight_decay)
        self._write()

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the change and its moments by saved ones, and write the values into the parameter."""
        self.change = Values(**{name: tensor.to(self._initial.device) for name, tensor in tensors.items()})
        self._write()

    def release(self) -> None:
        """Stop collecting gradients. A parameter that was frozen before is frozen again."""
        self._hook.remove()
        self._parameter.requires_grad_(self._trained_before)

    def _accumulate(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._gradient += parameter.grad.flatten()
        parameter.grad = None

    def _write(self) -> None:
        self._parameter.detach().copy_(self._initial + self.change.values.view_as(self._initial))
