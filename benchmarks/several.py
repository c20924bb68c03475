"""Training and scoring on several GPUs of one machine: speed, loss sequences, memory, a killed process, FSDP2.

    python benchmarks/several.py base /tmp/phi4-mini-shape                # random weights in Phi-4-mini's shape, made on the GPU, and rows of level-1's lengths
    python benchmarks/several.py run --base /tmp/phi4-mini-shape -o benchmarks/results/h100-x2.json --minutes 9

Each measurement is a run of its own, started as `verifier-nb run … --processes N` starts its training stage: the same launcher, trainer and engine.
A result is written as soon as it is there. Steps are timed by a callback after `torch.cuda.synchronize`; the first three are left out."""
import argparse, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
PHI4_MINI = dict(family="phi3", vocab_size=200_064, hidden_size=3072, num_hidden_layers=32, num_attention_heads=24, num_key_value_heads=8, intermediate_size=8192,
                 max_position_embeddings=4096, partial_rotary_factor=0.75, tie_word_embeddings=True)
TINY = {**PHI4_MINI, "vocab_size": 300, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 192}


# ---------------------------------------------------------------- what is measured on

def write_rows(path, problems=2400, seed=0):
    "Pairs whose prompts have level-1's lengths with Phi-4-mini's tokenizer (mean 228 tokens), in a tokenizer of one token a letter."
    import numpy as np, pandas as pd
    rng = np.random.default_rng(seed)
    text = lambda n: "".join(rng.choice(list("abcdefgh 123+="), max(int(n), 8)))
    rows = []
    for i in range(problems):
        question, solution = text(rng.gamma(8, 4)), text(rng.gamma(6, 7))
        cut = int(len(solution)*rng.uniform(0.1, 0.9))
        rows += [dict(index=str(i), question=f"{i} {question}", solution=s, label=label)
                 for label, s in enumerate((solution, solution[:cut] + text(len(solution) - cut)))]
    pd.DataFrame(rows).to_csv(path, index=False)


