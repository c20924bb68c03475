"Solutions of fewer steps, in one expression, with their equations turned round: are they correct, and do they give nothing away?"
import json, random, re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import small_data
from pydantic import ValidationError

from verifier_nb import build, everyday, merging, plans, sources, turning
from verifier_nb.answer import final_answer
from verifier_nb.config import DataSettings
from verifier_nb.errors import inject
from verifier_nb.forms import KINDS_OF_FORM, reform_alike, strip_annotations
from verifier_nb.holes import regions_of
from verifier_nb.mistakes import go_wrong
from verifier_nb.solution import check, sound
from verifier_nb.splitting import steps

GSM8K = Path(__file__).resolve().parents[2]/"shared"/"data"/"gsm8k"/"train.jsonl"


def worked(source, n=250):
    if source == "own": return [dict(question=row["question"], solution=row["solution"]) for row in small_data.problems(105)]
    if not GSM8K.exists(): pytest.skip("the data at ../shared are not here")
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    return [dict(question=row["question"], solution=row["answer"]) for row in random.Random(16).sample(rows, n)]


def computed(expression):
    "What Python makes of an expression, apart from the reader of the library."
    assert re.fullmatch(r"[\d+\-*/(). ]+", expression), expression
    return eval(re.sub(r"(?<![\d.])0+(?=\d)", "", expression))


@pytest.mark.parametrize("source", ["own", "gsm8k"])
@pytest.mark.parametrize("way", merging.WAYS)
def test_a_shorter_solution_is_as_right_as_the_long_one(source, way):
    examples, made = worked(source), 0
    for number, example in enumerate(examples):
        short = merging.fewer_steps(example, way, random.Random(number))
        if not short: continue
        made += 1
        text = short["solution"]
        assert sound(short) is None and short["question"] == example["question"], text
        assert final_answer(text).value == final_answer(example["solution"]).value
        before, after = check(example["solution"]), check(text)
        assert all(e.ok for e in after) and len(after) < len(before)
        for form in ("plain", "latex"):  # it is read so in other forms too
            told = reform_alike([text], form, random.Random(number))[0].text
            assert all(e.ok for e in check(told)), told
        for noted in re.findall(r"<<([^=<>]+)=([\d.]+)>>", text): assert abs(computed(noted[0]) - float(noted[1])) < 0.006, noted
        if way == "one expression":
            assert len(after) == 1 and len(re.findall(r"[-+*/]", after[0].expression)) >= 2, text
            old = float(example["solution"].split("####")[1].replace(",", ""))
            noted = re.search(r"<<([^=]+)=", text)
            assert abs((computed(noted[1]) if noted else after[0].value) - old) < 1e-6  # its value is the old answer
    assert made > 0.5*len(examples)


def test_flawed_twins_of_shorter_solutions_look_the_same():
    kinds, looks = Counter(), Counter()
    for number, example in enumerate(worked("own")):
        short = merging.fewer_steps(example, "one expression", random.Random(number))
        if not short: continue
        for kind in ("conceptual", "computational"):
            twin = inject(short, kind, None, random.Random(number))
            if not twin: continue
            kinds[kind] += 1
            looks[twin.subtype] += 1
            assert len(check(twin.solution)) == 1 and twin.solution.count("\n") == short["solution"].count("\n")
            assert check(twin.solution)[0].ok == (kind == "conceptual")
            assert final_answer(twin.solution).value != final_answer(short["solution"]).value
    assert min(kinds.values()) > 60 and {"operator swapped", "input misread"} < set(looks), looks  # a wrong sign, a wrong number


@pytest.mark.parametrize("solution", [
    "It is 25% * 40 = <<25%*40=10>>10.\nHalf of it is 10/2=<<10/2=5>>5.\n#### 5",  # a percentage
    "A third is 10/3=<<10/3=3.33>>3.33.\nTwice that is 3.33*2=<<3.33*2=6.66>>6.66.\n#### 6.66",  # rounded on the way
    "Ann has 2+3=<<2+3=5>>5 pens.\n#### 5"])  # one step already
def test_what_is_not_certain_stays_as_it_is(solution):
    example = dict(question="How many are left of 40?", solution=solution)
    assert not merging.fewer_steps(example, "one expression", random.Random(0))


def test_a_number_that_is_told_twice_keeps_its_step():
    "The 20 is mentioned in words behind its step, so the step cannot go."
    example = dict(question="Ann has 4 boxes of 5 pens and 3 more. How many pens?",
                   solution="The boxes hold 4*5=<<4*5=20>>20.\nWith the 20 she has 20+3=<<20+3=23>>23.\n#### 23")
    for seed in range(8):
        short = merging.fewer_steps(example, "merged", random.Random(seed))
        assert not short or "20" not in short["solution"].replace("4*5", "")


# turned

def pairs(source, n=60):
    for number, example in enumerate(worked(source, n)[:n]):
        twin = inject(example, ("conceptual", "computational")[number % 2], None, random.Random(number))
        if twin: yield number, [example["solution"], twin.solution]


@pytest.mark.parametrize("source", ["own", "gsm8k"])
def test_turned_equations_say_what_they_said(source):
    turned = looked_at = 0
    for number, solutions in pairs(source):
        form = KINDS_OF_FORM[1 + number % (len(KINDS_OF_FORM) - 1)]
        made = reform_alike(solutions, form, random.Random(number))
        new = turning.turn_alike(made)
        looked_at += 1
        turned += new != made
        for before, after in zip(made, new):
            assert len(before.text) == len(after.text) and sorted(before.text) == sorted(after.text)  # characters have moved, no more
            assert [s.start for s in steps(before.text)] == [s.start for s in steps(after.text)]
            assert final_answer(before.text).value == final_answer(after.text).value
            at = len(solutions[1])//2
            assert before.step_at(at) == after.step_at(at)
        assert all(e.ok for e in check(new[0].text)), new[0].text
        if new != made: assert (new[0].text != made[0].text) and (new[1].text != made[1].text)  # both or none
    assert turned > 0.8*looked_at > 20


