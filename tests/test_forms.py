"""A solution in another form says the same: equations, steps, the flawed step, the answer. With VERIFIER_NB_FULL=1 on all of GSM8K's training set."""
import json, os, random, re
from collections import Counter
from pathlib import Path
import datasets
import pandas as pd
import pytest
import small_data
from verifier_nb import data, errors, forms
from verifier_nb.answer import final_answer
from verifier_nb.audit import audit
from verifier_nb.build import PairMaker
from verifier_nb.canonical import canonical
from verifier_nb.config import DataSettings
from verifier_nb.abridged import abridged
from verifier_nb.solution import check, sound
from verifier_nb.sources import Problem
from verifier_nb.splitting import steps

FULL = bool(os.environ.get("VERIFIER_NB_FULL"))
GSM8K = Path(__file__).resolve().parents[2]/"shared"/"data"/"gsm8k"/"train.jsonl"
pytestmark = pytest.mark.timeout(0) if FULL else []
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
            if made.kind == "computational" and not false: seen[form, "annotated only"] += 1  # its prose cannot be read
            elif made.kind == "computational": seen[form, start <= false[0] < end] += 1
            else: assert bad.text[start:end].strip() not in [good.text[a:b].strip() for a, b in steps(good.text)][:named+1], (form, made.subtype, bad.text)
    for form in ALL:
        assert seen[form, False] <= 0.01 * seen[form, True], seen
        assert seen[form, "annotated only"] <= 0.03 * seen[form, True], seen


def test_twins_share_their_style():
    "Where two solutions differ by numbers alone, their forms do, too: one in a thousand that cannot be read in a style stays plain."
    shape = lambda text: re.sub(r"[$\\]*\d[\d,.]*", "#", text)
    tried, other = Counter(), Counter()
    for number, (example, made) in enumerate(pairs()):
        if shape(example["solution"]) != shape(made.solution): continue
        for form in forms.WRITTEN:
            twins = forms.reform_alike([example["solution"], made.solution], form, random.Random(f"{form}/{number}"))
            tried[form] += 1
            other[form] += shape(twins[0].text) != shape(twins[1].text)
    for form in forms.WRITTEN: assert other[form] <= 0.001 * tried[form], (other, tried)


def test_canonical_twins_differ_where_the_twins_did():
    "The canonical form leaves the first difference of two twins where it was, and marks and words of one twin are those of the other."
    shape = lambda text: re.sub(r"\d[\d,.]*", "#", text)
    tried = Counter()
    for number, (example, made) in enumerate(list(pairs())[:40]):
        for form in ALL:
            twins = [twin.text for twin in forms.reform_alike([example["solution"], made.solution], form, random.Random(f"{form}/{number}"))]
            one, other = map(canonical, twins)
            differs = len(os.path.commonprefix(twins))
            in_plain = len(os.path.commonprefix([one.text, other.text]))
            assert one.text != other.text, (form, twins)
            for plain in (one, other):
                start, end = plain.to_original(in_plain, in_plain + 1) if in_plain < len(plain.text) else (differs, differs)
                between = re.sub(r"\\[A-Za-z]+", " ", plain.original[end:differs] + plain.original[differs:start])
                assert not re.search("[A-Za-z]", between) and len(re.findall(r"[\d.,]*\d", between)) < 2, (form, twins, "marks alone, or the first number of a fraction")
            if shape(twins[0]) == shape(twins[1]):
                tried[form] += 1
                assert shape(one.text) == shape(other.text), (form, twins)
    assert all(tried[form] > 10 for form in ALL), tried


def test_a_place_in_an_annotation_is_where_it_stood():
    text = "So 2.\n<<1+1=2>>2 is right.\n#### 2"
    assert [forms.plain_offset(text, at) for at in (0, 5, 6, 8, 14, 15, 17)] == [0, 5, 6, 6, 6, 6, 8]
    found = forms.reform_alike([text], "plain", random.Random(0))[0]
    assert [found.step_at(text.index(part)) for part in ("So", "1+1=2", "is right", "####")] == [0, 1, 1, 2]


def test_what_the_answer_counts_is_said_of_both_twins_or_of_none():
    known, unknown = "He has 3 + 4 = 7 pens.\n#### 7", "He has 3 + 4 = 8.\n#### 8"
    closing = lambda text: text[steps(text)[-1].start:]
    said = []
    for seed in range(60):
        alone = forms.reform_alike([known], "paragraphs", random.Random(seed))[0].text
        one, other = (twin.text for twin in forms.reform_alike([known, unknown], "paragraphs", random.Random(seed)))
        said.append("pens" in closing(alone))
        assert "pens" not in closing(one) and closing(one).replace("7", "8") == closing(other)
    assert 5 < sum(said) < 55


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


# rows on disk

def made_rows(problems, seed=1, **more):
    "Generated rows of the templates, in all forms."
    settings = DataSettings(source="gsm_symbolic", problems=problems, forms=list(ALL), **more)
    return data.load_source(settings, seed)


def test_rows_carry_the_first_wrong_step(tmp_path):
    splits = made_rows(150)
    splits.save_to_disk(str(tmp_path/"rows"))
    rows = pd.concat([d.to_pandas() for d in datasets.load_from_disk(str(tmp_path/"rows")).values()])
    assert (rows.first_error[rows.label == 0] == -1).all() and rows.first_error[rows.label == 1].nunique() >= 4
    seen = Counter()
    for row in rows[rows.label == 1].itertuples():
        start, end = steps(row.solution)[row.first_error]
        false = [e.start for e in check(row.solution) if not e.ok]
        seen[row.error_type, bool(false and start <= false[0] < end)] += 1
    assert seen["computational", True] > 50 and seen["computational", False] <= 0.02 * seen["computational", True] and not seen["conceptual", True], seen


