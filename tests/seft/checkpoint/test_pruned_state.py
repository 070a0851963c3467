"""The packed pruned weights: restored exactly, and rejected for another model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from seft.checkpoint.pruned_state import load_pruned, pack_bits, save_pruned, unpack_bits
from seft.errors import StateError
from seft.models.targets import target_linears
from tests.tiny import untrained_tiny


def sparse_tiny(dtype: torch.dtype) -> torch.nn.Module:
    """Return an untrained model with about half of its weights zero, some of them -0.0, and with extreme values."""
    model: torch.nn.Module = untrained_tiny().to(dtype)
    generator = torch.Generator().manual_seed(1)
    for linear in target_linears(model).values():
        weight = linear.weight.data
        weight[torch.rand(weight.shape, generator=generator) < 0.3] = 0.0
        weight[torch.rand(weight.shape, generator=generator) < 0.3] = -0.0
        weight[0, :3] = torch.tensor([torch.finfo(dtype).tiny, -torch.finfo(dtype).max, torch.inf])
    return model


def bits(weight: Tensor) -> Tensor:
    return weight.detach().view(torch.int32 if weight.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_restored_exactly_and_negative_zeros_as_zeros(tmp_path: Path, dtype: torch.dtype) -> None:
    model, other = sparse_tiny(dtype), untrained_tiny(seed=1).to(dtype)
    save_pruned(model, tmp_path / "state.safetensors")
    load_pruned(other, tmp_path / "state.safetensors")
    for saved, loaded in zip(target_linears(model).values(), target_linears(other).values(), strict=True):
        expected = saved.weight.detach().clone()
        expected[expected == 0] = 0.0
        assert torch.equal(bits(loaded.weight), bits(expected))


def test_the_file_has_the_nonzeros_and_one_bit_per_weight(tmp_path: Path) -> None:
    model = sparse_tiny(torch.float32)
    save_pruned(model, tmp_path / "state.safetensors")
    weights = [linear.weight for linear in target_linears(model).values()]
    payload = sum(4 * int(weight.count_nonzero()) + weight.shape[0] * weight.shape[1] // 8 for weight in weights)
    assert payload <= (tmp_path / "state.safetensors").stat().st_size <= payload + 8192


@pytest.mark.parametrize("cols", [1, 7, 8, 9])
def test_any_number_of_columns_packs_and_unpacks(cols: int) -> None:
    mask = torch.rand(5, cols, generator=torch.Generator().manual_seed(cols)) < 0.5
    assert torch.equal(unpack_bits(pack_bits(mask), cols), mask)


def test_a_state_of_another_dtype_is_rejected(tmp_path: Path) -> None:
    save_pruned(sparse_tiny(torch.bfloat16), tmp_path / "state.safetensors")
    with pytest.raises(StateError, match=r"must be 64 x 64 of torch\.float32"):
        load_pruned(untrained_tiny(), tmp_path / "state.safetensors")


def test_a_state_of_a_model_with_other_layers_is_rejected(tmp_path: Path) -> None:
    smaller = untrained_tiny()
    del smaller.model.layers[3]
    save_pruned(smaller, tmp_path / "state.safetensors")
    with pytest.raises(StateError, match=r"model\.layers\.3\.mlp\.down_proj\.kept is missing or extra"):
        load_pruned(untrained_tiny(), tmp_path / "state.safetensors")


def test_a_mask_that_disagrees_with_its_values_is_rejected(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "state.safetensors"
    save_pruned(sparse_tiny(torch.float32), path)
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.kept"][5, 2] ^= 1
    save_file(tensors, path)
    with pytest.raises(StateError, match="one value for each of"):
        load_pruned(untrained_tiny(), path)
