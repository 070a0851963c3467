"""Reads from a GGUF file how rotary positions are scaled, as `rope_parameters` of config.json. Needs no torch.

The loader of transformers ignores this part of a file, so it would compute positions without scaling. llama.cpp divides
all frequencies by one factor (`linear`), or each by its own factor in the tensor `rope_freqs.weight`. The factors of
Llama 3.1 and later follow from the settings of the rope type `llama3`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

FACTORS = "rope_freqs.weight"
TENSORS = frozenset({FACTORS, "rope_factors_long.weight", "rope_factors_short.weight"})
"""Vectors with factors of rotary frequencies."""
_EQUAL_LAYERS = frozenset({"llama", "qwen2", "qwen3"})
"""Architectures in which all layers have the same positions."""
_UNUSED = frozenset({"type", "factor", "original_context_length", "finetuned"})
"""Settings of the scaling that are read elsewhere in this module, or that have no effect on these types."""
_HIGH = 4.0
"""The usual `high_freq_factor` of a model whose `low_freq_factor` is 1."""
_SAME = 3e-6
"""Largest relative difference between factors that are equal. Programs compute them with 32 bits."""


def read_rope_parameters(header: Mapping[str, Any], vectors: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Return `rope_parameters` for the config of a file, or None if its positions are not scaled.

    `vectors` has the values of the `TENSORS` that the file has. Raises ValueError if a config for transformers cannot
    express these positions. The error says what the file has.
    """
    name = str(header.get("general.architecture"))
    base = float(header.get(f"{name}.rope.freq_base", 10_000.0))
    if not 0 < base < math.inf:
        raise _unknown(f"{name}.rope.freq_base", base)
    for other in sorted(vectors.keys() - {FACTORS}):
        raise _unknown(other, f"{len(vectors[other])} factors")
    factor, factors = _factor(header, f"{name}.rope."), vectors.get(FACTORS, ())
    if all(math.isclose(each, 1, rel_tol=_SAME) for each in factors) or _is_default(name, factors):
        if factor != 1 and name not in _EQUAL_LAYERS:
            raise _unknown(f"{name}.rope.scaling.factor", factor)
        return None if factor == 1 else {"rope_type": "linear", "rope_theta": base, "factor": factor}
    size = header.get(f"{name}.rope.dimension_count") or (
        header[f"{name}.embedding_length"] // header[f"{name}.attention.head_count"]
    )
    found = None
    if factor == 1 and name in _EQUAL_LAYERS and size == 2 * len(factors):
        found = llama3_parameters(factors, base)
    if found is None:
        raise _unknown(FACTORS, f"{len(factors)} factors from {min(factors):g} to {max(factors):g}")
    return found


def _factor(header: Mapping[str, Any], prefix: str) -> float:
    """Return the factor by which all frequencies are divided."""
    scaling = f"{prefix}scaling."
    kind = header.get(f"{scaling}type", "linear")  # the default of llama.cpp
    if kind not in {"none", "linear"}:
        raise _unknown(f"{scaling}type", kind)
    for key, value in header.items():
        if key.startswith(scaling) and key.removeprefix(scaling) not in _UNUSED and value != 1:
            raise _unknown(key, value)
    found = [key for key in (f"{scaling}factor", f"{prefix}scale_linear") if key in header]
    if kind == "none" or not found or header[found[0]] == 0:
        return 1.0
    factor = header[found[0]]
    if isinstance(factor, str) or not 0 < factor < math.inf:
        raise _unknown(found[0], factor)
    return float(factor)


def _is_default(architecture: str, factors: Sequence[float]) -> bool:
    """Return whether the configuration of transformers has these factors already.

    Gemma 4 rotates a quarter of each head. Its file divides the other frequencies by a huge number.
    """
    rotated = len(factors) // 4
    return (
        architecture == "gemma4"
        and all(each == 1 for each in factors[:rotated])
        and all(each >= 1e20 for each in factors[rotated:])
    )


def _unknown(field: str, value: object) -> ValueError:
    return ValueError(f"{field} is {value}")


def llama3_factors(rope: Mapping[str, Any], size: int) -> list[float]:
    """Return the divisors of the `size` / 2 rotary frequencies of a head, for the rope type `llama3`.

    Frequencies with long wavelengths are divided by `factor`. Frequencies with short wavelengths stay as they are. The
    divisor changes smoothly between them (`_compute_llama3_parameters` of transformers).
    """
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    divisors = []
    for turns in _turns(rope["rope_theta"], size):
        periods = rope["original_max_position_embeddings"] * turns
        smooth = min(1.0, max(0.0, (periods - low) / (high - low)))
        divisors.append(1 / (smooth + (1 - smooth) / factor))
    return divisors


def _turns(base: float, size: int) -> list[float]:
    """Return the turns per token of each rotary frequency, from the highest to the lowest."""
    return [base ** (-exponent / size) / (2 * math.pi) for exponent in range(0, size, 2)]


def llama3_parameters(factors: Sequence[float], base: float) -> dict[str, Any] | None:
    """Return the settings of the rope type `llama3` that give these factors, or None if there are none.

    Multiplying `low_freq_factor`, `high_freq_factor` and the context by the same number does not change the factors. So
    `low_freq_factor` is 1 here.
    """
    factor, size = float(f"{factors[-1]:.7g}"), 2 * len(factors)
    if not 1 < factor < math.inf or min(factors) <= 0:
        return None
    shares = [(1 / each - 1 / factor) / (1 - 1 / factor) for each in factors]
    context, high = _context_and_high(list(zip(shares, _turns(base, size), strict=True)))
    rope = {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": round(high, 3),
        "original_max_position_embeddings": round(context),
    }
    pairs = zip(llama3_factors(rope, size), factors, strict=True)
    return rope if all(math.isclose(*pair, rel_tol=_SAME) for pair in pairs) else None


def _context_and_high(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the context and `high_freq_factor` that fit the frequencies. The caller must check that they really fit.

    A point describes a frequency: the share of it that is not divided by the factor, and its turns per token. A share
    between 0 and 1 is (context * turns - 1) / (high_freq_factor - 1).
    """
    between = [point for point in points if _SAME < point[0] < 1 - _SAME]
    if len(between) > 1:
        (first, fast), (last, slow) = between[0], between[-1]
        width = max(_SAME, (fast - slow) / max(_SAME * fast, slow * first - fast * last))
        return (1 + first * width) / fast, 1 + width
    if between:
        share, turns = between[0]
        return (1 + share * (_HIGH - 1)) / turns, _HIGH
    whole = [turns for share, turns in points if share >= 1 - _SAME]
    divided = [turns for share, turns in points if share <= _SAME]
    return _HIGH**0.5 / math.sqrt(min(whole, default=1) * max(divided, default=1)), _HIGH
