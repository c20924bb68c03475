"The statistics against known answers, and the contract of the files they are written to."
import json, math, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from scipy import stats
from verifier_nb import evaluation as ev, setup

from fake_run import make_run

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
ALL = ("counts", "ranking", "calibration", "abstention")

def plain(rows, parts=ALL): return {k: float(v[0]) for k, v in ev.weighted_metrics(rows, np.ones((rows.problems, 1)), parts).items()}

# McNemar

def test_mcnemar_by_hand():
    "1 against 9 of ten disagreements: 2·(1 + 10)/2^10."
    a = np.array([True]*1 + [False]*9 + [True]*30)
    b = np.array([False]*1 + [True]*9 + [True]*30)
    assert ev.mcnemar(a, b) == pytest.approx(22/1024)

@pytest.mark.parametrize("only_a,only_b", [(0, 0), (3, 3), (2, 11), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    from statsmodels.stats.contingency_tables import mcnemar
    a, b = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(7)], np.r_[np.zeros(only_a), np.ones(only_b), np.ones(7)]
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert ev.mcnemar(a, b) == pytest.approx(expected) == pytest.approx(mcnemar([[7, only_a], [only_b, 0]], exact=True).pvalue)

# Bootstrap

def test_bootstrap_of_two_problems_by_hand():
    "One problem right, one wrong: accuracy is 0, 1/2, 1 with chances 1/4, 1/2, 1/4."
    rows = ev.as_rows(pd.DataFrame({"index": [1, 1, 2, 2], "true_label": [0, 1, 0, 1], "p_flawed": [.1, .9, .9, .1]}))
    values, counts = np.unique(ev.bootstrap(rows, 20_000, 0, ("counts",))["accuracy"], return_counts=True)
    assert values.tolist() == [0, .5, 1] and np.allclose(counts/20_000, [.25, .5, .25], atol=.015)

def test_bootstrap_agrees_with_scipy():
    "With one row a problem the interval is that of scipy's percentile bootstrap."
    frame = ev.simulate(150, seed=4).assign(index=range(300))
    rows = ev.as_rows(frame)
    right = (rows.called == rows.y).astype(float)
    theirs = stats.bootstrap((right,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1), vectorized=True, batch=2000).confidence_interval
    assert ev.metrics(rows, 20_000, 0, ("counts",))["intervals"]["accuracy"] == pytest.approx([theirs.low, theirs.high], abs=0.007)

def clustered(rng, problems):
    "Accuracy differs between problems: four rows each, right with a chance drawn for the problem; the mean chance is 0.7."
    chance = rng.beta(2.1, 0.9, problems)
    right = rng.random((problems, 4)) < chance[:, None]
    y = np.tile([0, 1, 0, 1], (problems, 1))
    called = np.where(right, y, 1 - y)
    return pd.DataFrame({"index": np.repeat(np.arange(problems), 4), "true_label": y.ravel(), "p_flawed": called.ravel().astype(float)})

def covers(frame, seed, truth, metric="accuracy", parts=("counts",), resamples=300):
    low, high = ev.metrics(ev.as_rows(frame), resamples, seed, parts)["intervals"][metric]
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
    assert 0.93 <= np.mean([covers(ev.simulate(100, signal=1.0, shared=0.7, seed=i), i, truth, "auroc", ("ranking",)) for i in range(n)]) <= 0.97

def test_ten_thousand_resamples_of_five_thousand_rows_take_ten_seconds():
    rows = ev.as_rows(ev.simulate(2500))
    ev.bootstrap(rows, 100)
    start = time.process_time()
    ev.bootstrap(rows, 1000)
    assert time.process_time() - start < 2.0  # a tenth of the work; twice the time, for a busy machine

# Metrics

@pytest.mark.parametrize("ties", [False, True])
def test_weighting_a_problem_is_repeating_it(ties):
    "Metrics under integer weights are scikit-learn's on the repeated rows, with and without ties."
    from sklearn import metrics as sk
    frame, rng = ev.simulate(40, seed=2), np.random.default_rng(0)
    if ties: frame["p_flawed"] = frame.p_flawed.round(1)
    weights = rng.integers(0, 4, (40, 3)).astype(float)
    got = ev.weighted_metrics(ev.as_rows(frame), weights)
    for k in range(3):
        again = frame.loc[frame.index.repeat(weights[frame["index"], k].astype(int))]
        y, p, called = again.true_label, again.p_flawed, again.p_flawed >= 0.5
        for name, value in {"accuracy": sk.accuracy_score(y, called), "mcc": sk.matthews_corrcoef(y, called), "f1": sk.f1_score(y, called), "auroc": sk.roc_auc_score(y, p),
                            "auprc": sk.average_precision_score(y, p), "brier": sk.brier_score_loss(y, p), "balanced_accuracy": sk.balanced_accuracy_score(y, called)}.items():
            assert got[name][k] == pytest.approx(value), name

def test_processbench_f1_is_the_harmonic_mean():
    rows = ev.as_rows(ev.simulate(80, seed=1))
    got = plain(rows)
    assert got["processbench_f1"] == pytest.approx(stats.hmean([got["recall"], got["specificity"]]))
    everything = ev.as_rows(ev.simulate(80), threshold=0.0)
    assert plain(everything)["processbench_f1"] == 0 and plain(everything)["recall"] == 1

@pytest.mark.parametrize("n,bins", [(1000, 10), (600, 15)])
def test_ece_agrees_with_torchmetrics(n, bins):
    "Where the probabilities are spread evenly, bins of equal mass are bins of equal width, which torchmetrics has."
    import torch
    from torchmetrics.functional.classification import binary_calibration_error
    rng, p = np.random.default_rng(3), (np.arange(n) + 0.5)/n
    y = (rng.random(n) < p**1.7).astype(int)
    frame = pd.DataFrame({"index": range(n), "true_label": y, "p_flawed": p}).sample(frac=1, random_state=0)
    rows = ev.as_rows(frame)
    order, starts = ev._levels(rows.p)
    got = ev.calibration_error(np.ones((n, 1)), (rows.y - rows.p)[order], starts, bins)[0]
    assert got == pytest.approx(binary_calibration_error(torch.tensor(p), torch.tensor(y), n_bins=bins, norm="l1").item(), abs=1e-6)

def test_ece_of_a_calibrated_model_is_not_distinguished_from_zero():
    "The plain percentile interval would exclude the truth every time."
    lows = [ev.metrics(ev.as_rows(ev.simulate(150, seed=i)), 100, 0, ("calibration",))["intervals"]["ece"][0] for i in range(40)]
    assert np.mean([low == 0 for low in lows]) >= 0.9
    assert ev.metrics(ev.as_rows(ev.simulate(600, temperature=3)), 200, 0, ("calibration",))["intervals"]["ece"][0] > 0.05

def test_order_of_rows_does_not_matter():
    frame = ev.simulate(50).assign(p_flawed=lambda f: f.p_flawed.round(1))
    a, b = plain(ev.as_rows(frame)), plain(ev.as_rows(frame.sample(frac=1, random_state=1)))
    assert a == pytest.approx(b)

# Calibration, threshold, abstention

@pytest.mark.parametrize("planted", [0.6, 1.0, 2.5])
def test_temperature_is_recovered(planted):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 400_000)
    y = (rng.random(z.size) < 1/(1 + np.exp(-z))).astype(int)
    assert ev.fit_temperature(1/(1 + np.exp(-z*planted)), y) == pytest.approx(planted, rel=0.02)

