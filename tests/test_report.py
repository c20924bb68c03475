"The report and the index as files: complete, honest about what is missing, the same bytes each time."
import shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fake_run import make_run
from verifier_nb import files, metrics, behaviour, calibration as calibration_, evaluation, figures, wording, page, analysis
from verifier_nb import comparisons, index, verify
from verifier_nb.folders import Run, open_run

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two runs that every test takes a copy of: one with baselines, a smaller one without."
    root = tmp_path_factory.mktemp("made")
    return {"whole": make_run(root, "whole", 30), "small": make_run(root, "small", 20, baselines=False)}

def copy_of(run, root):
    "The run with files of its own, which a test may change."
    for part, folder in (("reports", run.reports), ("artifacts", run.artifacts)): shutil.copytree(folder, root/part)
    return Run(run.config.model_copy(deep=True), root/"reports", root/"artifacts")

@pytest.fixture()
def run(made, tmp_path): return copy_of(made["whole"], tmp_path)

def page_of(run): return run.report("report.html").read_text(encoding="utf-8")

def test_report_is_one_file_and_the_same_each_time(run):
    analysis.run_stage(run)
    first = run.report("report.html").read_bytes()
    assert analysis.write_report_page(run) in page_of(run) and run.report("report.html").read_bytes() == first
    assert all(bad not in page_of(run) for bad in ("http:", "https:", "src=\"figures", "<link", "@import"))
    for figure in run.figures.glob("*.png"): assert len(pd.read_csv(figure.with_suffix(".csv"))), figure
    assert {"confusion", "error_types", "reliability", "risk_coverage", "scores", "learning_curves"} <= {p.stem for p in run.figures.glob("*.png")}

def test_matrices_count_every_row(run):
    frame = metrics.read_predictions(run.report("predictions.csv"))
    frame.loc[frame.true_label == 1, "error_type"] = "something new"
    matrix = figures.error_matrix(frame)
    assert matrix.n.sum() == len(frame) and matrix.set_index("error_type").n["unknown"] == (frame.true_label == 1).sum()
    one = figures.confusion(frame)
    assert one.judged_flawed.sum() == frame.predicted_label.sum()

def test_mistakes_are_sorted_by_how_wrong_they_are(run):
    frame = metrics.read_predictions(run.report("predictions.csv"))
    wrong = analysis.mistakes(frame, analysis.load_texts(run), files.read_json(run.report("metrics.json"))["threshold"])
    assert len(wrong) == (frame.true_label != frame.predicted_label).sum() > 2 and wrong.wrong_by.is_monotonic_decreasing
    texts = pd.DataFrame({"question": analysis.load_texts(run)["question"], "index": analysis.load_texts(run)["index"]}).drop_duplicates().set_index("index").question
    assert all(texts[i] == q for i, q in zip(wrong["index"], wrong.question))
    with pytest.raises(files.VerifierError, match="predictions but"): analysis.mistakes(frame.head(5), analysis.load_texts(run), 0.5)

def test_texts_can_be_left_out(run):
    run.config.evaluation.review_rows = 0
    analysis.run_stage(run)
    assert "apples" not in page_of(run) and "texts are left out" in page_of(run)
    assert not {"question", "solution"} & set(pd.read_csv(run.report("mistakes.csv")))

def test_the_behavioural_suite_is_on_the_page(run, made, tmp_path):
    "What it is worst at, every capability in the figure's numbers, every change; and no empty section where a run was not asked."
    analysis.run_stage(run)
    table = pd.read_csv(run.report("behaviour.csv"))
    worst = behaviour.worst(table, behaviour.PASSED)
    assert 'id="behaviour"' in page_of(run) and f"“{worst['name']}”: {worst['count']} of {worst['n']}" in page_of(run)
    assert "a false equation added" in page_of(run) and len(pd.read_csv(run.figures/"behaviour.csv")) > 20
    small = copy_of(made["small"], tmp_path/"small")
    analysis.run_stage(small)
    assert 'id="behaviour"' not in page_of(small) and "None" not in page_of(small)

def test_an_improved_table_of_behaviour_is_found_out(run):
    table = pd.read_csv(run.report("behaviour.csv"))
    files.write_csv(run.report("behaviour.csv"), table.assign(count=table.n))
    assert verify.verify(run).file.tolist() == ["behaviour.csv"]

def test_a_metric_that_came_after_a_report_is_no_difference(run):
    "Its name stands nowhere in the files; a number that was taken out of one place is missed."
    table, path = pd.read_csv(run.report("metrics_by_type.csv")), run.report("metrics.json")
    files.write_csv(run.report("metrics_by_type.csv"), table.drop(columns="auroc_low"))
    without = lambda x: {key: without(value) for key, value in x.items() if key != "brier"} if isinstance(x, dict) else x
    written = files.read_json(path)
    files.write_json(path, without(written))
    assert len(verify.verify(run)) == 0
    del written["accuracy"]
    files.write_json(path, written)
    assert verify.verify(run).what.tolist() == ["accuracy"]

def test_report_without_the_data_set_says_so(run):
    shutil.rmtree(run.dataset)
    analysis.run_stage(run)
    assert "the data set is not on this machine" in page_of(run)

CASES = {"one class": lambda f: f[f.true_label == 0], "one row": lambda f: f.head(1), "all the same": lambda f: f.assign(p_flawed=0.5, prob_0=0.4, prob_1=0.4), "exactly 0 and 1": lambda f: f.assign(p_flawed=f.p_flawed.round()),
         "all right": lambda f: f.assign(p_flawed=f.true_label*0.98 + 0.01)}

