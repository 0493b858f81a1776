"""Amounts of budgets: what is accepted, in which unit, and how they are shown."""

import pytest

from fxcompress.policies import Amount, show


@pytest.mark.parametrize(
    ("text", "budget", "limit"),
    [
        ("25%", "size", 250),
        ("12.5 %", "bops", 125),
        ("33.3%", "size", 333),
        (700, "size", 700),
        (7.9, "size", 7),
        ("1e3", "latency", 1000),
        ("1.2 MB", "size", 1_200_000),
        ("2.3 MB", "size", 2_300_000),  # in floating point 2.3 * 1e6 is less
        ("1 KiB", "size", 1024),
        ("40MBOPs", "bops", 40_000_000),
        (" 3 ms ", "latency", 3_000_000),
        (".5 us", "latency", 500),
        ("9007199254740993 B", "size", 9007199254740993),
    ],
)
def test_limits(text, budget, limit):
    assert Amount(text).limit(budget, whole=1000) == limit


@pytest.mark.parametrize("text", ["", "MB", "-1 MB", 0, "0%", True, None, "1 2 MB", "nan", float("inf"), [1]])
def test_not_an_amount(text):
    with pytest.raises(
        ValueError, match=r"is not an amount; write for example '25%', '1.2 MB', '3 ms' or '40 MBOPs'"
    ):
        Amount(text)


def test_an_unknown_unit_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"'3 mb' has an unknown unit 'mb' \(did you mean 'ms'\?\); accepted: %, B, "
    ):
        Amount("3 mb")


def test_a_unit_of_another_budget():
    with pytest.raises(ValueError, match=r"^'3 ms' is no amount of bops; accepted units: %, BOPs, kBOPs, "):
        Amount("3 ms").limit("bops", 1)
    with pytest.raises(ValueError, match=r"^'3 ms' is no amount of a.b:c; accepted units: %, none$"):
        Amount("3 ms").limit("a.b:c", 1)


def test_equal_when_written_the_same():
    assert Amount("25%") == Amount("25%")
    assert Amount("25%") != Amount("25 %")
    assert len({Amount(5), Amount(5)}) == 1
    assert repr(Amount("25%")) == Amount("25%").plain() == "25%"


@pytest.mark.parametrize(
    ("budget", "amount", "text"),
    [
        ("size", 5, "5 B"),
        ("size", 68_200, "68.2 kB"),
        ("size", 1_234_567, "1.235 MB"),
        ("bops", 4.2e12, "4.2 TBOPs"),
        ("latency", 6e6, "6 ms"),
        ("latency", 0, "0 ns"),
        ("a.b:c", 1234.0, "1,234"),
    ],
)
def test_shown_in_the_unit_that_reads_best(budget, amount, text):
    assert show(budget, amount) == text
