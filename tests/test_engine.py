"""The engine's exactness, on CPU in float32, for each family: whatever the layout, kernel, order or company, the numbers are those of one sample alone."""
import functools, inspect, itertools, random, sys, types

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from verifier_nb import prompt, model as model_, kernels, batches, attention, loading, scoring
from verifier_nb.config import LoraSettings, ModelSettings
from verifier_nb.files import VerifierError

FAMILIES = model_.TINY
TOKENIZER = prompt.load_tokenizer("tiny:llama")
LABELS = prompt.label_ids(TOKENIZER)


def problems(n=4, seed=0):
    "Problems with a correct and a flawed solution that share steps; one pair is identical; one solution is longer than gemma's window."
    rng = random.Random(seed)
    out = []
    for i in range(n):
        a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
        question = f"Problem {i}: Ann has {a} apples and buys {b} more. Then she gives away {c}." + " How many are left?"*rng.randint(1, 2)
        right = f"{a}+{b}={a+b}\n{a+b}-{c}={a+b-c}\n#### {a+b-c}"
        wrong = right if i == 2 else f"{a}+{b}={a+b}\n{a+b}-{c}={a+b-c+1}\n#### {a+b-c+1}"
        out += [(question, right, 0), (question, wrong, 1)]
    return out


def make_samples(rows):
    return [{"input_ids": prompt.encode(TOKENIZER, q, s, max_length=2048)["input_ids"], "label_id": LABELS[y], "group": q} for q, s, y in rows]


def load(family, lora=False, **changes):
    net = model_.load_base(ModelSettings(base=f"tiny:{family}", dtype="float32", device="cpu", **changes))
    if not lora: return net
    torch.manual_seed(3)
    net = model_.add_lora(net, LoraSettings(r=4, dropout=0.0))
    for name, p in net.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)
    return net


def one_by_one(net, samples):
    return torch.cat([net(input_ids=torch.tensor([s["input_ids"]]), logits_to_keep=1).logits[:, -1] for s in samples])


def check_arguments(q, k, v, cu_q, cu_k, max_q, max_k):
    "What a variable-length kernel demands of its arguments."
    assert q.ndim == k.ndim == v.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2]
    assert q.dtype == k.dtype == v.dtype and q.shape[1] % k.shape[1] == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    for cu, longest, tokens in ((cu_q, max_q, len(q)), (cu_k, max_k, len(k))):
        sizes = cu.diff()
        assert cu.dtype == torch.int32 and cu[0] == 0 and cu[-1] == tokens
        assert sizes.min() > 0 and type(longest) is int and longest == sizes.max()
    assert len(cu_q) == len(cu_k) and (cu_k.diff() >= cu_q.diff()).all()


def dense_varlen(q, k, v, cu_q, cu_k, scale, left, right):
    "What a variable-length kernel computes: for each sequence dense attention, aligned at the end of the keys, `left` keys back and `right` keys ahead."
    out, groups = [], q.shape[1]//k.shape[1]
    for i in range(len(cu_q) - 1):
        (a, b), (c, d) = cu_q[i:i+2].tolist(), cu_k[i:i+2].tolist()
        n, m = b - a, d - c
        behind = torch.arange(m - n, m)[:, None] - torch.arange(m)[None]
        mask = (behind <= (left if left >= 0 else m)) & (-behind <= (right if right >= 0 else m))
        kk, vv = (x[c:d].repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
        out.append(F.scaled_dot_product_attention(q[a:b].transpose(0, 1), kk, vv, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(out)


def stand_in_for_varlen(calls):
    "PyTorch's varlen_attn with its real signature, computed densely."
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn

    @functools.wraps(real)
    def varlen_attn(*args, **kwargs):
        bound = inspect.signature(real).bind(*args, **kwargs)
        bound.apply_defaults()
        q, k, v, cu_q, cu_k, max_q, max_k = list(bound.arguments.values())[:7]
        check_arguments(q, k, v, cu_q, cu_k, max_q, max_k)
        assert bound.arguments.get("enable_gqa", True) or q.shape[1] == k.shape[1]
        calls.append(q.dtype)
        return dense_varlen(q, k, v, cu_q, cu_k, bound.arguments["scale"], *bound.arguments["window_size"])
    return varlen_attn


def stand_in_for_flash(calls, with_lse):
    "flash-attn's function with the arguments that its documentation gives, computed densely; version 3 also returns log-sum-exps."
    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale=None, causal=False, window_size=(-1, -1)):
        check_arguments(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        calls.append(q.dtype)
        left, right = window_size
        out = dense_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, left, 0 if causal else right)
        return (out, None) if with_lse else out
    return flash_attn_varlen_func


def use_kernel(monkeypatch, name):
    "Make the engine use a kernel on the CPU, where a stand-in computes what the kernel is documented to compute. Returns a list of the formats it is called with."
    real, calls = attention.prepare_attention, []
    monkeypatch.setattr(scoring, "prepare_attention", lambda net: (real(net), name)[1])
    if name == "varlen": monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in_for_varlen(calls))
    for package, kernel in (("flash_attn", "flash_attention_2"), ("flash_attn_interface", "flash_attention_3")):
        if name != kernel: continue
        function = stand_in_for_flash(calls, with_lse=kernel == "flash_attention_3")
        monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(flash_attn_varlen_func=function))
    if name == "flex":
        from torch.nn.attention.flex_attention import flex_attention
        monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    return calls


@pytest.fixture
def forget_kernels():
    "The engine looks a kernel's function up once; before and after a stand-in it looks again."
    attention._varlen_function.cache_clear()
    yield
    attention._varlen_function.cache_clear()


