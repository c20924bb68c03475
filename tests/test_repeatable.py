"""The same config and seed give the same bytes: in a new process, another folder, another time zone and locale, with other numbers of workers."""
import json, shutil, subprocess
from pathlib import Path

import pytest
from test_interrupted import hashes
from zygote import SMALL, Zygote

from verifier_nb import setup, files, folders, runs, reproduce
from verifier_nb.folders import Run, new_run, open_run
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError

BEFORE_THE_REPORT = {"stage": "08_analysis", "how": "SIGKILL", "at": 1}  # what comes after does not matter here, and takes time
ELSEWHERE = {"TZ": "<+14>-14", "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "99"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "A process that was started in another folder, on the other side of the date line, in a locale that knows ASCII only."
    folder = tmp_path_factory.mktemp("else where")
    with Zygote(folder, ELSEWHERE) as z: yield z


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_elsewhere(elsewhere, reference, workers):
    "Predictions, metrics, data set, adapter and log, byte for byte."
    root = elsewhere.folder/f"{workers} workers"
    found = elsewhere.attempt(["run", "smoke", *SMALL, "-o", f"training.workers={workers}", "--root", root], kill=BEFORE_THE_REPORT if workers == 1 else None)
    assert found["code"] == 0 or found["hit"], found["said"]
    assert hashes(next((root/"reports"/"smoke").iterdir())) == hashes(reference[0])


def test_another_seed_gives_other_bytes(zygote, reference, tmp_path):
    "So that the comparison above can fail."
    found = zygote.attempt(["run", "smoke", *SMALL, "-o", "seed=43", "--root", tmp_path], kill=BEFORE_THE_REPORT)
    one, two = hashes(next((tmp_path/"reports"/"smoke").iterdir())), hashes(reference[0])
    assert found["hit"] and all(one[name] != two[name] for name in ("predictions.csv", "metrics.json", "adapter/adapter_model.safetensors", "dataset/train/data-00000-of-00001.arrow"))


def test_reproduce_says_file_by_file(zygote, reference, tmp_path):
    "Through the command: the environment first, then the run, then every file."
    found = zygote.attempt(["reproduce", reference[0], "--into", tmp_path])
    assert found["code"] == 0, found["said"]
    lines = found["said"].splitlines()
    before = lines[:next(i for i, line in enumerate(lines) if "00_setup" in line)]  # somebody may edit the checkout while this runs
    assert [line for line in before if line.startswith("environment")] and not [line for line in before if not line.startswith(("environment  the same", "environment  git.", "run "))], before
    verdicts = dict(reversed(line.split(None, 1)) for line in lines if line.startswith("identical"))
    assert {"predictions.csv", "metrics.json", "log_history.csv", "artifacts/dataset", "artifacts/adapter"} <= set(verdicts)
    assert not [line for line in lines if line.split(" ")[0] in ("differs", "missing", "new", "edited", "gone", "code")]


def copy_of(report, root):
    "A copy of a run under another root."
    run = open_run(report)
    shutil.copytree(run.reports, root/"reports"/"smoke"/run.reports.name)
    shutil.copytree(run.artifacts, root/"artifacts"/"smoke"/run.reports.name)
    return open_run(root/"reports"/"smoke"/run.reports.name)


def test_suspects_are_named(reference, tmp_path):
    "Other package versions and hardware, changed code, edited files."
    run = copy_of(reference[0], tmp_path)
    environment = files.read_json(run.report("environment.json"))
    environment["packages"]["torch"], environment["hardware"]["gpus"] = "2.0.0", [{"name": "T4"}]
    files.write_json(run.report("environment.json"), environment)
    with open(run.report("predictions.csv"), "a") as f: f.write("\n")
    manifest = runs.read_manifest(run)
    for stage in runs.STAGES: manifest["stages"][stage]["code"] = "other" if stage == "03_data" else runs.code_hash(stage)
    files.write_json(run.report("manifest.json"), manifest)
    found = reproduce.suspects(run)
    assert ("packages.torch", "2.0.0", setup.package_versions()["torch"]) in found["environment"] and "hardware.gpus" in [e[0] for e in found["environment"]]
    assert found["code"] == ["03_data"] and set(found["edited"]) == {"environment.json", "predictions.csv"}


def test_differences_are_named(reference, tmp_path):
    run = copy_of(reference[0], tmp_path)
    with open(run.report("predictions.csv"), "a") as f: f.write("\n")
    run.report("metrics.json").unlink()
    run.report("extra.csv").write_text("a\n1\n")
    shutil.rmtree(run.dataset/"test")
    found = reproduce.differences(open_run(reference[0]), run)
    assert (found["predictions.csv"], found["metrics.json"], found["extra.csv"], found["artifacts/dataset"], found["catalog.csv"]) == ("differs", "missing", "new", "differs", "identical")
    assert found["training.json"] == found["environment.json"] == "not compared"


# the checkout

@pytest.fixture
def checkout(tmp_path):
    "A small git checkout of the project's shape."
    for name in ("verifier_nb/a.py", "nbs/00.ipynb", "configs/smoke.yaml", "reports/results.csv", "settings.ini", "notes.txt"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("first = 1\n")
    git = lambda *args: subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *args], check=True, capture_output=True)
    git("init"), git("add", "."), git("commit", "-m", "one")
    return tmp_path


