"Short problems of our own, problems cut short, and fresh words: what they promise the data engine."
import random, re
from collections import Counter

import pandas as pd
import pytest

from verifier_nb import build, everyday, plans, rewording, shorter, sources
from verifier_nb.config import DataSettings, load_config
from verifier_nb.files import VerifierError
from verifier_nb.solution import check, sound

TEMPLATES = range(len(everyday.everyday_templates()))


@pytest.fixture(scope="module")
def made(): return [everyday.everyday(f"test/{i}", topic) for topic in TEMPLATES for i in range(12)]


def test_the_answer_follows_from_the_numbers_in_the_question(made):
    "Whoever computes the way of the template with the numbers that the question states gets the answer."
    for topic in TEMPLATES:
        template = everyday.everyday_templates()[topic]
        rng = random.Random(f"ways/{topic}")
        for _ in range(30):
            values = plans.numbers_of(template, rng)
            answers = {plans.Plan(values, tuple(plans.PlanStep(plans.parse_expression(how), said) for how, said in way)).answer for way in template.ways}
            assert len(answers) == 1, (template.topic, values, answers)  # all ways lead to one answer
            assert answers.pop() > 0


def test_every_number_of_a_way_stands_in_every_wording():
    for template in everyday.everyday_templates():
        used = {name for way in template.ways for how, _ in way for name in re.findall(r"[a-z]\w*", how)}
        used = {name for name in used if not re.fullmatch(r"r|s\d", name)}
        found = {name for way in template.ways for _, said in way for name in re.findall(r"\{(\w)\}", said)}  # by trial, and said so
        for ask in template.ask:
            told = set(re.findall(r"\{(\w+)\}", ask))
            assert used - told <= found, (template.topic, ask, used - told)


def test_right_and_wrong_share_their_looks(made):
    "The share of each ending, opening and layout is the same in both labels, since a pair shares its style."
    def looks(text): return (text.count("<<") > 0, "boxed" in text, "####" in text, text.startswith("Let's"), "**" in text)
    assert all(looks(m.correct) == looks(m.flawed) for m in made)


def test_wrong_ones_have_another_answer(made):
    def last(text): return re.findall(r"\d[\d,]*\.?\d*", text.replace("\\", ""))[-1].rstrip(".")
    assert all(last(m.correct) != last(m.flawed) for m in made if last(m.correct) == m.answer)
    assert sum(last(m.correct) == m.answer for m in made) > 0.9 * len(made)


def test_there_are_short_correct_solutions_in_every_style(made):
    one_step = [m for m in made if m.correct.count("=") <= 1]
    assert len(one_step) > len(made) / 3
    assert Counter(m.kind for m in made).keys() == {"computational", "conceptual"}
    assert len({m.subtype for m in made}) >= 12


def test_correct_equations_are_true(made):
    assert [m.correct for m in made if "\\" not in m.correct and not all(e.ok for e in check(m.correct))] == []


def test_everyday_rows_come_whole_through_the_build(tmp_path):
    cfg = DataSettings(source="everyday", problems=120, validation_fraction=0.1, test_fraction=0.1, types={"conceptual": 1.0})
    problems, _ = sources.load_problems(cfg, 3)
    splits, counts = build.build(problems, cfg, 3, tmp_path, workers=1, progress=False)
    rows = splits["train"].to_pandas()
    assert len(rows) == 2 * len(problems["train"]) and set(rows.error_type) == {"correct", "conceptual"}
    assert (rows.groupby("index").label.apply(sorted).map(tuple) == (0, 1)).all()
    assert not set(splits["train"]["problem"]) & set(splits["validation"]["problem"])


def test_everyday_needs_a_number():
    with pytest.raises(VerifierError, match="everyday makes as many problems as you want"): load_config("smoke", {"data.source": "everyday", "data.problems": None})
    assert load_config("smoke", {"data.source": "everyday", "data.problems": None, "data.problems_of": {"everyday": 9}}).data.limit("everyday") == 9