@pytest.mark.parametrize("text, wanted", [
    ("It costs 3 * 2 = $6.", "It costs $6 = 3 * 2."), (r"\(3 \times 5 = 15\) pens", r"\(15 = 3 \times 5\) pens"), ("$3 * 5 = 15$", "$15 = 3 * 5$"),
    ("1. 20/4=5 pens", "1. 5=20/4 pens"), ("2 + 3 = 4 + 1 = 5", "2 + 3 = 4 + 1 = 5"), ("6/2 = **3** pens", "**3** = 6/2 pens"), ("no equation", "no equation")])
def test_sides_change_places(text, wanted): assert turning.turned(text) == wanted


@pytest.mark.parametrize("solutions", [
    ["There are 3 * 4 = 12", "There are 3 * 4 = 13"],  # without a line that states it, the last number is the answer
    ["There are 3 * 4 = 12 pens.\n#### 12", "There are 13 pens.\n#### 13"]])  # nothing to turn in one of them
def test_a_pair_that_would_be_read_otherwise_stays(solutions):
    made = reform_alike(solutions, "plain", random.Random(0))
    assert turning.turned(made[0].text) != made[0].text and turning.turn_alike(made) == made


# shares

def table(tmp_path, **more):
    rows = "\n".join(json.dumps(dict(question=r["question"], solution=r["solution"])) for r in small_data.problems(105))
    (tmp_path/"own.jsonl").write_text(rows, encoding="utf-8")
    cfg = DataSettings(source=str(tmp_path/"own.jsonl"), fresh_numbers=True, repeats=4, validation_fraction=0, test_fraction=0, **more)
    problems, _ = sources.load_problems(cfg, 1)
    splits, counts = build.build(problems, cfg, 1, tmp_path/f"built{len(more)}", workers=1, progress=False)
    return splits["train"].to_pandas(), counts


def test_the_shares_are_those_of_the_config_and_alike_in_both_labels(tmp_path):
    rows, counts = table(tmp_path, fewer_steps=0.2, one_expression=0.25, turned=0.3, forms=["original", "paragraphs"])
    pairs_made = len(rows)//2
    def drawn(way): return sum(n for key, n in counts.items() if key[:2] == ("written", way))
    assert all(abs(drawn(way)/pairs_made - share) < 0.06 for way, share in (("merged", 0.2), ("one expression", 0.25), ("equations turned", 0.3)))
    rows["one"] = [regions_of(text)["steps"] == "1" for text in rows.solution]
    rows["turned"] = [bool(re.search(r"[\d.]+ ?= ?\(*\d[\d. ()]*[-+*/x×÷]", strip_annotations(text))) for text in rows.solution]
    by_label = rows.groupby("label")[["one", "turned"]].mean()
    assert by_label.min().min() > 0.12 and (by_label.loc[0] - by_label.loc[1]).abs().max() < 0.05, by_label
    assert not (rows.turned & rows.solution.str.contains("<<")).any()
    correct = rows[rows.label == 0]
    assert all(e.ok for text in correct.solution for e in check(text))


def test_without_shares_nothing_is_shortened_or_turned(tmp_path):
    rows, counts = table(tmp_path)
    assert not [key for key in counts if key[1] in ("merged", "one expression", "equations turned")] and len(rows) > 300


def test_shares_above_one_are_refused():
    with pytest.raises(ValidationError, match="together at most 1"): DataSettings(fewer_steps=0.6, one_expression=0.6)


# everyday problems

def test_everyday_problems_in_one_expression_have_the_same_answer():
    shares, single = everyday.Shares(turned=0.5, one_expression=0.95), 0
    for topic in range(len(everyday.everyday_templates())):
        for i in range(4):
            whole, usual = everyday.everyday(f"w/{i}", topic, shares=shares), everyday.everyday(f"w/{i}", topic)
            false = [e.text for e in check(whole.correct) if not e.ok]
            assert not false and whole.correct != whole.flawed, whole
            if whole.question == usual.question: assert whole.answer == usual.answer
            single += len(check(whole.correct)) <= 1
    assert single > 3*len(everyday.everyday_templates())


def test_a_plan_in_one_expression_goes_wrong_as_others_do():
    steps_ = tuple(plans.PlanStep(plans.parse_expression(how), "{r}") for how in ("a + b", "s1 * c", "s2 - a"))
    plan = plans.Plan(dict(a=4, b=5, c=3), steps_, ("a", "b", "c"))
    one = plans.replace(plan, steps=plans.in_one(steps_))
    assert one.results() == [23] and plans.told(one.steps[0].tree, one.names) == "(4 + 5) * 3 - 4"
    wrong = [go_wrong(one, kind, random.Random(i)) for kind in ("conceptual", "computational") for i in range(30)]
    assert all(w and w.plan.answer != 23 for w in wrong) and len({w.subtype for w in wrong}) > 5


# money

def test_dollars_behind_an_annotation_count_in_cents():
    question = "Ann has $80 and pays $12. How much has she left?"
    made = [inject(dict(question=question, solution=f"She has 80-12={sign}<<80-12=68>>68 left.\n#### 68"), "computational", "unit slip in the result", random.Random(seed))
            for sign in ("$", "") for seed in range(8)]
    assert all(made[:8]) and {final_answer(one.solution).value for one in made[:8]} <= {6800, Fraction(17, 25)}
    assert not any(made[8:])  # nobody knows what it counts
