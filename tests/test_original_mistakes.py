"""The mistakes of the notebook that this project grew out of, one test each: every one fails on the old behaviour."""
import ast, builtins, importlib, inspect, json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from verifier_nb import files, prompt, rows as rows_, model, batches, scoring, training, figures, publish
from verifier_nb.config import ModelSettings, PublishSettings, load_config
from verifier_nb.folders import new_run

NBS = sorted((Path(__file__).resolve().parent.parent/"nbs").glob("[0-9][0-9]*_*.ipynb"))
LONG = "Sam has 3 apples. " * 60
SOLUTION = "3 + 4 = 7\n#### 7"


@pytest.fixture(scope="module")
def tokenizer(): return prompt.load_tokenizer("tiny:llama")


@pytest.fixture(scope="module")
def tiny(): return model.load_base(ModelSettings(base="tiny:llama", device="cpu"))


@pytest.fixture(scope="module")
def learner():
    "A tiny model with an adapter to train, whose two matrices both matter."
    settings = ModelSettings(base="tiny:llama", device="cpu")
    net = model.add_lora(model.load_base(settings), load_config("smoke").lora).eval()
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)
    return net


def code(path):
    "A notebook's code as one module, without the lines that only a notebook understands."
    cells = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))


def samples(tokenizer, n=4):
    ids = prompt.label_ids(tokenizer)
    return [{"input_ids": prompt.encode(tokenizer, f"What is {i} + 4?", f"{i} + 4 = {i+4}\n#### {i+4}")["input_ids"], "label_id": ids[i % 2], "group": str(i)} for i in range(n)]


def test_flash_attention_is_never_required(monkeypatch):
    "There: compiled from source, cancelled. Here: what is installed decides, and nothing need be, on a large GPU either."
    from test_model import pretend_gpu
    pretend_gpu(monkeypatch, (9, 0), packages=[])
    name, why = model.choose_attention(ModelSettings(dtype="bfloat16"), "cuda")
    assert not name.startswith("flash_attention") and "flash_attention_2: " in why


@pytest.mark.parametrize("path", NBS, ids=[p.stem for p in NBS])
def test_no_notebook_uses_a_name_before_it_is_made(path):
    "There: the tokenizer before it exists, create_prompt and total_predictions never defined."
    known = set(dir(builtins)) | {"__file__", "display", "get_ipython"}
    for node in ast.parse(code(path)).body:
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        local = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {a.arg for n in ast.walk(node) if isinstance(n, ast.arguments) for a in [*n.posonlyargs, *n.args, *n.kwonlyargs, n.vararg, n.kwarg] if a}
        local |= {(a.asname or a.name).split(".")[0] for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        local |= {n.name for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))} | {n.name for n in ast.walk(node) if isinstance(n, ast.ExceptHandler) and n.name}
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):  # a function's body is looked at when it is called
            used = {n.id for n in names if isinstance(n.ctx, ast.Load)}
            assert used <= known | local, f"line {node.lineno}: {sorted(used - known - local)}"
        known |= local if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else {node.name}


@pytest.mark.parametrize("path", NBS, ids=[p.stem for p in NBS])
def test_every_import_exists(path):
    "There: `from trl import DataCollatorForLanguageModeling` fails."
    for node in ast.parse(code(path)).body:  # imports at the top; those inside functions are for optional packages
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for a in node.names: assert hasattr(module, a.name) or importlib.util.find_spec(f"{node.module}.{a.name}"), f"{node.module}.{a.name}"


def test_truncation_never_cuts_the_label(tokenizer):
    "There: a long sample loses its end, and the label with it."
    short, long = (prompt.encode(tokenizer, q, SOLUTION, max_length=400) for q in ("Sam?", LONG))
    assert long["shortened"] and len(long["input_ids"]) < 400
    tail = len(tokenizer.encode(SOLUTION + "<|end|><|assistant|>", add_special_tokens=False))
    assert long["input_ids"][-tail:] == short["input_ids"][-tail:]


@pytest.mark.parametrize("layout", batches.LAYOUTS)
def test_only_the_label_carries_loss(tokenizer, learner, layout):
    "There: loss on the label and on two end tokens, which are always the same. Here: one target a sample."
    rows = samples(tokenizer)
    batch = training.make_collator(layout, tokenizer.pad_token_id)(rows)
    trainer = training.LabelTrainer.__new__(training.LabelTrainer)  # its loss needs nothing of what a trainer is made of
    trainer.seen, trainer.label_tokens, trainer.step_weight = 0, (0, 1), 1.0
    loss = trainer.compute_loss(learner, batch)

    by_hand = 0.0  # prompt by prompt: the surprise at the label after the last token, and nothing else
    for row in rows:
        last = learner(input_ids=torch.tensor([row["input_ids"]])).logits[0, -1]
        by_hand = by_hand + (last.logsumexp(0) - last[row["label_id"]])/len(rows)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)

    weights = [p for p in learner.parameters() if p.requires_grad]
    pairs = list(zip(torch.autograd.grad(loss, weights), torch.autograd.grad(by_hand, weights)))
    assert any(wanted.abs().max() > 1e-4 for _, wanted in pairs)
    for found, wanted in pairs: assert torch.allclose(found, wanted, atol=1e-6)

    of_a_step = trainer.compute_loss(learner, batch, num_items_in_batch=16)
    assert of_a_step.item() == pytest.approx(loss.item()/4, rel=1e-5) and trainer.samples_seen == 8