def test_platt_agrees_with_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    frame = ev.simulate(3000, temperature=3, seed=4)
    p = 1/(1 + np.exp(-(ev.logit(frame.p_flawed) + 2)))
    found, fit = ev.fit_platt(p, frame.true_label), LogisticRegression(C=1e9).fit(np.asarray(ev.logit(p))[:, None], frame.true_label)
    assert found["temperature"] == pytest.approx(1/fit.coef_[0, 0], rel=0.01) and found["bias"] == pytest.approx(fit.intercept_[0], abs=0.02)
    there = fit.predict_proba(np.asarray(ev.logit(p))[:, None])[:, 1]
    assert np.abs(ev.apply_calibration(p, found) - there).max() < 0.01 < np.abs(p - there).max()
    upside_down = ev.fit_platt(1 - p, frame.true_label)
    assert upside_down["temperature"] == pytest.approx(100)  # never turned round

@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibration_helps_on_other_data(method):
    valid, test = ev.simulate(2000, temperature=3, seed=1), ev.simulate(2000, temperature=3, seed=2)
    after = test.assign(p_flawed=ev.apply_calibration(test.p_flawed, ev.fit_calibration(valid, method)))
    before, after = (plain(ev.as_rows(f)) for f in (test, after))
    assert after["ece"] < before["ece"]/2 and after["log_loss"] < before["log_loss"] and after["auroc"] == pytest.approx(before["auroc"], abs=2e-3)

