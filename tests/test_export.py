"Exports: what other engines load says what the verifier says; the READMEs' lines run; what cannot be exported leaves nothing."
import re
import numpy as np, pytest, torch
from asking import load, make_adapter
from verifier_nb import export, files, model, prompt, scoring
from verifier_nb.config import ModelSettings
from verifier_nb.files import VerifierError

QUESTIONS = ["Ann has 3 bags of 4 apples and eats 2. How many are left?", "What is 1?", "A pen costs $3. How much are 7?"]
SOLUTIONS = ["3 * 4 = 12\n12 - 2 = 11\n#### 11", "1", "So **7** × \\(3 = 21\\) dollars.\n\nThe answer is \\boxed{21}. "]
MARKED = {"method": "platt", "temperature": 1.7, "bias": -0.4, "threshold": 0.6, "marks": True, "max_length": 700, "n": 9}
CURVE = {"method": "isotonic", "isotonic": {"x": [0.0, 0.4, 1.0], "y": [0.1, 0.2, 0.9]}, "threshold": 0.5, "marks": False, "max_length": 600}

def make(folder, family, calibration=MARKED, **lora): return export.open_merged(str(make_adapter(folder, family, calibration, **lora)))

def p_of(folder, to, verifier, pairs):
    "P(flawed), uncalibrated, as a user of the folder gets it."
    ids = export._prompt_ids(folder, pairs, verifier.marks)
    return 1/(1 + np.exp(-np.array(export._FORMS[to].odds(folder, verifier, ids))))

def printed(folder, monkeypatch, capsys):
    "What the README says that its last block of Python prints, and what it prints in that folder."
    text = (folder/"README.md").read_text()
    lines = re.findall(r"```python\n(.*?)```", text, re.S)[-1]
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(lines, {})
    return float(re.search(r"It prints ([\d.]+)[,;]", text)[1]), float(capsys.readouterr().out)

@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3"])
def test_classifier_and_merged_model_say_what_the_verifier_says(family, tmp_path):
    verifier = make(tmp_path/"adapter", family)
    wanted = load(tmp_path/"adapter").score(QUESTIONS, SOLUTIONS).p_flawed
    assert np.ptp(wanted) > 0.01  # the rows are told apart, so that agreement says something
    for to in ("hf", "vllm"):
        folder = export.export_verifier(verifier, to, tmp_path/to)
        assert np.abs(p_of(folder, to, verifier, list(zip(QUESTIONS, SOLUTIONS))) - wanted).max() < 1e-3
        assert files.read_json(folder/"calibration.json")["temperature"] == 1.7

def test_a_merged_folder_is_a_verifier_again(tmp_path):
    "With the calibration, the threshold and the marks beside it; the calibration of a base is not that of an adapter upon it."
    own = load(make_adapter(tmp_path/"adapter", calibration=MARKED))
    folder = export.export_verifier(export.open_merged(str(tmp_path/"adapter")), "hf", tmp_path/"merged")
    again = load(folder)
    assert (again.threshold, again.max_length, again.marks) == (0.6, 700, True)
    assert np.abs(again.score(QUESTIONS, SOLUTIONS).p_calibrated - own.score(QUESTIONS, SOLUTIONS).p_calibrated).max() < 1e-5
    (tmp_path/"adapter"/"calibration.json").unlink()
    said = files.read_json(tmp_path/"adapter"/"adapter_config.json")
    files.write_json(tmp_path/"adapter"/"adapter_config.json", said | {"base_model_name_or_path": str(folder)})
    other = scoring.Verifier.from_pretrained(str(folder), adapter=str(tmp_path/"adapter"), device="cpu")
    assert other.temperature == 1.0 and not other.marks