@pytest.fixture(params=["sdpa", "varlen", "flex"])
def kernel(request, monkeypatch, forget_kernels):
    "Each way of attention, run on the CPU in float32."
    use_kernel(monkeypatch, request.param)
    monkeypatch.setattr(attention, "_half", lambda dtype: dtype)  # compared in float32
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", batches.LAYOUTS)
def test_logits_equal_one_by_one(family, layout, kernel):
    net, samples = load(family), make_samples(problems(3))  # the third has two identical solutions
    with torch.no_grad():
        expected = one_by_one(net, samples)
        got = scoring.label_logits(net, batches.collate(samples, layout, TOKENIZER.pad_token_id))
    assert got.shape == (len(samples), expected.shape[1])
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])  # with and without a window
@pytest.mark.parametrize("name", ["varlen", "flash_attention_2", "flash_attention_3"])
def test_kernels_are_called_as_they_are_documented(family, name, monkeypatch, forget_kernels):
    calls = use_kernel(monkeypatch, name)
    monkeypatch.setattr(attention, "_half", lambda dtype: dtype)
    net, samples = load(family), make_samples(problems(3))
    for layer in net.model.layers: layer.self_attn.scaling = 0.4  # not the scale that a kernel has by itself
    with torch.no_grad(): got = scoring.label_logits(net, batches.collate(samples, "shared"))
    assert len(calls) == net.config.num_hidden_layers
    assert (got - one_by_one(net, samples)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2"])
@pytest.mark.parametrize("dtype, expected", [("float32", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_kernels_without_float32_are_given_16_bits(name, dtype, expected, monkeypatch, forget_kernels):
    "And what comes back goes on in the model's own format."
    calls = use_kernel(monkeypatch, name)
    net, samples = load("qwen3").to(getattr(torch, dtype)), make_samples(problems(2))
    with torch.no_grad(): got, exact = scoring.label_logits(net, batches.collate(samples)), one_by_one(load("qwen3"), samples)
    assert set(calls) == {expected} and got.dtype == getattr(torch, dtype)
    assert (got.float() - exact).norm() < 0.05*exact.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_gradients_equal_one_by_one(family, checkpointing):
    samples, grads = make_samples(problems()), {}
    for way in ("alone", *batches.LAYOUTS):
        net = load(family, lora=True)
        if checkpointing and way != "alone": net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.train()
        if way == "alone":
            targets = torch.tensor([s["label_id"] for s in samples])
            loss = F.cross_entropy(one_by_one(net, samples), targets)
        else: loss, _ = scoring.label_loss(net, batches.collate(samples, way, TOKENIZER.pad_token_id))
        loss.backward()
        grads[way] = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
    assert all(g is not None and g.norm() > 0 for n, g in grads["alone"].items())
    for way in batches.LAYOUTS:
        for name, expected in grads["alone"].items():
            assert (grads[way][name] - expected).norm() <= 1e-4*expected.norm() + 1e-9, (way, name)


def test_gradients_through_the_varlen_index_lists(kernel):
    "The gather's backward pass sums what each shared token receives."
    if kernel == "flex": pytest.skip("FlexAttention has no backward pass on the CPU")
    samples, grads = make_samples(problems()), []
    for layout in ("flat", "shared"):
        net = load("qwen3", lora=True)
        scoring.label_loss(net, batches.collate(samples, layout))[0].backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]))
    assert (grads[0] - grads[1]).norm() < 1e-4*grads[0].norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_lora_is_pefts_lora(family):
    "Logits and gradients of the fused layers are those of peft's own, which `_unfused` still is."
    from peft import LoraConfig, get_peft_model
    samples, grads = make_samples(problems(2)), []
    for fused in (False, True):
        torch.manual_seed(0)
        net = get_peft_model(load(family), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, p in net.named_parameters():
            if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)
        assert not fused or kernels.fuse_lora(net) == sum(hasattr(m, "lora_A") for m in net.modules()) > 0
        loss, logits = scoring.label_loss(net.train(), batches.collate(samples))
        loss.backward()
        grads.append({"logits": logits, **{n: p.grad for n, p in net.named_parameters() if p.requires_grad}})
        if fused:  # switching off and merging are still peft's
            with torch.no_grad(), net.disable_adapter(): off = scoring.label_logits(net, batches.collate(samples))
            assert torch.allclose(off, scoring.label_logits(load(family), batches.collate(samples)), atol=1e-5)
            with torch.no_grad(): assert torch.allclose(scoring.label_logits(net.merge_and_unload(), batches.collate(samples)), logits, atol=1e-4)
    for name, expected in grads[0].items(): assert (grads[1][name] - expected).norm() <= 1e-5*expected.norm() + 1e-9, name


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_learn_get_their_gradients(bias):
    from transformers import AutoModelForCausalLM
    net = AutoModelForCausalLM.from_config(model_.tiny_config("qwen3", len(TOKENIZER), attention_bias=True)).requires_grad_(False)
    net = model_.add_lora(net, LoraSettings(r=4, dropout=0.0, bias=bias)).train()
    scoring.label_loss(net, batches.collate(make_samples(problems(2))))[0].backward()
    biases = [p for n, p in net.named_parameters() if n.endswith("q_proj.base_layer.bias")]
    assert biases and all(p.requires_grad and p.grad is not None and p.grad.norm() > 0 for p in biases)


def test_full_weights_have_the_same_gradients():
    samples, grads = make_samples(problems()), []
    for layout in batches.LAYOUTS:
        net = load("llama").requires_grad_(True)
        scoring.label_loss(net, batches.collate(samples, layout, TOKENIZER.pad_token_id))[0].backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert all((g - grads[0]).norm() < 1e-4*grads[0].norm() for g in grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_order_company_and_budget_change_nothing(family):
    net, samples = load(family, lora=True).eval(), make_samples(problems(6))
    expected = None
    for layout, budget, order in [("shared", 4096, 0), ("shared", 500, 1), ("flat", 700, 2), ("padded", 900, 3), ("padded", 10**6, 0), ("shared", 10**6, 4)]:
        index = random.Random(order).sample(range(len(samples)), len(samples))
        logs = np.empty((len(samples), 2))
        logs[index] = scoring.label_log_probs(net, [samples[i] for i in index], LABELS, budget, layout, TOKENIZER.pad_token_id)
        p = scoring._from_logs(torch.from_numpy(logs))
        expected = expected or p
        for name in p._fields: assert (getattr(p, name) - getattr(expected, name)).abs().max() < 1e-5, (layout, name)


def test_padding_and_buckets_change_nothing():
    net, samples = load("gemma3"), make_samples(problems())
    long = make_samples([("x "*200, "1+1=2\n#### 2", 0)])
    with torch.no_grad():
        alone = scoring.probabilities(one_by_one(net, samples), *LABELS).p_flawed
        padded = scoring.probabilities(scoring.label_logits(net, batches.collate(samples + long, "padded", TOKENIZER.pad_token_id)), *LABELS).p_flawed[:-1]
        filled = scoring.probabilities(scoring.label_logits(net, batches.collate(samples, "shared", TOKENIZER.pad_token_id, bucket=256)), *LABELS).p_flawed
    assert batches.collate(samples, "shared", bucket=256)["input_ids"].shape[1] % 256 == 0
    assert (padded - alone).abs().max() < 1e-5 and (filled - alone).abs().max() < 1e-5


@pytest.mark.parametrize("n", [3, 64])
def test_rank_equals_scoring_each_alone(n):
    net = load("phi3", lora=True).eval()
    verifier = scoring.Verifier(net, TOKENIZER)
    question = "Ann has 3 bags of 4 apples and eats one. How many are left?"
    candidates = [f"3*4={12 + i % 7}\n{12 + i % 7}-1={11 + i}\n#### {11 + i}" for i in range(n)]
    ranked = verifier.rank(question, candidates)
    alone = pd_concat(verifier.score([question], [c]) for c in candidates)
    assert np.abs(ranked.p_flawed - alone.p_flawed).max() < 1e-5
    assert sorted(ranked["rank"]) == list(range(1, n + 1)) and ranked.p_flawed[ranked["rank"] == 1].item() == ranked.p_flawed.min()
    shared = batches.collate([verifier.sample(question, c) for c in candidates], "shared")["input_ids"].numel()
    assert shared < sum(len(verifier.sample(question, c)["input_ids"]) for c in candidates)/(1.5 if n == 3 else 5)


def pd_concat(frames):
    return pd.concat(list(frames), ignore_index=True)


def test_tree_reads_back_to_the_samples():
    "Random token lists with many coincidences: prefixes of each other, duplicates, single tokens."
    rng = random.Random(1)
    for _ in range(300):
        ids = [[rng.randint(0, 2) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 9))]
        least = rng.randint(1, 6)
        nodes, leaf = batches.plan_tree(ids, True, least)
        for x, l in zip(ids, leaf):
            path, depth = [], None
            while l >= 0:
                path, depth, l = nodes[l].ids + path, nodes[l].depth, nodes[l].parent
            assert path == x and depth == 0
        assert sum(len(n.ids) for n in nodes) <= sum(map(len, ids)) and all(n.ids for n in nodes)
        s = batches.Segments([len(n.ids) for n in nodes], [n.parent for n in nodes])
        starts = np.cumsum([0, *s.lengths])
        see = s.mask(None)
        for i, path in enumerate(s.paths):  # a token sees its ancestors and its own node's earlier tokens, nothing else
            for t in range(starts[i], starts[i+1]):
                assert see[t].nonzero().flatten().tolist() == [u for j in path for u in range(starts[j], starts[j+1]) if u <= t]
        if s.gather is not None:
            assert s.gather.tolist() == [u for path in s.paths for j in path for u in range(starts[j], starts[j+1])]


def test_common_beginning():
    rng = random.Random(2)
    for _ in range(500):
        a, b = ([rng.randint(0, 1) for _ in range(rng.randint(0, 9))] for _ in "ab")
        assert batches._common(a, b) == len(list(itertools.takewhile(lambda p: p[0] == p[1], zip(a, b))))


@pytest.mark.parametrize("layout", batches.LAYOUTS)
def test_batches_hold_every_row_once_and_keep_the_budget(layout):
    samples = make_samples(problems(12))
    for budget, seed in itertools.product((300, 1000, 5000), (None, 3)):
        cut = batches.batches(samples, budget, layout, seed)
        assert sorted(i for b in cut for i in b) == list(range(len(samples)))
        assert cut == batches.batches(samples, budget, layout, seed)
        for rows in cut:
            tokens = batches.collate([samples[i] for i in rows], layout)["input_ids"].numel()
            assert tokens <= budget or len(rows) == 1, (layout, budget, tokens, rows)
    if layout == "shared": assert all(len({samples[i]["group"] for i in b}) <= len(b)/2 for b in batches.batches(samples, 1000, layout))


def planted(right: bool):
    """A two-layer model that answers by a rule: a solution that holds '~' is flawed. Its weights are set, not trained: layer 0's attention averages
    an indicator of '~' over the context into one hidden direction, and the head turns that direction into the label's logit."""
    net = load("llama")
    mark, = TOKENIZER("~")["input_ids"]
    with torch.no_grad():
        for p in net.parameters(): p.zero_()
        for name, p in net.named_parameters():
            if "norm" in name: p.fill_(1.0)
        net.lm_head.weight = torch.nn.Parameter(torch.zeros_like(net.lm_head.weight))  # untied from the embedding
        embed = net.model.embed_tokens.weight
        embed[:, 1] = 1.0  # every token has some length, so that the norm is calm
        embed[mark, 0] = 1.0  # direction 0 says: this is the mark
        layer = net.model.layers[0].self_attn  # queries and keys are zero: attention is an even average over the context
        layer.v_proj.weight[0, 0] = 1.0
        layer.o_proj.weight[2, 0] = 1000.0  # direction 2 of the last token: how many marks were read
        sign = 1.0 if right else -1.0
        net.lm_head.weight[LABELS[1], 2], net.lm_head.weight[LABELS[0], 2] = sign, -sign
        net.lm_head.weight[LABELS[0], 1] = sign*0.5  # without a mark the answer is the other label
        net.lm_head.weight[LABELS[1], 1] = -sign*0.5
    return net


@pytest.mark.parametrize("layout", batches.LAYOUTS)
def test_planted_model_that_always_knows_and_one_that_is_always_wrong(layout):
    rows = [(q, s + (" ~" if y else ""), y) for q, s, y in problems(8)]
    for right in (True, False):
        verifier = scoring.Verifier(planted(right), TOKENIZER, layout=layout)
        out = verifier.score([q for q, _, _ in rows], [s for _, s, _ in rows])
        accuracy = ((out.verdict == "flawed") == [y == 1 for _, _, y in rows]).mean()
        assert accuracy == (1.0 if right else 0.0)


def test_logits_memory_does_not_depend_on_length():
    net, sizes = load("llama"), []
    hook = net.lm_head.register_forward_hook(lambda m, i, o: sizes.append((tuple(i[0].shape), tuple(o.shape))))
    for words in (5, 100):
        samples = make_samples([("word "*words, "1+1=2", 0), ("word "*words, "1+1=3", 1)])
        for layout in batches.LAYOUTS: scoring.label_logits(net, batches.collate(samples, layout, TOKENIZER.pad_token_id))
    hook.remove()
    assert len(sizes) == 6 and all(np.prod(o) == 2*net.config.vocab_size for _, o in sizes)


def test_score_streams_in_constant_memory_and_keeps_order():
    verifier, seen = scoring.Verifier(load("llama"), TOKENIZER), []

    def endless():
        for i in itertools.count():
            seen.append(i)
            yield f"problem {i % 7}", f"{i % 5}+1={i % 5 + 1}"

    stream = verifier.stream(endless(), window=8)
    first, second = next(stream), next(stream)
    assert len(first) == len(second) == 8 and len(seen) <= 24  # one window ahead at most
    expected = verifier.score((f"problem {i % 7}" for i in range(16)), (f"{i % 5}+1={i % 5 + 1}" for i in range(16)))
    assert np.abs(pd_concat([first, second]).p_flawed - expected.p_flawed).max() < 1e-5


def test_out_of_memory_halves_the_budget_and_repeats(monkeypatch):
    net, samples = load("llama"), make_samples(problems(6))
    expected = scoring.label_log_probs(net, samples, LABELS, 4096, "shared")
    real = scoring.label_logits

    def small_gpu(model, batch):
        if batch["input_ids"].numel() > 500: raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch)

    monkeypatch.setattr(scoring, "label_logits", small_gpu)
    budget = scoring.Budget(4096)
    got = scoring.label_log_probs(net, samples, LABELS, budget, "shared")
    assert np.abs(got - expected).max() < 1e-4 and budget.tokens < 4096 and budget.halved > 0
    monkeypatch.setattr(scoring, "label_logits", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(VerifierError, match="one sample alone"): scoring.label_log_probs(net, samples, LABELS, 4096, "shared")


@pytest.mark.parametrize("layout", batches.LAYOUTS)
def test_out_of_memory_in_the_middle_loses_and_mixes_nothing(layout, monkeypatch):
    "The second batch does not fit: what was scored before stays, the rest is cut anew, and every row gets its own numbers."
    net, samples = load("llama"), make_samples([("Count. "*i, f"{i}+{i}={i + i}", 0) for i in range(1, 12)])  # short ones first; long ones are scored first
    expected = scoring.label_log_softmax(one_by_one(net, samples), *LABELS).detach().numpy()
    assert np.abs(np.diff(expected, axis=0)).max(1).min() > 0.01  # no row could be taken for its neighbour
    real, asked = scoring.label_logits, []

    def breaks_once(model, batch):
        asked.append(batch["input_ids"].numel())
        if len(asked) == 2: raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch)

    monkeypatch.setattr(scoring, "label_logits", breaks_once)
    budget = scoring.Budget(800)
    got = scoring.label_log_probs(net, samples, LABELS, budget, layout, TOKENIZER.pad_token_id)
    assert np.abs(got - expected).max() < 1e-4
    assert (budget.tokens, budget.halved) == (400, 1) and max(asked[2:]) <= 400


