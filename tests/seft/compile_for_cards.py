"""Compile every Triton kernel to the machine code of some cards, which needs no card. Prints the number of programs.

Arguments: compute capabilities, such as 80 90. TRITON_INTERPRET must not be set.
"""

import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import seft.repair.cuda as repair
import seft.runtime.cuda as runtime

ALIGNED = [["tt.divisibility", 16]]
SIZES = {"rows", "cols", "tokens", "blocks"}
"""Arguments that Triton compiles differently if they are multiples of 16."""
BITS = {"bf16": 16, "fp16": 13, "fp32": 0}


def sources() -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Yield kernels with the types of their arguments and their constants, as their callers use them."""
    matrix = {"rows": "i32", "cols": "i32"}
    scales = {"row_scales": "*fp32", "col_scales": "*fp32"}
    for dtype in ("bf16", "fp32"):
        operands = {"left": f"*{dtype}", "right": f"*{dtype}", "positions": "*i32", "entries": "*fp32"}
        yield repair._sample, {**operands, "count": "i32", "tokens": "i32", "cols": "i32"}, {}
    for dtype, gradient in (*zip(BITS, BITS, strict=True), ("bf16", "fp32"), ("fp16", "fp32")):
        dropped, both = BITS[dtype], {"weight": f"*{dtype}", "gradient": f"*{gradient}"}
        yield repair._square_sums, {**both, "row_sums": "*fp32", "col_sums": "*fp32", **matrix}, {}
        yield repair._scaled_square_sum, {"gradient": f"*{gradient}", **scales, "sums": "*fp32", **matrix}, {}
        halves = {"low": "i32", "high": "i32"}
        yield repair._change, {**both, **scales, **halves, **matrix, "dropped": "constexpr"}, {"dropped": dropped}
    for values, scaled in (("bf16", False), ("i8", True)):
        panels = {"masks": "*i64", "values": f"*{values}", "starts": "*i64"}
        constants = {"scaled": scaled, "biased": True}
        kinds = {"scales": "*fp32", "bias": "*bf16", "y": "*fp32", **matrix, "blocks": "i32"}
        yield runtime._multiply, {"x": "*bf16", **panels, **kinds, **dict.fromkeys(constants, "constexpr")}, constants
        yield runtime._expand, {**panels, "dense": "*bf16", "first": "i32", **matrix, "blocks": "i32"}, {}


def main() -> None:
    """Compile each kernel for each card, with aligned arrays and sizes and without."""
    compiled = 0
    for kernel, types, constants in sources():
        assert list(types) == kernel.arg_names, (kernel.__name__, kernel.arg_names)
        aligned = [(place,) for place, (name, kind) in enumerate(types.items()) if kind[0] == "*" or name in SIZES]
        for capability in map(int, sys.argv[1:]):
            for attributes in ({}, dict.fromkeys(aligned, ALIGNED)):
                source = ASTSource(kernel, types, constants, attributes)
                assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
                compiled += 1
    sys.stdout.write(f"{compiled}\n")


if __name__ == "__main__":
    main()
