"""The behavioural suite: are its rows what they say, is it apart from the training, and are verifiers counted rightly?"""
import ast, json, os, subprocess, sys
from pathlib import Path

import pandas as pd, pytest
from typer.testing import CliRunner

from verifier_nb import answer, ask, behaviour, cases, cli, files, probe, setup, telling
from verifier_nb.everyday import everyday, everyday_templates
from verifier_nb.plans import parse_expression, compute
from verifier_nb.similarity import overlap
from verifier_nb.solution import check
from verifier_nb.splitting import steps

ROOT = Path(__file__).resolve().parent.parent
BOX = ROOT/"models"/"default"


@pytest.fixture(scope="module")
def suite():
    "The whole suite."
    return cases.cases()


@pytest.fixture(scope="module")
def known(suite):
    "The right answer of every question, from the formula in the file and from nothing that writes solutions."
    out = {}
    for problem in telling.problems():
        for lap in range(cases.FAMILIES):
            seed = f"suite/{lap}/{problem.topic}"
            for letter in ("", *(f"/{x}" for x in "abcdef")):
                for part in ("people", "things", "numbers", "wording"):
                    seeds = cases.replace(telling.Seeds.of(seed), **{part: seed + letter})
                    told = telling.tell(problem, seeds)
                    out[told.question] = compute(parse_expression(problem.answer), told.values)
    return out


def says(solution): return answer.final_answer(solution).value


# rows

def test_every_correct_row_states_the_right_answer_and_no_false_equation(suite, known):
    rows = suite[suite.label == 0]
    assert len(rows) > 500
    for row in rows.itertuples():
        assert not [e.text for e in check(row.solution) if not e.ok], row.solution
        is_turned = row.variant == "correct: equations turned round"  # 75 = 133 - 58: its last number is no answer
        is_checked = row.variant == "correct: longer way" and "with a final line" not in row.capability
        if not is_turned and not is_checked: assert says(row.solution) == known[row.question], row


def test_every_flawed_row_states_a_wrong_answer_or_a_false_equation(suite, known):
    rows = suite[suite.label == 1]
    assert len(rows) > 500
    for row in rows.itertuples():
        false = [e.text for e in check(row.solution) if not e.ok]
        assert says(row.solution) != known[row.question] or false or row.kind == "false remark", row
        if row.arithmetic == cases.TRUE: assert not false, row


def test_false_equations_are_seen_where_signs_are_written(suite):
    rows = suite[(suite.arithmetic == cases.FALSE) & (suite.form != "prose")]
    seen = [any(not e.ok for e in check(solution)) for solution in rows.solution]
    missed = rows[[not x for x in seen]]
    assert len(rows) > 150 and len(missed) <= 0.03*len(rows)
    assert set(missed.variant) <= {"flawed: equations turned round"}  # the checker does not read 107 = 15 × 7 as a claim


def test_the_first_error_is_where_the_flawed_solution_leaves_the_correct_one(suite):
    looked_at = 0
    for _, rows in suite[suite.variant.isin(["correct", "flawed"])].groupby("family"):
        right, wrong = (rows[rows.variant == name].iloc[0] for name in ("correct", "flawed"))
        spans = steps(wrong.solution)
        first = spans[wrong.first_error]
        same = os.path.commonprefix([right.solution, wrong.solution])
        assert wrong.solution[:first.end].rstrip() != right.solution[:first.end].rstrip(), wrong  # the error is in it by then
        if wrong.kind not in ("missing step", "extra step", "wrong final quantity"):  # there steps in front may get other numbers
            assert len(same) >= first.start or wrong.solution[:first.start].strip() in right.solution, wrong
        looked_at += 1
    assert looked_at > 140


def test_correct_rows_have_no_first_error(suite): assert ((suite.first_error == -1) == (suite.label == 0)).all()


