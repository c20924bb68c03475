"""Solutions as chat models and people write them: what is read, what is called false, what is said to be unread.

The cases in golden/chat_solutions.yaml were written before the reader that reads them."""
import json, re
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from verifier_nb.canonical import canonical
from verifier_nb.numbers import as_written
from verifier_nb.solution import check, findings
from timing import seconds

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


# a third and a fourth batch, all of whose arithmetic is right; and one with a planted slip in each

THIRD = yaml.safe_load((GOLDEN/"chat_third.yaml").read_text(encoding="utf-8"))
FOURTH = yaml.safe_load((GOLDEN/"chat_fourth.yaml").read_text(encoding="utf-8"))
PLANTED = yaml.safe_load((GOLDEN/"chat_planted.yaml").read_text(encoding="utf-8"))


def test_word_problems_are_read_as_models_write_them():
    read = [findings(text) for text in FOURTH]
    assert [str(e) for found in read for e in found.equations if not e.ok] == []
    assert sum(len(found.equations) for found in read) >= 4.7*len(FOURTH)
    assert sum(len(found.unread) for found in read) <= 16


@pytest.mark.parametrize("case", PLANTED, ids=range(len(PLANTED)))
def test_a_planted_slip_is_found_and_nothing_else(case):
    false = [e for e in check(case["text"]) if not e.ok]
    assert [e.value for e in false] == [Fraction(case["is"])], case["text"]


UNITS = {"3 * 20 minutes = 1 hour": True, "2 × 45 minutes = 1.5 hours": True, "8 × 250 ml = 2,000 ml = 2 liters": True, "$12/hour * 30 minutes = $6": True,
         "1 hour - 20 minutes = 40 minutes": True, "10 * $0.10 = 100 cents": True, "12 months × 5 years = 60 months": True, "2,200 ml = 2.2 liters per day": True,
         "3 weeks * 7 days/week = 22 days": False, "3 hours * 60 minutes = 190 minutes": False, "150 minutes = 2.7 hours": False, "90 minutes / 60 = 1.6 hours": False,
         "10 rides/week × $2.25/ride = $25.50/week": False, "40 m^2 - 3.5 m^2 = 37.5 m^2": False}


@pytest.mark.parametrize("text, ok", UNITS.items())
def test_units_are_taken_in(text, ok):
    found = [e.ok for e in check(text)]
    assert found and all(found) == ok


@pytest.mark.parametrize("text", ["1 inch = 20 miles", "75 minutes = 1 hour and 15 minutes", "30 minutes = 5 miles", "2 yards 1 foot = 7 feet", "20 km/h * 30 minutes = 600", "0.67 * 30 = 20"])
def test_other_units_raise_no_alarm(text): assert all(e.ok for e in check(text))


TWICE = {"Pay = $720 + $162\nPay = $892": [False], "6a = 1440 - 1080\n6a = 360": [True], "x = 5 + 1\nx = 6 apples": [True], "x = 5 + 1\nx = 7 apples": [], "n = 3\nn = -2": [], "Day 1 = 5 + 3\nDay 2 = 9": []}


@pytest.mark.parametrize("text, ok", TWICE.items())
def test_two_lines_with_one_name(text, ok): assert [e.ok for e in check(text)] == ok


BEHIND = {"2e = 4.10 - 2.10 = 2.20": [False], "2x + 5 = 9 - 2 = 7": [True], "x = 5y + 3 * 4 = 12": [True], "2x - 3 = 5 + 1 - x = 7": [], "2 * 3 = 7 + x": []}


@pytest.mark.parametrize("text, ok", BEHIND.items())
def test_numbers_behind_the_equals_sign_of_a_variable(text, ok): assert [e.ok for e in check(text)] == ok


