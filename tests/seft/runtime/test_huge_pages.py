"""Tensors in huge pages have the same values, and share chunks of memory."""

import torch

from seft.runtime.huge_pages import CHUNK, PAGE, HugePages


def test_copies_are_equal_and_independent() -> None:
    memory = HugePages()
    tensors = [torch.randn(5, 7), torch.arange(3, dtype=torch.uint8), torch.zeros(0), torch.ones(2, 3).bfloat16().T]
    copies = [memory.copy(each) for each in tensors]
    for tensor, copied in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copied)
        assert copied.is_contiguous()
        assert copied.data_ptr() % 64 == 0
    copies[0].fill_(9)
    assert torch.equal(copies[1], tensors[1])


def test_a_tensor_larger_than_a_chunk_has_a_chunk_of_its_own() -> None:
    memory = HugePages()
    before, large, after = (memory.copy(torch.full((size,), size, dtype=torch.int64)) for size in (3, CHUNK // 4, 5))
    assert large.data_ptr() % PAGE == 0
    assert (len(before), len(large), len(after)) == (3, CHUNK // 4, 5)
    del memory, large
    assert before.tolist() == [3] * 3
    assert after.tolist() == [5] * 5