def test_every_kind_form_length_and_operation_is_there_often_enough(suite):
    flawed = suite[suite.label == 1]
    assert set(telling.KINDS) <= set(flawed.kind) and flawed.kind.value_counts().min() >= 25
    assert suite.form.value_counts().min() >= 80 and suite.form.nunique() == 11
    names = suite.capability.str.split(";").explode().value_counts()
    for name in ("1 step", "2 steps", "3 steps", "4 steps", "5 steps", "6 steps", "7 steps", "8 steps", "addition", "subtraction", "multiplication",
                 "division", "percent", "fraction", "units", "money", "time", "comparison", "remainder", "unneeded number", "with annotations",
                 "without annotations", "with units", "without units", "with a final line", "without a final line"): assert names[name] >= 20, name
    assert set(suite.variant.str.partition(": ")[2]) - {""} == {*cases.VARIANTS, "false remark"}


def test_a_variant_differs_in_what_it_names(suite):
    at = suite.set_index(["family", "variant"])
    for (family, variant), row in at.iterrows():
        base, _, name = variant.partition(": ")
        if name in ("solution in other words", "form", "equations turned round", "operands exchanged", "shorter way", "longer way", "other way", "false remark"):
            assert row.question == at.loc[(family, base)].question and row.solution != at.loc[(family, base)].solution
        if name == "shorter way": assert len(check(row.solution)) <= 1 < int(row.capability.split()[0]), row.solution
        if name == "question in other words": assert row.question != at.loc[(family, base)].question and row.solution == at.loc[(family, base)].solution
        if name and name != "false remark": assert row.label == at.loc[(family, base)].label


def test_wrong_formulas_are_refused():
    for problem in telling.problems():
        wrong = cases.replace(problem, answer=f"({problem.answer}) + 1")
        with pytest.raises(ValueError, match="do not agree"): telling.tell(wrong, telling.Seeds.of("one"))


def test_the_rows_are_the_same_in_every_process_and_a_sample_is_their_beginning(suite):
    code = "from verifier_nb.cases import cases; print(cases(60).to_csv())"
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in "12"}
    assert said == {cases.cases(60).to_csv() + "\n"}
    part = cases.cases(100)
    assert suite.head(len(part)).equals(part) and 100 <= len(part) < 120


# apart from the training

def test_no_module_that_trains_knows_the_suite():
    suite = {"telling", "handwriting", "cases", "behaviour", "probe"}
    users = {}
    for path in (ROOT/"verifier_nb").glob("*.py"):
        if path.name == "_modidx.py": continue
        text = path.read_text(encoding="utf-8")
        if "cases.yaml" in text: users.setdefault("file", set()).add(path.stem)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom): continue
            names = {(node.module or "").rpartition(".")[2], *(alias.name for alias in node.names)}
            if names & suite: users.setdefault("module", set()).add(path.stem)
    assert users["file"] == {"telling"}
    assert users["module"] <= suite | {"evaluation", "verify", "analysis", "card", "cli"}


def test_no_question_is_near_to_one_that_is_learned_from(suite):
    learned = [everyday(str(seed), topic).question for topic in range(len(everyday_templates())) for seed in range(12)]
    asked = list(suite.question.unique())
    assert len(overlap([*asked[:5], learned[0]], learned, near=0.4)) == 1  # one that is learned from would be found
    found = overlap(asked, learned, near=0.4)
    assert found.empty, found.to_string()


# counting

def answers(rows, p, verdict=None): return behaviour.with_answers(rows, p, [x >= 0.5 for x in p] if verdict is None else verdict)


def shares(table, test): return table[table.test == test].set_index("name").share


def test_a_perfect_verifier_has_a_perfect_table(suite):
    table = behaviour.behaviour_table(answers(suite, 0.1 + 0.8*suite.label))
    assert (shares(table, "capability") == 1).all() and (table[table.test != "capability"].share == 0).all()
    assert table[table.part == "all"].n.sum() == (suite.kind != "false remark").sum()


def test_a_verifier_that_goes_by_looks_is_found_out(suite):
    table = behaviour.behaviour_table(answers(suite, [0.9 if form == "latex" else 0.1 for form in suite.form]))
    changed = shares(table, "invariance")
    assert changed["form"] > 0.1 and changed.drop("form").max() == 0
    form = table[(table.part == "form") & (table.measure == behaviour.PASSED)].set_index("name").share
    assert form["latex"] == 0 and form.drop("latex").min() == 1
    assert behaviour.worst(table, behaviour.PASSED)["name"] == "latex"


