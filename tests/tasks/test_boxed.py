"""The boxed answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.tasks.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} or rather \boxed{ 2 }", "2"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a } b}", r"\text{a } b"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"first \boxed{5}, then \boxed{6", "5"),
        (r"a stray } and a stray { do not matter \boxed{9}", "9"),
        (r"\boxed{}", ""),
        (r"\boxed5", None),
        ("boxed{5}", None),
        ("", None),
        (r"\boxed{\left\{ x \right\} }", r"\left\{ x \right\}"),
        ("\\boxed{two\nlines}", "two\nlines"),
    ],
)
def test_the_last_complete_box_counts(text, answer):
    assert last_boxed(text) == answer


@given(st.text(alphabet="{}\\boxed 1", max_size=60))
def test_any_text_gives_a_balanced_part_of_it_or_nothing(text):
    answer = last_boxed(text)
    if answer is not None:
        assert answer in text
        plain = answer.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert plain.count("{") == plain.count("}")


def test_long_texts_take_time_in_proportion():
    """Boxes that are never closed, as at a length limit: a search that begins anew at each would take minutes."""
    assert last_boxed("\\boxed{" * 200_000) is None
    assert last_boxed("\\boxed{1}" + "{" * 1_000_000) == "1"
