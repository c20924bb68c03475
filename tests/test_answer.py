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

@pytest.mark.parametrize("part", [*PARTS, "answer: ", "** 5", "1/2 ", "1:"])
def test_time_is_bounded(part):
    def read():
        answer = final_answer("5" + part * (20_000 // len(part)))
        return answer and answer.value
    assert seconds(read) < 1
