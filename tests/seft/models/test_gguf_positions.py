"""The settings of scaled positions are read from the header and the factors of a GGUF file, or the file is refused."""

import math
from typing import Any

import numpy as np
import pytest

from seft.errors import ConfigError
from seft.models.gguf_config import require_expressible
from seft.models.gguf_positions import FACTORS, llama3_factors, read_rope_parameters

HEADER: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.rope.freq_base": 500_000.0,
    "llama.rope.dimension_count": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "num_attention_heads": 1,
    "max_position_embeddings": 8192,
}


def float32(factors: list[float]) -> list[float]:
    return [float(each) for each in np.asarray(factors, np.float32)]


@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize(
    "changes", [{}, {"factor": 32.0}, {"high_freq_factor": 8.0}, {"rope_theta": 10_000.0}], ids=str
)
def test_factors_give_the_settings_of_llama_3(size: int, changes: dict[str, float]) -> None:
    rope = {**LLAMA3, **changes}
    header = {**HEADER, "llama.rope.freq_base": rope["rope_theta"], "llama.rope.dimension_count": size}
    assert read_rope_parameters(header, {FACTORS: float32(llama3_factors(rope, size))}) == rope


def test_settings_with_a_common_multiple_become_those_with_the_low_factor_1() -> None:
    rope = {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 16384}
    assert read_rope_parameters(HEADER, {FACTORS: float32(llama3_factors(rope, 128))}) == LLAMA3


@pytest.mark.parametrize(
    "factors",
    [
        [1.0] * 63 + [1e30],
        [1.0 + each / 64 for each in range(64)],
        [1.0] * 32 + [8.0] * 31 + [9.0],
        [1.0] * 63 + [math.nan],
        [1.0] * 63 + [math.inf],
        [-1.0] * 32 + [8.0] * 32,
        [0.0] * 64,
        llama3_factors(LLAMA3, 64),
    ],
    ids=lambda factors: f"{len(factors)} from {factors[0]} to {factors[-1]}",
)
def test_other_factors_are_refused(factors: list[float]) -> None:
    with pytest.raises(ValueError, match=rf"{FACTORS} is {len(factors)} factors from"):
        read_rope_parameters(HEADER, {FACTORS: factors})


def test_factors_of_1_and_scaling_that_is_off_change_nothing() -> None:
    assert read_rope_parameters(HEADER, {FACTORS: [1.0] * 64}) is None
    assert read_rope_parameters({**HEADER, "llama.rope.scaling.factor": 0.0}, {}) is None
    off = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert read_rope_parameters({**HEADER, **off}, {}) is None


@pytest.mark.parametrize("key", ["scaling.factor", "scale_linear"])
def test_a_factor_gives_linear_positions(key: str) -> None:
    found = read_rope_parameters({**HEADER, f"llama.rope.{key}": 4.0, "llama.rope.scaling.finetuned": False}, {})
    assert found == {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 4.0}


def test_both_kinds_of_factors_are_refused() -> None:
    factors = {FACTORS: float32(llama3_factors(LLAMA3, 128))}
    with pytest.raises(ValueError, match=FACTORS):
        read_rope_parameters({**HEADER, "llama.rope.scaling.factor": 4.0}, factors)


def test_long_and_short_factors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rope_factors_long\.weight is 64 factors"):
        read_rope_parameters(HEADER, {"rope_factors_long.weight": [1.0] * 64})


def test_the_factors_of_gemma_4_are_those_of_its_configuration() -> None:
    header = {"general.architecture": "gemma4"}
    assert read_rope_parameters(header, {FACTORS: [1.0] * 16 + [1e30] * 48}) is None
    with pytest.raises(ValueError, match=FACTORS):
        read_rope_parameters(
            {**header, "gemma4.embedding_length": 64, "gemma4.attention.head_count": 1}, {FACTORS: [2.0]}
        )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
        {**LLAMA3, "factor": 1.0},
        {**LLAMA3, "low_freq_factor": 4.0},
    ],
    ids=str,
)
def test_scaling_that_a_file_cannot_have_is_refused(rope: dict[str, Any]) -> None:
    config = {**CONFIG, "rope_parameters": {"rope_theta": 5e5, **rope}}
    assert require_expressible({**config, "rope_parameters": LLAMA3}) == "llama"
    with pytest.raises(ConfigError, match="may contain GGUF only for a model with"):
        require_expressible(config)


def test_a_window_as_long_as_the_context_is_no_window() -> None:
    assert require_expressible({**CONFIG, "sliding_window": 8192}) == "llama"
    with pytest.raises(ConfigError, match="has 'sliding_window 8191'"):
        require_expressible({**CONFIG, "sliding_window": 8191})
