"""Statistics of a linear's inputs, in float32: the norm of each column, and the Gram matrix of the columns.

Linears with the same inputs, such as the projections to queries, keys and values, share the sums over the tokens.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from seft.errors import PruneError
from seft.native import kernels
from seft.native.kernels import Level

Result = TypeVar("Result")


class Batch:
    """The inputs of a linear in one call, and sums over their tokens. Each sum is computed at most once."""

    def __init__(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        self._inputs, self._version = inputs, inputs._version
        self._means: tuple[Mean | None, Mean] | None = None

    def contains(self, inputs: Float[Tensor, "*batch cols"]) -> bool:
        """Return whether `inputs` is the tensor of this batch, and was not modified since."""
        return inputs is self._inputs and inputs._version == self._version

    @property
    def rows(self) -> Float[Tensor, "tokens cols"]:
        """The inputs as one row per token, in float32."""
        return self._inputs.reshape(-1, self._inputs.shape[-1]).float()

    @cached_property
    def squares(self) -> Float[Tensor, "cols"]:
        """The sum of the squares of each column."""
        return self.rows.square().sum(0)

    def mean_after(self, mean: "Mean | None", calls: int) -> "Mean":
        """Return the mean of `2 x x^T` over all calls. `mean` is the mean over the `calls` calls before this one.

        It is None for the first call. Linears that give the same object `mean` get the same object.
        """
        if self._means is None or self._means[0] is not mean:
            inputs = self._inputs.reshape(-1, self._inputs.shape[-1])
            before = None if mean is None else mean.matrix
            self._means = mean, Mean(add_products(before, inputs, calls / (calls + 1), 2 / (calls + 1)))
        return self._means[1]


class Mean:
    """The mean of `2 x x^T` over some calls, with shape (columns, columns), and what a pruner computed from it."""

    def __init__(self, matrix: Float[Tensor, "cols cols"]) -> None:
        self.matrix = matrix
        self.derived: dict[Any, Any] = {}


class Norms:
    """The l2 norm of each input column, over all observed tokens."""

    def __init__(self, weight: Float[Tensor, "rows cols"]) -> None:
        self._squares = torch.zeros(weight.shape[1], device=weight.device)

    def observe(self, batch: Batch) -> None:
        """Add a batch of inputs to the norms."""
        self._squares += batch.squares

    def norms(self) -> Float[Tensor, "cols"]:
        """Return the norms. Raises PruneError if the inputs were missing, all zero, or not finite."""
        return _require_usable(self._squares).sqrt()


class Gram:
    """The Hessian of the linear's squared error: the running mean of `2 x x^T`, as in SparseGPT's published code.

    Linears that observed the same batches share one matrix, and everything that is computed from it.
    """

    def __init__(self) -> None:
        self._mean: Mean | None = None
        self._calls = 0

    def observe(self, batch: Batch) -> None:
        """Add a batch of inputs to the mean."""
        self._mean = batch.mean_after(self._mean, self._calls)
        self._calls += 1

    def hessian(self) -> Float[Tensor, "cols cols"]:
        """Return the Hessian. The caller must not change it, because other linears may share it.

        Raises PruneError if the inputs were missing, all zero, or not finite.
        """
        matrix = torch.zeros(1, 1) if self._mean is None else self._mean.matrix
        _require_usable(matrix.diagonal())
        return matrix

    def dead(self) -> list[int]:
        """Return the numbers of the inputs that are zero for every token. Raises the same errors as `hessian`.

        The host waits for the device once.
        """
        squares = self._mean.matrix.diagonal().cpu() if self._mean else torch.zeros(1)
        return [number for number, square in enumerate(_require_usable(squares).tolist()) if square == 0]

    def derived(self, compute: Callable[..., Result], *arguments: float | torch.dtype) -> Result:
        """Return `compute(hessian, *arguments)`, which is computed once for all linears with this Hessian.

        The caller must not change it. Unlike `hessian`, this function does not check the inputs.
        """
        assert self._mean
        found, key = self._mean.derived, (compute, arguments)
        if key not in found:
            found[key] = compute(self._mean.matrix, *arguments)
        result: Result = found[key]
        return result


def add_products(
    matrix: Float[Tensor, "cols cols"] | None, inputs: Float[Tensor, "tokens cols"], beta: float, alpha: float
) -> Float[Tensor, "cols cols"]:
    """Return `beta * matrix + alpha * inputs^T inputs` in float32. The matrix is symmetric; None is zero.

    Where a processor has instructions for bfloat16, a kernel of `seft.native` multiplies bfloat16 inputs. It computes
    only the upper triangle and copies it to the lower one. Inputs and products below 1e-38 count as zero there.
    """
    if inputs.dtype == torch.bfloat16 and inputs.device.type == "cpu" and kernels.level() is Level.AVX512:
        inputs, cols = inputs.contiguous(), inputs.shape[1]
        result = inputs.new_zeros(cols, cols, dtype=torch.float32) if matrix is None else matrix * beta
        threads = torch.get_num_threads()
        if kernels.library().seft_gram(inputs.data_ptr(), *inputs.shape, alpha, result.data_ptr(), threads):
            raise MemoryError(f"no memory for a copy of the inputs of a Hessian, {len(inputs)} tokens of {cols} values")
        return result
    rows = inputs.float()
    start = rows.new_zeros(()) if matrix is None else matrix
    return torch.addmm(start, rows.T, rows, beta=beta, alpha=alpha)


def damped(hessian: Float[Tensor, "cols cols"], damping: float) -> Float[Tensor, "cols cols"]:
    """Return a copy of the Hessian with `damping` times the mean of its diagonal added to the diagonal."""
    result = hessian.clone()
    result.diagonal().add_(damping * hessian.diagonal().mean())
    return result


def _require_usable(squares: Float[Tensor, "cols"]) -> Float[Tensor, "cols"]:
    largest = float(squares.max())
    if not math.isfinite(largest):
        raise PruneError("inputs must be finite; some are not. Check the model's weights and dtype.")
    if not largest:
        raise PruneError(
            "inputs must not be all zero; no calibration token reached this linear layer, or its inputs are zero for"
            " every token. Give more calibration text, or use the method magnitude."
        )
    return squares
