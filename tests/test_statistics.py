"The statistics against known answers, and the contract of the files they are written to."
import json, math, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from scipy import stats
from verifier_nb.distrust import distrust
from verifier_nb import files, metrics as metrics_, probability, calibration as calibration_, baselines, selection, evaluation, compare, external, predictions, verify

from fake_run import make_run
from timing import seconds

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
ALL = ("counts", "ranking", "calibration", "abstention")

def plain(rows, parts=ALL): return {k: float(v[0]) for k, v in metrics_.weighted_metrics(rows, np.ones((rows.problems, 1)), parts).items()}

# By hand: the numbers are worked out in the comments

def table(*rows, columns="index true_label p_flawed"):
    "A data frame of predictions from rows of numbers."
    return pd.DataFrame(rows, columns=columns.split())

def weighted(frame, weights, parts=ALL, **settings):
    "Metrics of a frame when its problems count so many times."
    found = metrics_.weighted_metrics(metrics_.as_rows(frame, **settings), np.array(weights, float)[:, None], parts)
    return {k: float(v[0]) for k, v in found.items()}

def test_the_confusion_matrix_by_hand():
    "Ten rows, four flawed; five are called flawed, three of them rightly: 2 false alarms, 1 missed, 4 let through."
    got = {k: float(v) for k, v in metrics_.count_metrics(10, 4, 5, 3).items()}
    assert got["accuracy"] == pytest.approx(7/10)
    assert got["recall"] == pytest.approx(3/4) and got["specificity"] == pytest.approx(4/6)
    assert got["balanced_accuracy"] == pytest.approx(17/24)  # (3/4 + 4/6)/2
    assert got["precision"] == pytest.approx(3/5)
    assert got["f1"] == pytest.approx(2/3)  # 2·3/(2·3 + 2 + 1)
    assert got["f1_correct"] == pytest.approx(8/11)  # 2·4/(2·4 + 2 + 1)
    assert got["balanced_f1"] == pytest.approx(12/17)  # 2·(3/4)·(2/3)/(3/4 + 2/3) = 1/(17/12)
    assert got["mcc"] == pytest.approx(10/math.sqrt(600))  # (3·4 − 2·1)/√(5·4·5·6)

def test_what_is_not_defined_is_nan_and_no_zero():
    "Nothing called flawed: no precision. No flawed row: no recall and no F1 of flawed."
    nothing_called = metrics_.count_metrics(4, 2, 0, 0)
    assert math.isnan(nothing_called["precision"]) and math.isnan(nothing_called["mcc"])
    assert nothing_called["balanced_f1"] == 0 and nothing_called["specificity"] == 1
    none_flawed = metrics_.count_metrics(4, 0, 0, 0)
    for name in ("recall", "f1", "balanced_accuracy"): assert math.isnan(none_flawed[name])

def test_a_row_exactly_at_the_threshold_is_called_flawed():
    "At the operating threshold, at 0.5 without one, and in the arrays that are judged."
    frame = table((1, 1, 0.25), (1, 0, 0.5), (2, 1, 0.75))
    assert calibration_.decide(frame, {"threshold": 0.75}).predicted_label.tolist() == [0, 0, 1]
    assert calibration_.decide(frame, {}).predicted_label.tolist() == [0, 1, 1]
    assert metrics_.as_rows(frame).called.tolist() == [0, 1, 1]
    assert metrics_.as_rows(frame, threshold=0.25).called.tolist() == [1, 1, 1]
    without_verdicts = compare.read_results(frame)
    assert without_verdicts.called.tolist() == [0, 1, 1]

def test_the_verdict_is_that_of_the_calibrated_probability():
    "P = 0.8 has odds of 4; at a temperature of 2 they are 2, so P = 2/3; with a bias of −ln 4 they are 1/2, so P = 1/3."
    frame = table((1, 1, 0.8))
    decided = calibration_.decide(frame, {"temperature": 2.0, "threshold": 0.7})
    assert decided.p_calibrated[0] == pytest.approx(2/3) and decided.predicted_label[0] == 0 and decided.p_flawed[0] == 0.8
    assert calibration_.decide(frame, {"temperature": 2.0, "bias": -math.log(4), "threshold": 0.3}).p_calibrated[0] == pytest.approx(1/3)

def test_one_calibration_wherever_it_is_applied():
    """Log odds of 40 at a temperature of 10 are 4, so P = 0.982: for the verifier that scores, and for rows in a file.
    Their P(flawed) is 1; only the two labels' probabilities still tell 40 from 27.6."""
    from verifier_nb import scoring
    fitted = {"temperature": 10.0, "threshold": 0.5}
    rare = math.exp(-40)
    frame = table((1, 1, 1/(1 + rare), rare, 1.0), (1, 0, rare, 1.0, rare), columns="index true_label p_flawed prob_0 prob_1")
    verifier = scoring.Verifier.__new__(scoring.Verifier)
    verifier.temperature, verifier.bias, verifier.isotonic = 10.0, 0.0, None
    assert calibration_.decide(frame, fitted).p_calibrated.tolist() == pytest.approx([0.98201, 0.01799], abs=1e-5)
    assert verifier.calibrate(np.array([40.0, -40.0])) == pytest.approx([0.98201, 0.01799], abs=1e-5)

def test_no_log_odds_are_infinite():
    "Not even where a label has no probability at all; where both have none the odds are even."
    frame = table((1, 1, 1.0, 0.0, 1.0), (1, 0, 0.0, 1.0, 0.0), (2, 1, 0.5, 0.0, 0.0), columns="index true_label p_flawed prob_0 prob_1")
    assert calibration_.decide(frame, {"temperature": 100.0}).p_calibrated.tolist() == pytest.approx([1/(1 + math.exp(-7)), 1/(1 + math.exp(7)), 0.5])
    assert math.isfinite(calibration_.fit_calibration(frame)["temperature"])

def test_a_calibration_is_read_as_it_was_written():
    "Every method's; what calibration.json holds for others is left out."
    frame = metrics_.simulate(100, temperature=3)
    for method in ("temperature", "platt", "isotonic", "none"):
        written = json.loads(json.dumps(calibration_.fit_calibration(frame, method)))
        read = probability.Calibration.from_json(written | {"marks": True, "baselines": {}})
        assert read.to_json() == written and read.method == method
        assert ("bias" in written, "isotonic" in written) == (method == "platt", method == "isotonic")

RANKED = table((1, 0, 0.2), (1, 0, 0.5), (2, 1, 0.5), (2, 1, 0.8))

def test_ranking_with_a_tie_by_hand():
    """Of four pairs three are in order and one is a tie, which counts half.
    From above: half of the flawed at a precision of 1, the other half at 2 of 3."""
    got = plain(metrics_.as_rows(RANKED))
    assert got["auroc"] == pytest.approx(3.5/4) and got["auprc"] == pytest.approx(1/2 + 1/2*2/3)

def test_ranking_of_a_problem_that_was_drawn_three_times():
    "Rows of weight 3 for the second problem: every pair counts three times, but precision is 3 and 6 of 7."
    got = weighted(RANKED, [1, 3])
    assert got["auroc"] == pytest.approx(3.5/4) and got["auprc"] == pytest.approx(1/2 + 1/2*6/7)
    assert got["accuracy"] == pytest.approx(7/8)

def test_brier_and_log_loss_by_hand():
    "Squares 0.01, 0.04, 0.36, 0.25; the truth got 0.9, 0.8, 0.4, 0.5."
    got = plain(metrics_.as_rows(table((1, 1, 0.9), (1, 0, 0.2), (2, 0, 0.6), (2, 1, 0.5))))
    assert got["brier"] == pytest.approx(0.66/4)
    assert got["log_loss"] == pytest.approx(-math.log(0.9*0.8*0.4*0.5)/4)
    sure_and_wrong = plain(metrics_.as_rows(table((1, 0, 1.0), (1, 1, 1.0))))
    assert sure_and_wrong["log_loss"] == pytest.approx(15*math.log(10)/2, rel=1e-3)

