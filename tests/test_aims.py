"""What a person wants of the threshold, and the share of flawed solutions that a person expects."""
import json, shutil

import numpy as np
import pandas as pd
import pytest

from typer.testing import CliRunner

from asking import HYBRID, PLAIN, load, make_adapter
from fake_run import make_run
from verifier_nb import ask as ask_, calibration as calibration_, cli as cli_, config, evaluation, files, folders, metrics, probability, verify as verify_
from verifier_nb.demo import demo_answers
from verifier_nb.files import VerifierError
from verifier_nb.card import model_card, weak_points
from verifier_nb.probability import AIMS, Calibration, aimed


def shares(p, y, threshold):
    "Recall and specificity, counted one by one."
    called = [value >= threshold for value in p]
    found = [c for c, label in zip(called, y) if label]
    passed = [not c for c, label in zip(called, y) if not label]
    return sum(found)/len(found), sum(passed)/len(passed)


def harmonic(a, b): return 2*a*b/(a + b) if a + b else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_every_aim_gets_the_best_threshold_there_is(seed):
    "Against all thresholds, one after the other; the classes are not equally frequent."
    frame = metrics.simulate(80, signal=0.6 + 0.2*seed, seed=seed)
    frame = frame[(frame.true_label == 1) | (frame["index"] % 3 == 0)]
    p, y = frame.p_flawed.to_numpy(), frame.true_label.to_numpy()
    every = [shares(p, y, t) for t in [*np.unique(p), 1.0]]
    chosen = {aim: shares(p, y, calibration_.choose_threshold(p, y, aim)) for aim in AIMS}
    assert harmonic(*chosen["balanced"]) == pytest.approx(max(harmonic(*one) for one in every))
    assert chosen["few-false-alarms"][1] >= 0.95 and chosen["few-false-alarms"][0] == max(r for r, s in every if s >= 0.95)
    assert chosen["recall"][0] >= 0.95 and chosen["recall"][1] == max(s for r, s in every if r >= 0.95)
    share = y.mean()
    assert share*chosen["accuracy"][0] + (1 - share)*chosen["accuracy"][1] == pytest.approx(max(share*r + (1 - share)*s for r, s in every))


def test_balanced_does_not_care_how_many_are_flawed():
    "Each correct row three times: accuracy moves its threshold up, balanced stays."
    frame = metrics.simulate(300, signal=0.7, seed=5)
    more = pd.concat([frame, *[frame[frame.true_label == 0]]*3])
    def threshold(rows, aim): return calibration_.choose_threshold(rows.p_flawed, rows.true_label, aim)
    assert threshold(more, "balanced") == threshold(frame, "balanced")
    assert threshold(more, "accuracy") > threshold(frame, "accuracy")


def test_a_good_verifier_s_other_aims_do_not_cross_the_balanced_one():
    frame = metrics.simulate(300, signal=2.5, seed=1)
    kept = calibration_.fit_calibration(frame)["thresholds"]
    assert kept["recall"] <= kept["balanced"] <= kept["few-false-alarms"]


FITTED = {"temperature": 2.0, "bias": 0.3, "threshold": 0.6, "aim": "balanced", "base_rate": 0.5,
          "thresholds": {"balanced": 0.6, "accuracy": 0.5, "few-false-alarms": 0.8, "recall": 0.2, "f1": 0.4}}


