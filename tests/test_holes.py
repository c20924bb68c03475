"""What the training data lack is named before a model learns it."""
import json, random

import pandas as pd
import pytest

from verifier_nb import build_report, data, runs
from verifier_nb.config import load_config
from verifier_nb.folders import new_run
from verifier_nb.holes import EXPECTED, PROBLEMS, hole_words, holes, regions_of


def row(problem, label, solution, kind="conceptual"):
    return dict(index=problem, label=label, error_type=kind if label else "correct", question=f"Problem {problem}?", solution=solution, source="x")


def chain(length, problem, ending="#### 7"):
    return "\n".join([*(f"Then {k} + {problem} = {k + problem}." for k in range(length)), ending])


def full(problems=120, seed=0, lengths=(1, 2, 3, 4)):
    "Correct and flawed solutions of every length, half of the flawed ones computational."
    rng, out = random.Random(seed), []
    for problem in range(problems):
        kind = rng.choice(["conceptual", "computational"])
        out += [row(problem, label, chain(rng.choice(lengths), problem), kind) for label in (0, 1) for _ in range(3)]
    return pd.DataFrame(out)


@pytest.mark.parametrize("seed", range(3))
def test_a_build_without_a_hole_says_nothing(seed): assert hole_words(holes(full(seed=seed))) == []


def test_no_correct_solution_of_one_step_is_told():
    "The hole that the first verifier in the box fell into."
    rows = full()
    one_step = rows.solution.map(lambda text: regions_of(text)["steps"] == "1")
    found = holes(rows[~(one_step & (rows.label == 0))])
    words = hole_words(found)
    assert any(line.startswith("steps 1: no correct solution beside ") and " flawed ones" in line for line in words)
    assert {"flawed", "conceptual", "computational"} >= set(found[(found.feature == "steps") & (found.missing == "correct")].beside)
    assert not any("conceptual" in line or "computational" in line for line in words)  # said once, of all flawed ones


def test_a_kind_of_error_that_never_looks_so_is_told():
    rows = full()
    long = rows.solution.map(lambda text: regions_of(text)["steps"] == "4")
    words = hole_words(holes(rows[~(long & (rows.error_type == "computational"))]))
    assert any(line.startswith("steps 4: no computational flawed solution beside") and "correct ones" in line for line in words)
    assert not any("no flawed solution" in line for line in words)


@pytest.mark.parametrize("change, said", [
    (lambda text: text.replace("#### 7", "The answer is 7."), "last line in words: no flawed solution"),
    (lambda text: text.replace("Then", "**Then**"), "style markdown: no flawed solution"),
    (lambda text: text.replace("#### 7", "#### 70000"), "largest number 5 digits or more: no flawed solution"),
    (lambda text: text.replace("#### 7", "#### 7.5"), "decimals some: no flawed solution"),
    (lambda text: text.replace("Then", "Then, as anyone can see who has read the problem with some care,"), "characters"),
])
def test_what_only_correct_ones_have_is_told(change, said):
    rows = full(200)
    mine = (rows.label == 0) & (rows["index"] % 2 == 0)
    rows.loc[mine, "solution"] = rows.loc[mine, "solution"].map(change)
    assert any(line.startswith(said) for line in hole_words(holes(rows), most=30)), hole_words(holes(rows), most=30)


def test_nearly_none_is_a_hole_and_a_few_rows_are_none():
    rows = full(300)
    one = rows.solution.map(lambda text: regions_of(text)["steps"] == "1") & (rows.label == 0)
    nearly = rows[~one | (rows.index.isin(rows[one].index[:2]))]
    assert any("steps 1: only 2 correct solutions" in line for line in hole_words(holes(nearly)))
    enough = rows[~one | (rows.index.isin(rows[one].index[:60]))]
    assert hole_words(holes(enough)) == []
    small = full(6)  # too few to say anything
    assert holes(small[~(small.label == 0) | (small.index % 4 > 0)]).empty


def test_many_rows_of_few_problems_say_nothing():
    "Eight instances of one problem are hardly more than one."
    rows = full(80)
    odd = [row(900 + k % (PROBLEMS - 1), 1, chain(6, k)) for k in range(4*EXPECTED)]
    assert hole_words(holes(pd.concat([rows, pd.DataFrame(odd)], ignore_index=True))) == []
    odd = [row(900 + k, 1, chain(6, k)) for k in range(4*EXPECTED)]
    assert any(line.startswith("steps 6: no correct") for line in hole_words(holes(pd.concat([rows, pd.DataFrame(odd)], ignore_index=True))))


def test_the_stage_says_it_and_the_report_shows_it(tmp_path):
    rows = full(500)
    one = rows.solution.map(lambda text: regions_of(text)["steps"] == "1")
    rows = rows[~(one & (rows.label == 0))].groupby(["index", "label"]).head(1)
    rows.to_json(tmp_path/"rows.jsonl", orient="records", lines=True)
    cfg = load_config("smoke", {"data.source": str(tmp_path/"rows.jsonl"), "data.problems": None})
    run = new_run(cfg, tmp_path)
    summary = data.run_stage(run).set_index("split")
    assert summary.holes["train"] >= 1 and "holes" in pd.read_csv(run.report("data_summary.csv"))
    told = []
    runs._say_holes(run, told.append)
    assert any("steps 1: no correct solution" in line for line in told)
    build_report.build_report(cfg, tmp_path/"built", fit=0)
    page = (tmp_path/"built"/"index.html").read_text(encoding="utf-8")
    assert "Regions of the training rows" in page and (tmp_path/"built"/"holes.csv").exists()


def test_the_smoke_preset_has_nothing_to_say(smoke_run):
    assert pd.read_csv(smoke_run.report("holes.csv")).empty