@pytest.mark.parametrize("aim", ["accuracy", "f1"])
def test_no_threshold_is_better_for_the_aim(aim):
    frame = ev.simulate(60, seed=3).assign(p_flawed=lambda f: f.p_flawed.round(2))
    score = lambda t: plain(ev.as_rows(frame, threshold=t), ("counts",))[aim]
    best = score(ev.choose_threshold(frame.p_flawed, frame.true_label, aim))
    assert best >= max(score(t) for t in np.linspace(0.005, 0.995, 100)) - 1e-12

def test_recall_aim_takes_the_highest_threshold_that_keeps_it():
    frame = ev.simulate(200, seed=3)
    t = ev.choose_threshold(frame.p_flawed, frame.true_label, "recall", 0.9)
    flawed = np.sort(frame.p_flawed[frame.true_label == 1])
    assert (flawed >= t).mean() >= 0.9 > (flawed >= t + (flawed[flawed >= t][0] - t) + 1e-9).mean()

def test_margin_keeps_the_budget_on_validation():
    frame = ev.simulate(500, signal=0.8, seed=5)
    margin = ev.choose_margin(frame.p_flawed, frame.true_label, 0.5, 0.05)
    got = plain(ev.as_rows(frame, margin=margin))
    assert got["decided_errors"] <= 0.05 and got["decided_share"] == pytest.approx(got["coverage_at_budget"])

# Best of N

def test_a_sample_of_rows_keeps_problems_together(tmp_path):
    from verifier_nb import data
    from verifier_nb.config import load_config, new_run
    make = lambda **more: new_run(load_config("smoke", {"data.problems": 60, "data.test_fraction": 0.4, "data.flawed_per_problem": 2, **more}), tmp_path)
    whole, part = make(), make(**{"evaluation.max_rows": 20})
    for r in (whole, part): data.run_stage(r)
    rows, few = ev.scored_rows(whole, "test").to_pandas(), ev.scored_rows(part, "test").to_pandas()
    assert len(rows) == len(data.load_split(whole, "test")) and 20 <= len(few) < 20 + rows["index"].value_counts().max() < len(rows)
    assert rows[rows["index"].isin(few["index"])].reset_index(drop=True).equals(few)  # every row of a drawn problem, in the split's order
    assert few.equals(ev.scored_rows(part, "test").to_pandas())

def test_best_of_n_is_the_mean_over_all_subsets():
    from itertools import combinations
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"index": np.repeat([0, 1], 6), "true_label": rng.integers(0, 2, 12), "p_flawed": rng.permutation(12)/12})
    got = ev.best_of_n(frame, ns=(1, 2, 4), resamples=100).set_index(["n", "judge"]).accuracy
    for n in (1, 2, 4):
        best, some = [], []
        for _, g in frame.groupby("index"):
            subsets = [g.iloc[list(c)] for c in combinations(range(6), n)]
            best.append(np.mean([1 - s.loc[s.p_flawed.idxmin(), "true_label"] for s in subsets]))
            some.append(np.mean([(s.true_label == 0).any() for s in subsets]))
        assert got[n, "verifier"] == pytest.approx(np.mean(best)) and got[n, "oracle"] == pytest.approx(np.mean(some))
        assert got[n, "random"] == pytest.approx(1 - frame.true_label.mean())