def test_models_that_cannot_be_flat_are_named_and_padded():
    from transformers import AutoConfig, AutoModelForCausalLM
    cfg = model_.tiny_config("gemma3", 300, attn_logit_softcapping=30.0)
    net = AutoModelForCausalLM.from_config(cfg)
    assert "caps" in attention.why_not_flat(net) and attention.pick_layout(net) == "padded"
    with pytest.raises(VerifierError, match="cannot take the layout shared"): attention.pick_layout(net, "shared")
    eager = load("llama", attention="eager")
    assert attention.pick_layout(eager) == "padded"
    assert attention.pick_layout(load("llama")) == "shared"


def test_trained_adapter_is_read_back_with_its_calibration(tmp_path):
    net = load("llama", lora=True).eval()
    net.save_pretrained(tmp_path/"adapter")
    (tmp_path/"adapter"/"calibration.json").write_text('{"temperature": 2.0, "threshold": 0.7}')
    here = scoring.Verifier(net, TOKENIZER).score(["p"], ["1+1=3"])
    there = scoring.Verifier.from_pretrained(str(tmp_path/"adapter"), device="cpu")
    out = there.score(["p"], ["1+1=3"])
    assert (there.temperature, there.threshold) == (2.0, 0.7) and abs(out.p_flawed[0] - here.p_flawed[0]) < 1e-6
    odds = np.log(out.p_flawed/(1 - out.p_flawed))
    assert np.allclose(out.p_calibrated, 1/(1 + np.exp(-odds/2)))
    (tmp_path/"adapter"/"calibration.json").write_text('{"temperature": 2.0, "bias": -0.5, "threshold": 0.7}')
    leaning = scoring.Verifier.from_pretrained(str(tmp_path/"adapter"), device="cpu").score(["p"], ["1+1=3"])
    assert np.allclose(leaning.p_calibrated, 1/(1 + np.exp(-odds/2 + 0.5)))


