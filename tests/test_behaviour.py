"""What the library computes, written down, so that a change of how it reads shows at once when it changes what it does.

Text (errors, data sets) is compared by SHA-256. Floating-point numbers are compared with a tolerance, because another
processor sums in another order. `python tests/test_behaviour.py` writes tests/golden/behaviour.json anew: only when a
change of behaviour is wanted, and the commit says why.
"""
import functools, hashlib, json, random, sys, tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verifier_nb import question, solution, forms, errors, fresh

HERE = Path(__file__).resolve().parent
GOLDEN = HERE/"golden"/"behaviour.json"
GSM8K = HERE.parents[1]/"shared"/"data"/"gsm8k"/"train.jsonl"
SOLUTIONS, GENERATED, SCORED = 2000, 2000, 200
SUBTYPES_OF_EACH = 3  # of the eighteen subtypes, in turn: every subtype meets a sixth of the solutions


def digest(values):
    "SHA-256 of values as JSON lines."
    lines = (json.dumps(v, ensure_ascii=False, default=str) for v in values)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# solutions through the error engine

def worked_examples(source):
    "Worked problems: of GSM8K (a sample), or of the templates that come with a package."
    if source == "gsm8k":
        rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
        chosen = random.Random(0).sample(rows, SOLUTIONS)
        return [dict(question=r["question"], solution=r["answer"]) for r in chosen]
    from verifier_nb import sources, build
    templates = sorted(sources.sound_templates())
    return [sources.symbolic(templates[i % len(templates)], f"behaviour/{i}") for i in range(SOLUTIONS // 5)]


def checked(example):
    "Every equation of a solution with its place and verdict."
    found = solution.check(example["solution"])
    return [[e.text, e.start, e.end, e.expression, e.stated, str(e.value), e.ok, e.expected, e.step] for e in found]


def understood(example):
    "The numbers of a solution with the parts they play, and which step uses which."
    parsed = solution.parse(example["solution"])
    numbers = [[n.start, n.end, n.text, str(n.value), n.role, n.step, n.source] for n in parsed.numbers]
    steps = [[s.start, s.end, s.expression, s.result, str(s.value), s.uses, s.users] for s in parsed.steps]
    return [parsed.problem, parsed.answer, numbers, steps]


def injected(example, subtype, seed):
    "A flawed solution, or why there is none."
    made = errors.inject(example, errors.SUBTYPES[subtype], subtype, random.Random(seed))
    if not made: return made.reason
    return [made.solution, made.kind, made.subtype, made.step, made.old, made.new, made.marks]


def all_injected(examples):
    names = list(errors.SUBTYPES)
    for number, example in enumerate(examples):
        for turn in range(SUBTYPES_OF_EACH):
            yield injected(example, names[(number + turn * 6) % len(names)], number)


def refreshed(example, seed):
    made = fresh.reinstantiate(example, random.Random(seed))
    return [made["question"], made["solution"], made["changed"]] if made else made.reason


def reformed(example): return [forms.reform(example["solution"], form) for form in ("plain", *forms.FORMS)]


def engine_hashes(source):
    examples = worked_examples(source)
    return {
        "check": digest(map(checked, examples)),
        "parse": digest(map(understood, examples)),
        "inject": digest(all_injected(examples)),
        "reinstantiate": digest(refreshed(e, i) for i, e in enumerate(examples)),
        "reform": digest(map(reformed, examples)),
        "sound": digest(map(solution.sound, examples)),
        "facts": digest(sorted(map(str, question.facts(e["question"]).values)) for e in examples),
    }


# a data build

def build_settings(): return dict(source="gsm_symbolic", problems=GENERATED // 2, marks=True, repeats=2,
                                  forms=["original", "plain", "final_answer", "the_answer_is"])


def built(folder):
    "A build of generated rows: 2,000, balanced so that surfaces give nothing away."
    from verifier_nb import sources, build
    from verifier_nb.config import load_config
    cfg = load_config("gsm-symbolic", {f"data.{name}": value for name, value in build_settings().items()})
    problems, _ = sources.load_problems(cfg.data, cfg.seed)
    made, counts = build.build(problems, cfg.data, cfg.seed, folder, workers=1, progress=False)
    return made, counts


def build_hashes(made, counts):
    rows = {split: digest(dict(row) for row in table) for split, table in made.items()}
    return {**rows, "counts": digest(sorted([*map(str, key), n] for key, n in counts.items()))}


# a whole small run

def run_numbers(run):
    "What the smoke run computes: its data set, predictions, metrics and adapter."
    from datasets import load_from_disk
    from safetensors.numpy import load_file
    adapter = load_file(run.adapter/"adapter_model.safetensors")
    predictions = pd.read_csv(run.report("predictions.csv"))
    return {
        "dataset": {split: digest(dict(row) for row in table) for split, table in load_from_disk(str(run.dataset)).items()},
        "p_flawed": predictions.p_flawed.tolist(),
        "adapter": {name: float(np.linalg.norm(weights)) for name, weights in sorted(adapter.items())},
        "metrics": json.loads(run.report("metrics.json").read_text(encoding="utf-8")),
    }


# the verifier in the box

def box_scores():
    "P(flawed) of 200 rows, correct and flawed ones of the templates, by the adapter in the box."
    from verifier_nb.scoring import Verifier
    examples, rows = worked_examples("gsm_symbolic")[:SCORED // 2], []
    for number, example in enumerate(examples):
        made = errors.inject(example, ("computational", "conceptual")[number % 2], rng=random.Random(number))
        rows += [example["solution"], made.solution if made else example["solution"]]
    questions = [e["question"] for e in examples for _ in range(2)]
    return Verifier.from_pretrained("default").score(questions, rows).p_flawed.tolist()


# the tests

@functools.cache
def golden(): return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", ["gsm8k", "gsm_symbolic"])
def test_the_error_engine_does_what_it_did(source):
    if source == "gsm8k" and not GSM8K.exists(): pytest.skip("GSM8K is not at ../shared/data/gsm8k")
    assert engine_hashes(source) == golden()["engine"][source]


def test_a_build_makes_the_same_rows(tmp_path):
    assert build_hashes(*built(tmp_path)) == golden()["build"]


def close(found, wanted, tolerance=2e-4):
    "The same structure, with numbers that differ by rounding alone."
    if isinstance(wanted, dict): return found.keys() == wanted.keys() and all(close(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list): return len(found) == len(wanted) and all(map(close, found, wanted))
    if isinstance(wanted, float): return abs(found - wanted) <= tolerance * max(1, abs(wanted))
    return found == wanted


@pytest.mark.parametrize("what", ["dataset", "p_flawed", "adapter", "metrics"])
def test_a_small_run_ends_with_the_same_numbers(smoke_run, what):
    assert close(run_numbers(smoke_run)[what], golden()["run"][what])


def test_the_box_gives_the_same_scores():
    np.testing.assert_allclose(box_scores(), golden()["box"], atol=1e-5)


def write():
    from verifier_nb import evaluation
    from verifier_nb.config import load_config
    from verifier_nb.folders import new_run
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(load_config("smoke"), folder)
        evaluation.run_stage(run)
        now = {
            "engine": {source: engine_hashes(source) for source in ("gsm8k", "gsm_symbolic")},
            "build": build_hashes(*built(Path(folder)/"build")),
            "run": run_numbers(run),
            "box": [round(p, 6) for p in box_scores()],
        }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": sys.exit(write())
