"""A model four times larger than the device's memory prunes block by block.

The device is simulated by `tests.seft.accelerator`, which limits and measures all bytes on it: weights, activations,
statistics and results. The model stays in host memory, which is not limited. The limit is above the need of one block,
and below that need plus the weights of another block.
"""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from seft.config import PruneConfig, PruneMethod
from seft.models.targets import decoder_blocks
from seft.prune.loop import prune_model
from seft.prune.reconstruct import reconstruct
from tests.seft.accelerator import DEVICE, Accelerator, FullError
from tests.seft.prune.test_loop import SMALL, WINDOWS

BLOCKS = 20
LIMIT = {PruneMethod.WANDA: 2.5, PruneMethod.SPARSEGPT: 3.5, PruneMethod.ADMM: 4.3}
"""Memory of the device, in units of the weights of one block."""


def deep_llama(blocks: int = BLOCKS) -> Any:
    """Return the same model on every call."""
    torch.manual_seed(0)
    sizes = {**SMALL, "num_hidden_layers": blocks, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager")).eval()


def size(module: Any) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@pytest.mark.parametrize("method", LIMIT)
def test_a_model_four_times_larger_than_the_device_is_pruned_on_it(method: PruneMethod) -> None:
    model, expected = deep_llama(), deep_llama()
    block = size(decoder_blocks(model)[0])
    with Accelerator(limit=int(LIMIT[method] * block)) as accelerator:
        prune_model(model, WINDOWS[:3, :16], PruneConfig(0.5, method), device=DEVICE)
    assert size(model) >= 4 * accelerator.limit
    assert block < accelerator.peak <= accelerator.limit
    assert accelerator.used == 0
    prune_model(expected, WINDOWS[:3, :16], PruneConfig(0.5, method))
    for name, weight in model.state_dict().items():
        assert weight.device.type == "cpu"
        assert torch.equal(weight, expected.state_dict()[name]), name


@pytest.mark.parametrize("method", LIMIT)
def test_a_second_block_on_the_device_would_not_fit(method: PruneMethod) -> None:
    model = deep_llama()
    first, *_, last = decoder_blocks(model)
    with Accelerator(limit=int(LIMIT[method] * size(first))) as accelerator:
        beside = copy.deepcopy(last).to(DEVICE)
        assert accelerator.used == size(first)
        with pytest.raises(FullError):
            prune_model(model, WINDOWS[:3, :16], PruneConfig(0.5, method), device=DEVICE)
        del beside


def test_tuning_a_block_needs_no_more_memory_for_more_windows() -> None:
    peaks = []
    for count in (2, 6):
        dense, pruned = deep_llama(3), deep_llama(3)
        config = PruneConfig(0.5, PruneMethod.MAGNITUDE, reconstruct_epochs=1)
        prune_model(pruned, WINDOWS[:0], config)
        with Accelerator(limit=1 << 30) as accelerator:
            reconstruct(pruned, dense, WINDOWS[:count], config, device=DEVICE)
        peaks.append(accelerator.peak)
    assert peaks[0] == peaks[1]


def test_tensors_on_two_devices_cannot_be_combined() -> None:
    with Accelerator(limit=1000):
        tensor = torch.ones(3, device=DEVICE)
        assert (tensor + tensor).device.type == DEVICE
        assert torch.equal((tensor + tensor).to("cpu"), torch.full((3,), 2.0))
        with pytest.raises(RuntimeError, match="in one place"):
            tensor + torch.ones(3)
