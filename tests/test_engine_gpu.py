"""The engine's CUDA paths in 16 bits against float32 references on the same GPU. Skipped without CUDA."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from test_engine import FAMILIES, LABELS, TOKENIZER, load, make_samples, one_by_one, problems
from verifier_nb import setup, model, kernels, batches, scoring
from verifier_nb.config import LoraSettings, ModelSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
KERNELS = [k for k, why_not in model.attention_kernels("cuda", "bfloat16").items() if not why_not and k != "eager"]


def on_gpu(family, dtype, kernel, lora=False, **changes):
    net = load(family, lora).to("cuda", dtype)
    if lora:
        for p in net.parameters():
            if p.requires_grad: p.data = p.data.float()
    kernels.note_engine(net, kernel=kernel, why="test")
    return net


def close(got, expected, tolerance):
    "Relative error of a whole tensor; NaN never passes."
    error = ((got.float() - expected.float()).norm()/expected.float().norm()).item()
    assert error < tolerance, error
    return error


def reference(family, samples):
    net = load(family).to("cuda", torch.float32)
    with torch.no_grad(): return torch.cat([net(input_ids=torch.tensor([s["input_ids"]], device="cuda"), logits_to_keep=1).logits[:, -1] for s in samples])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_bfloat16_are_those_of_float32_to_rounding(family, kernel):
    samples = make_samples(problems(6))
    expected = reference(family, samples)
    with torch.no_grad():
        rounded = close(scoring.label_logits(on_gpu(family, torch.bfloat16, "sdpa"), batches.collate(samples, "padded", TOKENIZER.pad_token_id)), expected, 0.05)
        for layout in ("flat", "shared"):
            got = scoring.label_logits(on_gpu(family, torch.bfloat16, kernel), batches.collate(samples, layout, TOKENIZER.pad_token_id))
            assert close(got, expected, 0.05) < 2*rounded + 1e-3  # no worse than bfloat16 itself


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_logits_in_float32(family, kernel):
    if kernel not in KERNELS: pytest.skip(f"{kernel} cannot run here")
    samples = make_samples(problems(6))
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        for layout in ("flat", "shared"):
            net = on_gpu(family, torch.float32, kernel)
            # Triton's float32 products may be tf32 inside FlexAttention
            close(scoring.label_logits(net, batches.collate(samples, layout)), reference(family, samples), 1e-4 if kernel == "sdpa" else 5e-3)


def gradients(net, samples, layout, **kwargs):
    net.train()
    loss, _ = scoring.label_loss(net, batches.collate(samples, layout, TOKENIZER.pad_token_id, **kwargs))
    loss.backward()
    return torch.cat([p.grad.flatten().float() for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_gradients(family, kernel):
    samples = make_samples(problems(6))
    expected = gradients(on_gpu(family, torch.float32, "sdpa", lora=True), samples, "padded")
    plain = close(gradients(on_gpu(family, torch.bfloat16, "sdpa", lora=True), samples, "padded"), expected, 0.2)
    for layout in ("flat", "shared"):
        assert close(gradients(on_gpu(family, torch.bfloat16, kernel, lora=True), samples, layout), expected, 0.2) < 2*plain + 5e-3


def test_gradient_checkpointing():
    samples = make_samples(problems(6))
    plain = gradients(on_gpu("llama", torch.bfloat16, KERNELS[0], lora=True), samples, "shared")
    net = on_gpu("llama", torch.bfloat16, KERNELS[0], lora=True)
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    close(gradients(net, samples, "shared"), plain, 0.02)


@pytest.mark.parametrize("family", ["phi3", "gemma3"])
def test_compiled_layers(family):
    import torch._dynamo
    torch._dynamo.reset()
    samples, other = make_samples(problems(6)), make_samples(problems(9, seed=5))
    kernel = next(k for k in KERNELS if k not in ("sdpa", "flex"))
    net = on_gpu(family, torch.bfloat16, kernel, lora=True)
    plain = [gradients(on_gpu(family, torch.bfloat16, kernel, lora=True), s, "shared") for s in (samples, other)]
    kernels.compile_layers(net)
    for s, expected in zip((samples, other), plain):  # a second size does not break it
        net.zero_grad()
        close(gradients(net, s, "shared", bucket=128), expected, 0.05)


def test_dropout_keeps_the_mean_and_trains():
    samples = make_samples(problems(6))
    net = load("llama")
    torch.manual_seed(0)
    net = model.add_lora(net, LoraSettings(r=4, dropout=0.5)).to("cuda", torch.bfloat16)
    for name, p in net.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    layer = next(m for n, m in net.named_modules() if n.endswith("q_proj") and hasattr(m, "lora_A"))
    with torch.no_grad(): mean, still = torch.stack([layer.train()(x).float() for _ in range(400)]).mean(0), layer.eval()(x).float()
    close(mean, still, 0.1)
    assert torch.isfinite(gradients(net, samples, "shared")).all()


def test_nf4_trains_and_scores():
    pytest.importorskip("bitsandbytes")
    import bitsandbytes as bnb
    samples = make_samples(problems(6))
    cfg = model.tiny_config("llama", len(TOKENIZER), hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(cfg).to("cuda", torch.bfloat16).requires_grad_(False)
    four = copy.deepcopy(dense)
    for m in list(four.modules()):
        for name, child in list(m.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                new = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                setattr(m, name, new.cuda())
    grads = {}
    for fused in (False, True):
        torch.manual_seed(1)
        from peft import LoraConfig, get_peft_model
        net = get_peft_model(copy.deepcopy(four), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, p in net.named_parameters():
            if "lora_B" in name: torch.nn.init.normal_(p, std=0.02)
        if fused: assert kernels.fuse_lora(net) == 14
        grads[fused] = gradients(net, samples, "shared")
    close(grads[True], grads[False], 0.05)


def test_deterministic_mode_repeats_to_the_bit():
    samples = make_samples(problems(6))
    setup.seed_everything(0, deterministic=True)
    try: first, second = (gradients(on_gpu("llama", torch.bfloat16, KERNELS[0], lora=True), samples, "shared") for _ in range(2))
    finally: torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)


def test_real_out_of_memory_is_survived():
    net = on_gpu("llama", torch.bfloat16, KERNELS[0])
    samples = make_samples(problems(1024))  # some 560,000 tokens: as one batch they need hundreds of MiB
    expected = scoring.label_log_probs(net, samples, LABELS, 2000, "flat")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(max((torch.cuda.memory_allocated() + 24*2**20)/torch.cuda.get_device_properties(0).total_memory, 1e-4))
    budget = scoring.Budget(10**6)
    try: got = scoring.label_log_probs(net, samples, LABELS, budget, "flat")
    finally: torch.cuda.set_per_process_memory_fraction(1.0)
    assert budget.halved > 0 and np.abs(np.exp(got) - np.exp(expected)).max() < 0.02


def test_memory_of_logits_does_not_grow_with_length():
    net, peaks = on_gpu("llama", torch.bfloat16, KERNELS[0]), []
    wide = torch.nn.Linear(64, 200_000, bias=False, dtype=torch.bfloat16, device="cuda")
    net.lm_head, net.config.vocab_size = wide, 200_000
    for words in (10, 200):
        batch = batches.collate(make_samples([("word "*words, "1+1=2", 0)]), "flat")
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        with torch.no_grad(): scoring.label_logits(net, batch)
        peaks.append(torch.cuda.max_memory_allocated() - base)
    assert peaks[1] < 200_000*2*200  # far below one row of logits a token
