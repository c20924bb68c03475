"Asking a verifier from the command line: check, score, and the adapter behind them."
import pytest
import json, subprocess, sys, tracemalloc
import numpy as np, pandas as pd, pytest, torch
from typer.testing import CliRunner
from asking import HYBRID, PLAIN, load, make_adapter
from verifier_nb import prompt, setup, files, model as model_, scoring, baselines, ask as ask_, score_file, cli as cli_
from verifier_nb.config import ModelSettings
from verifier_nb.files import VerifierError

cli = CliRunner()
PROBLEM, FALSE, TRUE = "Ann has 3 bags of 4 apples and eats 2. How many are left?", "3 * 4 = 12\n12 - 2 = 11\n#### 11", "3 * 4 = 12\n12 - 2 = 10\n#### 10"

@pytest.fixture(scope="module")
def adapter(tmp_path_factory): return make_adapter(tmp_path_factory.mktemp("adapter"))

def ask(*words, **kwargs): return cli.invoke(cli_.app, list(map(str, words)), **kwargs)

def answer(*words, **kwargs):
    said = ask("check", *words, "--json", **kwargs)
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)

def test_check_says_probability_verdict_and_every_equation(adapter):
    said = ask("check", PROBLEM, FALSE, "--adapter", adapter)
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert lines[0].split() == "line 1 3 * 4 = 12 true".split() and lines[1].split() == "line 2 12 - 2 = 11 false: it is 10".split()
    assert lines[2].startswith("P(flawed) = 0.9") and "threshold 0.50" in lines[2] and lines[2].endswith("verdict: flawed")
    assert "threshold 0.47" in lines[3] and lines[4] == "distrusted: line 2: 12 - 2 = 11 is false; it is 10"

def test_check_says_whether_the_probability_is_calibrated(adapter):
    "Only what was fitted is called so."
    assert "(calibrated; threshold" in ask("check", PROBLEM, FALSE, "--adapter", adapter).stdout
    kept = (adapter/"calibration.json").read_text()
    (adapter/"calibration.json").write_text(json.dumps({"temperature": 1.0, "threshold": 0.5, "marks": False, "max_length": 600}))
    try: assert "(not calibrated; threshold 0.50)" in ask("check", PROBLEM, FALSE, "--adapter", adapter).stdout
    finally: (adapter/"calibration.json").write_text(kept)

def test_what_is_printed_is_what_the_library_says(adapter):
    verifier = load(adapter)
    row = ask_.judge_solutions(verifier, [PROBLEM], [FALSE], files.read_json(adapter/"calibration.json")).iloc[0]
    said = answer(PROBLEM, FALSE, "--adapter", adapter)
    assert said["p_flawed"] == pytest.approx(row.p_hybrid) and said["verifier"]["p_flawed"] == pytest.approx(row.p_calibrated) and said["verdict"] == row.hybrid_verdict
    assert verifier.score([PROBLEM], [FALSE]).p_calibrated[0] == pytest.approx(row.p_calibrated)

def test_every_way_in_gives_the_same_answer(adapter, tmp_path):
    expected = answer(PROBLEM, FALSE, "--adapter", adapter)
    forms = {"a.json": json.dumps({"question": PROBLEM, "solution": FALSE}), "b.txt": f"{PROBLEM}\n---\n{FALSE}\n", "c.txt": f"\ufeffProblem: {PROBLEM}\nSolution:\n{FALSE}", "d.md": f"### Problem:\n{PROBLEM}\n\n### Solution:\n{FALSE}", "e.txt": f"{PROBLEM}\n\n{FALSE}"}
    for name, text in forms.items():
        (tmp_path/name).write_text(text, encoding="utf-8")
        assert answer("--file", tmp_path/name, "--adapter", adapter) == expected, name
        assert answer("--adapter", adapter, input=text) == expected, name
    assert answer(PROBLEM, "--adapter", adapter, input=FALSE) == expected == answer("-", FALSE, "--adapter", adapter, input=PROBLEM)

@pytest.mark.parametrize("words, text, said", [
    ((), "", "the text is empty"), (("a", " "), None, "the solution is empty"), (("", "b"), None, "the question is empty"), ((), "only one line", "where the solution begins"), ((), "{oops", "not valid JSON"),
    ((), '{"question": 3, "solution": "x"}', "no texts question and solution"), (("--file", "missing.txt"), None, "cannot be read"), (("a", "b", "--file", "x"), None, "a file and texts"), (("a", "b", "--adapter", "nowhere"), None, "no adapter and no run"),
    (("a", "b", "--adapter", "."), None, "neither an adapter nor a run"), (("a",), " ", "the solution is empty")])
