"""Messages between worker and training process are decoded without any loss."""

import json
import math

import pytest

from core.states import Phase
from seft.report import Change, Evolved
from worker.protocol import (
    MAX_TEXT_CHARACTERS,
    Failed,
    Finished,
    Measured,
    Message,
    NoDiskSpace,
    Progressed,
    Reading,
    Refused,
    Saved,
    Scored,
    Stopped,
    TopologyEvolved,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Progressed(phase=Phase.TRAINING, progress=1 / 3, step=7, remaining=2 / 3),
    Reading(records=7),
    Measured(step=7, values={"loss": 0.1 + 0.2, "tokens_per_second": 1e-300}),
    TopologyEvolved(
        event=Evolved.of(
            60, {"model.layers.0.mlp.up_proj": Change(dropped=2, grown=2, reactivated=1, pruned=1)}, sparsity=0.6
        )
    ),
    Scored(scores={"dense": 20.630000000000003}),
    Saved(step=7),
    Finished(step=7, scores={"dense": 2 / 3}, measured={"linears": {"zeros": 6}}),
    Stopped(),
    NoDiskSpace(message="Three bytes are missing.", needed=3),
    Failed(user_error=True, code="not_enough_text", message="Two\nlines, and “quotes”."),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_a_message_is_one_line_and_is_decoded_to_an_equal_message(message: Message) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_a_message_can_name_any_text_of_a_model(text: str) -> None:
    for message in (Failed(user_error=True, code=text, message=text), Refused(message=text)):
        assert decode(encode(message)).message == "a\N{REPLACEMENT CHARACTER}b"  # type: ignore[union-attr]
    assert b"\\u0000" not in encode(Failed(user_error=True, code="a", message=text))


def test_a_long_text_of_a_model_is_shortened_when_it_is_sent_and_when_it_is_received() -> None:
    text = "beginning" + "x" * (1 << 20) + "end"
    line = encode(Failed(user_error=True, code="model_refused", message=text))
    long = b'{"type": "refused", "message": "%s"}' % text.encode()
    for message in (decode(line), decode(long)):
        shown = message.message  # type: ignore[union-attr]
        assert len(shown) == MAX_TEXT_CHARACTERS
        assert shown.startswith("beginning")
        assert shown.endswith("end")


ENDLESS = b'{"type": "progressed", "phase": "training", "progress": 0.5, "step": 1, "remaining": 1e10}\n'
UNREAL = b'{"type": "progressed", "phase": "training", "progress": NaN, "step": 1}\n'
TOO_MUCH = b'{"type": "progressed", "phase": "training", "progress": 1.1, "step": 1}\n'
NEGATIVE = b'{"type": "saved", "step": -1}\n'
LARGE_STEP = b'{"type": "measured", "step": 2147483648, "values": {}}\n'
LARGE_EVENT = encode(MESSAGES[3]).replace(b'"step":60', b'"step":2147483648')
LINES = [b"", b"hello\n", b'{"type": "saved"}\n', b'{"type": "other"}\n', b"\xff\n", ENDLESS, UNREAL]
LINES += [TOO_MUCH, NEGATIVE, LARGE_STEP, LARGE_EVENT]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_not_a_message_is_rejected(line: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        decode(line)


def test_numbers_that_would_harm_jobs_of_others_are_refused() -> None:
    many = {str(number): 1.0 for number in range(101)}
    for line in (
        {"type": "no_disk_space", "message": "", "needed": 1 << 51},
        {"type": "no_disk_space", "message": "", "needed": -1},
        {"type": "scored", "scores": many},
        {"type": "scored", "scores": {"dense": math.nan}},
        {"type": "measured", "step": 1, "values": {"loss": math.inf}},
        {"type": "finished", "step": 1, "scores": {}, "measured": {"linears": math.nan}},
        {"type": "scored", "scores": {"x" * 101: 1.0}},
        {"type": "measured", "step": 1, "values": many},
        {"type": "finished", "step": 1, "scores": many, "measured": {}},
        {"type": "finished", "step": 1, "scores": {}, "measured": {"linears": "x" * 10_000}},
    ):
        with pytest.raises(ValueError, match=r"most|less than or equal|greater than or equal|finite|compliant"):
            decode(json.dumps(line).encode())