def test_attention_of_ordinary_use_is_unchanged():
    "After the engine has prepared a model, plain calls and generation give what they gave before."
    for family in FAMILIES:
        net, ids = load(family), torch.tensor([make_samples(problems(1))[0]["input_ids"]])
        with torch.no_grad(): before = net(input_ids=ids).logits
        said = net.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
        scoring.label_logits(net, batches.collate(make_samples(problems(1))))
        assert net.config._attn_implementation == attention.ATTENTION
        with torch.no_grad(): assert torch.allclose(net(input_ids=ids).logits, before, atol=1e-5)
        assert torch.equal(net.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0), said)


# the tree of shared beginnings, batches and budgets, by hand

ONES, TWOS = [1]*10, [2]*10
FAMILY = [{"input_ids": ONES + TWOS + [3]*6}, {"input_ids": ONES + [5]*16}, {"input_ids": ONES + TWOS + [4]*9}]


def test_the_tree_of_three_samples_by_hand():
    nodes, leaf = batches.plan_tree([s["input_ids"] for s in FAMILY])
    assert [(n.ids, n.parent, n.depth) for n in nodes] == [(ONES, -1, 0), (TWOS, 0, 10), ([3]*6, 1, 20), ([4]*9, 1, 20), ([5]*16, 0, 10)]
    assert leaf == [2, 4, 3]
    batch = batches.collate(FAMILY, "shared")
    assert batch["input_ids"].tolist() == [ONES + TWOS + [3]*6 + [4]*9 + [5]*16]
    assert batch["position_ids"].tolist() == [[*range(20), *range(20, 26), *range(20, 29), *range(10, 26)]]
    assert batch["label_positions"].tolist() == [25, 50, 34]
    segments = batch["segments"]
    assert (segments.keys, segments.max_q, segments.max_k) == ((10, 20, 26, 29, 26), 16, 29)
    assert segments.last.tolist() == [51]*10 + [35]*10 + [26]*6 + [35]*9 + [51]*16  # the end of the subtree that may see a token
    assert segments.cu_q.tolist() == [0, 10, 20, 26, 35, 51] and segments.cu_k.tolist() == [0, 10, 30, 56, 85, 111]


