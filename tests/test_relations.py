"One solution beside a problem and beside its opposite."
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from verifier_nb import data, everyday
from verifier_nb.answer import final_answer
from verifier_nb.config import DataSettings
from verifier_nb.relations import misread_relation, relations_in
from verifier_nb.solution import check
from verifier_nb.splitting import steps

GSM8K = Path(__file__).resolve().parents[2]/"shared"/"data"/"gsm8k"/"train.jsonl"


@pytest.mark.parametrize("question, solution, step, old, new", [
    ("A pot holds 8 litres. A tub holds 40 more litres than the pot. What do both hold?", "The tub holds 8 + 40 = 48.\nBoth hold 8 + 48 = 56.\n#### 56", 0, "more", "fewer"),
    ("Mia read 30 pages. Leo read six fewer pages than Mia. How many did both read?", "Both: first 30 pages.\nLeo read 30 - 6 = 24.\n30 + 24 = 54\n#### 54", 1, "fewer", "more"),
    ("Half as many boys as girls came. 50 girls came. How many children?", "Boys: 50/2 = <<50/2=25>>25.\n50+25=<<50+25=75>>75\n#### 75", 0, "Half", "Twice"),
    ("Rex is 4 years younger than Sue, who is 10. How old is Rex?", "10 - 4 = 6\n#### 6", 0, "younger", "older")])
def test_a_relation_is_turned_and_the_solution_stays(question, solution, step, old, new):
    made = next(made for seed in range(50) if (made := misread_relation(question, solution, random.Random(seed))))
    assert (made.question, made.solution) == (question.replace(old, new), solution)
    assert (made.step, made.old, made.new, made.kind) == (step, old, new, "conceptual")
    start, end = steps(solution)[step]
    assert start <= made.marks[0][0] < end


@pytest.mark.parametrize("question, solution", [
    ("Tom has 3 pens.", "3\n#### 3"), ("", ""), ("He has more than 5 pens.", "5 + 5 = 10"),
    ("Ann has 5 more pens than Bo.", "She has 7 * 2 = 14."),  # not used
    ("Ann has 5 more pens than Bo.", "She has 5 * 2 = 10."),  # used otherwise
    ("Ann has 5 more pens than Bo, and 5 fewer than Cy.", "7 + 5 = 12"),  # which one?
    ("Ann has twice as many as Bo, and Cy half as many as Bo.", "8 * 2 = 16"),
    ("Ann has twice as many as Bo.", "8 * 20 = 160"), ("Ann has half as many as Bo.", "9 * 1.5 = 13.5")])
def test_what_is_not_used_or_not_clear_is_left_alone(question, solution):
    assert not any(misread_relation(question, solution, random.Random(seed)) for seed in range(50))


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not at hand")
def test_no_word_is_a_sign_of_a_flawed_solution():
    "Beside correct and flawed solutions each word is about as frequent, though problems say `twice` three times as often as `half`."
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    made = [found for number, row in enumerate(rows) if (found := misread_relation(row["question"], row["answer"], random.Random(number)))]
    assert len(made) > 600
    for words in (["twice"], ["half"], ["more"], ["fewer", "less"], ["older", "taller", "longer"], ["younger", "shorter"]):
        beside_correct, beside_flawed = (sum(getattr(one, side).lower() in words for one in made) for side in ("old", "new"))
        assert 0.6 < beside_correct/beside_flawed < 1.6, (words, beside_correct, beside_flawed)
    for one in made[:200]:
        used = [e.expression for e in check(one.solution) if e.start == one.marks[0][0]]
        assert used and re.search(r"\d", used[0])


def test_pairs_of_a_data_set_are_asked_both_ways(tmp_path):
    table = pd.DataFrame([dict(question=f"Ann has {n} pens. Bo has {k} more pens than Ann. How many does Bo have?",
                               solution=f"Bo has {n} + {k} = <<{n}+{k}={n+k}>>{n+k} pens.\n#### {n+k}") for n in range(20, 60) for k in (3, 7)])
    table.to_json(tmp_path/"p.jsonl", orient="records", lines=True)
    counts = {}
    for misread in (0.0, 0.999):
        rows = pd.concat([d.to_pandas() for d in data.load_source(DataSettings(source=str(tmp_path/"p.jsonl"), misread=misread, forms=["original", "chat"]), 1).values()])
        counts[misread] = Counter(rows[rows.label == 1].subtype)
        twins = rows[rows["index"].isin(rows[rows.subtype == "relation misread"]["index"])].groupby("index")
        for _, pair in twins:
            good, bad = (pair[pair.label == label].iloc[0] for label in (0, 1))
            assert good.solution == bad.solution and good.question.replace("more", "fewer") == bad.question and bad.first_error >= 0
    assert not counts[0.0]["relation misread"] and 0.3 < counts[0.999]["relation misread"]/counts[0.999].total() < 0.9  # `more` is taken in 58 of 100


# another question of an everyday story

def answering_another(n=400):
    topics = range(len(everyday.everyday_templates()))
    made = [everyday.everyday(str(k), random.Random(k).choice(topics), {"conceptual": 1}, everyday.Shares(0.1, 0.1, 0.9)) for k in range(n)]
    return made, [one for one in made if one.subtype == "another question answered"]


def test_another_question_of_the_story_is_answered_in_good_order():
    "Every equation is true, the answer is another one, and nothing is computed with that the problem does not say."
    made, found = answering_another()
    assert 0.2 < len(found)/len(made) < 0.7
    blamed = Counter()  # whether a later step than the first one
    for one in found:
        assert all(equation.ok for equation in check(one.flawed)), one.flawed
        answers = [final_answer(text) for text in (one.correct, one.flawed)]
        if all(answer and answer.value is not None for answer in answers): assert answers[0].value != answers[1].value, (one.correct, one.flawed)
        start, end = next(span for span in steps(one.flawed) if span.start <= one.at < span.end)
        if "<<" in one.flawed:  # a step a line: those before the named one are steps of a right way, or say the same result
            before = [e.stated.strip(" $") for e in check(one.flawed[:start])]
            story = [t for t in everyday.everyday_templates() if t.topic == one.topic]
            assert len(before) == one.step and story, (one.flawed, one.at, one.step)
            blamed[one.step > 0] += 1
        given = {n.replace(",", "") for n in re.findall(r"\d[\d,]*(?:\.\d+)?", one.question)}
        first = check(one.flawed)[:1]
        for number in re.findall(r"\d+(?:\.\d+)?", first[0].expression if first else ""):
            assert number in given or int(float(number)) <= 100 or number in ("1000",), (one.question, one.flawed)
    assert blamed[True] > 10 and blamed[False] > 10


def test_without_the_share_everyday_errors_are_as_before():
    topics = random.Random(2).sample(range(len(everyday.everyday_templates())), 40)
    for topic in topics:
        plain, share = (everyday.everyday("7", topic, {"conceptual": 1}, shares) for shares in (everyday.Shares(), everyday.Shares(0.0, 0.0, 0.0)))
        assert plain == share and plain.subtype != "another question answered"
        same = len(os.path.commonprefix([plain.correct, plain.flawed]))
        assert plain.at == min(same, len(plain.flawed) - 1)
