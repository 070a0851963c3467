"""The zeros that another tool left are counted, and the N:M pattern that they follow is found."""

from typing import Any, cast

import pytest
import torch

from seft import stages
from seft.config import UNSTRUCTURED, Pattern, PruneConfig, PruneMethod, Refinement
from seft.errors import ConfigError
from seft.models.load import Loaded
from seft.models.targets import target_linears
from seft.prune.detect_zeros import config_of_zeros, find_zeros
from seft.prune.mask import smallest_in_groups, smallest_overall
from seft.report import ZerosFound
from tests.seft.architectures import ARCHITECTURES
from tests.tiny import untrained_tiny


def found(model: Any) -> ZerosFound:
    result = find_zeros(model)
    assert result is not None
    return result


@torch.no_grad()
def prune_to(model: Any, pattern: Pattern, without: str = "nothing") -> None:
    for name, target in target_linears(model).items():
        if without not in name:
            target.weight.masked_fill_(smallest_in_groups(target.weight.abs(), pattern), -0.0)


@torch.no_grad()
def prune_freely(model: Any, sparsity: float) -> None:
    for target in target_linears(model).values():
        zeros = smallest_overall(target.weight.abs(), int(sparsity * target.weight.numel()))
        target.weight.masked_fill_(zeros, 0.0)


@pytest.mark.parametrize("text", ["1:2", "2:4", "1:4", "3:4", "4:8", "1:8", "8:16", "5:32"])
def test_the_pattern_is_found_and_its_sparsity_is_that_of_the_settings(text: str) -> None:
    model, pattern = untrained_tiny(), Pattern.parse(text)
    prune_to(model, pattern)
    result = found(model)
    assert result.pattern == text
    assert result.sparsity == pytest.approx(pattern.sparsity(None))
    config = config_of_zeros(PruneConfig(0.0, seed=5), result)
    assert (config.pattern, config.sparsity) == (pattern, pattern.sparsity(None))
    assert (config.method, config.seed) == (PruneMethod.MAGNITUDE, 5)


def test_further_zeros_do_not_hide_a_pattern() -> None:
    model = untrained_tiny()
    prune_to(model, Pattern(2, 4))
    prune_freely(model, 0.6)
    result = found(model)
    assert result.pattern == "2:4"
    assert result.sparsity == pytest.approx(0.6, abs=1e-3)


def test_a_few_groups_without_nonzeros_do_not_hide_a_pattern() -> None:
    model = untrained_tiny()
    prune_to(model, Pattern(2, 4))
    with torch.no_grad():
        for target in target_linears(model).values():
            target.weight[0, :8] = 0.0
    result = found(model)
    assert result.pattern == "2:4"
    assert result.highest > result.lowest > 0.5
    assert config_of_zeros(PruneConfig(0.0), result).sparsity == 0.5


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9, 0.98])
def test_unstructured_zeros_have_no_pattern(sparsity: float) -> None:
    model = untrained_tiny()
    prune_freely(model, sparsity)
    result = found(model)
    assert Pattern.parse(result.pattern) == UNSTRUCTURED
    config = config_of_zeros(PruneConfig(0.0), result)
    assert (config.pattern, config.sparsity) == (UNSTRUCTURED, result.sparsity)
    assert result.sparsity == pytest.approx(sparsity, abs=1e-3)


def test_a_model_with_too_many_zeros_is_rejected_with_their_fraction() -> None:
    model = untrained_tiny()
    prune_freely(model, 0.995)
    with pytest.raises(ConfigError, match=r"model must have at most 99% zeros in its target linears; it has '99\.49%'"):
        config_of_zeros(PruneConfig(0.0), found(model))


def test_linears_without_zeros_are_counted_and_leave_no_common_pattern() -> None:
    model = untrained_tiny()
    prune_to(model, Pattern(2, 4), without="q_proj")
    result = found(model)
    assert (result.linears, result.dense, result.lowest, result.highest) == (28, 4, 0.0, 0.5)
    assert result.pattern == "unstructured"


def test_a_dense_model_has_no_zeros_to_find() -> None:
    model = untrained_tiny()
    assert find_zeros(model) is None
    prune_freely(model, 0.005)
    assert find_zeros(model) is None


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss"])
def test_the_pattern_is_along_the_inputs_however_weights_are_stored(name: str) -> None:
    model = ARCHITECTURES[name].model()
    prune_to(model, Pattern(2, 4))
    assert found(model).pattern == "2:4"


def test_the_sparsity_zero_prunes_nothing_and_reads_no_text() -> None:
    model = untrained_tiny()
    prune_freely(model, 0.4)
    before = {name: target.weight.clone() for name, target in target_linears(model).items()}
    config = PruneConfig(0.0, refine=Refinement.DSNOT, reconstruct_epochs=1)
    assert config.text_users == []
    loaded = Loaded(model, None, cast("Any", None))
    stages.prune(
        loaded, torch.zeros(0, 8, dtype=torch.int64), config, lambda: pytest.fail("the dense model was loaded")
    )
    assert all(torch.equal(before[name], target.weight) for name, target in target_linears(model).items())
