"""Plant small bugs of the kind that people make, one at a time, and see which of them the tests notice.

The bugs stand in tests/mutants/AREA.yaml. Each is planted in a copy of the project's package; the tests that should notice run in a child of this process,
which has imported torch and the like already, so that a bug costs seconds. What was found is kept, so that a second call goes on where the first stopped.
"""
import argparse, hashlib, importlib, json, os, random, re, shutil, subprocess, sys, tempfile, time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

PACKAGE = "verifier_nb"
PRELOAD = ("torch transformers transformers.trainer transformers.models.llama.modeling_llama transformers.integrations.sdpa_attention peft peft.tuners.lora "
           "trl.trainer.sft_trainer datasets pandas pyarrow.parquet sklearn.linear_model sklearn.metrics sklearn.model_selection sklearn.isotonic "
           "sklearn.feature_extraction.text scipy.stats scipy.optimize statsmodels.api statsmodels.stats.multitest matplotlib.pyplot typer.testing pydantic "
           "papermill nbclient nbformat psutil safetensors.torch tokenizers huggingface_hub hypothesis pytest")
EXPENSIVE = {"zygote", "reference", "smoke_run", "full_run"}  # fixtures whose tests come last, since the first failure ends the work
NOT_LINKED = {PACKAGE, "tests", "artifacts", ".git"}
WANTED = 0.95
MARKERS = ("<!-- mutants -->", "<!-- end of mutants -->")
GREEN, RED = 0, 1  # what pytest exits with


@dataclass(frozen=True)
class Bug:
    "One planted bug."
    area: str
    bug: str  # a sentence: what a person would have got wrong
    module: str
    old: str  # stands exactly once in the module
    new: str
    tests: tuple = ()  # files or node ids that should notice
    equivalent: str = ""  # why no test can notice


@dataclass
class Project:
    "The project's folder, and what is read from it."
    root: Path

    def source(self, module): return self.root/PACKAGE/f"{module}.py"

    def bugs(self, only=()):
        "All entries of the table, in its order."
        files = sorted((self.root/"tests"/"mutants").glob("*.yaml"))
        unknown = set(only) - {file.stem for file in files}
        if unknown: sys.exit(f"there is no table for {', '.join(sorted(unknown))}; there are: {', '.join(file.stem for file in files)}")
        return [bug for file in files if not only or file.stem in only for bug in read_table(file)]

    def wrong(self, bug):
        "Why an entry cannot be planted; nothing if it can."
        if not self.source(bug.module).is_file(): return f"there is no module {bug.module}"
        text = self.source(bug.module).read_text()
        count = text.count(bug.old)
        if count != 1: return f"stale: the old text stands {count} times in {bug.module}.py"
        try: compile(text.replace(bug.old, bug.new), bug.module, "exec")
        except SyntaxError as e: return f"what is planted is not Python: {e}"
        missing = [test for test in bug.tests if not (self.root/test.partition("::")[0]).is_file()]
        if missing: return f"there is no {missing[0]}"
        if not bug.tests and not bug.equivalent: return "it names no tests"
        return ""

    def sources(self, tests):
        "The text of some tests' files, and of the files beside them that these import."
        waiting, texts = {"tests/conftest.py", *(test.partition("::")[0] for test in tests)}, {}
        while waiting:
            name = waiting.pop()
            if name in texts or not (self.root/name).is_file(): continue
            texts[name] = (self.root/name).read_text()
            imported = re.findall(r"^\s*(?:from|import) (\w+)", texts[name], re.M)
            waiting.update(f"tests/{module}.py" for module in imported)
        return "".join(texts[name] for name in sorted(texts))

    def key(self, bug):
        "Changes when the bug, its module or its tests change."
        return digest(bug, self.source(bug.module).read_text(), self.sources(bug.tests))

    def key_without(self, tests):
        "The same for a selection of tests without a bug."
        package = "".join(p.read_text() for p in sorted((self.root/PACKAGE).glob("*.py")))
        return digest(tests, package, self.sources(tests))


def digest(*parts): return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def read_table(file):
    "The entries of one area."
    entries = yaml.safe_load(file.read_text()) or []
    bugs = []
    for number, entry in enumerate(entries, 1):
        tests = entry.pop("tests", ())
        try: bugs.append(Bug(area=file.stem, tests=tuple(tests), **entry))
        except TypeError as e: sys.exit(f"{file.name}, entry {number}: {e}")
    return bugs


# one child

def plant(project, folder, bug=None):
    "Lay out the project once more in a folder: the package and the tests copied, the rest linked. Returns the copy's root."
    copy = folder/"project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (PACKAGE, "tests"): shutil.copytree(project.root/name, copy/name, ignore=ignore)
    for item in project.root.iterdir():
        if item.name not in NOT_LINKED: (copy/item.name).symlink_to(item)
    shared = project.root.parent/"shared"
    if shared.is_dir(): (folder/"shared").symlink_to(shared)
    if bug:
        target = copy/PACKAGE/f"{bug.module}.py"
        target.write_text(target.read_text().replace(bug.old, bug.new))
    return copy