def ece(frame, bins, weights=None):
    "The calibration error of a frame with so many bins."
    rows = metrics_.as_rows(frame)
    order, starts = metrics_.levels_of(rows.p)
    each = np.ones(rows.problems) if weights is None else np.array(weights, float)
    w = each[rows.problem[order]][:, None]
    return float(metrics_.calibration_error(w, (rows.y - rows.p)[order], starts, bins)[0])

def test_bins_of_the_calibration_error_weigh_what_they_hold():
    """Four rows at 0.1, a quarter of them flawed: off by 0.15. One at 0.9 that is correct: off by 0.9.
    4/5·0.15 + 1/5·0.9 = 0.3; bins that count the same would give 0.525."""
    frame = table((1, 0, 0.1), (2, 0, 0.1), (3, 0, 0.1), (4, 1, 0.1), (5, 0, 0.9))
    assert ece(frame, 2) == pytest.approx(0.3)
    assert ece(frame, 2, [1, 1, 1, 1, 4]) == pytest.approx((0.6 + 3.6)/8)

def test_equal_probabilities_share_a_bin():
    "Half of the rows at 0.5 are flawed: calibrated, whatever the order of the rows. Cut in two they would be off by 0.5."
    frame = table((1, 0, 0.5), (2, 0, 0.5), (3, 1, 0.5), (4, 1, 0.5))
    assert ece(frame, 2) == pytest.approx(0) == ece(frame.iloc[::-1], 2)

def test_a_bin_compares_means():
    "0.2 that is flawed and 0.8 that is correct: one bin sees a mean of 0.5 and half flawed; two bins see 0.8 twice."
    frame = table((1, 1, 0.2), (2, 0, 0.8))
    assert ece(frame, 1) == pytest.approx(0) and ece(frame, 2) == pytest.approx(0.8)

def test_bins_hold_equally_many_rows():
    "Six rows in three bins: two each, however unevenly the probabilities lie."
    frame = table((1, 0, 0.01), (2, 0, 0.02), (3, 1, 0.03), (4, 0, 0.04), (5, 1, 0.05), (6, 1, 0.99))
    expected = (0.03 + (1 - 0.07) + (2 - 1.04))/6
    assert ece(frame, 3) == pytest.approx(expected)
    assert [metrics_.bin_count(n) for n in (1, 40, 79, 80, 599, 600, 100_000)] == [1, 1, 1, 2, 14, 15, 15]

def test_drawn_problems_fill_bins_by_their_weight():
    """The last of four rows counts five times, so that it fills the second of two bins alone. Gaps −0.1, −0.2, 0.7 and five
    times −0.4: (0.4 + 2)/8. Two rows a bin would give (0.3 + 1.3)/8."""
    frame = table((1, 0, 0.1), (2, 0, 0.2), (3, 1, 0.3), (4, 0, 0.4))
    assert ece(frame, 2, [1, 1, 1, 5]) == pytest.approx(0.3)

UNSURE = table((1, 1, 0.95), (1, 0, 0.1), (2, 0, 0.7), (2, 1, 0.45))  # log odds 2.9, −2.2, 0.8, −0.2; two are wrong

def test_abstention_by_hand():
    "By falling confidence the risks are 0, 0, 1/3, 1/2: half of the rows at no error, a mean risk of 5/24."
    got = plain(metrics_.as_rows(UNSURE))
    assert got["aurc"] == pytest.approx(5/24) and got["coverage_at_budget"] == pytest.approx(1/2)
    assert got["decided_share"] == 1 and got["decided_errors"] == pytest.approx(1/2)
    careful = plain(metrics_.as_rows(UNSURE, margin=1.0))
    assert careful["decided_share"] == pytest.approx(1/2) and careful["decided_errors"] == 0
    at_the_row = plain(metrics_.as_rows(UNSURE, margin=float(metrics_.logit(0.7))))
    assert at_the_row["decided_share"] == pytest.approx(3/4) and at_the_row["decided_errors"] == pytest.approx(1/3)
    never = plain(metrics_.as_rows(UNSURE, margin=None))
    assert never["decided_share"] == 0 and math.isnan(never["decided_errors"])

def test_rows_of_one_confidence_are_decided_together():
    "Two rows at 0.8, one wrong: half of the decisions are wrong as soon as one is made."
    got = plain(metrics_.as_rows(table((1, 1, 0.8), (2, 0, 0.8))))
    assert got["aurc"] == pytest.approx(1/2) and got["coverage_at_budget"] == 0

def test_confidence_is_the_distance_from_the_threshold():
    "With a threshold of 0.8, log odds of ln 4: 0.8 is on the fence, 0.5 is ln 4 away, below it."
    rows = metrics_.as_rows(table((1, 1, 0.8), (2, 0, 0.5)), threshold=0.8)
    assert rows.confidence == pytest.approx([0, math.log(4)]) and rows.called.tolist() == [1, 0]

def test_problems_are_drawn_whole():
    "Three rows that are right, one that is wrong: accuracy is 0, 3/4, 1 with chances 1/4, 1/2, 1/4."
    rows = metrics_.as_rows(table((7, 1, 0.9), (7, 1, 0.9), (7, 0, 0.1), (3, 0, 0.9)))
    values, counts = np.unique(metrics_.bootstrap(rows, 20_000, 0, ("counts",))["accuracy"], return_counts=True)
    assert values == pytest.approx([0, 3/4, 1]) and np.allclose(counts/20_000, [1/4, 1/2, 1/4], atol=0.015)

