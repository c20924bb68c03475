"""The canonical form under text that nobody would write: it never fails, its map is exact, and doing it twice changes nothing."""
import json, re

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from verifier_nb.canonical import canonical, whole
from verifier_nb.solution import check, findings, parse
from timing import seconds

quick = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

PIECES = [r"\frac{1}{3}", r"\dfrac{a+b}{c}", r"\frac", r"\tfrac12", r"\sqrt{16}", r"\sqrt[3]{27}", r"\boxed{30}", r"\boxed", r"\text{ apples}", r"\text", r"\left(", r"\right)", r"\times", r" \cdot ",
          r"\div ", r"\approx", r"\$", r"\%", r"{,}", r"\,", r"\;", r"\quad", r"\(", r"\)", r"\[", r"\]", "$", "$$", "$5", "$7", "{", "}", "&", r"\\", r"\begin{align*}", r"\end{align*}", r"\begin{array}{cc}",
          r"\end{array}", r"\begin{cases}", r"\begin", r"\alpha", r"\foo{bar}", r"\overline{3}", r"\binom{5}{2}", "^{10}", "^2", "_1", "_{n+1}", "^", "_", "**", "*", "***", "__", "`", "```", "\n", "\n\n", "\n- ", "\n* ", "\n1. ",
          "\n# ", "\n> ", "\n| a | b |", "\n|---|---|", "#### 42", "½", "2½", "²", "×", "÷", "−", "·", "\u00a0", "\u200b", "１２", "12", "3", "7.5", "2,5", "1,000", " = ", "+", " / ", "(", ")", "<<3*4=12>>12", "%", " apples",
          "x", " and ", "\\", "\\\n", "~", "…"]
soup = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=14).map("".join)


@quick
@given(soup)
@example("{"*4000)
@example("| }   1*\\s*3 = 3 ×\\t  * `2* 1`2*\\`")
@example(r"\frac{"*3000 + "1" + "}{2}"*3000)
@example(r"\begin{align}"*500 + "3 &= 3" + r"\end{align}"*500)
def test_any_text_has_a_canonical_form_with_an_exact_map(text):
    c = canonical(text)
    assert c.original == text
    assert not c.pieces or "".join(piece.text for piece in c.pieces) == c.text
    before = 0
    for at in range(min(len(c.text), 400)):
        start, end = c.to_original(at, at + 1)
        assert 0 <= before <= start <= end <= len(text), "the map never goes back"
        before = start
        if end - start == 1 and text[start] == c.text[at]: assert c.to_canonical(start) <= at
    back = [c.to_canonical(at) for at in range(min(len(text), 400))]
    assert back == sorted(back) and all(0 <= at <= len(c.text) for at in back)
    assert c.to_canonical(len(text)) == len(c.text)


@quick
@given(soup)
@example("$"*20 + "-2 " + "$"*20 + "-")
def test_doing_it_twice_changes_nothing(text):
    once = canonical(text).text
    assert canonical(once).text == once


@quick
@given(soup)
def test_no_digit_is_lost(text):
    "But for those in what is no text: a size behind a line break, the columns of a table."
    plain = re.sub(r"[^\x00-\x7f]", "", text)
    if re.search(r"\\(overline|begin|sqrt|\\)|\[", plain): return
    assert re.sub(r"\D", "", canonical(plain).text) == re.sub(r"\D", "", plain)


EQUATIONS = [r"3 \times 4 = 12", r"\frac{24}{4} = 7", "12 = 3 × 4", "2 1/2 + 1/2 = 3", "50% of 20 = 11", "3 + 4 ≈ 7.1", "half of 48 is 24", "18 / 4 = 4 remainder 2", "2^3 = 9", r"\sqrt{16} = 4", "$5 + $7 = $12", "x + 3 = 5", "=", "is 5", "1/3", "= 7"]
worked = st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(EQUATIONS), st.text(max_size=3)), max_size=14).map("".join)


@quick
@given(worked)
@example("1= 2 1/002$")
def test_whatever_is_found_has_its_place_in_the_text_as_given(text):
    equations, unread = findings(text)
    assert [str(e) for e in equations] == [str(e) for e in check(text)]
    for place in [*equations, *unread]:
        assert 0 <= place.start < place.end <= len(text)
        start, end = whole(text, place.start, place.end)
        assert start <= place.start and place.end <= end
    parsed = parse(text)
    assert parsed.text == text
    for number in parsed.numbers: assert 0 <= number.start <= number.end <= len(text)


def test_twenty_thousand_characters_take_no_time():
    worst = [r"\frac{"*3333, "$5 "*6666, "**a "*5000, r"\begin{a}"*2200, "{}"*10000, "1="*10000, "1+1=2 "*3333, "(1+"*6666, "1 1/2 "*3333, "half of 2 is 1. "*1250, "2^"*10000, "\\"*20000, "*"*20000, "`"*20000, "|\n"*10000, "$"*20000, "_a"*10000, "2,5 "*5000, "| a |\n"*3333, "**"*10000, "1 = "*5000, "x = "*5000, "\n= "*6666, "≈"*20000, " *a"*6666, "> "*10000, "# "*10000, "½"*20000, "\u00a0"*20000, r"\left("*3333,
             r"\begin{align}\begin{cases}"*770, r"\binom{1}{"*2000, "<<1+1="*3333, "a = 1 + 1\n"*2000, "1 kg = 2 "*2222, "-1"*10000, "1:"*10000, "((1)"*5000, "{"*10000 + "}"*10000, "3x = 5 "*2857, r"\text{"*3333, r"\(1+1=2\) "*2000, "^{"*10000]
    for text in worst:  # 0.2 s where nothing else runs; what is quadratic takes a minute
        assert seconds(lambda: (canonical(text), findings(text)), times=2) < 1, text[:20]


@pytest.mark.parametrize("text", ["It costs $5 and $7.", "from $5 to 7$ each", "US$5 + US$7 = US$12", "She has $20. 20$ - 5$ = 15$.", "5*3*2 = 30", "a * b * c", "x_1 and snake_case_name", "{1, 2}", "5 > 3", "#5 = 3", "1. First", "- 3"])
def test_what_is_plain_stays(text): assert canonical(text).text == text


@pytest.mark.parametrize("text, plain", [
    (r"\(\frac{a+b}{c}\)", "(a+b)/c"), (r"\frac{1}{3} \times 18", "1/3 * 18"), (r"2\frac{1}{2}", "2 1/2"), ("we have $18 - 6 = 12$ at $5", "we have 18 - 6 = 12 at $5"), (r"\alpha + \beta", "α + β"), (r"\foo{3}", "foo 3"),
    (r"12 \text{ apples}", "12 apples"), (r"\boxed{\$30}", "$30"), ("**Step 2:** *go*", "Step 2: go"), ("2½", "2 1/2"), ("3 m²", "3 m²"), ("5²", "5^2"), ("2,5 · 3 = 7,5", "2.5 * 3 = 7.5"), ("12 ÷ 3", "12 / 3"), ("６＋３", "6+3")])
def test_what_marks_become(text, plain): assert canonical(text).text == plain


def test_gsm8k_is_plain_already(shared):
    for split in ("train", "test"):
        path = shared/"data"/"gsm8k"/f"{split}.jsonl"
        if not path.exists(): pytest.skip("GSM8K is not at ../shared/data/gsm8k")
        for line in path.read_text(encoding="utf-8").splitlines():
            solution = json.loads(line)["answer"]
            assert canonical(solution).text == solution
