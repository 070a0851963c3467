"""Text formatting of the pages."""

from typing import Any

import pytest

from api.dashboard.formatting import duration, perplexity, sentence, size, waiting_reason
from api.dashboard.forms import flatten
from api.schemas.jobs import JobDetail, ReasonView


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "under 0.1 s"),
        (2.44, "2.4 s"),
        (9.96, "9 s"),
        (59.9, "59 s"),
        (61, "1 min 01 s"),
        (3 * 3600 + 61, "3 h 01 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_duration_is_formatted_in_its_two_largest_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the text is short", "The text is short"), ("repair.steps is 0", "repair.steps is 0"), ("", "")],
)
def test_sentence_capitalises_the_first_letter_except_of_names(text: str, expected: str) -> None:
    assert sentence(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12.345, "12.3"),
        (999.4, "999"),
        (999.6, "1\u202f000"),
        (54321.4, "54\u202f321"),
        (1.2345e6, "1.23e6"),
        (1.2345e12, "1.23e12"),
    ],
)
def test_perplexity_is_short_and_keeps_its_digits_in_groups(value: float, expected: str) -> None:
    assert perplexity(value) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(999, "999 B"), (999_400, "999 kB"), (999_950, "1.0 MB"), (99_960_000, "100 MB"), (1e18, "1000 PB")],
)
def test_size_has_at_most_three_digits_before_a_larger_unit(count: float, expected: str) -> None:
    assert size(count) == expected


def test_settings_are_written_as_in_a_request() -> None:
    assert flatten({"a": True, "b": {"c": None, "d": [1, "x"]}}) == {"a": "true", "b.c": "", "b.d": "1, x"}


def test_reason_to_wait_has_readable_numbers() -> None:
    reason = ReasonView(code="no_worker", message="It needs 85,899,345,920 bytes of memory and 1,024 bytes of disk.")
    for position, shown in ((2, "2"), (1000, "1000 or later")):
        values: dict[str, Any] = {"queue_position": position, "reason": reason}
        job = JobDetail.model_construct(**values)
        assert waiting_reason(job) == f"number {shown} in the queue. It needs 85.9 GB of memory and 1.0 kB of disk."