@pytest.mark.parametrize("common, nodes", [(7, [10, 10]), (8, [8, 2, 2]), (9, [9, 1, 1])])
def test_a_beginning_is_shared_from_eight_tokens_on(common, nodes):
    ids = [[1]*common + [last]*(10 - common) for last in (2, 3)]
    assert [len(n.ids) for n in batches.plan_tree(ids)[0]] == nodes
    assert [len(n.ids) for n in batches.plan_tree(ids, least=common)[0]] == [common, 10 - common, 10 - common]
    assert [len(n.ids) for n in batches.plan_tree(ids, share=False)[0]] == [10, 10]


def test_one_sample_that_begins_another_and_one_that_repeats_it():
    nodes, leaf = batches.plan_tree([ONES + TWOS, ONES, ONES + TWOS])
    assert [n.ids for n in nodes] == [ONES, TWOS] and leaf == [1, 0, 1]


def test_a_window_counts_positions_and_not_places():
    "In the tree a node's parent may lie far before it; its positions go on where the parent's end."
    batch = batches.collate(FAMILY, "shared")
    segments, positions = batch["segments"], batch["position_ids"][0]
    see = segments.mask(positions, window=3)
    assert see[35].nonzero().flatten().tolist() == [8, 9, 35]  # the first 5 stands at position 10, after the tenth 1
    assert see[26].nonzero().flatten().tolist() == [18, 19, 26]  # the first 4 at position 20
    assert see[1].nonzero().flatten().tolist() == [0, 1] and see[50].nonzero().flatten().tolist() == [48, 49, 50]