def test_draws_do_not_depend_on_how_many_are_handled_at_a_time():
    "As many problems are drawn as there are, by the seed, in one chunk or in many."
    drawn = lambda rows, seed=3: np.concatenate(list(metrics_.resample(5, 500, seed, rows)), 1)
    assert drawn(5).shape == (5, 500) and (drawn(5).sum(0) == 5).all()
    assert (drawn(5) == drawn(2_000_000//7)).all() and not (drawn(5) == drawn(5, seed=4)).all()

def test_intervals_by_hand():
    """Percentiles of the draws; Clopper and Pearson where the share is 0 or 1, over the problems of the class that it is a
    share of; none where more than a tenth of the draws are not defined."""
    rows = metrics_.as_rows(table((1, 0, 0.9), (1, 1, 0.9), (2, 0, 0.9), (3, 0, 0.9)))
    values = np.arange(1001)/1000
    assert metrics_.interval(values, "auroc", 0.5, rows)[0] == pytest.approx((0.025, 0.975))
    assert metrics_.interval(values, "specificity", 0.0, rows)[0] == pytest.approx((0, 1 - 0.025**(1/3)))  # three problems
    assert metrics_.interval(values, "recall", 1.0, rows)[0] == pytest.approx((0.025, 1))  # one problem
    holes = lambda share: np.where(values < share, np.nan, values)
    assert metrics_.interval(holes(0.2), "mcc", 0.5, rows)[0] is None
    assert metrics_.interval(holes(0.05), "mcc", 0.5, rows)[0] == pytest.approx((0.05 + 0.025*0.95, 0.05 + 0.975*0.95))
    assert metrics_.interval(values, "auroc", 0.5, metrics_.as_rows(table((1, 0, 0.1), (1, 1, 0.9))))[0] is None  # one problem only

def test_the_interval_of_the_calibration_error_is_turned_round():
    "Draws from 0.3 to 0.5 around a value of 0.3 say that drawing adds 0.1: from 0.6 − 0.495 up to the value itself."
    rows = metrics_.as_rows(pd.DataFrame({"index": range(400), "true_label": 1, "p_flawed": 0.7}))
    (low, high), note = metrics_.interval(np.linspace(0.3, 0.5, 1001), "ece", 0.3, rows)
    assert low == pytest.approx(0.105) and high == pytest.approx(0.3) and "perfectly calibrated" in note
    assert metrics_.interval(np.linspace(0.0, 0.2, 1001), "ece", 0.001, rows)[0][0] == 0

def test_a_difference_is_paired():
    "Draws of the difference 0 … 0.1 give its percentiles; too few that are defined give none."
    draws = np.linspace(0, 0.1, 1001)
    found = metrics_.difference(0.8, 0.75, draws)
    assert found["value"] == pytest.approx(0.05) and found["interval"] == pytest.approx([0.0025, 0.0975])
    assert metrics_.difference(0.8, 0.75, np.where(draws < 0.02, np.nan, draws))["interval"] is None

# calibration, by hand

def test_a_temperature_by_hand():
    "Odds of 9 where 3 of 4 are flawed: the temperature that makes 3 of 9 is 2, since √9 = 3."
    assert calibration_.fit_temperature(np.full(4, 0.9), [1, 1, 1, 0]) == pytest.approx(2, rel=1e-4)
    assert calibration_.fit_temperature([0.1, 0.9, 0.9, 0.9], [0, 1, 0, 1]) == pytest.approx(2, rel=1e-4)  # one upside down

def test_platt_by_hand():
    """Two levels, so that the fit meets the mean target of each. 1 of 8 flawed at 1/4, 6 of 8 at 3/4: seven flawed and nine
    correct rows, so the targets are 8/9 and 1/11. The log odds are ±ln 3."""
    p = np.repeat([0.25, 0.75], 8)
    y = [1] + [0]*7 + [1]*6 + [0]*2
    low = metrics_.logit((8/9 + 7/11)/8)
    high = metrics_.logit((6*8/9 + 2/11)/8)
    slope, bias = (high - low)/(2*math.log(3)), (high + low)/2
    found = calibration_.fit_platt(p, y)
    assert 1/found["temperature"] == pytest.approx(slope, rel=1e-3) and found["bias"] == pytest.approx(bias, rel=1e-3)

def test_an_isotonic_curve_by_hand():
    "The two in the middle are the wrong way round and share their mean; the ends stay 1/6 away from certainty."
    found = calibration_.fit_isotonic([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1])
    assert found["x"] == pytest.approx([0.1, 0.2, 0.3, 0.4]) and found["y"] == pytest.approx([1/6, 1/2, 1/2, 5/6])
    after = calibration_.apply_calibration([0.0, 0.15, 0.25, 0.9], {"isotonic": found})
    assert after == pytest.approx([1/6, 1/3, 1/2, 5/6])

def test_no_calibration_changes_no_digit():
    p = np.array([0.1, 1/3, 0.0, 1.0])
    for calibration in ({}, {"temperature": 1.0, "threshold": 0.2}): assert (calibration_.apply_calibration(p, calibration) == p).all()
    certain = calibration_.apply_calibration([0.0, 1.0], {"temperature": 2.0})
    assert certain == pytest.approx([1e-6, 1 - 1e-6], rel=1e-3)  # taken as 1e-12 away from certainty

@pytest.mark.parametrize("rows,aim,expected", [
    ([(0.2, 0), (0.6, 0), (0.6, 1), (0.9, 1)], "accuracy", 0.5),  # (0.2, 0.6] and (0.6, 0.9] are wrong once: the nearest to 0.5
    ([(0.1, 0), (0.4, 0), (0.4, 1), (0.8, 1)], "accuracy", 0.5),  # here the upper one of the two
    ([(0.1, 1), (0.2, 0), (1.0, 0), (1.0, 0)], "accuracy", 0.5),  # calling nothing flawed would be best, and cannot be
    ([(0.6, 0), (0.6, 0), (0.7, 1), (0.8, 1)], "accuracy", 0.65),  # only (0.6, 0.7] is never wrong: its middle
    ([(0.1, 0), (0.2, 1), (0.3, 0), (0.4, 1)], "f1", 0.15),  # 4/5 from 0.2 on, 2/3 everywhere else
    ([(0.1, 0), (0.9, 0), (0.95, 1)], "accuracy", 0.925),
    ([(0.2, 0), (1.0, 0), (1.0, 1)], "accuracy", 0.5)])  # nothing is above 1: a row at 1 is flawed whatever the threshold
def test_thresholds_by_hand(rows, aim, expected):
    p, y = zip(*rows)
    assert calibration_.choose_threshold(p, y, aim) == pytest.approx(expected)

@pytest.mark.parametrize("least,expected", [(0.5, 0.7), (0.51, 0.5), (1.0, 0.2)])
def test_recall_thresholds_by_hand(least, expected):
    """Flawed rows at 0.3, 0.6, 0.8, 0.9. A recall of 1/2 is kept up to 0.8, of 3/4 up to 0.6, of 1 up to 0.3.
    The middle of what is below, or 0.5 where that is part of it."""
    p, y = [0.1, 0.3, 0.6, 0.8, 0.9], [0, 1, 1, 1, 1]
    assert calibration_.choose_threshold(p, y, "recall", least) == pytest.approx(expected)

@pytest.mark.parametrize("budget,expected", [(0.25, 0.7), (0.24, 0.9), (0.0, 0.9)])
def test_margins_by_hand(budget, expected):
    "By falling confidence: right, right, wrong, right. A quarter is wrong among all four, none among the first two."
    p, y = [0.7, 0.95, 0.8, 0.9], [1, 1, 0, 1]
    assert calibration_.choose_margin(p, y, 0.5, budget) == pytest.approx(metrics_.logit(expected))

def test_a_margin_does_not_cut_through_equal_confidence():
    assert calibration_.choose_margin([0.9, 0.9], [1, 0], 0.5, 0.1) is None
    assert calibration_.choose_margin([0.9, 0.9], [1, 0], 0.5, 0.5) == pytest.approx(math.log(9))
    at_the_threshold = calibration_.choose_margin([0.5, 0.5], [1, 1], 0.5, 0.0)
    assert at_the_threshold == 0.0  # a row at the threshold is called flawed, and rightly so

def test_what_is_fitted_is_used_in_turn():
    """The threshold and the margin are chosen among calibrated probabilities: 0.9 and 0.1, each right in 3 of 4, become 3/4
    and 1/4, at a distance of ln 3."""
    p, y = [0.9]*4 + [0.1]*4, [1, 1, 1, 0, 0, 0, 0, 1]
    frame = pd.DataFrame({"index": range(8), "true_label": y, "p_flawed": p})
    found = calibration_.fit_calibration(frame, "temperature", budget=0.25)
    assert found["temperature"] == pytest.approx(2, rel=1e-4) and found["threshold"] == pytest.approx(0.5)
    assert found["margin"] == pytest.approx(math.log(3), rel=1e-3) and found["n"] == 8
    assert calibration_.fit_calibration(frame, "temperature", budget=0.05)["margin"] is None
    assert calibration_.fit_calibration(frame, "none")["temperature"] == 1.0
    assert calibration_.fit_calibration(frame, aim="recall", recall_at_least=1.0)["threshold"] < 0.25
    one_class = calibration_.fit_calibration(frame[frame.true_label == 1])
    assert one_class["threshold"] == 0.5 and one_class["temperature"] == 1.0 and one_class["notes"]

def test_threshold_and_margin_are_those_of_calibrated_probabilities():
    "On over-confident rows and for a recall, where neither 0.5 nor the raw probabilities give the same."
    frame = metrics_.simulate(300, temperature=3, seed=8)
    p, y = frame.p_flawed, frame.true_label
    found = calibration_.fit_calibration(frame, "temperature", "recall", 0.9, 0.1)
    q = calibration_.apply_calibration(p, found)
    assert found["threshold"] == calibration_.choose_threshold(q, y, "recall", 0.9) != calibration_.choose_threshold(p, y, "recall", 0.9)
    assert found["margin"] == calibration_.choose_margin(q, y, found["threshold"], 0.1) != calibration_.choose_margin(q, y, 0.5, 0.1)

# baselines, hybrid and reasons, by hand

def test_what_the_equation_checker_says():
    "Nothing to check: 0.25. All true: 0. One false: 1/2. Two false: 2/3."
    found = baselines.checker_scores(["No numbers here.", "2 + 2 = 4", "2 + 2 = 5\n3 * 3 = 9", "2 + 2 = 5\n3 * 3 = 8"])
    assert found.equations.tolist() == [0, 1, 2, 2] and found.false_equations.tolist() == [0, 0, 1, 2]
    assert found.p_checker.tolist() == pytest.approx([0.25, 0, 1/2, 2/3])

def test_the_hybrids_features_by_hand():
    frame = table((0.5, 4, 1, math.e - 1), (0.75, 0, 0, 0.0), (0.25, 3, 0, 0.0),
                  columns="p_calibrated equations false_equations surprisal")
    found = baselines.hybrid_features(frame)
    assert found.log_odds.tolist() == pytest.approx([0, math.log(3), -math.log(3)])
    assert found.any_false.tolist() == [1, 0, 0] and found.share_false.tolist() == [0.25, 0, 0]
    assert found.nothing_to_check.tolist() == [0, 1, 0] and found.surprisal.tolist() == pytest.approx([1, 0, 0])
    assert "surprisal" not in baselines.hybrid_features(frame.drop(columns="surprisal"))

def test_weights_by_hand():
    "(3 − 1)/2·1 + (2 − 2)/1·(−1) + 0.5 = 1.5, by the features' names and not by their places."
    weights = {"features": ["a", "b"], "mean": [1, 2], "scale": [2, 1], "coef": [1, -1], "intercept": 0.5}
    assert baselines.apply_weights(pd.DataFrame({"b": [2.0], "a": [3.0]}), weights) == pytest.approx([1/(1 + math.exp(-1.5))])

def test_fitted_weights_are_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(0)
    x = pd.DataFrame({"small": rng.normal(5, 0.01, 200), "large": rng.normal(0, 300, 200), "constant": 2.0})
    y = ((x.small - 5)*100 + x.large/300 + rng.normal(size=200) > 0).astype(int)
    theirs = make_pipeline(StandardScaler(), LogisticRegression()).fit(x.to_numpy(), y).predict_proba(x.to_numpy())[:, 1]
    assert baselines.apply_weights(x, baselines.fit_weights(x, y)) == pytest.approx(theirs, abs=1e-4)

def test_baselines_are_fitted_on_validation_alone():
    "Another test split changes no weight; the usual surprisal is that of correct rows."
    from verifier_nb.config import load_config
    def split(seed, shift=0.0):
        frame = calibration_.decide(metrics_.simulate(40, seed=seed), {})
        base = metrics_.simulate(40, seed=seed + 1).p_flawed
        surprisal = np.where(frame.true_label == 0, np.arange(80)/10, 50.0)
        frame = frame.assign(equations=2, false_equations=frame.true_label)
        return frame.assign(p_base=base, surprisal=surprisal + shift, surprisal_at=0)
    fitted = []
    for test in (split(5), split(9, shift=3.0)):
        calibration, frames = {"baselines": {}}, {"validation": split(1), "test": test}
        evaluation.fit_baselines(frames, calibration, load_config("smoke").evaluation)
        fitted.append(calibration["baselines"])
        assert {"p_zero_shot", "p_surprisal", "p_hybrid"} <= set(frames["test"]) & set(frames["validation"])
    assert fitted[0] == fitted[1]
    assert fitted[0]["hybrid"]["usual_surprisal"] == pytest.approx(np.quantile(np.arange(0, 80, 2)/10, 0.95))
    assert fitted[0]["surprisal"]["features"] == ["surprisal"]

def test_surface_features_are_learned_from_every_part():
    "With a limit every so-maniest row is taken, not the first ones, which are all correct here."
    from verifier_nb.appearance import surface_features
    solutions = ["1 + 1 = 2"]*50 + ["A long story about 7 apples, 8 pears and 9 plums."]*50
    train = pd.DataFrame({"solution": solutions, "label": [0]*50 + [1]*50})
    learned = baselines.fit_surface(train, limit=10)
    assert baselines.fit_surface(train.head(50)) is None
    assert learned.predict(surface_features([solutions[0], solutions[-1]]).to_numpy()).tolist() == [0, 1]

FLAWED = "Tom buys 3 * 4 = 12 apples.\nHe eats 12 - 2 = 11.\nSo 11 + 1 = 13 stay.\n#### 13"

def test_the_first_false_equation_is_distrusted():
    found = distrust(FLAWED, 9.0, 0, 1.0)
    assert found["kind"] == "equation" and found["step"] == 2 and found["text"] == "12 - 2 = 11"

def test_a_number_that_the_base_did_not_expect_is_distrusted():
    "The third = stands in line 3; what is usual is no reason."
    solution = FLAWED.replace("= 11.", "= 10.").replace("11 + 1 = 13", "10 + 3 = 13")
    surprised = distrust(solution, 5.1, 2, 5.0)
    assert surprised["kind"] == "surprise" and surprised["step"] == 3 and surprised["text"].startswith("So 10 + 3 = 13")
    for surprisal, at in ((5.0, 2), (5.1, 3), (5.1, -1)): assert distrust(solution, surprisal, at, 5.0)["kind"] == "reasoning"

def test_digits_of_results_are_found():
    "After the = of the solution only; a number that goes on over two tokens is two places of one equation."
    pieces = ["### Problem:", " 1 = 2", "### Solution:", " 3", " =", " $", "1", "2", " apples", " 7", " x = y 8", " 2=", "4"]
    assert baselines.digit_places(pieces) == [(6, 0), (7, 0), (12, 2)]

def test_the_surprisal_is_that_of_the_whole_forward_pass():
    "Against the logits of the plain model, position by position."
    import torch
    from verifier_nb import prompt, model, scoring
    from verifier_nb.config import ModelSettings
    base, tokenizer = model.load_base(ModelSettings(base="tiny:llama", device="cpu")), prompt.load_tokenizer("tiny:llama")
    verifier = scoring.Verifier(base, tokenizer)
    solutions = ["3 + 4 = 7\n7 - 1 = 6\n#### 6", "Nothing to add.", "20 * 5 = 100\n#### 100"]
    found = baselines.read_base(verifier, ["What is it?"]*3, solutions, batch_tokens=10_000)
    for i, solution in enumerate(solutions):
        ids = verifier.sample("What is it?", solution)["input_ids"]
        with torch.inference_mode(): logs = base(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
        zero, one = verifier.label_tokens
        assert found.prob_0[i] == pytest.approx(np.exp(logs[-1, zero]), rel=1e-4)
        assert found.prob_1[i] == pytest.approx(np.exp(logs[-1, one]), rel=1e-4)
        places = baselines.digit_places(baselines._pieces(tokenizer, ids))
        surprise = [-logs[place - 1, ids[place]] for place, _ in places]
        assert found.surprisal[i] == pytest.approx(max(surprise, default=0.0), rel=1e-4)
        assert found.surprisal_at[i] == (places[int(np.argmax(surprise))][1] if surprise else -1)
    assert found.surprisal_at[1] == -1 and len(places) >= 1

# from scores to rows, by hand

def test_rows_and_scores_side_by_side():
    "P(flawed) is a share of the two labels' mass, 0.5 where there is none; a correct row has no kind of error."
    dataset = table((7, 1, "computational"), (3, 0, "computational"), (5, 1, None), columns="index label error_type")
    scores = table((0.1, 0.3), (0.2, 0.2), (0.0, 0.0), columns="prob_0 prob_1")
    found = evaluation.as_predictions(dataset, scores, "test")
    assert list(found) == metrics_.COLUMNS + predictions.LATER
    assert found["index"].tolist() == [7, 3, 5] and found.true_label.tolist() == [1, 0, 1]
    assert found.p_flawed.tolist() == pytest.approx([0.75, 0.5, 0.5])
    assert found.label_mass.tolist() == pytest.approx([0.4, 0.4, 0])
    assert found.error_type.tolist() == ["computational", "correct", "unknown"] and found.source.tolist() == ["unknown"]*3
    with pytest.raises(files.VerifierError, match="3 rows but 2 scores"): evaluation.as_predictions(dataset, scores.head(2), "test")

def test_kinds_by_hand():
    """Two conceptual rows of one problem at 0.9 and 0.2, one computational at 0.6, two correct at 0.1 and 0.3.
    Conceptual: 1 of 2 right, a mean of 0.55; of its four pairs with correct rows three are in order."""
    rows = [(1, 1, 0.9, "conceptual"), (1, 1, 0.2, "conceptual"), (2, 1, 0.6, "computational"),
            (1, 0, 0.1, "correct"), (2, 0, 0.3, "correct")]
    frame = table(*rows, columns="index true_label p_calibrated error_type").assign(source="x", subtype="")
    found = metrics_.by_type(frame, {"threshold": 0.5}, 50).set_index("value")
    assert found.n.to_dict() == {"correct": 2, "conceptual": 2, "computational": 1, "unknown": 0, "x": 5}
    assert found.problems["conceptual"] == 1 and found.problems["x"] == 2
    assert found.right["conceptual"] == pytest.approx(1/2) and found.right["computational"] == 1
    assert found.mean_p["conceptual"] == pytest.approx(0.55) and found.auroc["conceptual"] == pytest.approx(3/4)
    assert found.right["x"] == pytest.approx(4/5) and found.auroc["x"] == pytest.approx(5/6)
    assert math.isnan(found.auroc["correct"]) and found.note["unknown"]
    assert metrics_.by_type(frame, {"threshold": 0.95}, 50).set_index("value").right["conceptual"] == 0

def test_a_summary_counts_rows_and_problems_apart():
    "And it says what the calibration gained, each baseline at its own threshold."
    frame = table((1, 1, 0.9, 0.6, 0.3), (1, 0, 0.6, 0.4, 0.3), (2, 0, 0.2, 0.1, 0.1),
                  columns="index true_label p_flawed p_calibrated p_checker")
    lines = {"checker": {"threshold": 0.2}, "surface": {"threshold": 0.5}}
    found = evaluation.summarise_predictions(frame, {"threshold": 0.5, "margin": None, "temperature": 2.0, "baselines": lines}, 50)
    assert found["n"] == {"rows": 3, "problems": 2, "correct": 2, "flawed": 1}
    assert found["accuracy"] == 1 and found["uncalibrated"]["accuracy"] == pytest.approx(2/3)
    assert found["brier"] == pytest.approx((0.16 + 0.16 + 0.01)/3)
    assert found["uncalibrated"]["brier"] == pytest.approx((0.01 + 0.36 + 0.04)/3)
    assert list(found["baselines"]) == ["checker"] and found["decided_share"] == 0
    checker = found["baselines"]["checker"]
    assert checker["accuracy"] == pytest.approx(2/3) and checker["gain"]["accuracy"]["value"] == pytest.approx(1/3)
    assert checker["gain"]["auroc"]["value"] == pytest.approx(1 - 3/4)

def test_how_far_a_merged_model_is_away():
    found = evaluation.merge_summary(pd.DataFrame({"p_adapter": [0.2, 0.9, 0.5], "p_merged": [0.3, 0.6, 0.5]}), "nf4")
    assert found["max_abs_difference"] == pytest.approx(0.3) and found["mean_abs_difference"] == pytest.approx(0.4/3)
    assert found["rows"] == 3 and found["adapter_on"] == "4-bit base"
    assert evaluation.merge_summary(pd.DataFrame({"p_adapter": [0.2], "p_merged": [0.3]}), "none")["adapter_on"] != "4-bit base"

# best of N, by hand

CANDIDATES = table((1, 1, 0.1, "a"), (1, 0, 0.2, "b"), (1, 0, 0.3, "b"), columns="index true_label p_flawed answer")

def test_best_of_n_by_hand():
    """Three candidates; the one that is trusted most is wrong. Of three pairs two hold it, so the choice is right once in
    three; every pair holds a right one. The vote: a pair with both answers is a tie, worth a half."""
    found = selection.best_of_n(CANDIDATES, ns=(1, 2, 3, 4), resamples=50, draws=3000).set_index(["n", "judge"]).accuracy
    assert [found[n, "verifier"] for n in (1, 2, 3)] == pytest.approx([2/3, 1/3, 0])
    assert found[1, "oracle"] == pytest.approx(2/3) and found[2, "oracle"] == 1
    assert [found[n, "random"] for n in (1, 2, 3)] == pytest.approx([2/3]*3)
    assert found[2, "majority vote"] == pytest.approx(2/3*1/2 + 1/3, abs=0.03) and found[3, "majority vote"] == 1
    assert 4 not in found.index.get_level_values("n")

def test_candidates_of_equal_score_share_the_place():
    frame = table((1, 1, 0.1), (1, 0, 0.1), (1, 1, 0.3))
    found = selection.best_of_n(frame, ns=(3,), resamples=50).set_index("judge").accuracy
    assert found["verifier"] == pytest.approx(1/2)

def test_intervals_of_best_of_n_draw_problems():
    "One problem is always right, one always wrong: the interval is from 0 to 1. One problem alone has none."
    frame = table((1, 0, 0.1), (1, 0, 0.2), (2, 1, 0.1), (2, 1, 0.2))
    line = selection.best_of_n(frame, ns=(2,), resamples=500).set_index("judge").loc["verifier"]
    assert (line.accuracy, line.low, line.high, line.problems) == (0.5, 0, 1, 2)
    alone = selection.best_of_n(frame.head(2), ns=(1,), resamples=50)
    assert alone.low.isna().all() and alone.high.isna().all()

def test_a_choice_needs_three_candidates_of_every_problem():
    "Final answers are compared as numbers; two solutions without one do not agree with each other."
    frame = CANDIDATES.drop(columns="answer")
    texts = ["2 + 2 = 5\n#### 5", "So it is\n#### 4.0", "2 + 2 = 4\n#### 4"]
    found = selection.choices(frame, texts, resamples=50).set_index(["n", "judge"]).accuracy
    assert found[1, "majority vote"] == pytest.approx(2/3, abs=0.15) and found[1, "verifier"] == pytest.approx(2/3)
    assert selection.choices(frame.head(2), texts[:2]) is None and selection.choices(frame.head(0), []) is None
    silent = [selection._answer("No idea."), selection._answer("2 + 2 = 4\n#### 4"), selection._answer("#### 4.0")]
    assert silent[0] is None and silent[1] == silent[2] == 4

# McNemar

def test_mcnemar_by_hand():
    "1 against 9 of ten disagreements: 2·(1 + 10)/2^10."
    a = np.array([True]*1 + [False]*9 + [True]*30)
    b = np.array([False]*1 + [True]*9 + [True]*30)
    assert compare.mcnemar(a, b) == pytest.approx(22/1024)

@pytest.mark.parametrize("only_a,only_b", [(0, 0), (3, 3), (2, 11), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    from statsmodels.stats.contingency_tables import mcnemar
    a, b = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(7)], np.r_[np.zeros(only_a), np.ones(only_b), np.ones(7)]
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert compare.mcnemar(a, b) == pytest.approx(expected) == pytest.approx(mcnemar([[7, only_a], [only_b, 0]], exact=True).pvalue)

# Bootstrap

def test_bootstrap_of_two_problems_by_hand():
    "One problem right, one wrong: accuracy is 0, 1/2, 1 with chances 1/4, 1/2, 1/4."
    rows = metrics_.as_rows(pd.DataFrame({"index": [1, 1, 2, 2], "true_label": [0, 1, 0, 1], "p_flawed": [.1, .9, .9, .1]}))
    values, counts = np.unique(metrics_.bootstrap(rows, 20_000, 0, ("counts",))["accuracy"], return_counts=True)
    assert values.tolist() == [0, .5, 1] and np.allclose(counts/20_000, [.25, .5, .25], atol=.015)

def test_bootstrap_agrees_with_scipy():
    "With one row a problem the interval is that of scipy's percentile bootstrap."
    frame = metrics_.simulate(150, seed=4).assign(index=range(300))
    rows = metrics_.as_rows(frame)
    right = (rows.called == rows.y).astype(float)
    theirs = stats.bootstrap((right,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1), vectorized=True, batch=2000).confidence_interval
    assert metrics_.metrics(rows, 20_000, 0, ("counts",))["intervals"]["accuracy"] == pytest.approx([theirs.low, theirs.high], abs=0.007)

def clustered(rng, problems):
    "Accuracy differs between problems: four rows each, right with a chance drawn for the problem; the mean chance is 0.7."
    chance = rng.beta(2.1, 0.9, problems)
    right = rng.random((problems, 4)) < chance[:, None]
    y = np.tile([0, 1, 0, 1], (problems, 1))
    called = np.where(right, y, 1 - y)
    return pd.DataFrame({"index": np.repeat(np.arange(problems), 4), "true_label": y.ravel(), "p_flawed": called.ravel().astype(float)})

def covers(frame, seed, truth, metric="accuracy", parts=("counts",), resamples=300):
    low, high = metrics_.metrics(metrics_.as_rows(frame), resamples, seed, parts)["intervals"][metric]
    return low <= truth <= high

def test_coverage_on_clustered_data():
    "Intervals that draw problems hold the truth in 93 to 97 of 100 cases; those that draw rows do not."
    rng, n = np.random.default_rng(11), 450
    frames = [clustered(rng, 150) for _ in range(n)]
    assert 0.93 <= np.mean([covers(f, i, 0.7) for i, f in enumerate(frames)]) <= 0.97
    assert np.mean([covers(f.assign(index=range(len(f))), i, 0.7) for i, f in enumerate(frames[:120])]) < 0.92

def test_coverage_of_auroc():
    "Two rows a problem that share an effect; the true AUROC is known."
    truth, n = stats.norm.cdf(2*1.0/math.sqrt(2*(1 + 0.7**2))), 300
    assert 0.93 <= np.mean([covers(metrics_.simulate(100, signal=1.0, shared=0.7, seed=i), i, truth, "auroc", ("ranking",)) for i in range(n)]) <= 0.97

def test_ten_thousand_resamples_of_five_thousand_rows_take_ten_seconds():
    rows = metrics_.as_rows(metrics_.simulate(2500))
    metrics_.bootstrap(rows, 100)
    assert seconds(lambda: metrics_.bootstrap(rows, 1000)) < 2.0  # a tenth of the work; twice the time, for a busy machine

# Metrics

@pytest.mark.parametrize("ties", [False, True])
def test_weighting_a_problem_is_repeating_it(ties):
    "Metrics under integer weights are scikit-learn's on the repeated rows, with and without ties."
    from sklearn import metrics as sk
    frame, rng = metrics_.simulate(40, seed=2), np.random.default_rng(0)
    if ties: frame["p_flawed"] = frame.p_flawed.round(1)
    weights = rng.integers(0, 4, (40, 3)).astype(float)
    got = metrics_.weighted_metrics(metrics_.as_rows(frame), weights)
    for k in range(3):
        again = frame.loc[frame.index.repeat(weights[frame["index"], k].astype(int))]
        y, p, called = again.true_label, again.p_flawed, again.p_flawed >= 0.5
        for name, value in {"accuracy": sk.accuracy_score(y, called), "mcc": sk.matthews_corrcoef(y, called), "f1": sk.f1_score(y, called), "auroc": sk.roc_auc_score(y, p),
                            "auprc": sk.average_precision_score(y, p), "brier": sk.brier_score_loss(y, p), "balanced_accuracy": sk.balanced_accuracy_score(y, called)}.items():
            assert got[name][k] == pytest.approx(value), name

def test_balanced_f1_is_the_harmonic_mean():
    rows = metrics_.as_rows(metrics_.simulate(80, seed=1))
    got = plain(rows)
    assert got["balanced_f1"] == pytest.approx(stats.hmean([got["recall"], got["specificity"]]))
    everything = metrics_.as_rows(metrics_.simulate(80), threshold=0.0)
    assert plain(everything)["balanced_f1"] == 0 and plain(everything)["recall"] == 1

@pytest.mark.parametrize("n,bins", [(1000, 10), (600, 15)])
def test_ece_agrees_with_torchmetrics(n, bins):
    "Where the probabilities are spread evenly, bins of equal mass are bins of equal width, which torchmetrics has."
    import torch
    from torchmetrics.functional.classification import binary_calibration_error
    rng, p = np.random.default_rng(3), (np.arange(n) + 0.5)/n
    y = (rng.random(n) < p**1.7).astype(int)
    frame = pd.DataFrame({"index": range(n), "true_label": y, "p_flawed": p}).sample(frac=1, random_state=0)
    rows = metrics_.as_rows(frame)
    order, starts = metrics_.levels_of(rows.p)
    got = metrics_.calibration_error(np.ones((n, 1)), (rows.y - rows.p)[order], starts, bins)[0]
    assert got == pytest.approx(binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=bins, norm="l1").item(), abs=1e-6)

def test_ece_of_a_calibrated_model_is_not_distinguished_from_zero():
    "The plain percentile interval would exclude the truth every time."
    lows = [metrics_.metrics(metrics_.as_rows(metrics_.simulate(150, seed=i)), 100, 0, ("calibration",))["intervals"]["ece"][0] for i in range(40)]
    assert np.mean([low == 0 for low in lows]) >= 0.9
    assert metrics_.metrics(metrics_.as_rows(metrics_.simulate(600, temperature=3)), 200, 0, ("calibration",))["intervals"]["ece"][0] > 0.05

def test_order_of_rows_does_not_matter():
    frame = metrics_.simulate(50).assign(p_flawed=lambda f: f.p_flawed.round(1))
    a, b = plain(metrics_.as_rows(frame)), plain(metrics_.as_rows(frame.sample(frac=1, random_state=1)))
    assert a == pytest.approx(b)

# Calibration, threshold, abstention

@pytest.mark.parametrize("planted", [0.6, 1.0, 2.5])
def test_temperature_is_recovered(planted):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 400_000)
    y = (rng.random(z.size) < 1/(1 + np.exp(-z))).astype(int)
    assert calibration_.fit_temperature(1/(1 + np.exp(-z*planted)), y) == pytest.approx(planted, rel=0.02)

def test_platt_agrees_with_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    frame = metrics_.simulate(3000, temperature=3, seed=4)
    p = 1/(1 + np.exp(-(metrics_.logit(frame.p_flawed) + 2)))
    found, fit = calibration_.fit_platt(p, frame.true_label), LogisticRegression(C=1e9).fit(np.asarray(metrics_.logit(p))[:, None], frame.true_label)
    assert found["temperature"] == pytest.approx(1/fit.coef_[0, 0], rel=0.01) and found["bias"] == pytest.approx(fit.intercept_[0], abs=0.02)
    there = fit.predict_proba(np.asarray(metrics_.logit(p))[:, None])[:, 1]
    assert np.abs(calibration_.apply_calibration(p, found) - there).max() < 0.01 < np.abs(p - there).max()
    upside_down = calibration_.fit_platt(1 - p, frame.true_label)
    assert upside_down["temperature"] == pytest.approx(100)  # never turned round

@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibration_helps_on_other_data(method):
    valid, test = metrics_.simulate(2000, temperature=3, seed=1), metrics_.simulate(2000, temperature=3, seed=2)
    after = test.assign(p_flawed=calibration_.apply_calibration(test.p_flawed, calibration_.fit_calibration(valid, method)))
    before, after = (plain(metrics_.as_rows(f)) for f in (test, after))
    assert after["ece"] < before["ece"]/2 and after["log_loss"] < before["log_loss"] and after["auroc"] == pytest.approx(before["auroc"], abs=2e-3)

@pytest.mark.parametrize("aim", ["accuracy", "f1"])
def test_no_threshold_is_better_for_the_aim(aim):
    frame = metrics_.simulate(60, seed=3).assign(p_flawed=lambda f: f.p_flawed.round(2))
    score = lambda t: plain(metrics_.as_rows(frame, threshold=t), ("counts",))[aim]
    best = score(calibration_.choose_threshold(frame.p_flawed, frame.true_label, aim))
    assert best >= max(score(t) for t in np.linspace(0.005, 0.995, 100)) - 1e-12

def test_recall_aim_takes_the_highest_threshold_that_keeps_it():
    frame = metrics_.simulate(200, seed=3)
    t = calibration_.choose_threshold(frame.p_flawed, frame.true_label, "recall", 0.9)
    flawed = np.sort(frame.p_flawed[frame.true_label == 1])
    assert (flawed >= t).mean() >= 0.9 > (flawed >= t + (flawed[flawed >= t][0] - t) + 1e-9).mean()

def test_margin_keeps_the_budget_on_validation():
    frame = metrics_.simulate(500, signal=0.8, seed=5)
    margin = calibration_.choose_margin(frame.p_flawed, frame.true_label, 0.5, 0.05)
    got = plain(metrics_.as_rows(frame, margin=margin))
    assert got["decided_errors"] <= 0.05 and got["decided_share"] == pytest.approx(got["coverage_at_budget"])

# Best of N

def test_a_sample_of_rows_keeps_problems_together(tmp_path):
    "Thirty problems of one to five rows, mixed: every row of a drawn problem is there, in the split's order."
    from datasets import Dataset, DatasetDict
    from verifier_nb.config import load_config
    from verifier_nb.folders import new_run
    run = new_run(load_config("smoke"), tmp_path)
    mixed = np.random.default_rng(0).permutation(np.repeat(np.arange(30), [1, 2, 3, 4, 5]*6))
    rows = pd.DataFrame({"index": mixed, "row": range(90)})
    DatasetDict({"test": Dataset.from_pandas(rows)}).save_to_disk(str(run.dataset))
    def sample(limit, seed=0):
        run.config.evaluation.max_rows, run.config.seed = limit, seed
        return evaluation.scored_rows(run, "test").to_pandas()
    assert sample(None).equals(rows) and sample(90).equals(rows)
    for limit in (1, 20, 89):
        few = sample(limit)
        assert limit <= len(few) < limit + 5 and few.equals(rows[rows["index"].isin(few["index"])].reset_index(drop=True))
        assert few.equals(sample(limit))
    assert not sample(20).equals(sample(20, seed=1))
    assert set(sample(20)["index"]) < set(sample(40)["index"])  # a larger sample holds the smaller one

def test_best_of_n_is_the_mean_over_all_subsets():
    from itertools import combinations
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"index": np.repeat([0, 1], 6), "true_label": rng.integers(0, 2, 12), "p_flawed": rng.permutation(12)/12})
    got = selection.best_of_n(frame, ns=(1, 2, 4), resamples=100).set_index(["n", "judge"]).accuracy
    for n in (1, 2, 4):
        best, some = [], []
        for _, g in frame.groupby("index"):
            subsets = [g.iloc[list(c)] for c in combinations(range(6), n)]
            best.append(np.mean([1 - s.loc[s.p_flawed.idxmin(), "true_label"] for s in subsets]))
            some.append(np.mean([(s.true_label == 0).any() for s in subsets]))
        assert got[n, "verifier"] == pytest.approx(np.mean(best)) and got[n, "oracle"] == pytest.approx(np.mean(some))
        assert got[n, "random"] == pytest.approx(1 - frame.true_label.mean())