class Order:
    "A pytest plugin: tests that wait for an expensive fixture come last."

    def pytest_collection_modifyitems(self, items): items.sort(key=lambda item: bool(EXPENSIVE & set(item.fixturenames)))


def become(copy, tests, output):
    "In the child: run the tests on the copy, and end with pytest's status."
    import pytest
    os.setsid()
    log = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2): os.dup2(log, stream)
    os.chdir(copy)
    sys.path[0] = str(copy)  # what stood there is this file's folder
    os.environ["PYTHONPATH"] = str(copy)  # for kernels and other processes that the tests start
    sys.argv = ["pytest"]
    found = importlib.util.find_spec(PACKAGE).origin
    assert Path(found).is_relative_to(copy), f"{found} would be tested instead of the copy"
    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0", f"--basetemp={copy.parent/'tmp'}", *tests]
    return pytest.main(words, plugins=[Order()])


@dataclass
class Job:
    "Some tests on a copy of the project, in a child of this process."
    key: str
    tests: tuple
    output: Path  # what pytest says
    limit: float  # seconds
    bug: Bug = None  # none: the tests alone, which must be green
    folder: Path = None
    pid: int = 0
    began: float = 0

    def start(self, project):
        self.folder = Path(tempfile.mkdtemp(prefix="mutant-"))
        self.began = time.time()
        copy = plant(project, self.folder, self.bug)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid: return
        status = 70
        try: status = become(copy, self.tests, self.output)
        except BaseException as e: print(f"{type(e).__name__}: {e}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(int(status))

    def poll(self):
        "The exit status, `late`, or nothing while it runs."
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        if time.time() - self.began < self.limit: return None
        self.kill()
        return "late"

    def kill(self):
        "End the child and whatever it started."
        import psutil
        child = psutil.Process(self.pid)
        for process in [*child.children(recursive=True), child]:
            try: process.kill()
            except psutil.NoSuchProcess: pass
        os.waitpid(self.pid, 0)

    def result(self, status):
        "What is kept of it, as a plain dictionary."
        shutil.rmtree(self.folder, ignore_errors=True)
        said = self.output.read_text(errors="replace") if self.output.exists() else ""
        first = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
        return {"key": self.key, "outcome": self.outcome(status), "seconds": round(time.time() - self.began, 1), "by": first[1] if first else ""}

    def outcome(self, status):
        if status == "late": return "late" if self.bug else f"error: not done after {self.limit:.0f} s without a bug, see {self.output}"
        if self.bug and status in (GREEN, RED): return ("survived", "killed")[status]
        if not self.bug and status == GREEN: return "green"
        return f"error: pytest ended with {status}{'' if self.bug else ' without a bug'}, see {self.output}"


def work(project, jobs, workers, tell):
    "Do all jobs, a few at a time; `tell` hears each result."
    waiting, running = list(jobs), []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                job.start(project)
                running.append(job)
            time.sleep(0.1)
            for job in list(running):
                status = job.poll()
                if status is None: continue
                running.remove(job)
                tell(job, job.result(status))
    finally:  # also when it is interrupted
        for job in running:
            job.kill()
            shutil.rmtree(job.folder, ignore_errors=True)


# what is kept between calls

class Memory:
    "Results by key, one line of JSON each."

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.file, self.known = folder, folder/"results.jsonl", {}
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        for line in lines: self.known.update({(found := json.loads(line))["key"]: found})

    def add(self, found):
        self.known[found["key"]] = found
        if found["outcome"].startswith("error"): return  # it is tried again
        with open(self.file, "a") as f: f.write(json.dumps(found) + "\n")


def preload(names):
    "Import what takes long and is no part of the project; children inherit it."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in names: importlib.import_module(name)
    already = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    assert not already, f"{already[0]} was imported before the bug could be planted"


def examine(project, bugs, memory, options):
    "Plant every bug that is not known yet. Returns outcome by bug."
    outcomes = {}
    for bug in bugs:
        wrong = project.wrong(bug)
        if wrong: outcomes[bug] = f"error: {wrong}"
        elif bug.equivalent: outcomes[bug] = "equivalent"
    keys = {bug: project.key(bug) for bug in bugs if bug not in outcomes}  # once: somebody may edit the tests meanwhile
    fresh = [bug for bug in keys if keys[bug] not in memory.known]
    selections = {bug.tests: project.key_without(bug.tests) for bug in fresh}
    alone = [Job(key, tests, memory.folder/f"green-{key}.txt", 4 * options.limit) for tests, key in selections.items() if key not in memory.known]

    def tell(job, found):
        memory.add(found)
        words = job.bug.bug if job.bug else " ".join(job.tests)
        by = f"  [{found['by']}]" if job.bug and found["by"] else ""
        print(f"{found['outcome']:8}  {found['seconds']:5.0f} s  {words}{by}", flush=True)

    if fresh: preload(options.preload.split())
    work(project, alone, options.workers, tell)
    green = {tests: memory.known[key] for tests, key in selections.items()}
    jobs = []
    for bug in fresh:
        before = green[bug.tests]
        if before["outcome"] != "green": outcomes[bug] = before["outcome"]
        # a busy machine is slow with a bug, too: no bug is called noticed for that
        else: jobs.append(Job(keys[bug], bug.tests, memory.folder/f"{bug.area}-{keys[bug]}.txt", max(options.limit, 4 * before["seconds"]), bug))
    work(project, jobs, options.workers, tell)
    planted = [bug for bug in keys if bug not in outcomes]
    for bug in planted: outcomes[bug] = memory.known[keys[bug]]["outcome"]
    return {bug: outcomes[bug] for bug in bugs}  # in the table's order


# what is said in the end

def killed(outcome): return outcome in ("killed", "late")


def table(outcomes):
    "Counts by area, as Markdown."
    lines = ["| area | planted | killed | survived | equivalent |", "|---|---|---|---|---|"]
    areas = [*dict.fromkeys(bug.area for bug in outcomes), None]  # none: all of them
    for area in areas:
        found = Counter("killed" if killed(o) else o for bug, o in outcomes.items() if area in (bug.area, None))
        lines.append(f"| {area or 'all'} | {found.total()} | {found['killed']} | {found['survived']} | {found['equivalent']} |")
    return "\n".join(lines)


def share(outcomes):
    "Killed bugs among those that a test can notice."
    noticeable = [o for o in outcomes.values() if o != "equivalent"]
    return sum(map(killed, noticeable)) / max(1, len(noticeable))


def listed(outcomes, wanted, said):
    "Bugs with one outcome, a line each."
    bugs = [bug for bug, outcome in outcomes.items() if outcome == wanted]
    return "\n".join(f"- {bug.area}: {bug.bug}{f' Equivalent: {bug.equivalent}' if bug.equivalent else ''}" for bug in bugs) or f"No bug {said}."


def write_report(project, outcomes):
    "Put the table between the markers of docs/RELIABILITY.md."
    page = project.root/"docs"/"RELIABILITY.md"
    text = page.read_text()
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not start or not end: sys.exit(f"{page.name} does not hold the markers {MARKERS[0]} and {MARKERS[1]}")
    parts = [table(outcomes), listed(outcomes, "survived", "survived"), listed(outcomes, "equivalent", "is equivalent")]
    page.write_text(before + start + "\n" + "\n\n".join(parts) + "\n" + end + after)


def draw(bugs, number, seed):
    "Some of the bugs, in the table's order."
    drawn = set(random.Random(seed).sample(bugs, min(number, len(bugs))))
    return [bug for bug in bugs if bug in drawn]


def main(words=None):
    parser = argparse.ArgumentParser(description="Plant small bugs, one at a time, and see whether the tests notice.")
    parser.add_argument("--only", action="append", default=[], metavar="AREA", help="one table of tests/mutants; can be given more than once")
    parser.add_argument("--match", default="", help="only bugs whose sentence holds this")
    parser.add_argument("--sample", type=int, help="so many bugs, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=180, help="seconds for a bug; what takes longer counts as noticed")
    parser.add_argument("--again", action="store_true", help="forget what is known")
    parser.add_argument("--report", action="store_true", help="write the table into docs/RELIABILITY.md")
    parser.add_argument("--project", type=Path, default=Path(__file__).resolve().parent.parent, help=argparse.SUPPRESS)
    parser.add_argument("--preload", default=PRELOAD, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    project = Project(options.project.resolve())
    memory = Memory(project.root/"artifacts"/"mutants")
    if options.again: memory.known.clear()
    bugs = [bug for bug in project.bugs(options.only) if options.match in bug.bug]
    if options.sample: bugs = draw(bugs, options.sample, options.seed)
    began = time.time()
    outcomes = examine(project, bugs, memory, options)
    errors = {bug: outcome for bug, outcome in outcomes.items() if outcome not in ("killed", "late", "survived", "equivalent")}
    good = {bug: outcome for bug, outcome in outcomes.items() if bug not in errors}
    print(f"\n{table(good)}\n\n{share(good):.1%} killed, {time.time() - began:.0f} s")
    print(f"\nsurvivors\n{listed(good, 'survived', 'survived')}")
    for bug, outcome in errors.items(): print(f"\nERROR IN THE TABLE  {bug.area}: {bug.bug}\n  {outcome}")
    if options.report: write_report(project, good)
    if errors: return 2
    return int(share(good) < WANTED)


if __name__ == "__main__": sys.exit(main())
