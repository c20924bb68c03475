"""The engine's exactness, on CPU in float32, for each family: whatever the layout, kernel, order or company, the numbers are those of one sample alone."""
import itertools, random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from verifier_nb import data, model, scoring
from verifier_nb.config import LoraSettings, ModelSettings
from verifier_nb.setup import VerifierError

FAMILIES = model.TINY
TOKENIZER = data.load_tokenizer("tiny:llama")
LABELS = data.label_ids(TOKENIZER)


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
    return [{"input_ids": data.encode(TOKENIZER, q, s, max_length=2048)["input_ids"], "label_id": LABELS[y], "group": q} for q, s, y in rows]


def load(family, lora=False, **changes):
    net = model.load_base(ModelSettings(base=f"tiny:{family}", dtype="float32", device="cpu", **changes))
    if not lora: return net
    torch.manual_seed(3)
    net = model.add_lora(net, LoraSettings(r=4, dropout=0.0))
    for name, p in net.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)
    return net


def one_by_one(net, samples):
    return torch.cat([net(input_ids=torch.tensor([s["input_ids"]]), logits_to_keep=1).logits[:, -1] for s in samples])


def dense_varlen(q, k, v, s, scale, window):
    "What a variable-length kernel computes, from its own index lists: causal masks aligned at the end of the keys."
    out, groups = [], q.shape[1]//k.shape[1]
    for i in range(len(s.cu_q) - 1):
        (a, b), (c, d) = s.cu_q[i:i+2].tolist(), s.cu_k[i:i+2].tolist()
        n, m = b - a, d - c
        behind = torch.arange(m - n, m)[:, None] - torch.arange(m)[None]
        mask = (behind >= 0) & (behind < (window or m))
        kk, vv = (x[c:d].repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
        out.append(F.scaled_dot_product_attention(q[a:b].transpose(0, 1), kk, vv, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture(params=["sdpa", "varlen", "flex"])
def kernel(request, monkeypatch):
    "Each way of attention, run on the CPU in float32: GPU kernels are replaced by what they are documented to compute."
    real = scoring.prepare
    monkeypatch.setattr(scoring, "prepare", lambda net: (real(net), request.param)[1])
    if request.param == "varlen":
        monkeypatch.setattr(scoring, "_varlen_function", lambda kernel: dense_varlen)
        monkeypatch.setattr(scoring, "_half", lambda dtype: dtype)
    if request.param == "flex":
        from torch.nn.attention.flex_attention import flex_attention
        monkeypatch.setattr(scoring, "_compiled_flex", lambda: flex_attention)
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", scoring.LAYOUTS)
def test_logits_equal_one_by_one(family, layout, kernel):
    net, samples = load(family), make_samples(problems())
    with torch.no_grad():
        expected = one_by_one(net, samples)
        got = scoring.label_logits(net, scoring.collate(samples, layout, TOKENIZER.pad_token_id))
    assert got.shape == (len(samples), expected.shape[1])
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_gradients_equal_one_by_one(family, checkpointing):
    samples, grads = make_samples(problems()), {}
    for way in ("alone", *scoring.LAYOUTS):
        net = load(family, lora=True)
        if checkpointing and way != "alone": net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        net.train()
        if way == "alone":
            targets = torch.tensor([s["label_id"] for s in samples])
            loss = F.cross_entropy(one_by_one(net, samples), targets)
        else: loss, _ = scoring.label_loss(net, scoring.collate(samples, way, TOKENIZER.pad_token_id))
        loss.backward()
        grads[way] = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
    assert all(g is not None and g.norm() > 0 for n, g in grads["alone"].items())
    for way in scoring.LAYOUTS:
        for name, expected in grads["alone"].items():
            assert (grads[way][name] - expected).norm() <= 1e-4*expected.norm() + 1e-9, (way, name)


def test_gradients_through_the_varlen_index_lists(kernel):
    "The gather's backward pass sums what each shared token receives."
    if kernel == "flex": pytest.skip("FlexAttention has no backward pass on the CPU")
    samples, grads = make_samples(problems()), []
    for layout in ("flat", "shared"):
        net = load("qwen3", lora=True)
        scoring.label_loss(net, scoring.collate(samples, layout))[0].backward()
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
        assert not fused or model.fuse_lora(net) == sum(hasattr(m, "lora_A") for m in net.modules()) > 0
        loss, logits = scoring.label_loss(net.train(), scoring.collate(samples))
        loss.backward()
        grads.append({"logits": logits, **{n: p.grad for n, p in net.named_parameters() if p.requires_grad}})
        if fused:  # switching off and merging are still peft's
            with torch.no_grad(), net.disable_adapter(): off = scoring.label_logits(net, scoring.collate(samples))
            assert torch.allclose(off, scoring.label_logits(load(family), scoring.collate(samples)), atol=1e-5)
            with torch.no_grad(): assert torch.allclose(scoring.label_logits(net.merge_and_unload(), scoring.collate(samples)), logits, atol=1e-4)
    for name, expected in grads[0].items(): assert (grads[1][name] - expected).norm() <= 1e-5*expected.norm() + 1e-9, name


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_learn_get_their_gradients(bias):
    from transformers import AutoModelForCausalLM
    net = AutoModelForCausalLM.from_config(model.tiny_config("qwen3", len(TOKENIZER), attention_bias=True)).requires_grad_(False)
    net = model.add_lora(net, LoraSettings(r=4, dropout=0.0, bias=bias)).train()
    scoring.label_loss(net, scoring.collate(make_samples(problems(2))))[0].backward()
    biases = [p for n, p in net.named_parameters() if n.endswith("q_proj.base_layer.bias")]
    assert biases and all(p.requires_grad and p.grad is not None and p.grad.norm() > 0 for p in biases)


def test_full_weights_have_the_same_gradients():
    samples, grads = make_samples(problems()), []
    for layout in scoring.LAYOUTS:
        net = load("llama").requires_grad_(True)
        scoring.label_loss(net, scoring.collate(samples, layout, TOKENIZER.pad_token_id))[0].backward()
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
        padded = scoring.probabilities(scoring.label_logits(net, scoring.collate(samples + long, "padded", TOKENIZER.pad_token_id)), *LABELS).p_flawed[:-1]
        filled = scoring.probabilities(scoring.label_logits(net, scoring.collate(samples, "shared", TOKENIZER.pad_token_id, bucket=256)), *LABELS).p_flawed
    assert scoring.collate(samples, "shared", bucket=256)["input_ids"].shape[1] % 256 == 0
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
    shared = scoring.collate([verifier.sample(question, c) for c in candidates], "shared")["input_ids"].numel()
    assert shared < sum(len(verifier.sample(question, c)["input_ids"]) for c in candidates)/(1.5 if n == 3 else 5)


def pd_concat(frames):
    import pandas as pd
    return pd.concat(list(frames), ignore_index=True)


def test_tree_reads_back_to_the_samples():
    "Random token lists with many coincidences: prefixes of each other, duplicates, single tokens."
    rng = random.Random(1)
    for _ in range(300):
        ids = [[rng.randint(0, 2) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 9))]
        least = rng.randint(1, 6)
        nodes, leaf = scoring.plan(ids, True, least)
        for x, l in zip(ids, leaf):
            path, depth = [], None
            while l >= 0:
                path, depth, l = nodes[l].ids + path, nodes[l].depth, nodes[l].parent
            assert path == x and depth == 0
        assert sum(len(n.ids) for n in nodes) <= sum(map(len, ids)) and all(n.ids for n in nodes)
        s = scoring.Segments([len(n.ids) for n in nodes], [n.parent for n in nodes])
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
        assert scoring._common(a, b) == len(list(itertools.takewhile(lambda p: p[0] == p[1], zip(a, b))))


@pytest.mark.parametrize("layout", scoring.LAYOUTS)
def test_batches_hold_every_row_once_and_keep_the_budget(layout):
    samples = make_samples(problems(12))
    for budget, seed in itertools.product((300, 1000, 5000), (None, 3)):
        cut = scoring.batches(samples, budget, layout, seed)
        assert sorted(i for b in cut for i in b) == list(range(len(samples)))
        assert cut == scoring.batches(samples, budget, layout, seed)
        for rows in cut:
            tokens = scoring.collate([samples[i] for i in rows], layout)["input_ids"].numel()
            assert tokens <= budget or len(rows) == 1, (layout, budget, tokens, rows)
    if layout == "shared": assert all(len({samples[i]["group"] for i in b}) <= len(b)/2 for b in scoring.batches(samples, 1000, layout))


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


@pytest.mark.parametrize("layout", scoring.LAYOUTS)
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
        for layout in scoring.LAYOUTS: scoring.label_logits(net, scoring.collate(samples, layout, TOKENIZER.pad_token_id))
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


def test_models_that_cannot_be_flat_are_named_and_padded():
    from transformers import AutoConfig, AutoModelForCausalLM
    cfg = model.tiny_config("gemma3", 300, attn_logit_softcapping=30.0)
    net = AutoModelForCausalLM.from_config(cfg)
    assert "caps" in scoring.why_not_flat(net) and scoring.pick_layout(net) == "padded"
    with pytest.raises(VerifierError, match="cannot take the layout shared"): scoring.pick_layout(net, "shared")
    eager = load("llama", attention="eager")
    assert scoring.pick_layout(eager) == "padded"
    assert scoring.pick_layout(load("llama")) == "shared"


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
        scoring.label_logits(net, scoring.collate(make_samples(problems(1))))
        assert net.config._attn_implementation == scoring.ATTENTION
        with torch.no_grad(): assert torch.allclose(net(input_ids=ids).logits, before, atol=1e-5)
        assert torch.equal(net.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0), said)