# Degenerate input

DEMO = metrics_.simulate(30)
DEGENERATE = {"one class": DEMO[DEMO.true_label == 1], "one row": DEMO.tail(1), "one problem": DEMO.head(2), "all the same": DEMO.assign(p_flawed=0.3), "exactly 0 and 1": DEMO.assign(p_flawed=DEMO.p_flawed.round()),
              "all right": DEMO.assign(p_flawed=DEMO.true_label*0.8 + 0.1)}

@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_gives_words(case):
    frame = DEGENERATE[case].assign(subtype="")
    calibration = calibration_.fit_calibration(frame)
    decided = calibration_.decide(frame, calibration)
    found = evaluation.summarise_predictions(decided, calibration, 200)
    json.dumps(files._plain(found), allow_nan=False)
    for key, value in verify._flat_numbers(found).items(): assert not (isinstance(value, float) and not math.isfinite(value)), key
    for name, pair in found["intervals"].items():
        assert pair is not None or found["notes"][name], name
    table = metrics_.by_type(decided, calibration, 200)
    assert set(metrics_.TYPES) <= set(table.value) and (table.n > 0).eq(table.right.notna()).all() and table.note[table.n == 0].str.len().gt(0).all()

def test_all_right_is_not_certainty():
    low, high = metrics_.metrics(metrics_.as_rows(DEGENERATE["all right"]), 200)["intervals"]["accuracy"]
    assert high == 1 and low == pytest.approx(0.025**(1/30))  # Clopper and Pearson, by hand

