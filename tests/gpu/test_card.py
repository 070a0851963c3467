"""On a card, pruning and repair give what they give on the CPU, and a job survives interruptions and a full memory."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from core.settings import Settings
from core.states import Status
from seft.config import PruneConfig, PruneMethod
from seft.devices import configure_torch
from seft.models.targets import target_linears
from seft.prune.loop import prune_model
from seft.repair import Repair
from seft.repair.window import Window
from seft.report import Step
from tests.seft.repair.repairing import TOKENS, pruned_tiny, short
from tests.tiny import untrained_tiny
from tests.worker.conftest import Backend, open_backend
from tests.worker.test_pipeline import Run
from worker.attempt import Supervisor

__all__ = ["open_backend"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")
CARD = "cuda"
DRAWS = Window._draws
Weights = dict[str, torch.Tensor]
NEAR = (0.99, 0.02)
"""Smallest fraction of the zeros in the same places, and largest difference of the weights, relative to their norm."""
NEAR_BY_METHOD = {PruneMethod.ALPS: (0.9, 0.5)}
"""ALPS amplifies rounding. On the CPU, noise of 2e-7 in the weights of this model moves 3 % of its zeros, with a
difference of 0.23. The zeros of the other methods stay, and their difference is at most 1e-5."""
LITTLE_MEMORY = 256 << 20
"""Bytes for a job. They are enough for one window of 512 tokens, and half of what 128 windows need."""


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Use the settings of a job, and those of other tests afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    configure_torch(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def pruned_on(device: str, method: PruneMethod) -> Weights:
    """Return the weights of an untrained model that was pruned on a device."""
    model = untrained_tiny().to(device)
    prune_model(model, TOKENS[:512].view(8, 64), PruneConfig(0.6, method))
    return {name: target.weight.detach().cpu() for name, target in target_linears(model).items()}


@pytest.mark.parametrize("method", PruneMethod)
def test_pruning_on_a_card_chooses_the_zeros_of_the_cpu(method: PruneMethod) -> None:
    expected, found = (pruned_on(device, method) for device in ("cpu", CARD))
    require_near(found, expected, *NEAR_BY_METHOD.get(method, NEAR))
    for name, weight in expected.items():
        assert (weight == 0).sum() == (found[name] == 0).sum(), name


def require_near(found: Weights, expected: Weights, same_zeros: float, difference: float) -> None:
    for name, weight in expected.items():
        zeros = weight == 0
        assert (zeros & (found[name] == 0)).sum() >= same_zeros * zeros.sum(), name
        assert (weight - found[name]).norm() <= difference * weight.norm(), name


def repaired_on(device: str, **changes: Any) -> tuple[Weights, list[float]]:
    """Return the weights after a repair on a device, and the loss of each step."""
    model = pruned_tiny().to(device)
    repair = Repair(model, TOKENS, short(**changes))
    losses = []
    while not repair.done:
        losses += [report.loss for report in repair.advance() if isinstance(report, Step)]
    repair.finish()
    return {name: target.weight.detach().cpu() for name, target in target_linears(model).items()}, losses


def draws_of_cpu(self: Window, gradient: torch.Tensor, rows: slice) -> torch.Tensor:
    return DRAWS(self, gradient.cpu(), rows).to(gradient.device)


@pytest.mark.parametrize("density", ["all", 0.02])
def test_a_repair_on_a_card_has_the_losses_and_weights_of_the_cpu(
    density: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Window, "_draws", draws_of_cpu)  # a card has other random numbers, so other positions grow
    (expected, losses), (found, others) = (repaired_on(device, density=density) for device in ("cpu", CARD))
    assert others == pytest.approx(losses, rel=1e-3)
    require_near(found, expected, *NEAR)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gradients_of_attention_on_a_card_have_the_same_bits(dtype: torch.dtype, masked: bool) -> None:
    operands = [torch.randn(2, 8, 2048, 64, device=CARD, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2048, 2048, dtype=torch.bool, device=CARD).tril() if masked else None
    query, key, value = operands
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=not masked)
    gradient = torch.randn_like(out)
    expected = torch.autograd.grad(out, operands, gradient, retain_graph=True)
    for _ in range(10):
        assert all(map(torch.equal, expected, torch.autograd.grad(out, operands, gradient, retain_graph=True)))


@pytest.mark.parametrize("density", ["all", 0.02])
def test_the_same_repair_on_a_card_gives_the_same_bits(density: Any) -> None:
    (first, _), (second, _) = (repaired_on(CARD, density=density) for _ in range(2))
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


class OnCard(Run):
    """A run whose training process uses the card."""

    def __init__(self, folder: Path, models: Path, texts: list[str]) -> None:
        super().__init__(folder, models, texts)
        self.task = self.task.model_copy(update={"device": CARD})


def test_an_interrupted_and_resumed_job_on_a_card_gives_the_same_bytes(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    whole, first, second = (OnCard(tmp_path / name, tiny_folder.parent, tiny_texts[:40]) for name in "abc")
    expected = whole.run().manifest()
    second.resume_from(first.run_until(4), 4)
    assert second.run().manifest() == expected


def test_a_job_that_fills_the_card_is_retried_with_less_and_succeeds(
    settings: Settings, open_backend: Callable[[Settings], Backend], tiny_folder: Path, tiny_texts: list[str]
) -> None:
    backend = open_backend(settings.model_copy(update={"model_roots": [tiny_folder.parent], "device": CARD}))
    job_id = backend.add_job(
        backend.add_dataset(tiny_texts),
        dtype="float32",
        prune={"method": "wanda", "calibration": {"samples": 4, "tokens": 96}},
        repair={
            "steps": 2,
            "batch_tokens": 128 * 512,
            "micro_batch": 128,
            "activation_checkpointing": True,
            "retain": "none",
        },
        evaluate={"windows": 2, "tokens": 96},
    )
    _run_with_little_memory(backend)
    job = backend.job(job_id)
    assert (job.status, job.micro_batch) == (Status.QUEUED, 1), job.error
    _run_with_little_memory(backend)
    job = backend.job(job_id)
    assert job.status == Status.SUCCEEDED, job.error


def _run_with_little_memory(backend: Backend) -> None:
    training = (sys.executable, "-m", "tests.gpu.small_memory", str(LITTLE_MEMORY))
    Supervisor(
        backend.claim(),
        backend.sessions,
        backend.storage,
        backend.settings,
        draining=threading.Event(),
        training=training,
    ).run()