TURNED = ["107 = 15 × 7", "So 107 = 15 × 7.", "He pays $107 = 15 × $7.", "Then 107 = 15 * 7 apples are left.", "The total is 40 = 12 + 27.", r"We have \(107 = 15 \times 7\), so he has 107.", "**Step 2:** $40 = 12 + 27$.",
          "Tom has 41 = 15 + 25 marbles and eats 3.", "1. 50 = 7 × 7\n2. 51 = 50 + 1", "(107 = 15 × 7)", "because 187 = 13 * 14 and 77 = 13 * 5 + 12, so", "Therefore, 12.5 = 100 / 9.", "So the rest is 30% = 100% - 60%."]


@pytest.mark.parametrize("text", TURNED)
def test_a_false_equation_with_its_result_in_front_is_judged(text):
    false = [e for e in check(text) if not e.ok]
    assert len(false) == 1 and not false[0].expression.startswith(false[0].stated), "the expression is the side that computes"


@pytest.mark.parametrize("text", ["On day 2 = 3 + 4 pages are read.", "cos 60 = 1/2", "26 = 5 + 3x", "36 = 50 - 50 cos A", "Suppose 5 = 3 + 1. That is impossible.", "5 = 3 + 1 is false.", "6W / 6 = 30 / 6", "Is 10 = 3 + 4?", "Box 3 = 5 + 6 kg",
                                  "10 = 1 + 2 + ...", "9 = (3/4)*number of novels", "Week 1 = 3 + 4, week 2 = 5 + 6", "so x = 3, 5 = x + 1", "7 = 20 mod 13", "so x^2 = 3 + 4", "Therefore - 3 Losses = -90 + 5", "the angle is 36 = 50 - 50 cos alpha.", "so 100 = 60 + 60 and 20 minutes"])
def test_what_only_looks_like_one_is_not(text): assert all(e.ok for e in check(text))


def test_correct_solutions_raise_no_alarm():
    read = [findings(case["text"]) for case in THIRD]
    assert [str(e) for found in read for e in found.equations if not e.ok] == []
    assert sum(len(found.equations) for found in read) >= 210
    assert sum(len(found.unread) for found in read) <= 45


def altered(solution, equation):
    "A solution in which the last digit of an equation is another one."
    at = max(m.start() for m in re.finditer(r"\d", solution[:equation.end]))
    return f"{solution[:at]}{(int(solution[at])+3) % 10}{solution[at+1:]}"


def test_a_result_that_is_changed_is_called_false():
    "Nine of ten: the others stand among variables, or behind a word that leaves room for doubt."
    tried = noticed = 0
    for case in [*CASES, *THIRD]:
        for equation in check(case["text"]):
            if not equation.ok: continue
            before = sum(not e.ok for e in check(case["text"]))
            tried += 1
            noticed += sum(not e.ok for e in check(altered(case["text"], equation))) > before
    assert tried > 450 and noticed/tried > 0.9, f"{noticed} of {tried}"


# measured where the data is; nothing of it is learned from

def steps_of(shared, name):
    path = shared/"data"/"steps"/f"{name}.jsonl"
    if not path.exists(): pytest.skip(f"{name} is not at ../shared/data/steps")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_processbench_is_read_and_its_clean_solutions_raise_few_alarms(shared):
    rows = steps_of(shared, "processbench_math")
    read = [(row, check("\n\n".join(row["steps"]))) for row in rows]
    alarmed = [row["id"] for row, equations in read if row["first_error"] == -1 and not all(e.ok for e in equations)]
    clean = sum(row["first_error"] == -1 for row in rows)
    assert sum(len(equations) for _, equations in read) >= 3*653  # 653: before there was a canonical form
    assert len(alarmed) <= 0.02*clean, alarmed


def test_a_long_answer_is_checked_at_once():
    problem = r"To find out how many boxes the club sold on Saturday morning, we first count those that were left over on Friday evening. So we have \(12 \times 4 = 48\), and \(\frac{48}{6} = 8\) **boxes** cost $8 \times \$3 = \$24$, which is half of the $48 in all. "
    text = (problem*(20_000//len(problem) + 1))[:20_000]
    assert seconds(lambda: check(text), times=7) < 0.05