def test_an_adapter_that_cannot_be_folded_is_merged(tmp_path):
    folder = make_adapter(tmp_path/"adapter", use_dora=True) if "use_dora" in model.LoraSettings.model_fields else make_adapter(tmp_path/"adapter", bias="all")
    assert hasattr(load(folder).model, "merge_and_unload"), "this adapter is not folded, so that the test says something"
    made = export.export(str(folder), "vllm", tmp_path/"out")
    wanted = load(folder).score(QUESTIONS, SOLUTIONS).p_flawed
    assert np.abs(p_of(made, "vllm", load(folder), list(zip(QUESTIONS, SOLUTIONS))) - wanted).max() < 1e-3

def test_the_merged_model_may_use_its_cache(tmp_path):
    "The verifier needs none; whoever generates with the merged model does, and the verifier stays as it is."
    verifier = make(tmp_path/"adapter", "llama")
    before = verifier.model.config.use_cache
    folder = export.export_verifier(verifier, "hf", tmp_path/"out")
    assert files.read_json(folder/"config.json")["use_cache"] is True and verifier.model.config.use_cache is before

def test_a_head_with_a_bias_is_refused():
    net = _Other("llama").model
    net.lm_head = torch.nn.Linear(32, net.config.vocab_size, bias=True)
    with pytest.raises(VerifierError, match="has a bias"): export.score_head(net, (3, 4))

def test_a_batch_of_rows_filled_up_is_classified_like_single_rows(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    verifier = make(tmp_path/"adapter", "llama")
    folder = export.export_verifier(verifier, "vllm", tmp_path/"out")
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    talks = [[{"role": "query", "content": q}, {"role": "document", "content": s}] for q, s in (prompt.as_read(*pair, True) for pair in zip(QUESTIONS, SOLUTIONS))]
    made = tokenizer.apply_chat_template(talks, padding=True, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    with torch.no_grad(): p = torch.sigmoid(net(**made).logits)[:, 0].numpy()
    assert net.config.id2label == {0: "flawed"} and np.abs(p - verifier.score(QUESTIONS, SOLUTIONS).p_flawed).max() < 1e-3

@pytest.mark.parametrize("to,calibration", [("hf", MARKED), ("vllm", CURVE)])
def test_the_lines_of_the_readme_print_what_it_says(to, calibration, tmp_path, monkeypatch, capsys):
    verifier = make(tmp_path/"adapter", "qwen3", calibration)
    folder = export.export_verifier(verifier, to, tmp_path/"out")
    said, got = printed(folder, monkeypatch, capsys)
    assert said == got == pytest.approx(load(tmp_path/"adapter").score(*export._PROBES[0]).p_calibrated[0], abs=2e-3)

def test_a_graph_says_what_the_verifier_says(tmp_path, monkeypatch, capsys):
    "In float32 to 1e-3, in int8 nearly; batches of any size and length; and its README's lines run."
    pytest.importorskip("onnxscript")
    import onnxruntime
    verifier = make(tmp_path/"adapter", "llama")
    folder = export.export_verifier(verifier, "onnx", tmp_path/"out")
    questions, solutions = QUESTIONS*3, SOLUTIONS*3
    wanted = verifier.score(questions, solutions).p_flawed.to_numpy()
    ids = export._prompt_ids(folder, list(zip(questions, solutions)), True)
    found = {}
    for name in ("model.onnx", "model-int8.onnx"):
        session = onnxruntime.InferenceSession(str(folder/name), providers=["CPUExecutionProvider"])
        found[name] = 1/(1 + np.exp(-export.run_graph(session, ids, verifier.tokenizer.pad_token_id)))
    assert np.abs(found["model.onnx"] - wanted).max() < 1e-3 and 0 < np.abs(found["model-int8.onnx"] - wanted).max() < 0.02
    assert (folder/"model-int8.onnx").stat().st_size < (folder/"model.onnx").stat().st_size
    said, got = printed(folder, monkeypatch, capsys)
    assert got == pytest.approx(said, abs=0.02)

class _Other:
    "A verifier whose base is of a family without a tiny one."
    def __new__(cls, kind, **changes):
        from transformers import AutoConfig, AutoModelForCausalLM
        tokenizer = prompt.load_tokenizer("tiny:llama")
        cfg = AutoConfig.for_model(kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, **changes)
        return scoring.Verifier(AutoModelForCausalLM.from_config(cfg).eval(), tokenizer)

@pytest.mark.parametrize("kind,to,changes,words", [
    ("granite", "vllm", {}, "no class for sequence classification"),
    ("gemma2", "vllm", {"final_logit_softcapping": 0.01, "head_dim": 16}, "says something else")])
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(kind, to, changes, words, tmp_path):
    with pytest.raises(VerifierError, match=words) as e: export.export_verifier(_Other(kind, **changes), to, tmp_path/"out")
    assert "--to hf" in e.value.fix and not list(tmp_path.iterdir())

def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path/"out").mkdir()
    (tmp_path/"out"/"mine").write_text("x")
    for wrong in ({"folder": tmp_path/"out"}, {"to": "gguf"}, {"dtype": "int4"}, {"to": "onnx", "dtype": "bfloat16"}, {"name": str(tmp_path/"nothing")}):
        wish = {"name": "default", "to": "vllm", "folder": tmp_path/"new", "dtype": "float32", **wrong}
        with pytest.raises(VerifierError, match="there already" if "folder" in wrong else None): export.export(**wish)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and [p.name for p in (tmp_path/"out").iterdir()] == ["mine"]

def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    verifier = make(tmp_path/"adapter", "llama")
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr(verifier.tokenizer, "save_pretrained", full)
    with pytest.raises(VerifierError, match="No space left"): export.export_verifier(verifier, "hf", tmp_path/"out")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]