@pytest.mark.parametrize("frame,said", [(DEMO.head(0), "no rows"), (DEMO.assign(p_flawed=1.2), "not probabilities"), (DEMO.assign(p_flawed=np.nan), "not probabilities"), (DEMO.assign(true_label=2), "neither 0")])
def test_impossible_input_is_refused(frame, said):
    with pytest.raises(files.VerifierError, match=said): metrics_.as_rows(frame)

# Comparison

def test_compare_holm_and_disagreements():
    from statsmodels.stats.multitest import multipletests
    a = metrics_.simulate(100)
    b, c = (a.assign(predicted_label=np.where(np.arange(200) % k == 0, 1 - a.true_label, a.predicted_label)) for k in (4, 7))
    found = compare.compare({"a": a, "b": b, "c": c}, resamples=500)
    assert len(found.pairs) == 3 and found.pairs.p_holm.tolist() == multipletests(found.pairs.p_mcnemar, method="holm")[1].tolist()
    row = found.pairs.iloc[0]
    assert row.accuracy_difference == pytest.approx((row.only_a_right - row.only_b_right)/200) and row.accuracy_low <= row.accuracy_difference <= row.accuracy_high
    assert len(found.disagreements) == (pd.DataFrame([x.predicted_label for x in (a, b, c)]).nunique() > 1).sum()

