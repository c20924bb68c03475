"""A solution in another form says the same: equations, steps, the flawed step, the answer. With VERIFIER_NB_FULL=1 on all of GSM8K's training set."""
import json, os, random, re
from collections import Counter
from pathlib import Path
import pytest
import small_data
from verifier_nb import errors, forms
from verifier_nb.answer import final_answer
from verifier_nb.solution import check, sound
from verifier_nb.steps import steps

FULL = bool(os.environ.get("VERIFIER_NB_FULL"))
GSM8K = Path(__file__).resolve().parents[2]/"shared"/"data"/"gsm8k"/"train.jsonl"
ALL = ("original", "plain", *forms.FORMS, *forms.WRITTEN)


def examples():
    "Worked problems: our own, and those of GSM8K where it is at hand."
    own = [dict(question=p["question"], solution=p["solution"]) for p in small_data.problems(60, seed=3)]
    if not GSM8K.exists(): return own
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    chosen = rows if FULL else random.Random(11).sample(rows, 60)
    return own + [dict(question=row["question"], solution=row["answer"]) for row in chosen]


def pairs():
    for number, example in enumerate(examples()):
        if sound(example): continue
        made = errors.inject(example, ("computational", "conceptual")[number % 2], rng=random.Random(number))
        if made: yield example, made


def by_step(text):
    "For each step that has any, its equations: value, and whether it is true."
    found = [[(e.value, e.ok) for e in check(text) if start <= e.start < end] for start, end in steps(text)]
    return [equations for equations in found if equations]


def test_a_form_changes_nothing_but_the_form():
    "Equations, steps and answer of both twins, read from nothing, are those of the plain text; no form is given up often."
    simple, tried = Counter(), Counter()
    for number, (example, made) in enumerate(pairs()):
        plain = [forms.strip_annotations(text) for text in (example["solution"], made.solution)]
        for form in ALL:
            twins = forms.reform_alike([example["solution"], made.solution], form, random.Random(f"{form}/{number}"))
            for before, twin in zip(plain, twins):
                assert by_step(twin.text) == by_step(before if form != "original" else twin.solution), (form, twin.text)
                assert final_answer(twin.text).value == final_answer(before).value, (form, twin.text)
            tried[form] += 1
            simple[form] += form in forms.WRITTEN and twins[1].text == plain[1]
    assert all(simple[form] <= 0.02 * tried[form] + 1 for form in ALL), simple


def test_the_flawed_step_goes_with_its_form():
    "A false equation stands in the step that is named; a wrong plan in the step that first differs from the correct solution."
    seen = Counter()
    for number, (example, made) in enumerate(pairs()):
        for form in ALL:
            good, bad = forms.reform_alike([example["solution"], made.solution], form, random.Random(f"{form}/{number}"))
            named, spans = bad.step_at(made.marks[0][0]), steps(bad.text)
            start, end = spans[named]
            false = [e.start for e in check(bad.text) if not e.ok]
            if made.kind == "computational": seen[form, start <= false[0] < end] += 1
            else: assert bad.text[start:end].strip() not in [good.text[a:b].strip() for a, b in steps(good.text)][:named+1], (form, made.subtype, bad.text)
    for form in ALL: assert seen[form, False] <= 0.01 * seen[form, True], seen


def test_twins_share_their_style():
    "Where two solutions differ by numbers alone, their forms do, too."
    for number, (example, made) in enumerate(pairs()):
        shape = lambda text: re.sub(r"[$\\]*\d[\d,.]*", "#", text)
        if shape(example["solution"]) != shape(made.solution): continue
        for form in forms.WRITTEN:
            twins = forms.reform_alike([example["solution"], made.solution], form, random.Random(f"{form}/{number}"))
            assert shape(twins[0].text) == shape(twins[1].text), form


def test_forms_are_drawn_by_the_rng():
    text = "Tom has 3 * 4 = <<3*4=12>>12 apples.\nThen 12 - 2 = <<12-2=10>>10 apples are left.\n#### 10"
    for form in forms.WRITTEN:
        made = [forms.reform(text, form, random.Random(seed)) for seed in range(60)]
        assert made == [forms.reform(text, form, random.Random(seed)) for seed in range(60)]
        assert len(set(made)) > 30 and all("<<" not in one for one in made)
        assert forms.reform(text, form) == forms.reform(text, form)


WORDS = {"latex": r"\\boxed|\\\(", "markdown": r"\*\*|`|#|^[-*\d]", "numbered": r"(?im)^(?:step )?\(?1", "paragraphs": r"[Tt]om has 3", "chat": r"12"}

@pytest.mark.parametrize("form", forms.WRITTEN)
def test_a_form_looks_like_itself(form):
    text = "Tom has 3 * 4 = <<3*4=12>>12 apples.\nThen 12 - 2 = <<12-2=10>>10 apples are left.\n#### 10"
    assert all(re.search(WORDS[form], forms.reform(text, form, random.Random(seed))) for seed in range(40))


@pytest.mark.parametrize("text", ["", " ", "5", "#### 5", "no number", "3 + = 4\n\n\n#### x", "<<1=1>>", "((((\n####", "a\nb\n#### 1/0", "x = 3 + 4 = 7 $ \\( {\n#### {}"])
def test_any_text_gets_a_form(text):
    for form in ALL: assert isinstance(forms.reform(text, form, random.Random(1)), str)