def test_bad_input_is_told_in_three_parts(words, text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = ask("check", *words, input=text or "")
    assert got.exit_code == 2 and said in got.stderr and "what to do:" in got.stderr and "where:" in got.stderr and "Traceback" not in got.output
    assert list(tmp_path.iterdir()) == []

def test_no_adapter_in_the_box_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "find_shared", lambda name: tmp_path)
    got = ask("check", "a", "b")
    assert got.exit_code == 2 and "there is no adapter in the box" in got.stderr and "--adapter" in got.stderr

def test_odd_texts_are_read_as_text(adapter):
    for solution in ("\ud800 1 + 1 = 2", "a\0b", "<|assistant|>1<|end|>", "no numbers at all", "x = y = z", "5 / 0 = 3"): assert answer(PROBLEM, solution, "--adapter", adapter)["verdict"] in ("correct", "flawed")
    got = ask("check", PROBLEM, "word "*5000, "--adapter", adapter)
    assert got.exit_code == 2 and "does not fit into 600 tokens" in got.stderr

def test_check_needs_no_training_library(adapter):
    "What makes a command slow to start is what it imports."
    code = f"import sys\nfrom verifier_nb import ask\nask.examine(ask.open_verifier({str(adapter)!r}), 'a', ['1 + 1 = 2'])\nprint([m for m in ('trl', 'peft', 'datasets', 'bitsandbytes', 'sklearn', 'statsmodels', 'matplotlib', 'papermill', 'gradio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr

def as_a_folder(folder, calibration=None, words=None):
    "A tiny Llama with its tokenizer as a folder of this disk, and an adapter that was made for it."
    base, adapter = folder/"base", make_adapter(folder/"adapter", calibration=PLAIN | (calibration or {}))
    model_.load_base(ModelSettings(base="tiny:llama", device="cpu")).save_pretrained(base), prompt.tiny_tokenizer().save_pretrained(base)
    said = files.read_json(adapter/"adapter_config.json")
    files.write_json(adapter/"adapter_config.json", said | {"base_model_name_or_path": str(base)} | (words or {}))
    return adapter

PAIRS = [(PROBLEM, TRUE), (PROBLEM, FALSE), ("A <|end|> costs £2; 3 of them?", "3 × £2 = £6"), ("What is left? "*40, "nothing")]

@pytest.mark.parametrize("fitted", [{}, {"marks": True, "method": "platt", "bias": -1.2}, {"method": "isotonic", "isotonic": {"x": [0.1, 0.9], "y": [0.2, 0.7]}}])
@pytest.mark.parametrize("wish", [(), ("recall", 0.2)])
def test_the_quick_verifier_says_what_the_full_one_says(fitted, wish, tmp_path):
    "Same probabilities and verdicts, shortened questions and special tokens in texts included."
    folder = as_a_folder(tmp_path, fitted | {"base_rate": 0.6, "thresholds": {"recall": 0.3}})
    quick, full = ask_.open_quick(folder), load(folder, **({"marks": True} if fitted.get("marks") else {}))
    if wish: quick, full = quick.aim_at(*wish), full.aim_at(*wish)
    for question, solution in PAIRS:
        one, row = ask_.examine(quick, question, [solution])[0], ask_.examine(full, question, [solution])[0]
        assert quick.ids(question, solution) == full.sample(question, solution)["input_ids"]
        assert one["p_flawed"] == pytest.approx(row["p_flawed"], abs=1e-4) and one["verifier"]["uncalibrated"] == pytest.approx(row["verifier"]["uncalibrated"], abs=1e-4)
        apart = {"p_flawed", "verifier"}
        assert {k: v for k, v in one.items() if k not in apart} == {k: v for k, v in row.items() if k not in apart}
    with pytest.raises(VerifierError, match="does not fit into 600 tokens"): quick.judge(PROBLEM, "word "*5000)

