"""How pages put things."""

import pytest

from api.dashboard.words import duration, sentence


@pytest.mark.parametrize(
    ("seconds", "told"),
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
def test_a_length_of_time_is_told_in_its_two_largest_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [("the text is short", "The text is short"), ("repair.steps is 0", "repair.steps is 0"), ("", "")],
)
def test_a_message_begins_like_a_sentence_but_for_names(text: str, told: str) -> None:
    assert sentence(text) == told