def test_padding_stands_on_the_left_and_is_masked():
    batch = batches.collate([{"input_ids": [7, 8, 9], "label_id": 4}, {"input_ids": [5], "label_id": 3}], "padded", pad_id=6)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [6, 6, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch["targets"].tolist() == [4, 3]


def test_a_bucket_is_filled_up_behind_everything():
    samples = [{"input_ids": [7]*30}, {"input_ids": [8]*20}]
    batch = batches.collate(samples, "flat", pad_id=6, bucket=16)
    assert batch["input_ids"].tolist() == [[7]*30 + [8]*20 + [6]*14] and batch["label_positions"].tolist() == [29, 49]
    whole = batches.collate(samples, "flat", pad_id=6, bucket=25)
    assert whole["input_ids"].shape == (1, 50) and len(whole["segments"].lengths) == 2


def of_lengths(*lengths, groups=None):
    "Samples that share nothing."
    return [{"input_ids": [100*i + t for t in range(n)], **({"group": groups[i]} if groups else {})} for i, n in enumerate(lengths)]


@pytest.mark.parametrize("layout, budget, expected", [
    ("flat", 8, [[1], [3, 2], [0, 4]]), ("flat", 9, [[1, 3], [2, 0, 4]]), ("flat", 7, [[1], [3, 2], [0, 4]]),
    ("padded", 8, [[1], [3, 2], [0, 4]]), ("padded", 7, [[1], [3], [2, 0], [4]]), ("padded", 12, [[1, 3], [2, 0, 4]]),
    ("shared", 8, [[1], [3, 2], [0, 4]]), ("flat", 3, [[1], [3], [2], [0, 4]]), ("padded", 100, [[1, 3, 2, 0, 4]])])
def test_batches_by_hand(layout, budget, expected):
    "Long ones first, each batch as full as it gets; a sample longer than the budget stands alone."
    assert batches.batches(of_lengths(2, 5, 3, 4, 1), budget, layout) == expected


def test_groups_stay_together_where_they_can_share():
    samples = of_lengths(4, 3, 4, 3, 2, groups="abbac")
    assert batches.batches(samples, 8, "shared") == [[0, 3], [1, 2], [4]]
    assert batches.batches(samples, 8, "flat") == [[0, 2], [1, 3, 4]]
    shuffled = {str(batches.batches(samples, 8, "shared", seed)) for seed in range(8)}
    assert len(shuffled) > 1 and all("[0, 3]" in cut and "[1, 2]" in cut for cut in shuffled)


def test_what_a_group_costs_is_what_its_tree_holds():
    ids = [s["input_ids"] for s in FAMILY]
    assert batches._unit_cost(ids, "shared") == 10 + 10 + 6 + 9 + 16
    alike = [ONES + [0]*5, *ids]  # it comes first, and shares less with the others than they do with each other
    assert batches._unit_cost(alike, "shared") == batches._unit_cost(alike[::-1], "shared") == 5 + 10 + 10 + 6 + 9 + 16
    assert batches._unit_cost(ids, "flat") == batches._unit_cost(ids, "padded") == 26 + 26 + 29
    rows = [{**s, "group": "same"} for s in FAMILY]
    assert batches.batches(rows, 51, "shared") == [[0, 1, 2]]
    assert batches.batches(rows, 50, "shared") == [[0], [2, 1]]  # in the tree's order


def test_a_group_larger_than_a_batch_is_cut_where_it_shares_least():
    beginnings = [ONES, TWOS, [3]*10, [4]*10]
    samples = [{"input_ids": beginnings[i % 4] + [50 + i], "group": "one"} for i in range(8)]  # rows 0 and 4, 1 and 5, … begin alike
    cut = batches.batches(samples, 12, "shared")
    assert sorted(sorted(b) for b in cut) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_gradients_of_a_beginning_are_summed_in_float32():
    "A thousand samples that share a token each give it a gradient; in bfloat16 the sum would stop growing at 256."
    x = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    attention._Gather.apply(x, torch.tensor([0]*1000 + [1])).sum().backward()
    assert x.grad.tolist() == [[1000.0], [1.0]] and x.grad.dtype == torch.bfloat16


def test_logits_at_any_positions():
    "Of each sample, in the order asked for; a position in a shared beginning too."
    net = load("gemma3")
    samples = [{"input_ids": [t + 40 for t in s["input_ids"]]} for s in FAMILY] + [{"input_ids": [41]*10}]
    wanted = [[3, 25], [9, 10, 0], [28, 19], [9]]
    with torch.no_grad():
        expected = torch.cat([net(input_ids=torch.tensor([s["input_ids"]])).logits[0, at] for s, at in zip(samples, wanted)])
        for layout in ("flat", "shared"): assert torch.allclose(scoring.logits_at(net, samples, wanted, layout), expected, atol=1e-4)


# from logits to a verdict

def test_probabilities_by_hand():
    "Over the whole vocabulary, of which the labels are two tokens."
    p = torch.tensor([[.1, .2, .3, .4], [.5, .25, .125, .125]])
    logits = p.log() + torch.tensor([[5.0], [-7.0]])  # a constant changes nothing
    found = scoring.probabilities(logits, 3, 1)
    assert torch.allclose(found.prob_0, p[:, 3].double()) and torch.allclose(found.prob_1, p[:, 1].double(), atol=1e-6)
    assert torch.allclose(found.label_mass, torch.tensor([.6, .375]).double(), atol=1e-6)
    assert torch.allclose(found.p_flawed, torch.tensor([2/6, 2/3]).double(), atol=1e-6)


def test_the_loss_is_divided_by_the_samples_of_the_step():
    net, samples = load("llama"), make_samples(problems(2))
    with torch.no_grad(): logits = one_by_one(net, samples)
    by_hand = F.cross_entropy(logits, torch.tensor([s["label_id"] for s in samples]), reduction="sum").item()
    with torch.no_grad(): alone, part = (scoring.label_loss(net, batches.collate(samples), n)[0].item() for n in (None, 10))
    assert alone == pytest.approx(by_hand/len(samples), abs=1e-5) and part == pytest.approx(by_hand/10, abs=1e-5)


@pytest.fixture(scope="module")
def plain(): return load("llama")


def odds_of(p): return np.log(np.asarray(p)/(1 - np.asarray(p)))


def test_calibration_by_hand(plain):
    verifier = scoring.Verifier(plain, TOKENIZER, temperature=2.0, bias=0.5)
    assert np.allclose(odds_of(verifier.calibrate([-3.0, 0.0, 4.0])), [-1.0, 0.5, 2.5])
    curve = {"x": [0.0, 0.5, 1.0], "y": [0.1, 0.2, 0.8]}
    rising = scoring.Verifier(plain, TOKENIZER, isotonic=curve)
    assert np.allclose(rising.calibrate(odds_of([0.25, 0.5, 0.75])), [0.15, 0.2, 0.5])
    assert verifier.calibrate(np.array([-1e9, 1e9])).tolist() == pytest.approx([0.0, 1.0])


def test_a_solution_exactly_at_the_threshold_is_flawed(plain):
    logs = np.log([[.6, .2], [.2, .2], [.1, .3]])
    for threshold, expected in ((0.5, ["correct", "flawed", "flawed"]), (0.25, ["flawed"]*3), (0.75, ["correct", "correct", "flawed"]), (0.76, ["correct"]*3)):
        verifier = scoring.Verifier(plain, TOKENIZER, threshold=threshold)
        verifier.calibrate = lambda odds: (1/(1 + np.exp(-odds))).round(12)  # exact quarters
        assert verifier._frame(scoring.Scores(logs, [])).verdict.tolist() == expected


def test_the_threshold_is_compared_with_the_calibrated_probability(plain):
    frame = scoring.Verifier(plain, TOKENIZER, bias=-2.0)._frame(scoring.Scores(np.log([[.2, .6], [.01, .9]]), []))
    assert np.allclose(odds_of(frame.p_calibrated), np.log([3, 90]) - 2) and frame.verdict.tolist() == ["correct", "flawed"]
    assert np.allclose(frame[["prob_0", "prob_1", "label_mass", "p_flawed"]], [[.2, .6, .8, .75], [.01, .9, .91, 90/91]])


def test_the_best_solution_ranks_first_and_ties_keep_their_order(plain):
    verifier = scoring.Verifier(planted(right=True), TOKENIZER)
    ranked = verifier.rank("2 + 2?", ["2+2=5 ~~", "2+2=4", "2+2=4", "2+2=5 ~"])
    assert ranked["rank"].tolist() in ([3, 1, 2, 4], [4, 1, 2, 3]) and list(ranked.index) == [0, 1, 2, 3]
    assert verifier.rank("2 + 2?", []).empty


def test_a_question_is_shortened_and_a_solution_never(plain):
    verifier = scoring.Verifier(plain, TOKENIZER, max_length=300)
    assert len(verifier.sample("How many? "*200, "1+1=2")["input_ids"]) <= 299
    assert verifier.fits("How many? "*200, "1+1=2") and not verifier.fits("How many?", "1+1=2 "*100)
    with pytest.raises(VerifierError, match="does not fit into 300 tokens"): verifier.sample("How many?", "1+1=2 "*100)
    marked = scoring.Verifier(plain, TOKENIZER, marks=True).sample("q", "1+1=3")["input_ids"]
    assert marked == prompt.encode(TOKENIZER, "q", "1+1=3", 1024, marks=True)["input_ids"] != scoring.Verifier(plain, TOKENIZER).sample("q", "1+1=3")["input_ids"]


def test_scoring_leaves_the_model_as_it_was(plain):
    "Training goes on after a validation: the mode is the one of before, and no gradient was kept."
    samples = make_samples(problems(1))
    for mode in (True, False):
        logs = scoring.label_log_probs(plain.train(mode), samples, LABELS)
        assert plain.training is mode and logs.dtype == np.float64
    net = load("llama", lora=True).train()
    layer = kernels.decoder_layers(net)[0]
    modes = []
    hook = layer.register_forward_hook(lambda m, i, o: modes.append((m.training, torch.is_grad_enabled())))
    scoring.label_log_probs(net, samples, LABELS)
    hook.remove()
    assert set(modes) == {(False, False)}


def test_a_budget_halves_to_a_limit_and_is_remembered(plain, monkeypatch):
    budget = scoring.Budget(300)
    tokens = []
    for _ in range(4):
        budget.halve(rows=2)
        tokens.append(budget.tokens)
    assert tokens == [150, 75, 64, 64] and budget.halved == 4
    real, broken = scoring.label_logits, []

    def small_gpu(net, batch):
        if batch["input_ids"].numel() > 900:
            broken.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(net, batch)

    monkeypatch.setattr(scoring, "label_logits", small_gpu)
    verifier = scoring.Verifier(plain, TOKENIZER, layout="flat")
    questions, solutions = [q for q, *_ in problems(4)], [s for _, s, _ in problems(4)]
    first = verifier.score(questions, solutions, progress=False)
    before = len(broken)
    second = verifier.score(questions, solutions, progress=False)
    assert len(broken) == before > 0, "the second call runs out of memory again"
    assert np.allclose(first.p_flawed, second.p_flawed, atol=1e-6)


def saved_adapter(folder, **lora):
    "An adapter that says something, and its model."
    torch.manual_seed(5)
    net = model_.add_lora(load("llama"), LoraSettings(**{"r": 4, "alpha": 6.0, "dropout": 0.0, **lora}))
    for name, p in net.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)
    net.save_pretrained(folder)
    return net.eval()


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_a_folded_adapter_is_the_adapter(tmp_path, rank_stabilised):
    import json
    net, samples = saved_adapter(tmp_path), make_samples(problems(1))
    if rank_stabilised:
        said = json.loads((tmp_path/"adapter_config.json").read_text())
        (tmp_path/"adapter_config.json").write_text(json.dumps({**said, "use_rslora": True}))
        net = model_.load_adapter(load("llama"), tmp_path).eval()
    folded, base = load("llama"), load("llama")
    assert scoring.fold(folded, tmp_path)
    with torch.no_grad():
        expected, without, here = (one_by_one(m, samples) for m in (net, base, folded))
        assert torch.allclose(here, expected, atol=1e-4) and not torch.allclose(here, without, atol=1e-2)
        with pytest.raises(KeyError), scoring.without_adapter(folded):
            assert torch.equal(one_by_one(folded, samples), without)
            raise KeyError("in the middle")
        assert torch.equal(one_by_one(folded, samples), here), "the adapter is back, whatever happened"