def test_the_quick_verifier_knows_what_it_cannot_read(tmp_path):
    assert ask_.open_quick(as_a_folder(tmp_path/"plain")) is not None
    assert ask_.open_quick(as_a_folder(tmp_path/"hybrid", {"baselines": {"hybrid": HYBRID}})) is None
    assert ask_.open_quick(as_a_folder(tmp_path/"dora", words={"use_dora": True})) is None
    assert ask_.open_quick(make_adapter(tmp_path/"no base here")) is None
    sharded = as_a_folder(tmp_path/"damaged")
    weights = next((tmp_path/"damaged"/"base").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VerifierError, match="weights cannot be read"): ask_.open_quick(sharded)

def test_a_quick_check_loads_no_large_library_and_says_the_equations_first(tmp_path):
    folder = as_a_folder(tmp_path)
    code = f"import sys\nsys.argv = ['verifier-nb', 'check', 'a', '1 + 1 = 3', '--adapter', {str(folder)!r}]\nfrom verifier_nb.cli import main\n" \
           "try: main()\nexcept SystemExit: print([m for m in ('torch', 'transformers', 'pandas', 'verifier_nb.config') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0].split() == "line 1 1 + 1 = 3 false: it is 2".split() and lines[1].startswith("P(flawed)") and lines[-1] == "[]", done.stdout + done.stderr

def test_check_reads_more_tokens_when_told(adapter):
    long = "word "*700 + "1 + 1 = 2"
    assert ask("check", PROBLEM, long, "--adapter", adapter).exit_code == 2
    assert ask("check", PROBLEM, long, "--adapter", adapter, "--max-length", 4000).exit_code == 0

def test_what_no_equation_shows_is_told_as_an_estimate(tmp_path):
    "A correct solution may get such a verdict, so the words say how often that happens."
    known = {"measured": {"on": "100 solutions", "conceptual_recall": 0.55, "false_alarms": 0.026}}
    said = ask_.examine(ask_.open_quick(as_a_folder(tmp_path, {"threshold": 0.0, **known})), PROBLEM, [TRUE])[0]
    assert said["distrusted"]["kind"] == "reasoning" and "not a proof" in said["distrusted"]["why"] and "found 55 % of such errors" in said["distrusted"]["why"]

@pytest.mark.parametrize("family", model_.TINY)
def test_a_folded_adapter_is_the_adapter_and_its_base_comes_back(family, tmp_path):
    folder, settings = make_adapter(tmp_path, family), ModelSettings(base=f"tiny:{family}", device="cpu")
    folded, apart = load(folder), scoring.Verifier(model_.load_adapter(model_.load_base(settings), folder), prompt.load_tokenizer(settings.base), max_length=600)
    assert not any("lora" in name for name, _ in folded.model.named_parameters())
    texts = [PROBLEM]*2, [TRUE, FALSE]
    assert np.allclose(folded.score(*texts).p_flawed, apart.score(*texts).p_flawed, atol=1e-5)
    assert np.allclose(baselines.read_base(folded, *texts), baselines.read_base(apart, *texts), atol=1e-5)  # the base's opinion, not the folded model's
    assert not np.allclose(baselines.read_base(folded, *texts).prob_1, folded.score(*texts).prob_1, rtol=1e-3)

def test_an_adapter_that_is_not_plain_is_left_to_peft(tmp_path):
    folder = make_adapter(tmp_path, bias="lora_only")
    net = model_.load_base(ModelSettings(base="tiny:llama", device="cpu"))
    assert not scoring.fold(net, folder) and torch.equal(next(net.parameters()), next(model_.load_base(ModelSettings(base="tiny:llama", device="cpu")).parameters()))
    assert load(folder).score([PROBLEM], [TRUE]).p_flawed.between(0, 1).all()
    broken = make_adapter(tmp_path/"broken")
    from safetensors.torch import load_file, save_file
    parts = load_file(broken/"adapter_model.safetensors")
    parts.pop(next(iter(parts)))
    save_file(parts, broken/"adapter_model.safetensors")
    with pytest.raises(VerifierError, match="does not fit"): load(broken)

@pytest.fixture(scope="module")
def rows():
    return pd.DataFrame({"id": [f"{i:03}" for i in range(9)], "question": [PROBLEM]*9, "solution": [TRUE, FALSE, "", TRUE, 'said "4, or 5"\n1 + 1 = 2', FALSE, "word "*3000, TRUE, FALSE], "note": [None, "a,b", "ü", "1.50", "", "x", "y", "z", "=1+1"]})

