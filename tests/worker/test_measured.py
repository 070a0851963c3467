"""What the training process reports about one step."""

from types import SimpleNamespace

import pytest

from seft.report import Evaluated
from worker.pipeline import Pipeline
from worker.protocol import Measured, Message, decode, encode


@pytest.mark.parametrize(("loss", "values"), [(2.5, {"held_out_loss": 2.5}), (float("inf"), {})])
def test_a_loss_that_json_cannot_hold_is_left_out(
    loss: float, values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipeline.peak_memory", lambda device: 7)
    sent: list[Message] = []
    pipeline = SimpleNamespace(step=4, send=sent.append, _device="cpu")
    Pipeline._send_step(pipeline, [Evaluated(4, loss)])  # type: ignore[arg-type]
    assert [decode(encode(message)) for message in sent] == [Measured(step=4, values={**values, "memory_bytes": 7})]