@pytest.mark.parametrize("why", ["not plain", "other shape", "a matrix is missing", "too large", "16 bits"])
def test_what_cannot_be_folded_is_left_alone(tmp_path, monkeypatch, why):
    import json
    from safetensors.torch import load_file, save_file
    saved_adapter(tmp_path)
    config, file = tmp_path/"adapter_config.json", tmp_path/"adapter_model.safetensors"
    net, parts = load("llama"), load_file(file)
    if why == "not plain": config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    if why == "other shape": save_file({k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in parts.items()}, file)
    if why == "a matrix is missing": save_file({k: v for k, v in parts.items() if "layers.1.mlp.up_proj" not in k}, file)
    if why == "too large": monkeypatch.setattr(loading, "FOLD_LIMIT", 1000)
    if why == "16 bits": net = net.bfloat16()
    before = [p.clone() for p in net.parameters()]
    assert not scoring.fold(net, tmp_path) and all(map(torch.equal, before, net.parameters()))
    with scoring.without_adapter(net): assert all(map(torch.equal, before, net.parameters())), "there is nothing to swap"


def test_calibration_is_read_from_the_first_folder_that_has_one(tmp_path):
    for name in "bc":
        (tmp_path/name).mkdir()
        (tmp_path/name/"calibration.json").write_text(f'{{"temperature": 1.5, "threshold": 0.{"abc".index(name)}}}')
    assert scoring.read_calibration(None, tmp_path/"a", tmp_path/"b", tmp_path/"c")["threshold"] == 0.1
    assert scoring.read_calibration(tmp_path/"a") == {} == scoring.read_calibration(None)