def test_a_probability_that_moves_the_wrong_way_is_counted(suite):
    flawed_less = answers(suite, 0.9 - 0.5*suite.label)
    table = behaviour.behaviour_table(flawed_less)
    assert shares(table, "direction")[behaviour.RIGHTED] == 1
    remark = suite.kind == "false remark"
    table = behaviour.behaviour_table(answers(suite, [0.3 if x else 0.4 for x in remark]))
    assert shares(table, "direction")[behaviour.ADDED] == 1
    table = behaviour.behaviour_table(answers(suite, [0.395 if x else 0.4 for x in remark]))
    assert shares(table, "direction")[behaviour.ADDED] == 0  # within the tolerance


def test_rows_that_are_too_long_are_left_out():
    class Short:
        def fits(self, question, solution): return len(question + solution) < 300
    rows = behaviour.rows_for(Short(), 120)
    assert 10 < len(rows) < 120 and behaviour.behaviour_table(answers(rows, [0.2]*len(rows))).n.min() > 0


# on the command line

def run(*args): return CliRunner().invoke(cli.app, ["probe", *map(str, args)])


def test_rows_go_out_and_come_back_with_answers(tmp_path):
    out, table = tmp_path/"suite.csv", tmp_path/"table.csv"
    assert run("--write", out, "--rows", 60).exit_code == 0
    rows = pd.read_csv(out)
    assert {"question", "solution", "label", "first_error", "capability", "kind", "form"} <= set(rows) and len(rows) >= 60
    done = run("--answers", out)
    assert done.exit_code != 0 and "p_flawed, verdict" in str(done.output)
    rows.assign(p_flawed=rows.label*0.9, verdict=rows.label).to_csv(out, index=False)
    done = run("--answers", out, "-o", table)
    assert done.exit_code == 0 and "100 % of" in done.output, done.output
    assert pd.read_csv(table).equals(behaviour.behaviour_table(probe.answered(out)).assign())
    rows.assign(p_flawed=2, verdict=rows.label).to_csv(out, index=False)
    assert "row 1 has no verdict" in run("--answers", out).output


# the verifier in the box

def test_the_table_of_the_box_follows_from_its_rows():
    rows = pd.read_csv(BOX/"behaviour_rows.csv")
    fresh, written = behaviour.behaviour_table(rows), pd.read_csv(BOX/"behaviour.csv")
    assert len(rows) > 1100 and fresh.columns.tolist() == written.columns.tolist()
    assert fresh.drop(columns=["share", "low", "high"]).equals(written.drop(columns=["share", "low", "high"]))
    assert (fresh[["share", "low", "high"]] - written[["share", "low", "high"]]).abs().max().max() < 1e-9


def test_the_box_says_today_what_its_table_says():
    written = pd.read_csv(BOX/"behaviour_rows.csv")
    verifier = ask.open_verifier("default")
    found = probe.probe_verifier(verifier, 16)
    same = written.head(len(found))
    assert (found[["family", "variant", "kind"]].values == same[["family", "variant", "kind"]].values).all()
    assert (found.p_flawed - same.p_flawed).abs().max() < 5e-3
    sure = (same.p_flawed - verifier.calibration["threshold"]).abs() > 0.02
    assert (found.verdict == same.verdict)[sure].all() and sure.sum() >= 12


def test_an_aim_sets_the_threshold_and_nothing_else(tmp_path):
    thresholds = json.loads((BOX/"calibration.json").read_text())["thresholds"]
    usual = pd.read_csv(BOX/"behaviour_rows.csv")
    between = usual.p_flawed.between(thresholds["recall"] + 0.02, thresholds["accuracy"] - 0.02)
    done = run("default", "--rows", between.idxmax() + 1, "--aim", "recall", "-o", tmp_path/"table.csv")
    assert done.exit_code == 0, done.output
    found = pd.read_csv(tmp_path/"table_rows.csv")
    assert (found.verdict == (found.p_flawed >= thresholds["recall"])).all()
    usual = usual.head(len(found))
    assert (found.p_flawed - usual.p_flawed).abs().max() < 5e-3 and found.verdict.sum() > usual.verdict.sum()
    assert run("default", "--rows", 16, "--aim", "luck").exit_code != 0