@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_the_words_name_the_better_one(order):
    "One is right on all of 40 rows, the other on half of them; two that are right on the same rows are called so."
    good = pd.DataFrame({"index": range(40), "true_label": [0, 1]*20, "p_flawed": [0.1, 0.9]*20})
    tables = {"good": good, "bad": good.assign(p_flawed=0.9)}
    pair = compare.compare({name: tables[name] for name in order}, resamples=100).pairs.iloc[0]
    assert pair.words.startswith("good is right more often than bad by 50.0 points")
    assert pair.accuracy_difference == (0.5 if order[0] == "good" else -0.5)
    same = compare.compare({"one": good, "two": good}, resamples=50).pairs.iloc[0]
    assert "exactly the same rows" in same.words and same.p_mcnemar == 1
    a_little = good.assign(p_flawed=[0.9, 0.9] + [0.1, 0.9]*19)
    assert compare.compare({"one": good, "two": a_little}, resamples=50).pairs.iloc[0].words.startswith("no difference")

def test_compare_matches_rows_not_positions(tmp_path):
    a = metrics_.simulate(50)
    b = a.sample(frac=1, random_state=0).head(80)[["index", "true_label", "p_flawed"]].rename(columns={"p_flawed": "p(class=1)"})
    b.to_csv(tmp_path/"elsewhere.csv", index=False)
    found = compare.compare({"ours": a, "theirs": tmp_path/"elsewhere.csv"}, resamples=200)
    assert len(found.disagreements) == 0 and found.table.n.tolist() == [80, 80] and "20 rows" in found.notes[0]
    mapped = compare.read_results(b.rename(columns={"p(class=1)": "odd name"}), {"p_flawed": "odd name"})
    assert mapped.p.tolist() == b["p(class=1)"].tolist()