# Degenerate input

DEMO = ev.simulate(30)
DEGENERATE = {"one class": DEMO[DEMO.true_label == 1], "one row": DEMO.tail(1), "one problem": DEMO.head(2), "all the same": DEMO.assign(p_flawed=0.3), "exactly 0 and 1": DEMO.assign(p_flawed=DEMO.p_flawed.round()),
              "all right": DEMO.assign(p_flawed=DEMO.true_label*0.8 + 0.1)}

@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_gives_words(case):
    frame = DEGENERATE[case].assign(subtype="")
    calibration = ev.fit_calibration(frame)
    decided = ev.decide(frame, calibration)
    found = ev.summarise(decided, calibration, 200)
    json.dumps(setup._plain(found), allow_nan=False)
    for key, value in ev._flat(found).items(): assert not (isinstance(value, float) and not math.isfinite(value)), key
    for name, pair in found["intervals"].items():
        assert pair is not None or found["notes"][name], name
    table = ev.by_type(decided, calibration, 200)
    assert set(ev.TYPES) <= set(table.value) and (table.n > 0).eq(table.right.notna()).all() and table.note[table.n == 0].str.len().gt(0).all()

def test_all_right_is_not_certainty():
    low, high = ev.metrics(ev.as_rows(DEGENERATE["all right"]), 200)["intervals"]["accuracy"]
    assert high == 1 and low == pytest.approx(0.025**(1/30))  # Clopper and Pearson, by hand

@pytest.mark.parametrize("frame,said", [(DEMO.head(0), "no rows"), (DEMO.assign(p_flawed=1.2), "not probabilities"), (DEMO.assign(p_flawed=np.nan), "not probabilities"), (DEMO.assign(true_label=2), "neither 0")])
def test_impossible_input_is_refused(frame, said):
    with pytest.raises(setup.VerifierError, match=said): ev.as_rows(frame)

# Comparison

def test_compare_holm_and_disagreements():
    from statsmodels.stats.multitest import multipletests
    a = ev.simulate(100)
    b, c = (a.assign(predicted_label=np.where(np.arange(200) % k == 0, 1 - a.true_label, a.predicted_label)) for k in (4, 7))
    found = ev.compare({"a": a, "b": b, "c": c}, resamples=500)
    assert len(found.pairs) == 3 and found.pairs.p_holm.tolist() == multipletests(found.pairs.p_mcnemar, method="holm")[1].tolist()
    row = found.pairs.iloc[0]
    assert row.accuracy_difference == pytest.approx((row.only_a_right - row.only_b_right)/200) and row.accuracy_low <= row.accuracy_difference <= row.accuracy_high
    assert len(found.disagreements) == (pd.DataFrame([x.predicted_label for x in (a, b, c)]).nunique() > 1).sum()

def test_compare_matches_rows_not_positions(tmp_path):
    a = ev.simulate(50)
    b = a.sample(frac=1, random_state=0).head(80)[["index", "true_label", "p_flawed"]].rename(columns={"p_flawed": "p(class=1)"})
    b.to_csv(tmp_path/"elsewhere.csv", index=False)
    found = ev.compare({"ours": a, "theirs": tmp_path/"elsewhere.csv"}, resamples=200)
    assert len(found.disagreements) == 0 and found.table.n.tolist() == [80, 80] and "20 rows" in found.notes[0]
    mapped = ev.read_results(b.rename(columns={"p(class=1)": "odd name"}), {"p_flawed": "odd name"})
    assert mapped.p.tolist() == b["p(class=1)"].tolist()