@pytest.mark.parametrize("case", CASES)
def test_degenerate_results_make_a_report_in_words(made, tmp_path, case):
    run = copy_of(made["small"], tmp_path)
    calibration = files.read_json(run.report("calibration.json"))
    frame = calibration_.decide(CASES[case](metrics.read_predictions(run.report("predictions.csv"))), calibration)
    files.write_csv(run.report("predictions.csv"), frame)
    shutil.rmtree(run.dataset)
    evaluation.write_summary(run)
    said = analysis.run_stage(run)
    assert "nan" not in page_of(run).lower().replace("finance", "").split("<main")[1].split("data:image")[0] and said["headline"]
    assert {"one class": "none of the other kind", "one row": "none of the other kind", "all the same": "guessing gives 50", "all right": "no false alarm"}.get(case, "") in said["headline"]

def test_index_names_damaged_runs(tmp_path):
    runs = [make_run(tmp_path, "good", 15), make_run(tmp_path, "bad", 15)]
    runs[1].report("metrics.json").write_text("{}")
    table = index.index(tmp_path)
    assert len(table) == 2 and table.problem.notna().sum() == 1 and len(pd.read_csv(tmp_path/"reports"/"results.csv")) == 2
    good = pd.read_csv(tmp_path/"reports"/"results.csv").query("config == 'good'").iloc[0]
    assert good.accuracy_low <= good.accuracy <= good.accuracy_high and good.n == 30 and good.set == "test"

def test_index_shows_other_sets_beside_the_test_split(tmp_path):
    run = make_run(tmp_path, "good", 15)
    other = run.report("external")/"by-hand"
    other.mkdir(parents=True)
    files.write_csv(other/"predictions.csv", metrics.read_predictions(run.report("predictions.csv")).iloc[:20])
    evaluation.write_summary(run, other)
    table = index.index(tmp_path).set_index("set")
    assert list(table.index) == ["test", "by-hand"] and table.n.tolist() == [30, 20] and table.run.nunique() == 1
    assert "by-hand" in (tmp_path/"reports"/"index.html").read_text()

@pytest.mark.parametrize("share,n,words", [
    (7/45, 45, "7 of 45"), (0.8, 300, "240 of 300"), (1/12, 240, "20 of 240"), (0.013, 900, "12 of 900"), (0.9, 1500, "1,350 of 1,500"),
    (0.0, 90, "0 of 90"), (1.0, 90, "all 90"), (1.0, 1, "1 of 1"), (0.4, 5, "2 of 5")])
def test_a_share_is_the_counts_that_it_came_from(share, n, words): assert wording.out_of(share, n) == words

def test_the_headline_invents_no_fraction():
    "7 of 45 false alarms were called \"2 of 13\": each number of the headline is one that was counted."
    kinds = ("conceptual", "computational")
    types = pd.DataFrame({"group": "error_type", "value": kinds, "n": [28, 61], "right": [17/28, 59/61]})
    result = {"n": {"rows": 134, "correct": 45, "flawed": 89}, "specificity": 38/45, "recall": 76/89,
              "balanced_accuracy": 0.85, "intervals": {"balanced_accuracy": [0.78, 0.91]}}
    found = "Finds 17 of 28 conceptual and 59 of 61 computational errors"
    assert wording.headline(result, types) == f"{found} and raises a false alarm on 7 of 45 correct solutions"

def test_risk_by_hand():
    "The surest verdict is right, the next one wrong; the last two are equally sure, so they are decided together."
    four = pd.DataFrame({"index": range(4), "true_label": [1, 0, 1, 0], "p_calibrated": [0.99, 0.9, 0.6, 0.6]})
    curve = figures.risk_coverage(four, 0.5)
    assert curve.coverage.tolist() == [0.25, 0.5, 1.0] and curve.risk.tolist() == [0, 0.5, 0.5]

def test_a_cell_of_a_matrix_has_the_tone_of_what_is_right():
    table = pd.DataFrame({"truth": ["correct", "flawed"], "judged_correct": [38, 9], "judged_flawed": [7, 36], "n": [45, 45]})
    tones = [[cell.tone for cell in row.cells] for row in page.matrix_cells(table)]
    assert tones == [["correct", "flawed"], ["flawed", "correct"]]

def test_judges_stand_in_order_of_accuracy():
    rivals = {"majority": {"accuracy": 0.5}, "hybrid": {"accuracy": 0.9}, "zero_shot": {"accuracy": None}}
    found = page.judges({"accuracy": 0.8, "baselines": rivals})
    assert [judge.metrics["accuracy"] for judge in found] == [0.9, 0.8, 0.5, None]

@pytest.mark.parametrize("p,words", [([0.001, 0.2, 0.9], "1 of 3"), ([0.2, 0.3], "None of 2"), ([0.01, 0.02], "All 2")])
def test_a_comparison_counts_the_pairs_that_differ(p, words):
    assert comparisons.forest_finding(pd.DataFrame({"p_holm": p})) == f"{words} pairs differ beyond chance"


COMMITTED = sorted((Path(__file__).resolve().parent.parent/"reports").glob("*/*/config.yaml"))

@pytest.mark.slow
@pytest.mark.parametrize("config", COMMITTED, ids=lambda path: path.parent.parent.name)
def test_every_committed_report_follows_from_its_rows(config):
    "Written by code of any age: its settings are read, and all its numbers come out again."
    wrong = verify.verify(open_run(config.parent))
    assert wrong.empty, wrong.to_string(index=False)

def test_there_are_committed_reports(): assert len(COMMITTED) >= 5