@pytest.mark.skipif(not SHARED.exists(), reason="the published predictions are not at hand (../shared/data)")
def test_the_published_predictions_give_the_published_numbers():
    found = compare.read_results(SHARED/"level1_phi4_head_test_predictions.csv")
    got = metrics_.metrics(metrics_.as_rows(found, "p"), 500)
    assert got["accuracy"] == pytest.approx(0.905, abs=5e-4) and got["auroc"] == pytest.approx(0.966, abs=5e-4) and len(found) == 412

# Files

@pytest.fixture(scope="module")
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp("run"))

def test_a_mapping_is_for_files_from_elsewhere(run):
    "A run's own columns keep their names, so that a run and a file can be compared in one command."
    assert compare.read_results(run.reports, {"p_flawed": "p(class=1)"}).equals(compare.read_results(run.reports))


def test_predictions_have_the_columns_of_the_contract(run):
    assert list(pd.read_csv(run.report("predictions.csv")))[:10] == "index split true_label predicted_label prob_0 prob_1 p_flawed label_mass error_type source".split()
    frame, calibration = metrics_.read_predictions(run.report("predictions.csv")), files.read_json(run.report("calibration.json"))
    assert np.allclose(frame.label_mass, frame.prob_0 + frame.prob_1) and np.allclose(frame.p_flawed, frame.prob_1/frame.label_mass)
    assert (frame.predicted_label == (frame.p_calibrated >= calibration["threshold"])).all() and calibration["fitted_on"] == "validation"