def test_what_is_given_beats_what_the_adapter_says(tmp_path):
    saved_adapter(tmp_path)
    (tmp_path/"calibration.json").write_text('{"temperature": 2.0, "bias": 0.25, "threshold": 0.7, "marks": true, "max_length": 600, "n": 99}')
    read = scoring.Verifier.from_pretrained(str(tmp_path), device="cpu")
    assert (read.temperature, read.bias, read.threshold, read.marks, read.max_length, read.calibration["n"]) == (2.0, 0.25, 0.7, True, 600, 99)
    given = scoring.Verifier.from_pretrained(str(tmp_path), device="cpu", threshold=0.4, max_length=500)
    assert (given.temperature, given.threshold, given.max_length, given.calibration["threshold"]) == (2.0, 0.4, 500, 0.4)
    apart = scoring.Verifier.from_pretrained("tiny:llama", tmp_path, device="cpu")
    assert np.allclose(apart.score(["p"], ["1+1=3"]).p_flawed, read.score(["p"], ["1+1=3"]).p_flawed)


def test_models_that_do_more_than_our_attention_are_named():
    from transformers import AutoModelForCausalLM
    net = load("llama")
    assert attention.why_not_flat(net) == "" == attention.why_not_flat(load("gemma3"))  # windows are no obstacle
    chunked = AutoModelForCausalLM.from_config(model_.tiny_config("qwen3", 300))
    chunked.config.layer_types = ["full_attention", "chunked_attention"]
    assert attention.why_not_flat(chunked) == "it has layers of the kind chunked_attention"
    net.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    assert "sinks" in attention.why_not_flat(net) and attention.pick_layout(net, "padded") == "padded"


def test_only_compiled_models_fill_buckets():
    net = load("llama")
    assert batches.bucket_of(net) is None and kernels.why_not_compiled(net) == "not asked for"
    kernels.note_engine(net, compile=True)
    assert kernels.why_not_compiled(net) == "there is no CUDA GPU" and batches.bucket_of(net) is None
    kernels.note_engine(net, compiled=True)
    assert batches.bucket_of(net) == 128


def test_the_flat_layout_shares_nothing():
    segments = batches.collate(FAMILY, "flat")["segments"]
    assert segments.lengths == (26, 26, 29) and not segments.shared and segments.gather is None
    assert batches.collate(FAMILY, "shared", least=15)["segments"].lengths == (20, 6, 9, 26)  # ten tokens are too few
