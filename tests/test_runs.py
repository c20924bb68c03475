"""The runner and the command line, on real smoke-size runs."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from verifier_nb import setup, lock, runs, stages, cli as cli_
from verifier_nb.config import load_config
from verifier_nb.folders import new_run
from verifier_nb.files import VerifierError

cli = CliRunner()


@pytest.fixture(scope="session")
def full_run(tmp_path_factory):
    "The smoke preset through the real runner: every stage, in kernels of their own."
    root = tmp_path_factory.mktemp("full")
    run = runs.start("smoke", root=root)
    return run


def test_every_stage_leaves_its_executed_notebook(full_run):
    for stage in runs.STAGES:
        nb = nbformat.read(full_run.report(f"{stage}.ipynb"), as_version=4)
        assert any(c.cell_type == "code" and c.outputs for c in nb.cells), stage


def test_a_run_leaves_what_the_design_promises(full_run):
    promised = ["config.yaml", "environment.json", "manifest.json", "catalog.csv", "data_summary.csv", "log_history.csv", "predictions.csv", "metrics.json",
                "metrics_by_type.csv", "report.html", "figures"]
    assert [name for name in promised if not full_run.report(name).exists()] == []
    assert full_run.dataset.is_dir() and full_run.adapter.is_dir() and full_run.checkpoints.is_dir()
    first = ["index", "split", "true_label", "predicted_label", "prob_0", "prob_1", "p_flawed", "label_mass", "error_type", "source"]
    df = pd.read_csv(full_run.report("predictions.csv"))
    assert list(df.columns[:len(first)]) == first
    assert df[["prob_0", "prob_1", "p_flawed", "label_mass"]].apply(lambda c: c.between(0, 1).all()).all()


def test_the_manifest_knows_inputs_and_outputs(full_run):
    stages = json.loads(full_run.report("manifest.json").read_text())["stages"]
    assert list(stages) == sorted(runs.STAGES) and all(s["status"] == "done" for s in stages.values())
    assert "artifacts/dataset" in stages["03_data"]["outputs"] and "artifacts/dataset" in stages["06_training"]["inputs"]


def test_a_finished_run_would_be_skipped_whole(full_run):
    now, manifest = runs.snapshot(full_run), runs.read_manifest(full_run)
    assert not any(runs.why_again(full_run, s, manifest, now) for s in runs.STAGES)


def test_no_path_of_the_machine_in_what_is_kept(full_run):
    home, place = str(Path.home()), str(setup.package_folder().parent)
    texts = {p.name: p.read_text() for p in full_run.reports.rglob("*") if p.suffix in (".ipynb", ".json", ".csv", ".yaml", ".html")}
    assert {"manifest.json", "environment.json", "report.html", *(f"{s}.ipynb" for s in runs.STAGES)} <= set(texts)
    assert [name for name, text in texts.items() if place + "/" in text or home + "/" in text] == []


# stages of our own, in real kernels

@pytest.fixture
def stage_folder(tmp_path, monkeypatch):
    "A folder of notebooks of our own, in the place of nbs/."
    for module in (runs, stages): monkeypatch.setattr(module, "notebook", lambda stage: tmp_path/f"{stage}.ipynb")
    def write(stage, *sources, tag=True):
        first = new_code_cell("config = ''\nrun_dir = ''\noverrides = {}", metadata={"tags": ["parameters"]} if tag else {})
        nbformat.write(new_notebook(cells=[first, *map(new_code_cell, sources)]), tmp_path/f"{stage}.ipynb")
    return write


def test_what_a_stage_shows_is_kept_without_paths_and_secrets(stage_folder, tmp_path, monkeypatch):
    "The folders of home, project and work, and a credential of the environment, printed and as the last value of a cell."
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Planted" * 5)
    stage_folder("00_setup", "import os, verifier_nb\nfrom pathlib import Path\nproject = Path(verifier_nb.__file__).resolve().parent.parent",
                 "print('shown', os.environ['HF_TOKEN'], Path.home()/'a', project/'b', Path.cwd()/'c')", "os.environ['HF_TOKEN'], str(Path.home()/'d')")
    run = new_run(load_config("smoke"), tmp_path)
    runs.run_stages(run, ("00_setup",), say=lambda line: None)
    kept = run.report("00_setup.ipynb").read_text()
    shown = nbformat.reads(kept, as_version=4).cells[-2].outputs[0].text
    assert shown.split()[:3] == ["shown", "[secret]", "~/a"] and shown.split()[3:] == ["b", "c"]
    for place in (os.environ["HF_TOKEN"], str(Path.home()) + "/", str(setup.package_folder().parent) + "/", str(Path.cwd()) + "/"): assert place not in kept


def test_a_stage_knows_its_cells_and_the_modules_behind_it(stage_folder, tmp_path, monkeypatch):
    "Its code cells and the modules that it imports, directly or through others, and nothing else."
    package = tmp_path/"package"
    package.mkdir()
    modules = {"files": "", "config": "from .files import a", "data": "def f():\n    from verifier_nb import config", "model": "from . import data"}
    for name, code in modules.items(): (package/f"{name}.py").write_text(code)
    monkeypatch.setattr(setup, "package_folder", lambda: package)
    stage_folder("03_data", "first = 1", "from verifier_nb import data")
    before = runs.code_hash("03_data")
    changes = {}
    for name, code in modules.items():
        (package/f"{name}.py").write_text(code + "\n# changed")
        changes[name] = runs.code_hash("03_data") != before
        (package/f"{name}.py").write_text(code)
    assert [name for name, changed in changes.items() if changed] == ["files", "config", "data"], "also what an import inside of a function needs"
    assert runs.code_hash("03_data") == before
    stage_folder("03_data", "first = 2", "from verifier_nb import data")
    assert runs.code_hash("03_data") != before
    stage_folder("03_data", "first = 1", "from verifier_nb import data")
    nb = nbformat.read(tmp_path/"03_data.ipynb", as_version=4)
    nb.cells.append(new_markdown_cell("prose"))
    nbformat.write(nb, tmp_path/"03_data.ipynb")
    assert runs.code_hash("03_data") == before


def test_a_notebook_without_the_tag_is_refused(stage_folder, tmp_path):
    stage_folder("00_setup", tag=False)
    with pytest.raises(VerifierError, match="exactly one"): runs.execute(new_run(load_config("smoke"), tmp_path), "00_setup", "demo")


def test_a_parameter_that_is_not_declared_is_refused(stage_folder, tmp_path):
    stage_folder("00_setup")
    with pytest.raises(VerifierError, match="does not declare the parameter learning_rte"):
        runs.execute(new_run(load_config("smoke"), tmp_path), "00_setup", "demo", extra={"learning_rte": 1})


def test_a_failing_stage_is_kept_named_and_resumed(stage_folder, tmp_path):
    "The executed notebook with its error stays, the message names notebook, cell and cause, later stages do not run; resume goes on."
    stage_folder("00_setup", "1 + 1")
    stage_folder("01_config", "from pathlib import Path\nassert Path(run_dir, 'mended').exists(), 'the water is cold'")
    run = new_run(load_config("smoke"), tmp_path)
    with pytest.raises(runs.StageError) as failed: runs.run_stages(run, ("00_setup", "01_config"))
    kept = nbformat.read(run.report("01_config.ipynb"), as_version=4)
    broken, = [c.execution_count for c in kept.cells if c.cell_type == "code" and any(o.output_type == "error" for o in c.outputs)]
    assert f"01_config.ipynb, cell In [{broken}]\n" in str(failed.value) and "the water is cold" in str(failed.value)
    assert {k: v["status"] for k, v in runs.read_manifest(run)["stages"].items()} == {"00_setup": "done", "01_config": "failed"}
    assert not run.report(".lock").exists()
    run.report("mended").write_text("")
    assert all(s["status"] == "done" for s in runs.run_stages(run, ("00_setup", "01_config"))["stages"].values())


def test_plain_papermill_works(tmp_path):
    "`papermill nbs/06_training.ipynb out.ipynb -p config smoke`, without the runner."
    import papermill
    papermill.execute_notebook(str(setup.find_shared("nbs")/"06_training.ipynb"), str(tmp_path/"out.ipynb"), parameters={"config": "smoke"}, progress_bar=False, kernel_name="python3")
    assert (tmp_path/"out.ipynb").exists()


def test_a_run_that_another_process_holds_is_refused(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    other = subprocess.Popen([sys.executable, "-c", f"import time\nfrom verifier_nb import folders, lock\nwith lock.lock(folders.open_run({str(run.reports)!r})):\n  print('held', flush=True)\n  time.sleep(60)"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(VerifierError, match=f"pid {other.pid}"):
            with lock.lock(run): pass
    finally:
        other.kill()
        other.wait()
    with lock.lock(run): pass  # its holder is gone: stale


@pytest.mark.parametrize("words, status, said", [
    (["run", "quikstart"], 2, "did you mean quickstart"),
    (["run", "smoke", "-o", "training.epochs"], 2, "is not key=value"),
    (["run", "smoke", "-o", "training.epochs=-1"], 2, "training.epochs"),
    (["run", "smoke", "-o", "model.device=cuda"], 2, "use the preset 'quickstart' on a CPU"),
    (["resume", "nothing-here"], 2, "there is no run"),
    (["nonsense"], 2, "No such command"),
])
def test_wrong_commands_say_what_to_do_and_make_no_folder(words, status, said, tmp_path, monkeypatch):
    import torch
    if "model.device=cuda" in words and torch.cuda.is_available(): pytest.skip("this machine has a GPU, so the preset is fine")
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(cli_.app, words)
    assert result.exit_code == status and said in result.output
    assert list(tmp_path.iterdir()) == []
