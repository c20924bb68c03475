"A finished run without a model: real files, simulated scores. For tests of evaluation, analysis and the report."
from pathlib import Path
import numpy as np, pandas as pd

PLANTED = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\">"

def rows(problems, seed, start=0):
    "Question, solution, label, error_type and subtype: a correct and a flawed solution a problem."
    rng, out = np.random.default_rng(seed), []
    for i in range(problems):
        a, b, index = int(rng.integers(2, 30)), int(rng.integers(2, 12)), start + i
        question = f"Box {index} holds {a} bags of {b} apples. Ann takes 2 apples out. How many are left?"
        right = f"There are {a} * {b} = <<{a}*{b}={a*b}>>{a*b} apples.\nSo {a*b} - 2 = <<{a*b}-2={a*b-2}>>{a*b-2} are left.\n#### {a*b-2}"
        kind = ("conceptual", "computational")[i % 2]
        wrong = f"There are {a} + {b} = <<{a}+{b}={a+b}>>{a+b} apples.\n#### {a+b-2}" if kind == "conceptual" else right.replace(f"{a}*{b}={a*b}>>{a*b}", f"{a}*{b}={a*b+1}>>{a*b+1}")
        out.append(dict(index=index, question=question, solution=right, label=0, error_type="correct", source="made up", subtype=""))
        out.append(dict(index=index, question=question, solution=wrong, label=1, error_type=kind, source="made up", subtype="operator swapped" if kind == "conceptual" else "off by n"))
    return pd.DataFrame(out)

def add_behaviour(run, calibration):
    "A sample of the behavioural suite, as a verifier would judge it that finds flawed rows now and then."
    from verifier_nb import behaviour, evaluation, files
    suite = behaviour.rows_for(None, 120)
    p = np.random.default_rng(7).beta(1 + 2*suite.label, 3 - 2*suite.label)
    rows = evaluation.with_verdicts(suite[behaviour.WITHOUT_TEXTS].assign(prob_0=1 - p, prob_1=p), calibration)
    evaluation._write_behaviour(run, rows)

def make_run(root, name="fake", problems=60, seed=0, planted=False, baselines=True, signal=1.2):
    "A run folder with data set, predictions, metrics and log, as the stages would leave it."
    from datasets import Dataset, DatasetDict
    from verifier_nb import setup, files, config, folders, metrics, calibration as calibration_, baselines as baselines_, evaluation
    cfg = config.load_config("smoke", {"name": name, "seed": seed, "evaluation.resamples": 200})
    run = folders.new_run(cfg, root)
    parts = {"train": rows(problems, 1), "validation": rows(problems, 2, 10_000), "test": rows(problems, 3, 20_000)}
    if planted:
        for column in ("question", "solution"): parts["test"][column] = PLANTED + parts["test"][column]
    DatasetDict({k: Dataset.from_pandas(v, preserve_index=False) for k, v in parts.items()}).save_to_disk(str(run.dataset))
    frames = {}
    for split in ("validation", "test"):
        scores = metrics.simulate(problems, signal=signal, temperature=1.8, seed=seed + (split == "test"))
        frames[split] = evaluation.as_predictions(parts[split], scores, split)
    calibration = calibration_.fit_calibration(frames["validation"]) | evaluation.prompt_settings(run)
    frames = {k: calibration_.decide(f, calibration) for k, f in frames.items()}
    if baselines:
        for split, frame in frames.items():
            frame["p_majority"] = 1.0
            frame[["equations", "false_equations", "p_checker"]] = baselines_.checker_scores(parts[split]["solution"]).to_numpy()
            other = metrics.simulate(problems, signal=0.1, seed=seed + 5)
            frame["p_base"], frame["surprisal"], frame["surprisal_at"] = other.p_flawed.to_numpy(), 2 + other.p_flawed.to_numpy(), 0
        calibration["baselines"] = {k: {"threshold": 0.5} for k in ("majority", "checker")}
        evaluation.fit_baselines(frames, calibration, cfg.evaluation)
    files.write_csv(run.report("validation_predictions.csv"), frames["validation"])
    files.write_csv(run.report("predictions.csv"), frames["test"])
    files.write_json(run.report("calibration.json"), calibration)
    step = np.arange(10, 110, 10)
    files.write_csv(run.report("log_history.csv"), pd.DataFrame({"step": step, "loss": 0.7*np.exp(-step/60), "eval_loss": 0.3 + 0.4*np.exp(-step/40) + (step/150)**2, "eval_accuracy": 0.5 + 0.3*(1 - np.exp(-step/50))}))
    files.write_json(run.report("environment.json"), setup.fingerprint())
    files.write_text(run.report("07_evaluation.ipynb"), "{}")
    if baselines: add_behaviour(run, calibration)
    evaluation.write_summary(run)
    return run