def write_base(folder, shape):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from verifier_nb.prompt import tiny_tokenizer
    folder, device = Path(folder), "cuda" if torch.cuda.is_available() else "cpu"
    settings = dict(PHI4_MINI if shape == "phi4-mini" else TINY)
    cfg = AutoConfig.for_model(settings.pop("family"), **settings, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    torch.manual_seed(0)
    start = time.time()
    with torch.device(device): net = AutoModelForCausalLM.from_config(cfg, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    net.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_rows(folder/"rows.csv")
    print(f"{sum(p.numel() for p in net.parameters())/1e9:.2f} billion random weights and rows in {time.time()-start:.0f} s: {folder}")


# ---------------------------------------------------------------- in a worker

def train_timed(run):
    "The training stage, with the time of each step; the first process writes what it saw."
    import torch
    from transformers import TrainerCallback
    from verifier_nb import parallel, setup, training

    class Clock(TrainerCallback):
        def __init__(self): self.times = []
        def on_step_end(self, args, state, control, **_):
            if torch.cuda.is_available(): torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    begin, clock = time.perf_counter(), Clock()
    setup.seed_everything(run.config.seed, False)
    training.claim_checkpoints(run) if parallel.is_first() else None
    trainer = training.make_trainer(run)
    trainer.add_callback(clock)
    ready = time.perf_counter()
    before = training.latest_checkpoint(run.checkpoints)
    with training.quiet(): trainer.train(resume_from_checkpoint=str(before) if before else None)
    training.save_model(run, trainer)
    peak = parallel.from_all(round(torch.cuda.max_memory_allocated()/2**30, 2) if torch.cuda.is_available() else 0)
    held = parallel.from_all(round(torch.cuda.memory_allocated()/2**30, 2) if torch.cuda.is_available() else 0)
    seen = sum(parallel.from_all(trainer.samples_seen))
    if not parallel.is_first(): return
    log = [line for line in trainer.state.log_history if "loss" in line]
    steps = [b - a for a, b in zip(clock.times[2:], clock.times[3:])]
    # validation and checkpoint stand between the last step and the one before: the median is of plain steps
    middle = sorted(steps)[len(steps)//2] if steps else None
    per_step = seen/max(len(clock.times), 1)
    facts = {"samples_a_step": round(per_step, 2), "seconds_a_step": middle, "samples_per_second": round(per_step/middle, 1) if middle else None,
             "losses": [round(line["loss"], 5) for line in log], "first_step_at": round(clock.times[0] - begin, 1) if clock.times else None, "ready_at": round(ready - begin, 1),
             "peak_gib": peak, "held_gib": held, "resumed_from": before.name if before else None, "attention": trainer.model.config._attn_implementation}
    run.report("several.json").write_text(json.dumps(facts))


def score_timed(run):
    "Score the validation rows with the run's verifier, all processes together."
    import torch
    from verifier_nb import data, parallel
    from verifier_nb.scoring import Verifier
    verifier, rows = Verifier.from_run(run), data.load_split(run, "train").select(range(int(os.environ.get("SEVERAL_ROWS", 2048))))
    questions, solutions = list(rows["question"]), list(rows["solution"])
    for _ in range(2):  # the second time is warm
        parallel.wait_for_all()
        start = time.perf_counter()
        verifier.score(questions, solutions, batch_tokens=run.config.evaluation.batch_tokens, progress=False)
        if torch.cuda.is_available(): torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    if parallel.is_first(): run.report("several.json").write_text(json.dumps({"rows": len(rows), "rows_per_second": round(len(rows)/seconds, 1)}))


# ---------------------------------------------------------------- the plan

def one_run(args, processes, size, passes, compiled, steps, kind="ddp", target="several:train_timed", like=None, kill_at=None):
    "One measurement, in processes of its own; returns what the first worker wrote."
    from verifier_nb import data, parallel
    from verifier_nb.config import load_config
    from verifier_nb.folders import new_run, open_run
    if like: run = open_run(like)
    else:
        cfg = load_config("smoke", {
            "data.source": f"{args.base}/rows.csv", "data.problems": None, "data.max_length": 512, "data.validation_fraction": 0.02, "data.test_fraction": 0.02, "model.base": args.base, "model.dtype": "auto",
            "model.device": "auto", "model.compile": compiled, "lora.r": 8, "lora.dropout": 0.0, "training.batch_size": size, "training.gradient_accumulation": passes,
            "training.max_steps": steps, "training.logging_steps": 1, "training.evals_per_epoch": 2 if kill_at else 1, "training.learning_rate": 1e-4, "training.layout": "auto",
            "evaluation.batch_tokens": 32768})
        run = new_run(cfg, args.work)
        shared = Path(args.work)/"dataset"
        if not shared.exists():
            data.run_stage(run)
            shutil.copytree(run.dataset, shared)
        elif not run.dataset.exists(): shutil.copytree(shared, run.dataset)
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    start = time.time()
    if kill_at:
        return run, killed(run, processes, kill_at)
    parallel.ask_for(processes, kind)
    parallel.launch(target, run, processes)
    facts = json.loads(run.report("several.json").read_text())
    return run, {**facts, "wall_seconds": round(time.time() - start, 1)}


def killed(run, processes, after):
    "Start a training, SIGKILL its last process once a checkpoint is there, and tell what was said."
    code = ("import sys; from verifier_nb import parallel; from verifier_nb.folders import open_run\n"
            f"parallel.ask_for({processes})\n"
            f"try: parallel.launch('several:train_timed', open_run(sys.argv[1]), {processes})\n"
            "except Exception as e: print(e)")
    stage = subprocess.Popen([sys.executable, "-c", code, str(run.reports)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    victim = None
    while stage.poll() is None and victim is None:
        if list(run.checkpoints.glob("checkpoint-*/manifest.json")):
            for entry in Path("/proc").glob("[0-9]*/environ"):
                try: environment = entry.read_bytes().split(b"\0")
                except OSError: continue
                if f"RANK={processes-1}".encode() in environment and str(run.reports).encode() in (entry.parent/"cmdline").read_bytes():
                    victim = int(entry.parent.name)
                    os.kill(victim, signal.SIGKILL)
                    break
        time.sleep(0.01)
    said = stage.communicate(timeout=180)[0].strip().splitlines()
    return {"killed_process": processes - 1 if victim else None, "said": [line for line in said if "process" in line or "what to do" in line][-2:]}


def plan(args):
    "The measurements, the most wanted first."
    many = [n for n in (1, 2, 4, 8) if n <= args.gpus]
    for compiled in (False, True):
        for size in (32, 128):
            for n in many: yield f"{n} GPU, {size} a step each, {'compiled' if compiled else 'not compiled'}", dict(processes=n, size=size, passes=n, compiled=compiled, steps=args.steps)
    yield "1 GPU, the same 64 samples a step as 2 GPUs", dict(processes=1, size=32, passes=2, compiled=False, steps=args.steps)
    yield "killed", dict(processes=many[-1], size=32, passes=many[-1], compiled=False, steps=20, kill_at=10)
    yield "resumed on one", dict(processes=1, like="killed")
    for n in many: yield f"scoring on {n}", dict(processes=n, like="resumed on one", target="several:score_timed")
    yield "fsdp2, 32 a step each", dict(processes=many[-1], size=32, passes=many[-1], compiled=False, steps=8, kind="fsdp2")


def too_long(*_): raise TimeoutError("150 seconds")


def measure(args):
    import torch
    out, deadline, last = Path(args.out), time.time() + 60*args.minutes, {}
    known = json.loads(out.read_text()) if out.exists() else {"results": {}}
    known.update(command=" ".join(["python", *sys.argv]), torch=torch.__version__, gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
    for name, settings in plan(args):
        if args.only and not any(word in name for word in args.only.split(",")): continue
        if name in known["results"] and "error" not in known["results"][name]: continue
        if time.time() > deadline:
            print("no time left for:", name)
            continue
        settings = {"size": 32, "passes": 1, "compiled": False, "steps": 0, **settings}
        if settings.get("like"):
            if settings["like"] not in last: continue
            settings["like"] = last[settings["like"]]
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(150)  # processes that wait for each other for ever must not cost the rest
        try:
            run, facts = one_run(args, **settings)
            last[name] = run.reports
        except Exception as e: facts = {"error": str(e)[-1500:]}
        signal.alarm(0)
        known["results"][name] = facts
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(known, indent=1))
        print(name, json.dumps({k: v for k, v in facts.items() if k != "losses"}), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="verb", required=True)
    b = sub.add_parser("base")
    b.add_argument("folder")
    b.add_argument("--shape", default="phi4-mini", choices=("phi4-mini", "tiny"))
    r = sub.add_parser("run")
    r.add_argument("--base", required=True)
    r.add_argument("-o", "--out", required=True)
    r.add_argument("--work", default="/tmp/several")
    r.add_argument("--gpus", type=int, default=2)
    r.add_argument("--steps", type=int, default=16)
    r.add_argument("--minutes", type=float, default=9)
    r.add_argument("--only", default="", help="parts of names, with commas")
    args = p.parse_args()
    write_base(args.folder, args.shape) if args.verb == "base" else measure(args)


if __name__ == "__main__": main()