def test_a_first_wrong_step_may_be_unknown_or_missing(tmp_path):
    known = [dict(index=i, question=f"What is {i} + 1?", solution=f"{i} + 1 = {i+1}\n#### {i+1}", label=i % 2, error_type="unknown" if i % 2 else "correct", source="file") for i in range(20)]
    for name, more in (("old", {}), ("new", {"first_error": [-1, None] * 10})):
        pd.DataFrame(known).assign(**more).to_json(tmp_path/f"{name}.jsonl", orient="records", lines=True)
    old, new = (data.load_source(DataSettings(source=str(tmp_path/f"{name}.jsonl")), 1)["train"] for name in ("old", "new"))
    assert "first_error" not in old.column_names
    assert {row["label"]: row["first_error"] for row in new} == {0: -1, 1: None}


def test_forms_are_no_shortcut():
    "Learners that understand nothing guess, though a set is written in all forms."
    rows = pd.concat([d.to_pandas() for d in made_rows(500, seed=4).values()])
    found = audit(rows).query("error_type == 'all'").set_index("baseline").auroc
    assert found["surface"] <= 0.55 and found["words"] <= 0.55, found
    for mark in (r"\boxed", "**", "Step 1", "####", "et's"):
        share = rows.groupby("label").solution.apply(lambda texts: texts.str.contains(mark, regex=False).mean())
        assert share[0] > 0.03 and abs(share[0] - share[1]) < 0.02, mark


def test_twins_of_a_solution_in_latex_are_alike():
    "The correct solution does not keep its LaTeX while the flawed one, made in plain style, has lost it."
    problem = Problem(0, 0, "mine", question="Tom has 3 bags of 4 apples and eats 2. How many are left?",
                      solution="He has \\(3 \\times 4 = 12\\) apples.\nSo \\(12 - 2 = 10\\) are left.\n#### 10")
    rows, _ = PairMaker(DataSettings(source="mine", forms=["original"]), "1").rows(problem)
    assert len(rows) == 2 and "\\" not in rows[0]["solution"] + rows[1]["solution"] and "3 * 4 = 12" in rows[0]["solution"]


def test_twins_of_which_one_is_in_doubt_are_written_alike():
    "Were the true equation set in LaTeX and the false one left, the form would tell the label."
    text = "The average score over the 3 subjects which is his History score is = total/3 = 186/3 = {0}.\n#### {0}"
    for form in forms.WRITTEN:
        one, other = (twin.text for twin in forms.reform_alike([text.format(62), text.format(63)], form, random.Random(1)))
        assert one.replace("62", "63") == other, form


# forms that keep a part of each step

def abridged_pairs(form):
    "Twins that were told in a form, beside the plain ones; and the share that could be."
    told, tried = [], 0
    for number, (example, made) in enumerate(pairs()):
        twins = forms.reform_alike([example["solution"], made.solution], form, random.Random(f"{form}/{number}"))
        assert len({twin.form for twin in twins}) == 1, "one is abridged and the other is not"
        tried += 1
        if twins[0].form == form: told.append((made, [forms.strip_annotations(t) for t in (example["solution"], made.solution)], twins))
    return told, len(told)/tried


def test_equations_alone_are_those_of_the_solution():
    told, share = abridged_pairs("equations")
    assert share > 0.7
    for made, plain, twins in told:
        for before, twin in zip(plain, twins):
            assert by_step(twin.text) == by_step(before) and final_answer(twin.text).value == final_answer(before).value, twin.text
            words = set(re.findall(r"[a-z]{4,}", abridged(before, "equations")))
            assert not words - set(re.findall(r"[a-z]{4,}", " ".join(e.text for e in check(before)))), twin.text


def test_results_alone_leave_no_equation_and_the_same_steps():
    told, share = abridged_pairs("results")
    assert share > 0.6
    for made, plain, twins in told:
        for before, twin in zip(plain, twins):
            assert not check(twin.text) and final_answer(twin.text).value == final_answer(before).value, twin.text
            short = abridged(before, "results")
            assert len(steps(short)) == len(steps(before)), (before, short)
            for (start, end), (a, b) in zip(steps(before), steps(short)):
                results = [e.stated.strip(" $€£") for e in check(before) if start <= e.start < end]
                assert all(result in short[a:b] for result in results), (before, short)
        named, (good, bad) = twins[1].step_at(made.marks[0][0]), (twin.text for twin in twins)
        begins, at = [start for start, _ in steps(plain[1])], forms.plain_offset(made.solution, made.marks[0][0])
        opened = len(steps(bad)) - len(begins)  # an opening sentence is a step before the others
        assert named - opened == sum(begin <= at for begin in begins) - 1, (made.subtype, bad)
        start, end = steps(bad)[named]
        assert bad[start:end].strip() not in [good[a:b].strip() for a, b in steps(good)][:named+1] or made.kind == "conceptual", (made.subtype, bad)


@pytest.mark.parametrize("text, form", [("He has 5 pens.\n#### 5", "equations"), ("3 + 2 = 5\n#### 5", "results"), ("So 3 + 2 = 5.\n#### 5", "results"),
                                        ("He has 8 because 3 + 5 = 8.\n#### 8", "results"), ("", "equations"), ("#### 5", "results"), ("x", "equations")])
def test_what_cannot_be_abridged_is_told_plainly(text, form):
    assert abridged(text, form) == ""
    assert forms.reform(text, form) == text