@pytest.mark.parametrize("prior", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("rule", [{}, {"isotonic": {"x": [0.1, 0.9], "y": [0.2, 0.7]}}, {"temperature": 1.0, "bias": 0.0, "method": "none"}])
@pytest.mark.parametrize("base_rate", [0.5, 0.7])
def test_a_prior_is_bayes_rule(prior, rule, base_rate):
    "Posterior times new share over old share, of both classes, divided by their sum (Saerens et al. 2002, equation 4)."
    written = FITTED | {"base_rate": base_rate} | rule
    z = np.array([-6.0, -1.0, 0.0, 2.5])
    p = Calibration.from_json(written).apply(z)
    flawed, correct = p*prior/base_rate, (1 - p)*(1 - prior)/(1 - base_rate)
    shifted = Calibration.from_json(aimed(written, prior=prior))
    np.testing.assert_allclose(shifted.apply(z), flawed/(flawed + correct), rtol=1e-9)
    given = 1/(1 + np.exp(-z))
    np.testing.assert_allclose(shifted.apply_to_probability(given), flawed/(flawed + correct), rtol=1e-9)
    assert shifted.threshold == written["threshold"]


def test_what_is_not_known_is_refused():
    old = {"temperature": 2.0, "threshold": 0.7, "aim": "accuracy"}
    assert aimed(old, "accuracy")["threshold"] == 0.7  # that one was kept
    for wish, said in ((("balanced", None), "no threshold for the aim 'balanced', only for: accuracy"), ((None, 0.3), "is not known"),
                       (("fast", None), "choose one of: balanced"), ((None, 0.0), "no share"), ((None, 1.5), "no share")):
        with pytest.raises(VerifierError, match=said): aimed(old, *wish)
    assert aimed(old) is old


def test_steps_get_the_threshold_that_fits_the_aim():
    steps = {"temperature": 1.0, "threshold": 0.5, "aim": "f1", "thresholds": {"f1": 0.5, "clean": 0.9}}
    strict, usual = (aimed(FITTED | {"steps": steps}, aim)["steps"] for aim in ("few-false-alarms", "recall"))
    assert (strict["threshold"], strict["aim"], usual["threshold"]) == (0.9, "clean", 0.5)
    assert aimed(FITTED | {"steps": steps}, prior=0.1)["steps"] == steps
    assert probability.StepRule.from_json(strict).first([0.6, 0.95]) == 1


def test_the_hybrid_is_aimed_and_shifted_too():
    line = HYBRID | {"thresholds": {"balanced": 0.33, "recall": 0.1}}
    wanted = aimed(FITTED | {"baselines": {"hybrid": line, "checker": {"threshold": 0.5}}}, "recall", 0.2)["baselines"]
    assert wanted["hybrid"]["threshold"] == 0.1 and wanted["checker"] == {"threshold": 0.5}
    assert wanted["hybrid"]["intercept"] - line["intercept"] == pytest.approx(np.log(0.25))
    with pytest.raises(VerifierError, match="the hybrid has no threshold"): aimed(FITTED | {"baselines": {"hybrid": HYBRID}}, "recall")


def test_the_config_knows_the_same_aims():
    for aim in AIMS:
        more = {"evaluation.recall_at_least": 0.9} if aim == "recall" else {}
        assert config.load_config("smoke", {"evaluation.threshold_aim": aim, **more}).evaluation.threshold_aim == aim
    assert config.EvaluationSettings().threshold_aim == "balanced"


# the commands

PROBLEM, TRUE = "Ann has 3 bags of 4 apples and eats 2. How many are left?", "3 * 4 = 12\n12 - 2 = 10\n#### 10"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("adapter"), calibration=PLAIN | FITTED | {"method": "platt"})


def said(*words): return CliRunner().invoke(cli_.app, [str(word) for word in words])


def checked(adapter, *words): return json.loads(said("check", PROBLEM, TRUE, "--adapter", adapter, "--json", *words).stdout)


def test_check_takes_an_aim_and_a_prior(adapter):
    plain, wished = checked(adapter), checked(adapter, "--aim", "few-false-alarms", "--prior", 0.1)
    odds = [np.log(one["p_flawed"]/(1 - one["p_flawed"])) for one in (plain, wished)]
    assert odds[1] - odds[0] == pytest.approx(np.log(1/9), abs=1e-6)
    assert (plain["threshold"], plain["aim"], plain["prior"]) == (0.6, "balanced", None)
    assert (wished["threshold"], wished["aim"], wished["prior"]) == (0.8, "few-false-alarms", 0.1)
    for share, verdict in ((0.001, "correct"), (0.999, "flawed")): assert checked(adapter, "--prior", share)["verdict"] == verdict
    shown = said("check", PROBLEM, TRUE, "--adapter", adapter, "--aim", "recall", "--prior", 0.25).stdout
    assert "threshold 0.20 for recall; 25 % flawed expected" in shown


def test_what_cannot_be_is_refused_before_a_model_is_loaded(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_, "_open", lambda *a: pytest.fail("the model was loaded"))
    monkeypatch.setattr(ask_, "open_verifier", lambda *a: pytest.fail("the model was loaded"))
    pd.DataFrame({"question": [PROBLEM], "solution": [TRUE]}).to_csv(tmp_path/"in.csv", index=False)
    for command in (("check", PROBLEM, TRUE), ("score", tmp_path/"in.csv", "-O", tmp_path/"out.csv"), ("demo",)):
        for wish in (("--aim", "speed"), ("--prior", 1)):
            got = said(*command, "--adapter", adapter, *wish)
            assert got.exit_code == 2 and "what to do" in got.stderr, got.output


def test_score_takes_them_too(adapter, tmp_path):
    pd.DataFrame({"question": [PROBLEM]*2, "solution": [TRUE, "3 * 4 = 13\n#### 11"]}).to_csv(tmp_path/"in.csv", index=False)
    got = said("score", tmp_path/"in.csv", "-O", tmp_path/"out.csv", "--adapter", adapter, "--aim", "recall", "--prior", 0.2)
    assert got.exit_code == 0, got.output
    verifier = load(adapter).aim_at("recall", 0.2)
    expected = verifier.score([PROBLEM]*2, [TRUE, "3 * 4 = 13\n#### 11"], progress=False)
    rows = pd.read_csv(tmp_path/"out.csv")
    np.testing.assert_allclose(rows.p_flawed, expected.p_calibrated, atol=1e-5)
    assert rows.verdict.tolist() == expected.verdict.tolist() == ["flawed" if p >= 0.2 else "correct" for p in rows.p_flawed]