def test_sampled_rows_stay_with_their_problem(tmp_path):
    "A problem's sampled solutions stand in the split of the problem, whatever the seed."
    questions = [f"Ann has {n} pens and buys {n + 1}. How many pens has Ann in room {chr(65 + n % 26)}{n}?" for n in range(40)]
    own = "\n".join(f'{{"question": "{q}", "solution": "{n}+{n+1}=<<{n}+{n+1}={2*n+1}>>{2*n+1}\\n#### {2*n+1}"}}' for n, q in enumerate(questions))
    (tmp_path/"own.jsonl").write_text(own)
    rows = [f'{{"question": "{q}", "solution": "#### {2*n+1+wrong}", "label": {min(wrong, 1)}}}' for n, q in enumerate(questions) for wrong in (0, 1, 2)]
    (tmp_path/"samples.jsonl").write_text("\n".join(rows))
    for seed in (1, 2):
        cfg = DataSettings(source=f"{tmp_path/'own.jsonl'}+sampled", sampled=str(tmp_path), validation_fraction=0.2, test_fraction=0.2)
        problems, _ = sources.load_problems(cfg, seed)
        home = {p.question: (split, p.key) for split, ps in problems.items() for p in ps if p.source == "own"}
        placed = {p.question: (split, p.key) for split, ps in problems.items() for p in ps if p.source == "sampled"}
        assert placed == home and len(home) == 40
        splits, _ = build.build(problems, cfg, seed, tmp_path/f"{seed}", workers=1, progress=False)
        table = splits["train"].to_pandas()
        assert not table.duplicated(["index", "label"]).any() and (table[table.source == "sampled"].label.mean() - 2/3) ** 2 < 1e-6


def test_a_missing_sampled_set_says_what_to_do():
    with pytest.raises(VerifierError, match="verifier-nb sample"): sources.load_problems(DataSettings(source="sampled", sampled="nowhere"), 1)


# problems cut short

SHOP = dict(question="Ben buys 3 pens for $2 each and 4 books for $5 each. He pays with $50. How much change does he get?",
            solution="The pens cost 3 * 2 = $<<3*2=6>>6.\nThe books cost 4 * 5 = $<<4*5=20>>20.\n"
                     "Ben spends 6 + 20 = $<<6+20=26>>26.\nHe gets 50 - 26 = $<<50-26=24>>24 back.\n#### 24")

def test_short_problems_are_sound_and_ask_for_the_step():
    short = shorter.short_problems(SHOP)
    assert [s["question"].split("50. ")[1] for s in short] == ["How much do the pens cost?", "How much do the books cost?", "How much does Ben spend?"] or \
           [s["question"].split("50. ")[1] for s in short] == ["How much did the pens cost?", "How much did the books cost?", "How much does Ben spend?"]
    assert all(sound(s) is None for s in short)
    assert "pens" not in short[1]["solution"].split("####")[0]  # a step that is not needed goes


@pytest.mark.parametrize("said", ["It makes ⟨⟩ eggs", "They had ⟨⟩ eggs", "So she has ⟨⟩ eggs because of them", "Each box has ⟨⟩ eggs and a pen",
                                  "She glorps ⟨⟩ eggs", "⟨⟩ eggs", "The sum is ⟨⟩", "She will be ⟨⟩ years old in May",
                                  "There remain ⟨⟩ pens", "This costs ⟨$⟩", "You have ⟨⟩ pens"])
def test_a_statement_that_would_not_be_sound_is_left_alone(said): assert shorter.question_of(said) == ""


def test_there_is_no_name():
    assert shorter.question_of("There are ⟨⟩ students in the class.") == "How many students are there in the class?"
    assert shorter.question_of("There were ⟨⟩ apples left.") == "How many apples were left?"


def test_a_number_of_the_old_question_is_not_lost():
    lost = dict(question="Ann sells pens. If she sells 3 pens for $2 each and pays $1, how much does she keep?",
                solution="Ann sells the pens for 3 * 2 = $<<3*2=6>>6.\nShe keeps 6 - 1 = $<<6-1=5>>5.\n#### 5")
    assert shorter.short_problems(lost) == []


# fresh words

def test_words_change_together_and_numbers_stay():
    for seed in range(30):
        new = rewording.reword(SHOP, random.Random(seed))
        assert "Ben" not in new["question"] + new["solution"] and sound(new) is None
        assert re.findall(r"\d+", new["question"]) == re.findall(r"\d+", SHOP["question"])
        name = new["words"]["Ben"]
        assert name in new["question"] and name in new["solution"]


@pytest.mark.parametrize("text", ["Mr. Paul has 3 rocks.", "Paul Smith has 3 rocks.", "James' hat costs $3.", "He eats an apple pie.", "She has red apples.",
                                  "They pick 3 apples from the apple tree.", "A mile has 5280 feet.", "The T-shirt has 3 buttons."])
