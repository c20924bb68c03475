"""Base models, adapters and the preflight: what is refused, what is kept, what is merged."""
import importlib.util, json, re

import numpy as np
import pytest
import torch

from verifier_nb import prompt, data, memory, model, preflight, batches, scoring
from verifier_nb.config import LoraSettings, ModelSettings, load_config
from verifier_nb.folders import new_run
from verifier_nb.files import VerifierError

TOKENIZER = prompt.load_tokenizer("tiny:llama")
ROWS = [("What is 2+3?", "2+3=5\n#### 5"), ("What is 4+4?", "4+4=9\n#### 9")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A small model with its tokenizer, as save_pretrained leaves it; wide enough for 4-bit blocks."
    from transformers import AutoModelForCausalLM
    place = tmp_path_factory.mktemp("base")/"small"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model.tiny_config("llama", len(TOKENIZER), hidden_size=128, intermediate_size=256, head_dim=32)).save_pretrained(place)
    TOKENIZER.save_pretrained(place)
    return place


def copy_without(folder, place, *names):
    import shutil
    shutil.copytree(folder, place, ignore=lambda d, files: [f for f in files if f in names])
    return place


@pytest.mark.parametrize("gone, added, words", [
    ("config.json", None, "config.json is missing"), ("model.safetensors", None, "holds no weights"), ("model.safetensors", "pytorch_model.bin", "pickle"), ("tokenizer.json", None, "no tokenizer")])
def test_incomplete_or_unsafe_folders_are_refused(folder, tmp_path, gone, added, words):
    place = copy_without(folder, tmp_path/"model", gone)
    if added: (place/added).write_bytes(b"\x80\x04.")
    with pytest.raises(VerifierError, match=words) as e: model.load_base(ModelSettings(base=str(place), device="cpu"))
    assert e.value.where and e.value.fix


@pytest.mark.parametrize("base, words", [("tiny:bert", "no tiny:bert"), ("pypi:other", "not a known package"), ("./not/there", "is not there")])
def test_unknown_bases_are_refused(base, words):
    with pytest.raises(VerifierError, match=words): model.load_base(ModelSettings(base=base, device="cpu"))


def test_damaged_weights_are_refused(folder, tmp_path):
    place = copy_without(folder, tmp_path/"model")
    weights = place/"model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VerifierError, match="could not be loaded"): model.load_base(ModelSettings(base=str(place), device="cpu"))


def test_nothing_of_the_base_learns_and_the_adapter_starts_at_the_base():
    net = model.load_base(ModelSettings(base="tiny:qwen3", device="cpu"))
    ids = torch.arange(30)[None]
    before = net(ids).logits
    adapted = model.add_lora(net, LoraSettings())
    assert torch.equal(adapted.eval()(ids).logits, before)
    assert all(("lora_" in n) == p.requires_grad for n, p in adapted.named_parameters())
    table = memory.parameter_table(adapted)
    assert table.trainable.iloc[-1] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert table.numbers.iloc[-1] == sum(p.numel() for p in adapted.parameters())


