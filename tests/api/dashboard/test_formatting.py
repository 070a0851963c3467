"""Text formatting of the pages."""

import pytest

from api.dashboard.formatting import duration, sentence


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