def test_what_is_not_clear_is_left_alone(text):
    example = dict(question=text, solution="1 + 1 = 2")
    for seed in range(6): assert rewording.reword(example, random.Random(seed))["question"] == text


def test_articles_follow_the_new_word():
    example = dict(question="Eva eats an apple and a pear. How many?", solution="1 + 1 = 2")
    for seed in range(40):
        question = rewording.reword(example, random.Random(seed))["question"]
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", question), question


def test_he_stays_he():
    lists = rewording._lists()
    for seed in range(20):
        new = rewording.reword(dict(question="Peter gave Anna his 3 pens.", solution=""), random.Random(seed))["words"]
        assert new["Peter"] in lists["men"] and new["Anna"] in lists["women"]


def test_no_name_is_a_word_of_the_problem_lists():
    lists = rewording._lists()
    assert not set(lists["women"]) & set(lists["men"]) and not set(lists["women met"]) & set(lists["men met"])
    assert not any(name.endswith("s") or name.lower() in lists["before"] + lists["behind"] for name in lists["women"] + lists["men"])


def test_a_line_separator_inside_a_text_does_not_cut_a_json_line(tmp_path):
    "U+2028 and U+0085 may stand in a JSON string as they are; GSM8K has such texts."
    text = "2 and\u2028 3\x85?"
    (tmp_path/"own.jsonl").write_text('{"question": "%s", "solution": "5"}\n' % text, encoding="utf-8")
    assert sources.read_table(tmp_path/"own.jsonl").question[0] == text


def test_the_flawed_step_is_known(tmp_path):
    "A flawed everyday row says which step of its text goes wrong; a correct one has none."
    from verifier_nb.splitting import steps
    cfg = DataSettings(source="everyday", problems=200, validation_fraction=0.0, test_fraction=0.0)
    problems, _ = sources.load_problems(cfg, 5)
    rows = build.build(problems, cfg, 5, tmp_path, workers=1, progress=False)[0]["train"].to_pandas()
    for _, pair in rows.groupby("index"):
        good, bad = pair.sort_values("label").itertuples()
        assert good.first_error == -1
        start, end = steps(bad.solution)[int(bad.first_error)]
        assert good.solution[:start] == bad.solution[:start] and (bad.solution[start:end] != good.solution[start:end] or good.solution.startswith(bad.solution))


def test_sampled_pairs_share_their_form_and_know_no_step():
    rows = tuple(sources.Ready(place, "3 * 4?", f"It is 3*4=<<3*4={12 + label}>>{12 + label}.\n#### {12 + label}", label, "unknown", "sampled", 0)
                 for place in range(8) for label in (0, 1))
    problem = sources.Problem(1, 2, "sampled", "3 * 4?", ready=rows, restyle=True)
    forms = ["original", "plain", "final_answer", "the_answer_is", "latex", "markdown", "numbered", "chat"]
    made, _ = build.ready_rows(problem, 8, lambda place: build.PairForm(forms[place], random.Random(place)))
    assert [row["first_error"] for row in made] == [-1, None] * 8
    for good, bad in zip(made[::2], made[1::2]): assert good["solution"] == bad["solution"].replace("13", "12")


def test_the_looks_of_reasoning_errors_do_not_give_them_away():
    "By lengths, digits and repeated numbers a learner reached an AUROC of 0.71, 0.61 after what shows was drawn more seldom."
    from verifier_nb.appearance import surface_features
    from verifier_nb.audit import _held_out_scores, auroc
    from verifier_nb.everyday_pairs import everyday_problems
    cfg = DataSettings(source="everyday", problems=1600, types={"conceptual": 1.0}, validation_fraction=0.0, test_fraction=0.0)
    rows = [(p.key, row) for p in everyday_problems(cfg, 3)["train"] for row in p.ready]
    story, label = (pd.Series(some).to_numpy() for some in zip(*((key, row.label) for key, row in rows)))
    features = surface_features([row.solution for _, row in rows]).to_numpy()
    area, low, high = auroc(_held_out_scores(features, label, story), label, story)
    assert area < 0.575, (area, low, high)
    kinds = pd.Series([row.subtype for _, row in rows if row.label]).value_counts(normalize=True)
    assert kinds.max() < 0.45 and len(kinds[kinds > 0.02]) >= 6, kinds
