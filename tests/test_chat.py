"""Solutions as chat models and people write them: what is read, what is called false, what is said to be unread.

The cases in golden/chat_solutions.yaml were written before the reader that reads them."""
import json, re
from pathlib import Path

import pytest
import yaml

from verifier_nb.canonical import canonical
from verifier_nb.numbers import as_written
from verifier_nb.solution import check, findings

GOLDEN = Path(__file__).parent/"golden"
CASES = [case for name in ("chat_solutions", "chat_traps") for case in yaml.safe_load((GOLDEN/f"{name}.yaml").read_text(encoding="utf-8"))]


def said(equation):
    "The value of the left side, with a ! where the right side is another."
    value = "nothing" if equation.value is None else as_written(equation.value)
    return value if equation.ok else f"!{value}"


@pytest.mark.parametrize("case", CASES, ids=[case["style"] for case in CASES])
def test_a_solution_is_read_as_a_person_reads_it(case):
    found = [said(e) for e in check(case["text"])]
    if case["equations"] == "any": assert not [value for value in found if value[0] == "!"], "all of it is true"
    else: assert found == case["equations"].split()


def digits(text): return re.sub(r"\D", "", re.sub("<<.*?>>", "", text))


@pytest.mark.parametrize("case", CASES, ids=[case["style"] for case in CASES])
def test_what_is_found_stands_in_the_text_as_given(case):
    text = case["text"]
    equations, unread = findings(text)
    for e in equations:
        assert 0 <= e.start < e.end <= len(text)
        assert digits(e.text) == digits(canonical(text[e.start:e.end]).text), e
    for place in unread: assert digits(place.text) in digits(canonical(text[place.start:place.end]).text), place
