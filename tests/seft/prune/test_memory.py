"""A model ten times larger than the device's memory prunes block by block.

What is limited and measured is the device that `prune_model` is given, played by `tests.seft.accelerator`: every byte
of weights, activations, statistics and results that is on it at once. The model stays in host memory, which is not
limited. The limit lies between what one block needs and that plus the weights of another.
"""

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

BLOCKS = 48
ROOM = {PruneMethod.WANDA: 2.5, PruneMethod.SPARSEGPT: 3.5}
"""The memory of the device, in the weights of a block."""


def deep_llama(blocks: int = BLOCKS) -> Any:
    """Always the same one."""
    torch.manual_seed(0)
    sizes = {**SMALL, "num_hidden_layers": blocks, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager")).eval()


def size(module: Any) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@pytest.mark.parametrize("method", ROOM)
def test_a_model_ten_times_larger_than_the_device_is_pruned_on_it(method: PruneMethod) -> None:
    model, expected = deep_llama(), deep_llama()
    block = size(decoder_blocks(model)[0])
    with Accelerator(limit=int(ROOM[method] * block)) as accelerator:
        prune_model(model, WINDOWS[:3, :16], PruneConfig(0.5, method), device=DEVICE)
    assert size(model) >= 10 * accelerator.limit
    assert block < accelerator.peak <= accelerator.limit
    assert accelerator.used == 0
    prune_model(expected, WINDOWS[:3, :16], PruneConfig(0.5, method))
    for name, weight in model.state_dict().items():
        assert weight.device.type == "cpu"
        assert torch.equal(weight, expected.state_dict()[name]), name


@pytest.mark.parametrize("method", ROOM)
def test_a_second_block_on_the_device_would_not_fit(method: PruneMethod) -> None:
    model = deep_llama()
    first, *_, last = decoder_blocks(model)
    with Accelerator(limit=int(ROOM[method] * size(first))) as accelerator:
        last.to(DEVICE)
        assert accelerator.used == size(first)
        with pytest.raises(FullError):
            prune_model(model, WINDOWS[:3, :16], PruneConfig(0.5, method), device=DEVICE)


def test_tuning_a_block_needs_no_more_room_for_more_windows() -> None:
    peaks = []
    for count in (2, 6):
        dense, pruned = deep_llama(3), deep_llama(3)
        config = PruneConfig(0.5, PruneMethod.MAGNITUDE, reconstruct_epochs=1)
        prune_model(pruned, WINDOWS[:0], config)
        with Accelerator(limit=1 << 30) as accelerator:
            reconstruct(pruned, dense, WINDOWS[:count], config, device=DEVICE)
        peaks.append(accelerator.peak)
    assert peaks[0] == peaks[1]


def test_what_lies_in_two_places_does_not_meet() -> None:
    with Accelerator(limit=1000):
        there = torch.ones(3, device=DEVICE)
        assert (there + there).device.type == DEVICE
        assert torch.equal((there + there).to("cpu"), torch.full((3,), 2.0))
        with pytest.raises(RuntimeError, match="in one place"):
            there + torch.ones(3)