def test_adapter_for_another_base_is_refused_and_a_pickle_too(tmp_path):
    net = model.add_lora(model.load_base(ModelSettings(base="tiny:llama", device="cpu")), LoraSettings(r=2))
    net.save_pretrained(tmp_path/"adapter")
    for base in ("tiny:phi3", "tiny:qwen3"):
        with pytest.raises(VerifierError, match="made for tiny:llama"): model.add_lora(model.load_base(ModelSettings(base=base, device="cpu")), LoraSettings(adapter=str(tmp_path/"adapter")))
    again = model.add_lora(model.load_base(ModelSettings(base="tiny:llama", device="cpu")), LoraSettings(adapter=str(tmp_path/"adapter")))
    assert any(p.requires_grad for p in again.parameters())
    config = json.loads((tmp_path/"adapter"/"adapter_config.json").read_text())
    (tmp_path/"adapter"/"adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(VerifierError, match="does not fit"): model.load_adapter(model.load_base(ModelSettings(base="tiny:phi3", device="cpu")), tmp_path/"adapter")
    (tmp_path/"adapter"/"adapter_model.safetensors").rename(tmp_path/"adapter"/"adapter_model.bin")
    with pytest.raises(VerifierError, match="pickle"): model.check_adapter(tmp_path/"adapter", "tiny:llama")


def test_wrong_targets_are_named():
    with pytest.raises(VerifierError, match="no adapter could be added"): model.add_lora(model.load_base(ModelSettings(base="tiny:llama", device="cpu")), LoraSettings(targets=["no_such_matrix"]))


def test_nf4_trains_and_its_adapter_is_merged_into_the_dense_base(folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = ModelSettings(base=str(folder), device="cpu", dtype="float32", quantization="nf4")
    net = model.load_base(settings)
    assert getattr(net.model.layers[0].mlp.up_proj.weight, "quant_state", None) is not None
    dense = model.load_base(settings.model_copy(update={"quantization": "none"}))
    net = model.add_lora(net, LoraSettings(r=4, dropout=0.0)).train()
    samples = [{"input_ids": prompt.encode(TOKENIZER, q, s, max_length=1024)["input_ids"], "label_id": prompt.label_ids(TOKENIZER)[i]} for i, (q, s) in enumerate(ROWS)]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss, _ = scoring.label_loss(net, batches.collate(samples, "shared"))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    net.save_pretrained(tmp_path/"adapter")
    merged = model.merge_adapter(settings, tmp_path/"adapter")
    assert not any(getattr(p, "quant_state", None) is not None for p in merged.parameters()) and merged.dtype == torch.float32
    with torch.no_grad():
        whole = scoring.label_logits(merged, batches.collate(samples))
        adapted = scoring.label_logits(model.load_adapter(dense, tmp_path/"adapter"), batches.collate(samples))
    assert torch.allclose(whole, adapted, atol=1e-4)  # the 16-bit base with the adapter, not the 4-bit one


def test_estimate_grows_with_tokens_and_shrinks_with_bits_and_checkpointing():
    cfg = model.tiny_config("llama", 50_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24)
    total = lambda **k: memory.estimate_memory(cfg, **{"tokens": 4096, **k}).GiB.iloc[-1]
    assert total() < total(tokens=8192) and total(checkpointing=True) < total() and total(quantization="nf4") < total() and total(training=False) < total() < total(r=0)
    part = lambda tokens: memory.estimate_memory(cfg, tokens).set_index("part").GiB["logits at labels"]
    assert part(1000) == part(100_000)


def test_parameter_counts_of_the_shape_are_exact(folder):
    net = model.load_base(ModelSettings(base=str(folder), device="cpu"))
    shape = memory.model_shape(net.config)
    matrices = sum(p.numel() for n, p in net.named_parameters() if p.ndim == 2)
    assert shape.layer_parameters + shape.embedding_parameters == matrices
    adapted = model.add_lora(net, LoraSettings(r=3))
    assert memory.lora_parameters(shape, 3) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("family, sizes", [
    ("gpt2", dict(n_embd=32, n_layer=2, n_head=4)), ("opt", dict(hidden_size=32, ffn_dim=96, word_embed_proj_dim=32, num_hidden_layers=2, num_attention_heads=4)),
    ("gpt_neox", dict(hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True))])
def test_families_that_name_their_sizes_otherwise_have_a_shape(family, sizes):
    from transformers import AutoConfig, AutoModelForCausalLM
    cfg = AutoConfig.for_model(family, vocab_size=262, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes)
    shape, net = memory.model_shape(cfg), AutoModelForCausalLM.from_config(cfg)
    inside = [p for name, p in net.named_parameters() if p.ndim == 2 and re.search(r"\.(layers|h)\.\d", name)]
    assert shape.intermediate in {n for p in inside for n in p.shape}  # a matrix has this width indeed
    assert 1 <= shape.layer_parameters/sum(p.numel() for p in inside) <= 1.5  # never told too small; they have two matrices of the three
    assert memory.estimate_memory(cfg, 100).GiB.iloc[-1] > 0


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    run = new_run(load_config("smoke"), tmp_path_factory.mktemp("run"))
    data.run_stage(run)
    return run


def changed(run, **blocks):
    from verifier_nb.folders import Run
    cfg = run.config.model_copy(update={k: getattr(run.config, k).model_copy(update=v) for k, v in blocks.items()})
    return Run(cfg, run.reports, run.artifacts)


def test_preflight_is_all_right_on_smoke(smoke):
    checks = preflight.preflight(smoke)
    assert {c.status for c in checks} <= {"ok", "warning"}, [c for c in checks if c.status == "failure"]
    assert {"packages", "device", "attention", "memory", "disk", "label tokens", "prompt boundary", "length", "training step", "write permission"} <= {c.name for c in checks}


@pytest.mark.parametrize("blocks, name, words", [
    ({"model": {"device": "cuda"}}, "device", "CUDA GPU"), ({"model": {"attention": "flash_attention_2"}}, "attention", "cannot be used"),
    ({"model": {"base": "tiny:bert"}}, "model and data", "no tiny:bert"), ({"lora": {"targets": ["nothing"]}}, "model and data", "no adapter"),
    ({"lora": {"adapter": "/not/there"}}, "model and data", "holds no adapter")])
def test_preflight_names_what_would_stop_the_run(smoke, blocks, name, words):
    if blocks.get("model", {}).get("device") == "cuda" and torch.cuda.is_available(): pytest.skip("there is a GPU here")
    checks = {c.name: c for c in preflight.preflight(changed(smoke, **blocks))}
    assert checks[name].status == "failure" and words in checks[name].detail and checks[name].fix
    with pytest.raises(VerifierError, match="preflight"): preflight.run_stage(changed(smoke, **blocks))


def test_preflight_warns_about_long_samples(smoke):
    checks = {c.name: c for c in preflight.preflight(changed(smoke, data={"max_length": 256}))}
    assert checks["length"].status == "warning" and "max_length" in checks["length"].fix


def test_not_finite_is_found(smoke, monkeypatch):
    real = model.load_base

    def broken(settings):
        net = real(settings)
        next(net.parameters()).data[:] = float("nan")
        return net

    monkeypatch.setattr(preflight, "load_base", broken)
    assert {c.name: c for c in preflight.preflight(smoke)}["training step"].status == "failure"


def test_loading_is_repeatable_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = model.load_base(ModelSettings(base="tiny:gemma3", device="cpu"))
    assert torch.equal(torch.rand(1), expected)
    two = model.load_base(ModelSettings(base="tiny:gemma3", device="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_memory_mode_takes_the_fastest_that_fits():
    cfg = model.tiny_config("phi3", 200_064, hidden_size=3072, num_hidden_layers=32, num_attention_heads=24, num_key_value_heads=8, head_dim=128, intermediate_size=8192)
    order, last = [("none", False), ("none", True), ("nf4", False), ("nf4", True)], 0
    for gib in (200, 80, 40, 24, 16, 12, 8, 6, 1):  # less memory never gives a hungrier mode
        mode = memory.memory_mode(cfg, gib)
        need = memory.estimate_memory(cfg, 4096, 32, mode[0], checkpointing=mode[1]).GiB.iloc[-1]
        assert order.index(mode) >= last and (need < 0.85*gib or mode == order[-1])
        last = order.index(mode)
    assert memory.memory_mode(cfg, 80, quantization="nf4") == ("nf4", False) and memory.memory_mode(cfg, 80, checkpointing=True) == ("none", True)
    settings = ModelSettings(base="tiny:llama", quantization="auto", gradient_checkpointing="auto", device="cpu")
    assert model.resolve(settings).quantization == "none" and model.resolve(settings).gradient_checkpointing is False and model.load_base(settings) is not None


KERNEL_PACKAGES = {"flash_attn", "flash_attn_interface", "torch.nn.attention.varlen"}


def pretend_gpu(monkeypatch, capability, packages):
    "A machine with a GPU of some generation and with some kernels' packages, as far as choosing a kernel looks at it."
    real = importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: (real("json") if name in packages else None) if name in KERNEL_PACKAGES else real(name, *a))


@pytest.mark.parametrize("capability, dtype, packages, expected", [
    ((9, 0), "bfloat16", [], "flex"), ((8, 0), "float16", [], "flex"), ((7, 5), "float16", [], "sdpa"),  # nothing need be installed
    ((8, 6), "bfloat16", ["torch.nn.attention.varlen"], "varlen"), ((9, 0), "bfloat16", ["torch.nn.attention.varlen", "flash_attn"], "flash_attention_2"),
    ((9, 0), "bfloat16", KERNEL_PACKAGES, "flash_attention_3"), ((10, 0), "bfloat16", KERNEL_PACKAGES, "flash_attention_2"),
    ((8, 0), "float16", KERNEL_PACKAGES, "flash_attention_2"),
    ((9, 0), "float32", KERNEL_PACKAGES, "flex"), ((7, 5), "float16", KERNEL_PACKAGES, "sdpa")])  # installed, but of no use here
def test_no_kernel_is_ever_required(monkeypatch, capability, dtype, packages, expected):
    "On a GPU too: what is installed and what the GPU can do decide, and something always runs."
    pretend_gpu(monkeypatch, capability, packages)
    name, why = model.choose_attention(ModelSettings(dtype=dtype), "cuda")
    assert name == expected and why.startswith("the fastest that can run here")
    assert model.choose_attention(ModelSettings(dtype=dtype, attention="sdpa"), "cuda")[0] == "sdpa"
    for kernel in ("flash_attention_2", "flash_attention_3"):
        if f"{kernel}: " not in why: continue
        with pytest.raises(VerifierError, match=f"{kernel} cannot be used"): model.choose_attention(ModelSettings(dtype=dtype, attention=kernel), "cuda")