def test_a_clean_checkout_has_no_difference(checkout):
    found = setup.git_state(checkout/"verifier_nb")
    assert len(found["commit"]) == 40 and not found["dirty"] and found["diff"] == "" and found["untracked"] == []
    (checkout/"reports"/"results.csv").write_text("a run wrote this\n")
    (checkout/"scratch.txt").write_text("beside the code\n")
    assert not setup.git_state(checkout/"verifier_nb")["dirty"], "results of runs and files beside the code are no change of the code"


@pytest.mark.parametrize("name, in_diff", [("verifier_nb/a.py", True), ("configs/smoke.yaml", True), ("settings.ini", True), ("nbs/00.ipynb", False)])
def test_a_changed_file_is_in_the_difference(checkout, name, in_diff):
    (checkout/name).write_text("second = 2\n")
    found = setup.git_state(checkout/"verifier_nb")
    assert found["dirty"] and ("+second = 2" in found["diff"]) == in_diff  # of a notebook the executed copy is kept


@pytest.mark.parametrize("name, in_diff", [("verifier_nb/new.py", True), ("configs/mine.yaml", True), ("nbs/new.ipynb", False)])
def test_a_new_file_is_in_the_difference(checkout, name, in_diff):
    (checkout/name).write_text("brand_new = 3\n")
    found = setup.git_state(checkout/"verifier_nb")
    assert found["dirty"] and found["untracked"] == [name] and ("+brand_new = 3" in found["diff"]) == in_diff


def test_the_difference_is_scrubbed_when_it_is_stored(checkout, monkeypatch):
    (checkout/"verifier_nb"/"a.py").write_text("key = 'hf_" + "q" * 34 + "'\n")
    monkeypatch.setattr(setup, "_git", lambda folder, *args, _real=setup._git, **kw: _real(checkout, *args, **kw))
    setup.run_stage(checkout)
    stored = json.loads((checkout/"environment.json").read_text())["git"]
    assert stored["dirty"] and "+key = '[secret]'" in stored["diff"]


def test_another_projects_checkout_is_not_taken_for_ours(tmp_path):
    subprocess.run(["git", "init", tmp_path], check=True, capture_output=True)
    assert setup.git_state(tmp_path) == {"commit": None, "dirty": False, "diff": "", "untracked": []}


def test_strict_refuses_a_changed_checkout_and_makes_no_folder(tmp_path, monkeypatch):
    "A clean one is let through, and a changed one without --strict."
    class Made(Exception): "The run's folder would be made now."
    def make(*_): raise Made
    monkeypatch.setattr(runs, "new_run", make)
    monkeypatch.setattr(setup, "git_state", lambda: {"dirty": True})
    with pytest.raises(VerifierError, match="uncommitted changes"): runs.start("smoke", root=tmp_path, strict=True)
    with pytest.raises(Made): runs.start("smoke", root=tmp_path)
    monkeypatch.setattr(setup, "git_state", lambda: {"dirty": False})
    with pytest.raises(Made): runs.start("smoke", root=tmp_path, strict=True)
    assert list(tmp_path.iterdir()) == []