def test_sixteen_bits(tmp_path):
    from safetensors import safe_open
    verifier = make(tmp_path/"adapter", "llama")
    before = verifier.score(QUESTIONS, SOLUTIONS).p_flawed
    folder = export.export_verifier(verifier, "vllm", tmp_path/"out", "bfloat16")
    with safe_open(folder/"model.safetensors", "pt") as f: assert f.get_tensor("score.weight").dtype == torch.bfloat16
    assert files.read_json(folder/"config.json")["dtype"] == "bfloat16" and (verifier.score(QUESTIONS, SOLUTIONS).p_flawed == before).all()

def test_a_template_that_strips_is_followed_and_one_that_rewrites_refused():
    tokenizer = prompt.tiny_tokenizer()
    plain = tokenizer.chat_template
    tokenizer.chat_template = plain.replace("message['content']", "(message['content'] | trim)")
    template = export.classifier_template(tokenizer)
    assert "rstrip" in template
    for change in ("message['content'] | upper", "message['content'] ~ message['content']", "message['content'].split('Sol')[0]"):
        tokenizer.chat_template = plain.replace("message['content']", f"({change})")
        with pytest.raises(VerifierError, match="chat template"): export.classifier_template(tokenizer)
    tokenizer.chat_template = plain.replace("message['content']", "(message['content'] ~ message['content'])")
    with pytest.raises(VerifierError, match="does not keep a message as it is"): export.prompt_parts(tokenizer)

def test_a_run_is_exported_by_its_folder(tmp_path):
    from typer.testing import CliRunner
    from verifier_nb import cli, config, folders
    run = folders.new_run(config.load_config("smoke", {"model.base": "tiny:llama", "data.marks": True, "model.device": "cpu"}), tmp_path)
    make_adapter(run.adapter, calibration=MARKED)
    files.write_json(run.report("calibration.json"), MARKED)
    done = CliRunner().invoke(cli.app, ["export", str(run.reports), "--to", "vllm", "-o", str(tmp_path/"out")])
    assert done.exit_code == 0, done.output
    verifier = scoring.Verifier.from_run(run)
    assert np.abs(p_of(tmp_path/"out", "vllm", verifier, list(zip(QUESTIONS, SOLUTIONS))) - verifier.score(QUESTIONS, SOLUTIONS).p_flawed).max() < 1e-3
    again = CliRunner().invoke(cli.app, ["export", str(run.reports), "--to", "vllm", "-o", str(tmp_path/"out")])
    assert again.exit_code == 2 and "there already" in again.output