def test_the_logit_before_the_label_predicts_it(tokenizer, tiny):
    "There: accuracy compared the logits of a position with the token at that same position."
    one = samples(tokenizer, 1)[0]
    ours = scoring.label_logits(tiny, batches.collate([one], "flat"))[0]
    whole = tiny(input_ids=torch.tensor([one["input_ids"] + [one["label_id"]]])).logits[0]  # the label stands at the end
    assert torch.allclose(ours, whole[-2], atol=1e-5) and not torch.allclose(ours, whole[-1], atol=1e-2)


def test_evaluation_keeps_two_numbers_a_row(tokenizer, tiny):
    "There: [rows, length, vocabulary], about 92 GiB for 412 rows."
    kept = scoring.label_log_probs(tiny, samples(tokenizer), prompt.label_ids(tokenizer))
    assert kept.shape == (4, 2) and kept.nbytes == 4*2*8


def test_training_and_evaluation_see_the_same_prompt(tokenizer, tiny):
    "There: evaluation ended with a newline that training did not have."
    import datasets
    rows = datasets.Dataset.from_list([{"index": 1, "question": "What is 3 + 4?", "solution": SOLUTION, "label": 0}])
    trained = training.to_samples(rows, tokenizer)[0]["input_ids"]
    assert trained == scoring.Verifier(tiny, tokenizer).sample("What is 3 + 4?", SOLUTION)["input_ids"]


def test_scoring_is_one_forward_pass_a_batch_without_generation(tokenizer, tiny, monkeypatch):
    "There: generate() for each row, and a regular expression for a digit, with answers that do not parse."
    calls = []
    monkeypatch.setattr(type(tiny), "generate", lambda *a, **k: pytest.fail("generate() was called"))
    hook = tiny.register_forward_hook(lambda *a: calls.append(1))
    try: result = scoring.Verifier(tiny, tokenizer).score(["What is 3 + 4?"]*6, [SOLUTION]*6, batch_tokens=100_000)
    finally: hook.remove()
    assert len(calls) == 1 and len(result) == 6 and set(result.verdict) <= {"correct", "flawed"}


def test_probabilities_are_normalised_where_they_must_be():
    "There: prob_0 and prob_1 stood there without their sum."
    p = scoring.probabilities(torch.tensor([[0.0, 1.0, 2.0]]), 0, 1)
    full = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    assert torch.allclose(p.prob_0.float(), full[0]) and torch.allclose(p.label_mass.float(), full[:2].sum())
    assert torch.allclose(p.p_flawed.float(), full[1]/full[:2].sum())


def test_the_length_histogram_is_of_samples(smoke_run):
    "There: min 1, max 1, because it counted the keys of a dictionary."
    summary = pd.read_csv(smoke_run.report("data_summary.csv"))
    smallest = summary.filter(like="min").to_numpy(dtype=float)
    assert smallest.size and (smallest > 50).all()


def test_joining_the_catalog_doubles_nothing():
    "There: a merge on `index` alone gives each of a problem's two solutions both error types."
    rows = pd.DataFrame({"index": [1, 1], "question": "q", "solution": ["a", "b"], "label": [0, 1]})
    catalog = pd.DataFrame({"index": [1, 1], "label": [0, 1], "error_type": ["correct", "conceptual"]})
    joined = rows_.join_catalog(rows, catalog)
    assert len(joined) == 2 and joined.error_type.tolist() == ["correct", "conceptual"] and "error_type_x" not in joined


def test_unknown_error_types_stay_in_the_matrix():
    "There: rows of other types silently left the matrix."
    df = pd.DataFrame({"index": range(4), "true_label": [0, 1, 1, 1], "predicted_label": [0, 1, 0, 1], "error_type": ["correct", "conceptual", "something new", "unknown"]})
    matrix = figures.error_matrix(df).set_index("error_type")
    assert matrix.loc["unknown", ["judged_correct", "judged_flawed"]].sum() == 2 and matrix.n.sum() == 4


def test_the_adapter_is_merged_into_unquantised_weights(tokenizer, tmp_path):
    "There: merge_and_unload() on 4-bit weights. Here: into the 16- or 32-bit base, and the probabilities agree."
    settings, cfg = ModelSettings(base="tiny:llama", device="cpu"), load_config("smoke")
    net = model.add_lora(model.load_base(settings), cfg.lora)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name: p.normal_(0, .2)
    net.save_pretrained(tmp_path)
    merged = model.merge_adapter(settings, tmp_path)
    assert {p.dtype for p in merged.parameters()} <= {torch.float32, torch.bfloat16, torch.float16} and not getattr(merged, "is_quantized", False)
    a, b = (scoring.label_log_probs(m, samples(tokenizer), prompt.label_ids(tokenizer)) for m in (net, merged))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_publishing_names_its_repository_and_is_private():
    "There: push_to_hub(name) passed the name as the commit message."
    assert PublishSettings().private and PublishSettings().repo_id is None
    signature = inspect.signature(publish.push).parameters
    assert "repo_id" in signature and signature["dry_run"].default is True and signature["private"].default in (True, None)


def test_remote_code_is_off_and_pickles_are_refused(tmp_path):
    "There: trust_remote_code=True."
    assert ModelSettings().trust_remote_code is False
    with pytest.raises(files.VerifierError, match="trust_remote_code"): load_config("smoke", {"model.trust_remote_code": True})
    (tmp_path/"config.json").write_text('{"model_type": "llama"}')
    (tmp_path/"tokenizer.json").write_text("{}")
    (tmp_path/"pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(files.VerifierError, match="(?i)pickle|safetensors"): model.load_base(ModelSettings(base=str(tmp_path), device="cpu"))