@pytest.mark.skipif(not SHARED.exists(), reason="the published predictions are not at hand (../shared/data)")
def test_the_published_predictions_give_the_published_numbers():
    found = ev.read_results(SHARED/"level1_phi4_head_test_predictions.csv")
    got = ev.metrics(ev.as_rows(found, "p"), 500)
    assert got["accuracy"] == pytest.approx(0.905, abs=5e-4) and got["auroc"] == pytest.approx(0.966, abs=5e-4) and len(found) == 412

# Files

@pytest.fixture(scope="module")
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp("run"))

def test_a_mapping_is_for_files_from_elsewhere(run):
    "A run's own columns keep their names, so that a run and a file can be compared in one command."
    assert ev.read_results(run.reports, {"p_flawed": "p(class=1)"}).equals(ev.read_results(run.reports))


def test_predictions_have_the_columns_of_the_contract(run):
    assert list(pd.read_csv(run.report("predictions.csv")))[:10] == "index split true_label predicted_label prob_0 prob_1 p_flawed label_mass error_type source".split()
    frame, calibration = ev.read_predictions(run.report("predictions.csv")), setup.read_json(run.report("calibration.json"))
    assert np.allclose(frame.label_mass, frame.prob_0 + frame.prob_1) and np.allclose(frame.p_flawed, frame.prob_1/frame.label_mass)
    assert (frame.predicted_label == (frame.p_calibrated >= calibration["threshold"])).all() and calibration["fitted_on"] == "validation"

def test_verify_is_content_with_an_honest_run(run): assert not len(ev.verify(run))

def edit_json(path, key, value):
    found = setup.read_json(path)
    target = found
    *way, last = key.split(".")
    for k in way: target = target[k]
    target[last] = value
    setup.write_json(path, found)

EDITS = {"metrics.json": lambda p: edit_json(p, "auroc", 0.99), "metrics.json ": lambda p: edit_json(p, "baselines.checker.accuracy", 0.1), "calibration.json": lambda p: edit_json(p, "temperature", 1.0),
         "metrics_by_type.csv": lambda p: p.write_text(p.read_text().replace("conceptual,30", "conceptual,31")), "predictions.csv": lambda p: _flip(p)}

def _flip(path):
    frame = pd.read_csv(path)
    frame.loc[0, "predicted_label"] = 1 - frame.predicted_label[0]
    frame.to_csv(path, index=False)

@pytest.mark.parametrize("name", EDITS)
def test_verify_catches_an_edited_number(run, name):
    path = run.report(name.strip())
    before = path.read_bytes()
    EDITS[name](path)
    try: assert name.strip() in set(ev.verify(run).file)
    finally: path.write_bytes(before)

class Fixed:
    "A verifier that always says the same."
    def __init__(self, p): self.p = p
    def score(self, problems, solutions, batch_tokens=0): return pd.DataFrame({"prob_0": [1 - self.p]*len(problems), "prob_1": [self.p]*len(problems)})

def test_other_sets_are_scored_but_not_what_was_trained_on(tmp_path):
    from fake_run import rows
    run = make_run(tmp_path, baselines=False)
    rows(10, 77, 500_000).drop(columns=["index", "error_type", "source", "subtype"]).to_csv(tmp_path/"New set.csv", index=False)
    found = ev.evaluate(run, [tmp_path/"New set.csv"], verifier=Fixed(0.9))
    assert found["new-set"]["n"]["rows"] == 20 and run.report("external/new-set/predictions.csv").exists() and found["new-set"]["threshold"] == setup.read_json(run.report("calibration.json"))["threshold"]
    learned = pd.concat([rows(5, 1), rows(5, 78, 600_000)])
    learned["question"] = learned.question.str.upper()
    with pytest.raises(setup.VerifierError, match="learned from 5 of the 10 problems"): ev.evaluate(run, {"seen": learned}, verifier=Fixed(0.9))
    assert not run.report("external/seen").exists()
    assert ev.evaluate(run, {"seen": learned}, verifier=Fixed(0.9), trained="drop")["seen"]["n"]["rows"] == 10
    assert ev.evaluate(run, {"seen": learned}, verifier=Fixed(0.9), trained="keep")["seen"]["n"]["rows"] == 20
    assert not len(ev.verify(run))
