"""Final answers: where they stand, how they are stated, and which are the same."""
import random, threading, time
from fractions import Fraction
import pytest
from verifier_nb.answer import final_answer, same_answer, value_of
from timing import seconds

CASES = [  # solution, text, how, value
    ("It takes 3 days.\n#### 1,250", "1,250", "####", 1250),
    ("5 - 8 = -3\n#### -3", "-3", "####", -3),
    ("#### Part one\n5 * 2 = 10\n#### 10 apples", "10 apples", "####", 10),
    ("Half of it: \\[ \\boxed{\\dfrac{5}{8}} \\]\nThat is all, after 3 days.", "\\dfrac{5}{8}", "boxed", Fraction(5, 8)),
    ("\\boxed{1}, no: \\boxed{\\text{2 \\{a\\} of } 5}", "\\text{2 \\{a\\} of } 5", "boxed", None),
    ("$$\\boxed{\\$4.50}$$", "\\$4.50", "boxed", Fraction(9, 2)),
    ("Thus, the final answer is: **$18**", "$18", "said", 18),
    ("FINAL ANSWER: 7.25", "7.25", "said", Fraction(29, 4)),
    ("The answer is 3 + 4 = 7 pens. Bye 5!", "3 + 4 = 7 pens", "said", 7),
    ("**Answer:** 40% of 2 classes", "40% of 2 classes", "said", Fraction(2, 5)),
    ("## Final Answer\n\nShe needs 12 eggs.", "She needs 12 eggs", "said", 12),
    ("Answer = 16", "16", "said", 16),
    ("The answer is unclear to me.\nSo 3 * 5 = 15", "15", "last number", 15),
    ("We get\n**Total cost: $24**\n", "Total cost: $24", "bold", 24),
    ("He walks 2 miles. Then 3 miles, 5 in all.", "He walks 2 miles. Then 3 miles, 5 in all", "last number", 5),
    ("Ann has 2/3 left", "Ann has 2/3 left", "last number", Fraction(2, 3)),
]

@pytest.mark.parametrize("solution,text,how,value", CASES, ids=[case[0][:20] for case in CASES])
def test_final_answer(solution, text, how, value):
    found = final_answer(solution)
    assert (found.text, found.how, found.value) == (text, how, value) and solution[found.start:found.end] == text

BOLD = {"In 4 minutes it is 60.": 60, "After 3 days, Tom has 45 marbles.": 45, "5 boxes cost $60.": 60, "24 apples in 4 bags": 24, "The 3 friends pay $12.50 each.": Fraction(25, 2), "3/4 of the cake is left": Fraction(3, 4),
        "Each of the 6 kids gets 2 1/2 cookies.": Fraction(5, 2), "By 9:30 pm he has read 120 pages": 120, "Cost = $4 × 3 = $12": 12, "She drives 40% of 50 miles, so 20 miles.": 20, "Age in 5 years: 17": 17,
        "Speed: 60 miles per hour for 2 hours": 60, "24 apples are left after 2 days": 24, "-5 degrees at 6 am": -5, "20% of the 50 students": Fraction(1, 5), "Week 2: 14 hours a week": 14}

@pytest.mark.parametrize("line,value", BOLD.items())
def test_a_bold_line_may_be_a_sentence(line, value):
    found = final_answer(f"First, 3 + 4 = 7.\n**{line}**")
    assert (found.how, found.value) == ("bold", value)

SAME = [("$5", "5 dollars"), ("50%", "50"), ("50%", "1/2"), ("5.0", "5"), ("33 1/3 %", "1/3"), ("12%", "0.12"), ("12 percent", "12%"), ("9:05 am", "09:05"), ("10:4", "5 : 2"), ("1,000,000", "1000000"),
        ("\\frac{10}{4}", "2 1/2"), ("½", "0.5"), ("Tuesday", "tuesday"), ("−4", "-4"), ("€3,50", "€3,50"), ("3 a day", "3"), ("about 7 km", "7")]
OTHER = [("$5", "6 dollars"), ("0.05", "5"), ("12%", "13"), ("9:05 am", "9:05 pm"), ("4:10", "5:2"), ("100", "1,000"), ("3 1/2", "31/2"), ("Monday", "tuesday"), ("4", "Tuesday"), ("x", "5")]

@pytest.mark.parametrize("one,other", SAME)
def test_same(one, other): assert same_answer(one, other) and same_answer(other, one)

@pytest.mark.parametrize("one,other", OTHER)
def test_not_the_same(one, other): assert not same_answer(one, other) and not same_answer(other, one)

def test_expressions_are_compared_as_mathematics():
    pytest.importorskip("math_verify")
    assert same_answer("2\\sqrt{3}", "\\sqrt{12}") and not same_answer("2\\sqrt{3}", "\\sqrt{13}")

def test_no_comparison_hangs(monkeypatch):
    "In a thread too, where signals do not work."
    from verifier_nb import answer
    monkeypatch.setattr(answer, "_SECONDS", 4)
    found = []
    thread = threading.Thread(target=lambda: found.append(same_answer("9^{9^{9^9}}", "9^{9^{9^8}}+x")))
    start = time.monotonic()
    thread.start()
    thread.join(60)
    assert found == [False] and time.monotonic() - start < 30

PARTS = ["####", "\\boxed{", "}", "{", "answer", " is ", ":", "**", "5", "1,2", "/", "%", "-", ".", "\n", " ", "$", "=", "p.m.", "\\frac{1}{0}", "0", ":30", "x", "√"]

def test_any_text_is_read():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choices(PARTS, k=rng.randint(0, 25)))
        found = final_answer(text)
        assert found is None or text[found.start:found.end] == found.text and value_of(found.text) == value_of(found.text)

@pytest.mark.parametrize("part", [*PARTS, "answer: ", "** 5", "1/2 ", "1:", "is 5 "])
def test_time_is_bounded(part):
    def read():
        many = part * (20_000 // len(part))
        return [answer.value for answer in (final_answer("5" + many), final_answer(f"**{many}5**")) if answer]
    assert seconds(read) < 1
