"""Processes that can be killed anywhere, cheaply.

Importing torch takes seconds, and a test that kills a run thirty times would pay for it thirty times. So one process imports everything and then forks a
child for each attempt. A child is the real command line: lock, manifest, resuming and every file are as ever. Its stages run either in kernels of their
own, as ever, or, which is much faster, in the child itself. It is killed at the n-th change to a file of the run since a stage began, at a training step,
or after a time.
"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SMALL = ["-o", "data.problems=16", "-o", "training.evals_per_epoch=3", "-o", "evaluation.resamples=100"]


class Zygote:
    "The process that forks; `with Zygote(folder) as z: z.attempt([...])`."

    def __init__(self, folder, env=None):
        self.folder, self.n = Path(folder), 0
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
                                        env={**os.environ, "PYTHONWARNINGS": "ignore", **(env or {})}, start_new_session=True)
        assert self.process.stdout.readline().strip() == "ready"

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def attempt(self, argv, kernels=(), kill=None, **more):
        """Run `verifier-nb ARGV`. `kernels`: stages that get a kernel of their own. `kill`: {stage, how, at | after}: how is a signal's name or `raise`,
        at the number of the change to a file, after a number of seconds. Returns code (negative: a signal), hit (the stage it was killed in), seconds per stage, changes per stage, said."""
        self.n += 1
        log, events = self.folder/f"attempt-{self.n}.log", self.folder/f"attempt-{self.n}.events"
        self.process.stdin.write(json.dumps({"argv": [str(a) for a in argv], "kernels": list(kernels), "kill": kill, "log": str(log), "events": str(events), **more}) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())["code"]
        found = {"code": code, "said": log.read_text(errors="replace"), "hit": None, "seconds": {}, "changes": {}}
        running = None
        for what, stage, number in (line.split() for line in events.read_text().splitlines()):
            if what == "start": running, began = stage, float(number)
            if what == "end": running, found["seconds"][stage] = None, float(number) - began
            if what == "changes": found["changes"][stage] = int(number)
            if what == "hit": found["hit"] = stage
        if code < 0 and not found["hit"]: found["hit"] = running
        return found


# what follows runs in the zygote, its children and their kernels

class Trigger:
    "Counts changes to the files below a folder and strikes at one of them."

    def __init__(self, root, kill, events, victim=os.getpid):
        self.root, self.kill, self.events, self.victim, self.stage, self.n = str(root), kill, events, victim, None, 0
        sys.addaudithook(self.hook)

    def note(self, what, stage, number=0): os.write(self.events, f"{what} {stage} {number}\n".encode())

    def start(self, stage):
        self.stage, self.n = stage, 0
        self.note("start", stage, time.time())
        if self.kill and self.kill["stage"] == stage and self.kill.get("after") is not None:
            me = os.getpid()
            if os.fork() == 0:
                time.sleep(self.kill["after"])
                if os.getppid() == me: os.kill(me, getattr(signal, self.kill["how"]))
                os._exit(0)

    def end(self):
        self.note("changes", self.stage, self.n)
        self.note("end", self.stage, time.time())

    def hook(self, event, args):
        if self.stage is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"): return
        if event == "open" and (not isinstance(args[1], str) or not set(args[1]) & set("wax+")) and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR): return
        try: path = os.path.abspath(os.fsdecode(args[0]))
        except TypeError: return  # a file descriptor
        if path.startswith(self.root) and not path.endswith(".lock"): self.change()

    def change(self):
        self.n += 1
        if self.kill and self.kill["stage"] == self.stage and self.n == self.kill.get("at"): self.strike()

    def strike(self):
        self.note("hit", self.stage, self.n)
        if self.kill["how"] == "raise": raise RuntimeError("power cut")
        os.kill(self.victim(), getattr(signal, self.kill["how"]))


def serve():
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import matplotlib
    matplotlib.use("agg")
    import nbclient, nbformat, papermill, psutil, sklearn.metrics, statsmodels.api, torch, transformers  # noqa: F401
    from verifier_nb import symbolic, data, model, training, evaluation, analysis, runs, cli  # noqa: F401
    symbolic._templates()
    print("ready", flush=True)
    for line in sys.stdin:
        if (pid := os.fork()) == 0: child(json.loads(line))
        status = os.waitpid(pid, 0)[1]
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def child(request):
    import traceback
    from verifier_nb import runs, cli
    os.setsid()
    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdin = open(os.devnull)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request.get("env") or {})
    if request.get("cwd"): os.chdir(request["cwd"])
    prepare(request)
    sys.argv, code = ["verifier-nb", *request["argv"]], 0
    try: cli.main()
    except SystemExit as e: code = e.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def prepare(request):
    "Slim notebooks, stages in this process, the trigger, and limits on what may be written."
    from verifier_nb import setup, files, runs, stages, cli
    argv = request["argv"]
    root = argv[argv.index("--root") + 1] if "--root" in argv else os.getcwd()
    events = os.open(request["events"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    in_kernels, kill, kernel_execute = request["kernels"], request["kill"], runs.execute
    before = [place for place in [os.environ.get("PYTHONPATH")] if place]  # a kernel imports the library from where this process does
    slim = slim_notebooks(Path(request["log"]).parent/"nbs")
    runs.notebook = stages.notebook = lambda stage: slim/f"{stage}.ipynb"
    trigger = Trigger(os.path.abspath(root), kill if not in_kernels else None, events)
    progress = setup.progress
    setup.progress = lambda *a, **k: (trigger.change(), progress(*a, **k))[1]

    def execute(run, stage, label, extra=None, kernels=None):
        if stage in in_kernels:
            os.environ["ZYGOTE_KILL"] = json.dumps({"root": os.path.abspath(root), "events": request["events"], "stage": stage, "kill": kill, "runner": os.getpid()})
            os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *before])
            return kernel_execute(run, stage, label, extra, kernels)
        trigger.start(stage)
        if request.get("file_limit"): limit(request["file_limit"])
        if request.get("vanish") == stage: os.rename(run.reports.parent, run.reports.parent.with_name("away"))
        try: work(run, stage)
        except Exception as e:
            raise runs.StageError(f"{type(e).__name__}: {e}", f"notebook {stage}.ipynb", "mend it") from e
        finally: run.still_there()
        files.write_text(run.report(f"{stage}.ipynb"), '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
        trigger.end()
    runs.execute = execute


def limit(size):
    "No file may grow beyond `size` bytes: what a full disk is to a program."
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def work(run, stage):
    "What the last cells of a stage's notebook do."
    from verifier_nb import analysis, data, evaluation, files, preflight, setup, training
    from verifier_nb.folders import open_run
    run = open_run(run.reports)
    if stage == "00_setup": setup.run_stage(run.reports)
    elif stage != "01_config": {"03_data": data, "04_model": preflight, "06_training": training, "07_evaluation": evaluation, "08_analysis": analysis}[stage].run_stage(run)


def slim_notebooks(folder):
    "The stages' notebooks without their lessons."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    from verifier_nb import runs, cli
    for stage in runs.STAGES:
        if (folder/f"{stage}.ipynb").exists(): continue
        folder.mkdir(exist_ok=True)
        parameters = new_code_cell("config = 'smoke'\nrun_dir = ''\noverrides = {}", id="parameters", metadata={"tags": ["parameters"]})
        code = new_code_cell(f"import zygote\nfrom verifier_nb.folders import open_run\nrun = open_run(run_dir, config, overrides)\nzygote.in_kernel()\nzygote.work(run, {stage!r})", id="work")
        nbformat.write(new_notebook(cells=[parameters, code], metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}), folder/f"{stage}.ipynb")
    return folder


def in_kernel():
    "In a stage's own kernel: strike the runner, or the kernel itself, from here."
    asked = json.loads(os.environ.get("ZYGOTE_KILL") or "{}")
    if not asked: return
    kill = dict(asked["kill"] or {"stage": ""})
    victim = os.getpid if kill.pop("self", False) else lambda: asked["runner"]  # a warm kernel's parent is not the runner
    Trigger(asked["root"], kill, os.open(asked["events"], os.O_WRONLY | os.O_APPEND), victim).start(asked["stage"])


if __name__ == "__main__": serve()
