"Sampled solutions: what tiny solvers write is labelled, sorted out, saved and used; a killed run goes on."
import json, random, shutil

import pandas as pd
import pytest
import torch

from verifier_nb import data, sampling, solver, sources
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError
from verifier_nb.prompt import load_tokenizer
from verifier_nb.rows import normalise

QUICK = {"data.problems": None, "solver.epochs": 30, "solver.batch_tokens": 512, "sampling.samples": 4, "sampling.round": 2, "sampling.new_tokens": 40}


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    "Thirty-six problems that a tiny model can learn, with their worked solutions."
    path = tmp_path_factory.mktemp("sums")/"sums.jsonl"
    rows = [dict(question=f"Add {a} and {b}.", solution=f"<<{a}+{b}={a+b}>>{a+b}\n#### {a+b}") for a in range(2, 8) for b in range(2, 8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def done(sums, tmp_path_factory):
    "A sampled data set, made once."
    root = tmp_path_factory.mktemp("sampled")
    cfg = load_config("sample-tiny", {**QUICK, "data.source": str(sums)})
    return cfg, root, sampling.sample(cfg, root, say=lambda text: None)


def rows_of(folder): return pd.read_json(folder/sources.SAMPLED_FILE, lines=True)


def test_labels_say_whether_the_answer_is_the_known_one(done):
    rows = rows_of(done[2])
    asked = rows.question.str.extract(r"Add (\d) and (\d)").astype(int).sum(axis=1)
    stated = rows.solution.str.extract(r"#### (\d+)")[0].astype(int)
    assert ((stated != asked) == rows.label.astype(bool)).all() and set(rows.label) == {0, 1}
    assert not rows[rows.label == 0].false_equation.any()
    assert (rows.groupby(["index", "label"]).size() <= done[0].sampling.keep).all()
    assert not rows.assign(text=rows.solution.map(normalise)).duplicated(["index", "text"]).any()


def test_the_calculator_leaves_no_annotation_false(done):
    "Whatever a solver has put in front of the = inside << >>, the value is right."
    rows = rows_of(done[2])
    noted = rows.solution.str.extract(r"<<(\d)\+(\d)=(\d+)>>(\d+)").dropna().astype(int)
    assert len(noted) > len(rows) / 2 and (noted[0] + noted[1] == noted[2]).all()


def test_no_solver_is_asked_for_what_it_has_learned(done):
    cfg, root, folder = done
    problems, _ = sources.load_problems(cfg.data, cfg.seed)
    for path in (folder/"blocks").glob("*.jsonl"):
        half = int(path.name[len("half")])
        assert {solver.half_of(key) for key, _ in sampling._read_block(path)} == {half}
    learned = [p for p in problems["train"] if solver.half_of(normalise(p.question)) != 0]
    facts = json.loads((folder/"solver0"/"solver.json").read_text())
    assert facts["rows"] == len(set(solver.tellings(learned, cfg.solver.instances, cfg.seed)))


def test_a_killed_run_loses_no_finished_block(done, sums, tmp_path):
    "After a stop in the middle the rest is made, what was there is not touched, and the data set is the same."
    cfg, _, whole = done
    class Killed(Exception): pass
    said = []
    def die(text):
        said.append(text)
        if len(said) == 4: raise Killed  # two solvers, two blocks
    with pytest.raises(Killed): sampling.sample(cfg, tmp_path, say=die)
    folder = sampling.sampling_folders(cfg, tmp_path).folder
    before = {path.name: path.stat().st_mtime_ns for path in (folder/"blocks").iterdir()}
    assert len(before) == 2
    sampling.sample(cfg, tmp_path, say=lambda text: None)
    after = {path.name: path.stat().st_mtime_ns for path in (folder/"blocks").iterdir()}
    assert before.items() <= after.items() and len(after) == len(list((whole/"blocks").iterdir()))
    assert (folder/sources.SAMPLED_FILE).read_bytes() == (whole/sources.SAMPLED_FILE).read_bytes()


def test_a_time_limit_ends_between_blocks(done, tmp_path):
    cfg, _, whole = done
    folder = sampling.sampling_folders(cfg, tmp_path).folder
    for half in (0, 1): shutil.copytree(whole/f"solver{half}", folder/f"solver{half}")
    assert sampling.sample(cfg, tmp_path, until=0.0, say=lambda text: None) == folder
    assert not (folder/"blocks").exists()
    with pytest.raises(VerifierError, match="no rows"): sources.load_problems(load_config("smoke", {"data.source": "sampled", "data.sampled": str(folder)}).data, 1)


def test_the_report_counts_what_is_in_the_blocks(done):
    cfg, root, folder = done
    outcomes = pd.read_csv(root/"reports"/"sample-tiny"/"outcomes.csv").set_index("outcome")
    blocks = [pair for path in (folder/"blocks").glob("*.jsonl") for pair in sampling._read_block(path)]
    assert outcomes.samples.sum() == len(blocks)
    assert outcomes.samples.get("unfinished", 0) == sum(text is None for _, text in blocks)
    page = (root/"reports"/"sample-tiny"/"index.html").read_text()
    assert "instead of" in page and "Sampled solutions" in page and str(folder) not in page


def test_rounds_leave_out_problems_with_enough_right_ones(done):
    cfg, _, folder = done
    tasks = {task.key: task for task in sampling.tasks_of(sources.load_problems(cfg.data, cfg.seed)[0])}
    first = [pair for path in (folder/"blocks").glob("*round00*") for pair in sampling._read_block(path)]
    second = {key for path in (folder/"blocks").glob("*round01*") for key, _ in sampling._read_block(path)}
    right = {}
    for one in sampling.judge_all(tasks, first):
        if one.outcome == "right": right.setdefault(one.key, set()).add(normalise(one.solution))
    finished = {key for key, texts in right.items() if len(texts) >= cfg.sampling.enough_right}
    assert second == set(tasks) - finished


def test_a_run_learns_from_sampled_rows(done, sums, tmp_path):
    "The rows reach a run's data stage under their source, in the forms of the config, in the split of their problem."
    cfg = load_config("smoke", {"data.source": f"{sums}+everyday+sampled", "data.sampled": str(done[2]), "data.problems": None,
                                "data.problems_of": {"everyday": 20}, "data.forms": ["the_answer_is"]})
    splits, _ = data.load_counted(cfg.data, cfg.seed, tmp_path)
    table = pd.concat([part.to_pandas().assign(split=split) for split, part in splits.items()])
    sampled = table[table.source == "sampled"]
    assert set(table.source) == {"sums", "everyday", "sampled"} and set(sampled[sampled.label == 1].error_type) == {"unknown"}
    assert sampled.solution.str.contains("The answer is").mean() > 0.9 and not sampled.solution.str.contains("<<", regex=False).any()
    assert (table.groupby("question").split.nunique() == 1).all()
    assert not table.duplicated(["index", "label"]).any()


def test_a_run_makes_the_sampled_set_that_it_names(sums, tmp_path, monkeypatch):
    "data.sampled: PRESET samples the run's own problems first."
    import yaml
    quick = tmp_path/"quick.yaml"
    settings = load_config("sample-tiny", {**QUICK, "data.source": str(sums), "solver.epochs": 1, "sampling.samples": 1, "sampling.round": 1}).model_dump(mode="json")
    quick.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr("verifier_nb.config.presets", lambda: {"quick": quick})
    monkeypatch.setattr("verifier_nb.sampling.presets", lambda: {"quick": quick})
    cfg = load_config(str(quick), {"data.source": f"{sums}+sampled", "data.sampled": "quick", "name": "run"})
    made = sampling.with_samples(cfg, tmp_path, say=lambda text: None)
    assert sources.Path(made.data.sampled).is_dir() and made.data.sampled.startswith(str(tmp_path))
    assert sampling.with_samples(made, tmp_path) is made


# the calculator

def written(text, rows=1):
    "What stands there when a text has been written token by token and the calculator has said all it wants."
    tokenizer = load_tokenizer("tiny:llama")
    calculator, ids = sampling.Calculator(tokenizer, rows), tokenizer(text, add_special_tokens=False)["input_ids"]
    so_far = ids[:1]
    for token in ids[1:]:
        calculator(torch.tensor([so_far] * rows), torch.zeros(rows, len(tokenizer)))
        so_far.append(token)
    for _ in range(40):
        scores = calculator(torch.tensor([so_far] * rows), torch.zeros(rows, len(tokenizer)))
        if torch.isfinite(scores).all(): return tokenizer.decode(so_far)
        so_far.append(int(scores[-1].argmax()))


@pytest.mark.parametrize("text, wanted", [
    ("<<2+3=", "<<2+3=5>>5"), ("He has $<<3*4=", "He has $<<3*4=12>>12"), ("<<1/4=", "<<1/4=0.25>>0.25"), ("<<2/3=", "<<2/3=0.67>>0.67"),
    ("<<10*20%=", "<<10*20%=2>>2"), ("<<(2+3)*4=", "<<(2+3)*4=20>>20"), ("<<5-9=", "<<5-9=-4>>-4"), ("2+3=", "2+3="), ("<<2/0=", "<<2/0="),
    ("<<2+=", "<<2+="), ("<<2+3=5>>5 and x=", "<<2+3=5>>5 and x="), ("a < b << c ", "a < b << c ")])
def test_the_calculator_speaks_where_it_can(text, wanted): assert written(text) == wanted


def test_rows_are_calculated_apart():
    tokenizer = load_tokenizer("tiny:llama")
    calculator = sampling.Calculator(tokenizer, 3)
    texts = ["<<2+3=", "xxxxxx", "<<7*7="]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    for n in range(1, ids.shape[1] + 1): scores = calculator(ids[:, :n], torch.zeros(3, len(tokenizer)))
    assert torch.isfinite(scores[1]).all()
    assert [tokenizer.decode([int(scores[row].argmax())]) for row in (0, 2)] == ["5", "4"]


# batches and lessons

def test_every_row_is_learned_once_an_epoch():
    rng = random.Random(0)
    lengths = [rng.randint(5, 90) for _ in range(300)]
    batches = solver.LengthBatches(lengths, 400, seed=1)
    first = list(batches)
    assert sorted(row for rows in first for row in rows) == list(range(300)) and len(first) == len(batches)
    assert all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 400 for rows in first)
    batches.set_epoch(1)
    assert list(batches) != first


def test_the_loss_counts_on_the_solution_and_its_end():
    tokenizer = load_tokenizer("tiny:llama")
    lesson, = solver.lessons(tokenizer, [("Q?", "A")], 100)
    labels = solver.collate_lessons([lesson, solver.Lesson([1, 2], 1)])["labels"]
    assert tokenizer.decode(labels[0][labels[0] >= 0], skip_special_tokens=False) == "A" + tokenizer.eos_token
    assert labels[1].tolist()[:2] == [-100, 2] and set(labels[1].tolist()[2:]) == {-100}


def test_sampling_stops_when_nearly_all_have_ended():
    stop = sampling.MostFinished(eos=9, share=0.75, every=2)
    ids = torch.tensor([[1], [1], [1], [1]])
    steps = [torch.tensor([[9], [1], [9], [1]]), torch.tensor([[0], [9], [0], [1]])]
    assert not stop(steps[0], None).any()
    assert stop(steps[1], None).all()  # three of four have ended, and it is the second call


def test_a_solver_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(VerifierError, match="no trained solver"): solver.load_solver(tmp_path, load_config("sample-tiny").model)


@pytest.mark.parametrize("written, outcome", [
    ("A cow gives 8 litres, so 3 give 3*8 = 24.\n#### 24", "right"), ("3*8=<<3*8=24>>24\n24+10=<<24+10=34>>34\n#### 34", "right"),
    ("#### 34", "right"),  # says nothing that could be wrong
    ("8+3 = 11\n11+23 = 34\n#### 34", "right by other results"), ("3*8 = 24\n24*2 = 48\n48-14 = 34\n#### 34", "right by other results"),
    ("3*8 = 25\n25+9 = 34\n#### 34", "right by a false equation"), ("3*8 = 24\n#### 33", "wrong")])
def test_a_right_answer_by_luck_is_not_right(written, outcome):
    task = sampling.Task("k", "3 cows give 8 litres each, a goat 10 in all. How much?", "3*8=<<3*8=24>>24\n24+10=<<24+10=34>>34\n#### 34", 34)
    if written.endswith("#### 24"): task = task._replace(answer=24)
    assert sampling.judge_sample(task, written).outcome == outcome