@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_score_keeps_rows_order_and_columns(suffix, adapter, rows, tmp_path):
    path, out = tmp_path/f"in.{suffix}", tmp_path/"out.csv"
    {"csv": lambda: rows.to_csv(path, index=False), "jsonl": lambda: rows.to_json(path, orient="records", lines=True), "parquet": lambda: rows.to_parquet(path)}[suffix]()
    got = ask("score", path, "-O", out, "--adapter", adapter, "--all")
    assert got.exit_code == 0 and "2 rows could not be scored" in got.stderr and "row 3, 7" in got.stderr, got.output
    table = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert list(table) == [*rows, *score_file.SCORES, *score_file.MORE_SCORES]
    pd.testing.assert_frame_equal(table[list(rows)], rows.fillna("").astype(table.dtypes["id"]), check_dtype=False)
    scored = table[table.verdict != ""]
    assert [int(i) for i in scored.id] == [0, 1, 3, 4, 5, 7, 8]
    expected = load(adapter).score(list(scored.question), list(scored.solution))
    for c in ("prob_0", "prob_1", "label_mass", "p_calibrated"): assert np.allclose(scored[c].astype(float), expected[c], atol=1e-5), c
    assert np.allclose(scored.p_uncalibrated.astype(float), expected.p_flawed, atol=1e-5)
    assert list(scored.verdict_alone) == list(expected.verdict) and set(scored.verdict[scored.solution == FALSE]) == {"flawed"}
    assert set(scored.false_equation[scored.solution == FALSE]) == {"12 - 2 = 11"} and set(scored.step[scored.solution == FALSE]) == {"2"}
    assert list(table.reason[table.verdict == ""]) == ["a text is empty", "longer than 600 tokens"]

def test_score_does_not_depend_on_the_pieces(adapter, rows, tmp_path):
    rows.to_csv(tmp_path/"in.csv", index=False)
    verifier, tables = load(adapter), []
    for n in (1, 4, 100):
        said = score_file.score_file(verifier, tmp_path/"in.csv", tmp_path/f"{n}.csv", rows=n, progress=False)
        assert said["rows"] == 9 and said["skipped"] == [3, 7]
        tables.append(pd.read_csv(tmp_path/f"{n}.csv"))
    for t in tables[1:]: pd.testing.assert_frame_equal(tables[0], t, atol=1e-5)

def test_score_maps_columns_and_can_leave_out_the_hybrid(adapter, rows, tmp_path):
    rows.rename(columns={"question": "problem", "solution": "worked"}).to_csv(tmp_path/"in.csv", index=False)
    got = ask("score", tmp_path/"in.csv", "-O", tmp_path/"out.csv", "--adapter", adapter, "-c", "question=problem", "-c", "solution=worked", "--alone")
    assert got.exit_code == 0 and list(pd.read_csv(tmp_path/"out.csv")) == ["id", "problem", "worked", "note", *score_file.SCORES] and "changed nothing" not in got.stderr

def test_score_reads_what_spreadsheets_write_and_writes_what_is_asked_for(adapter, tmp_path):
    for sign in ";\t|":
        (tmp_path/"in.csv").write_text(f'question{sign}solution{sign}"a,b"\n{PROBLEM}{sign}"{FALSE}"{sign}7\n', encoding="utf-8")
        for suffix, read in {"csv": pd.read_csv, "jsonl": lambda p: pd.read_json(p, lines=True), "parquet": pd.read_parquet}.items():
            got = ask("score", tmp_path/"in.csv", "-O", tmp_path/f"out.{suffix}", "--adapter", adapter, "--force")
            assert got.exit_code == 0, got.output
            table = read(tmp_path/f"out.{suffix}")
            assert list(table) == ["question", "solution", "a,b", *score_file.SCORES] and table.verdict[0] == "flawed" and str(table["a,b"][0]) == "7"

def test_score_says_which_line_and_which_encoding(tmp_path):
    (tmp_path/"a.jsonl").write_text('{"question": "a", "solution": "b"}\n\n{oops\n')
    (tmp_path/"b.jsonl").write_text('{"question": "a", "solution": "b"}\n[1]\n')
    (tmp_path/"c.csv").write_bytes("question,solution\ncafé,1 + 1 = 2\n".encode("latin-1"))
    for name, said in (("a.jsonl", "line 3 is not valid JSON"), ("b.jsonl", "line 2 is not a JSON object"), ("c.csv", "looks like Latin-1")):
        got = ask("score", tmp_path/name, "-O", tmp_path/"out.csv")
        assert got.exit_code == 2 and said in got.stderr, got.output