def test_the_page_repeats_the_wish(adapter):
    one, _ = demo_answers(load(adapter).aim_at("few-false-alarms", 0.3))
    assert "called flawed from 0.80 on for few-false-alarms; 30 % flawed expected." in one(PROBLEM, TRUE)


# an evaluated run

@pytest.fixture(scope="module")
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp("aims"), problems=80)


def as_of_old(run, root):
    "The same run as an earlier version would have left it: one threshold, no table of calibration by group."
    folder = root/"reports"/"fake"/run.reports.name
    shutil.copytree(run.reports, folder)
    old = folders.open_run(folder)
    written = files.read_json(old.report("calibration.json"))
    for line in (written, *written["baselines"].values()):
        for name in ("thresholds", "base_rate"): line.pop(name, None)
    files.write_json(old.report("calibration.json"), written)
    old.report(evaluation.CALIBRATION_BY_GROUP).unlink()
    return old


def test_a_run_keeps_a_threshold_for_each_aim_and_old_ones_verify(run, tmp_path):
    written = files.read_json(run.report("calibration.json"))
    assert set(written["thresholds"]) == set(AIMS) == set(written["baselines"]["hybrid"]["thresholds"])
    assert written["base_rate"] == 0.5 and written["threshold"] == written["thresholds"]["balanced"]
    assert verify_.verify(run).empty
    old = as_of_old(run, tmp_path)
    assert verify_.verify(old).empty
    rows = metrics.read_predictions(old.report("validation_predictions.csv"))
    again = calibration_.with_thresholds(files.read_json(old.report("calibration.json")), rows)
    assert again["thresholds"] == pytest.approx(written["thresholds"])
    assert again["baselines"]["hybrid"]["thresholds"] == pytest.approx(written["baselines"]["hybrid"]["thresholds"])


def test_a_changed_calibration_by_group_is_found(run, tmp_path):
    folder = tmp_path/"reports"/"fake"/run.reports.name
    shutil.copytree(run.reports, folder)
    table = pd.read_csv(folder/"calibration_by_group.csv")
    assert set(table.group) == {"source", "form"} and table[table.group == "form"].n.sum() == 160
    table.loc[0, "ece"] /= 2
    files.write_csv(folder/"calibration_by_group.csv", table)
    assert verify_.verify(folders.open_run(folder)).what.tolist() == ["ece, row 1"]


def test_the_card_begins_with_what_is_worst(run):
    worst = weak_points(run)
    assert worst.right.is_monotonic_increasing and (worst.n >= 10).all()
    card = model_card(run)
    weak = card.split("## What it is not good at")[1].split("##")[0]
    first = next(line for line in weak.splitlines() if line.startswith("| ") and "judged rightly" not in line and "---" not in line)
    assert first.startswith(f"| {worst.value[0]} |") and f"{worst.right[0]:.3f}" in first and "mean P(flawed)" in weak
    assert f"**{worst.value[0]}**" in weak


def test_the_report_tells_what_each_aim_is_worth(run):
    from verifier_nb import analysis
    analysis.write_report_page(run)
    page = run.report("report.html").read_text(encoding="utf-8")
    test, kept = pd.read_csv(run.report("predictions.csv")), files.read_json(run.report("calibration.json"))["thresholds"]
    recall, _ = shares(test.p_calibrated, test.true_label, kept["recall"])
    line = page.split('>recall</th>')[1].split("</tr>")[0]
    assert f"{100*recall:.1f}" in line and page.count("<th scope=\"col\">Aim</th>") == 1
    assert "By source and by style" not in page  # there is one of each


def test_the_report_shows_calibration_where_there_are_several_styles(run, tmp_path):
    from verifier_nb import analysis
    folder = tmp_path/"reports"/"fake"/run.reports.name
    shutil.copytree(run.reports, folder)
    table = pd.read_csv(folder/"calibration_by_group.csv")
    other = table[table.group == "form"].assign(value="markdown", ece=0.321, low=0.2, high=0.4)
    files.write_csv(folder/"calibration_by_group.csv", pd.concat([table, other]))
    analysis.write_report_page(folders.open_run(folder))
    page = (folder/"report.html").read_text(encoding="utf-8")
    shown = page.split("By source and by style")[1].split("</table>")[0]
    assert "markdown" in shown and "0.321" in shown and "annotated" in shown and "made up" not in shown
