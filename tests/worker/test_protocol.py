"""What worker and training process say to each other survives the way, to the last bit."""

import pytest

from core.states import Phase
from worker.meter import WHOLE, Stage, progress, stages
from worker.protocol import (
    Failed,
    Finished,
    LayerChange,
    Measured,
    Message,
    NoDiskSpace,
    Progressed,
    Saved,
    Scored,
    Stopped,
    TopologyEvolved,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Progressed(phase=Phase.TRAINING, progress=1 / 3, step=7),
    Measured(step=7, values={"loss": 0.1 + 0.2, "tokens_per_second": 1e-300}),
    TopologyEvolved(
        step=60,
        dropped=2,
        grown=2,
        reactivated=1,
        pruned=1,
        layers={"model.layers.0.mlp.up_proj": LayerChange(dropped=2, grown=2, reactivated=1, pruned=1)},
    ),
    Scored(scores={"dense": 20.630000000000003}),
    Saved(step=7),
    Finished(step=7, scores={"dense": 2 / 3}, measured={"linears": {"zeros": 6}}),
    Stopped(),
    NoDiskSpace(message="Three bytes are missing.", needed=3),
    Failed(user_error=True, code="not_enough_text", message="Two\nlines, and “quotes”."),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_a_message_is_one_line_and_comes_back_equal(message: Message) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize("line", [b"", b"hello\n", b'{"type": "saved"}\n', b'{"type": "other"}\n', b"\xff\n"])
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        decode(line)


@pytest.mark.parametrize("stages", [WHOLE, stages(reconstructs=False, repairs=False)])
def test_progress_never_falls_and_ends_at_one(stages: tuple[Stage, ...]) -> None:
    seen = [progress(stages, stage, share) for stage in stages for share in (0.0, 0.5, 1.0)]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