def test_score_measures_where_there_are_labels(adapter, tmp_path):
    rows = pd.DataFrame({"question": [PROBLEM, PROBLEM, "2 + 2?"], "solution": [FALSE, TRUE, "2 + 2 = 4"], "label": [1, 0, 1]})
    rows.to_csv(tmp_path/"in.csv", index=False)
    got = ask("score", tmp_path/"in.csv", "-O", tmp_path/"out.csv", "--adapter", adapter)
    verdicts = list(pd.read_csv(tmp_path/"out.csv").verdict)
    right = sum((v == "flawed") == bool(y) for v, y in zip(verdicts, rows.label))
    assert f"accuracy     {100*right/3:.1f}" in got.stdout and "95 % interval" in got.stdout
    correct, flawed = (list(map(int, line.split()[-2:])) for line in got.stdout.splitlines()[-2:])
    assert sum(correct) == 1 and sum(flawed) == 2 and correct[0] + flawed[1] == right

@pytest.mark.parametrize("content, more, said", [
    ("question,solution\n", (), "no rows"), ("", (), "no rows"), ("question,text\na,b\n", (), "these columns are missing: solution"), ("question,solution\na,b\n", ("-c", "label=x"), "label cannot be mapped"), ("question,solution\na,b\n", ("-c", "oops"), "is not our name"),
    ("question,solution,verdict\na,b,c\n", (), "already has columns that would be written: verdict"), ('question,solution\n"a,b\n', (), "cannot be read"), ("question,solution\na,b,c,d\n", (), "cannot be read"), (b"question,solution\n\xff\xfe,b\n", (), "cannot be read")])
def test_score_refuses_before_the_model_is_loaded(content, more, said, tmp_path, monkeypatch):
    monkeypatch.setattr(ask_, "open_verifier", lambda *a: pytest.fail("the model was loaded"))
    path = tmp_path/"in.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    got = ask("score", path, "-O", tmp_path/"out.csv", *more)
    assert got.exit_code == 2 and said in got.stderr and "what to do:" in got.stderr, got.output
    assert [p.name for p in tmp_path.iterdir()] == ["in.csv"]

def test_score_overwrites_only_when_told(adapter, tmp_path):
    (tmp_path/"in.csv").write_text("question,solution\na,1 + 1 = 2\n")
    (tmp_path/"out.csv").write_text("precious")
    words = ("score", tmp_path/"in.csv", "--adapter", adapter, "-O")
    for name, more, why in (("out.csv", (), "there already"), ("in.csv", ("--force",), "there already"), ("out.txt", (), "ends with .csv, .jsonl, .parquet")):
        got = ask(*words, tmp_path/name, *more)
        assert got.exit_code == 2 and why in got.stderr
    assert (tmp_path/"out.csv").read_text() == "precious" and ask(*words, tmp_path/"out.csv", "--force").exit_code == 0
    assert pd.read_csv(tmp_path/"out.csv").verdict[0] in ("correct", "flawed")

class Instant:
    "A verifier that takes no time; fails at a row when asked to."
    calibration, model = PLAIN, torch.nn.Linear(1, 1)
    def __init__(self, fail_after=10**9): self.left = fail_after
    def fits(self, question, solution): return True
    def score(self, problems, solutions, batch_tokens=0, progress=None):
        self.left -= len(problems)
        if self.left < 0: raise RuntimeError("the power went out")
        return pd.DataFrame({"prob_0": [0.5]*len(problems), "prob_1": 0.5, "p_flawed": 0.5})
Instant.model.device = torch.device("cpu")

def test_an_interrupted_score_leaves_nothing(tmp_path):
    (tmp_path/"in.csv").write_text("question,solution\n" + "a,1 + 1 = 2\n"*50)
    with pytest.raises(RuntimeError): score_file.score_file(Instant(30), tmp_path/"in.csv", tmp_path/"out.csv", rows=10, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in.csv"]

def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(score_file, "_scores", lambda verifier, questions, *a: (pd.DataFrame(0.5, range(len(questions)), score_file.SCORES), []))
    peaks = []
    for n in (1_500, 6_000):
        (tmp_path/"in.csv").write_text("question,solution\n" + ("word "*60 + ",1 + 1 = 2\n")*n)
        tracemalloc.start()
        score_file.score_file(Instant(), tmp_path/"in.csv", tmp_path/f"{n}.csv", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5*peaks[0]