def test_verify_is_content_with_an_honest_run(run): assert not len(verify.verify(run))

def test_a_real_run_is_fitted_on_validation_and_nothing_else(smoke_run):
    "Fitted again from the validation rows that the stage wrote, everything is as it was."
    assert not len(verify.verify(smoke_run))
    calibration = files.read_json(smoke_run.report("calibration.json"))
    assert calibration["n"] == len(metrics_.read_predictions(smoke_run.report("validation_predictions.csv")))

def edit_json(path, key, value):
    found = files.read_json(path)
    target = found
    *way, last = key.split(".")
    for k in way: target = target[k]
    target[last] = value
    files.write_json(path, found)

def edit_csv(path, column, change, row=0):
    "Change one cell and keep every digit of the others."
    frame = pd.read_csv(path, float_precision="round_trip", keep_default_na=False, na_values=[""])
    frame.loc[row, column] = change(frame.loc[row, column])
    frame.to_csv(path, index=False)

def more(x): return x*1.001

EDITS = {"a metric": ("metrics.json", lambda p: edit_json(p, "auroc", 0.99)),
         "the fifth digit of a metric": ("metrics.json", lambda p: edit_json(p, "brier", files.read_json(p)["brier"]*1.00001)),
         "an interval": ("metrics.json", lambda p: edit_json(p, "intervals.accuracy", [0.6, 0.99])),
         "a baseline": ("metrics.json", lambda p: edit_json(p, "baselines.checker.accuracy", 0.1)),
         "the temperature": ("calibration.json", lambda p: edit_json(p, "temperature", 1.0)),
         "the threshold": ("calibration.json", lambda p: edit_json(p, "threshold", 0.31)),
         "the margin": ("calibration.json", lambda p: edit_json(p, "margin", 0.001)),
         "a weight of the hybrid": ("calibration.json", lambda p: edit_json(p, "baselines.hybrid.intercept", 0.3)),
         "a count": ("metrics_by_type.csv", lambda p: edit_csv(p, "n", lambda n: n + 1, 1)),
         "a share": ("metrics_by_type.csv", lambda p: edit_csv(p, "right", more)),
         "a verdict": ("predictions.csv", lambda p: edit_csv(p, "predicted_label", lambda y: 1 - y)),
         "a probability of the model": ("predictions.csv", lambda p: edit_csv(p, "prob_1", more, 7)),
         "a calibrated probability": ("predictions.csv", lambda p: edit_csv(p, "p_calibrated", more, 7)),
         "the hybrid's probability": ("predictions.csv", lambda p: edit_csv(p, "p_hybrid", more, 7)),
         "a row of validation": ("validation_predictions.csv", lambda p: edit_csv(p, "p_calibrated", more, 3)),
         "a label of validation": ("calibration.json", lambda p: edit_csv(p.with_name("validation_predictions.csv"), "true_label", lambda y: 1 - y))}

@pytest.fixture()
def copied(run, tmp_path):
    "A copy of the run, to be tampered with."
    from verifier_nb.folders import Run
    shutil.copytree(run.reports, tmp_path/run.reports.name)
    return Run(run.config, tmp_path/run.reports.name, run.artifacts)

@pytest.mark.parametrize("what", EDITS)
def test_verify_catches_an_edited_number(copied, what):
    file, edit = EDITS[what]
    edit(copied.report(file))
    found = verify.verify(copied)
    assert file in set(found.file) and (found.written.astype(str) != found.computed.astype(str)).all()

def test_verify_catches_what_is_missing(copied):
    "A metric that was taken out, a row that was left out of a table; it names both."
    metrics = files.read_json(copied.report("metrics.json"))
    recall = metrics.pop("recall")
    files.write_json(copied.report("metrics.json"), metrics)
    table = pd.read_csv(copied.report("metrics_by_type.csv"), float_precision="round_trip", keep_default_na=False, na_values=[""])
    table.iloc[1:].to_csv(copied.report("metrics_by_type.csv"), index=False)
    found = verify.verify(copied).set_index("what")
    assert found.written["recall"] == "missing" and found.computed["recall"] == recall
    assert found.written["rows"] == len(table) - 1 and found.computed["rows"] == len(table)

def test_a_report_of_an_earlier_version_is_read_as_it_is(copied):
    "Its harmonic mean has another name there; verify and the index of all runs find it."
    from verifier_nb.index import results_row
    path = copied.report("metrics.json")
    value = files.read_json(path)["balanced_f1"]
    path.write_text(path.read_text().replace('"balanced_f1"', '"processbench_f1"'))
    assert "balanced_f1" not in files.read_json(path)
    assert not len(verify.verify(copied))
    row = results_row(copied.reports)
    assert row["balanced_f1"] == value and row["balanced_f1_low"] <= value <= row["balanced_f1_high"]

class Fixed:
    "A verifier that always says the same."
    def __init__(self, p): self.p = p
    def score(self, problems, solutions, batch_tokens=0): return pd.DataFrame({"prob_0": [1 - self.p]*len(problems), "prob_1": [self.p]*len(problems)})

def test_other_sets_are_scored_but_not_what_was_trained_on(tmp_path):
    from fake_run import rows
    run = make_run(tmp_path, baselines=False)
    rows(10, 77, 500_000).drop(columns=["index", "error_type", "source", "subtype"]).to_csv(tmp_path/"New set.csv", index=False)
    found = external.evaluate(run, [tmp_path/"New set.csv"], verifier=Fixed(0.9))
    assert found["new-set"]["n"]["rows"] == 20 and run.report("external/new-set/predictions.csv").exists() and found["new-set"]["threshold"] == files.read_json(run.report("calibration.json"))["threshold"]
    learned = pd.concat([rows(3, 1), rows(2, 2, 10_000), rows(5, 78, 600_000)])  # of train, of validation, new ones
    learned["question"] = learned.question.str.upper()
    with pytest.raises(files.VerifierError, match="learned from 5 of the 10 problems"): external.evaluate(run, {"seen": learned}, verifier=Fixed(0.9))
    assert not run.report("external/seen").exists()
    assert external.evaluate(run, {"seen": learned}, verifier=Fixed(0.9), trained="drop")["seen"]["n"]["rows"] == 10
    assert external.evaluate(run, {"seen": learned}, verifier=Fixed(0.9), trained="keep")["seen"]["n"]["rows"] == 20
    assert not len(verify.verify(run))
    edit_json(run.report("external/new-set/metrics.json"), "accuracy", 0.99)
    assert verify.verify(run).file.tolist() == ["external/new-set/metrics.json"]


def test_tellings_of_one_problem_are_drawn_together():
    "Three tellings of each problem that are judged alike hold no more than one; the interval must say so."
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(60) < 0.8, 6)  # 60 problems, three pairs each
    labels = np.tile([0, 1], 180)
    rows = pd.DataFrame({"index": np.repeat(np.arange(180), 2), "problem": np.repeat(np.arange(60), 6), "label": labels,
                         "error_type": np.where(labels, "conceptual", "correct"), "source": "gsm8k"})
    said = np.where(right == (labels == 1), 0.9, 0.1)
    scores = pd.DataFrame({"prob_0": 1 - said, "prob_1": said})
    def width(dataset):
        frame = predictions.as_predictions(dataset, scores, "test")
        found = metrics_.metrics(metrics_.as_rows(frame), 2000, 0, [metrics_.Part.COUNTS])
        low, high = found["intervals"]["accuracy"]
        return evaluation.counts(frame)["problems"], high - low
    together, apart = width(rows), width(rows.drop(columns="problem"))
    assert (together[0], apart[0]) == (60, 180) and 1.4 < together[1]/apart[1] < 2.1, (together, apart)
