"""What a resumed run does again and what it skips, what differs between two runs, and how a run is found."""
import json, re, shutil, time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from verifier_nb import setup, files, runs, reproduce, cli as cli_, config as config_
from verifier_nb.config import dump_config, load_config
from verifier_nb.folders import new_run, open_run
from verifier_nb.files import VerifierError

cli = CliRunner()


# what is done again, and what is not

PLAYED = ("00_setup", "03_data", "06_training", "07_evaluation")


def play(run, stage):
    "Writes what such a stage writes, without a model: always the same bytes."
    if stage == "00_setup": files.write_text(run.report("environment.json"), "{}")
    if stage == "03_data":
        for split in ("train", "test"): files.write_text(run.dataset/split/"rows.txt", f"rows to {split}")
        files.write_text(run.report("catalog.csv"), "index\n1\n")
    if stage == "06_training":
        files.write_text(run.adapter/"adapter_model.safetensors", "weights")
        files.write_text(run.report("log_history.csv"), "step\n1\n")
    if stage == "07_evaluation":
        files.write_text(run.report("predictions.csv"), "index\n1\n")
        files.write_text(run.adapter/"calibration.json", "{}")


@pytest.fixture
def played(tmp_path, monkeypatch):
    "A finished run whose stages only write files, and a function that resumes it and says which stages it did."
    run, done = new_run(load_config("smoke"), tmp_path), []

    def execute(run, stage, label, extra=None, kernels=None):
        done.append(stage)
        play(run, stage)
    monkeypatch.setattr(runs, "execute", execute)

    def resume():
        done.clear()
        manifest = runs.run_stages(run, PLAYED, say=lambda line: None)
        return tuple(done), manifest
    assert resume()[0] == PLAYED
    return run, resume


def append(path):
    with open(path, "a") as f: f.write(" ")


def test_resume_does_nothing_when_nothing_has_changed(played):
    run, resume = played
    assert resume()[0] == ()


def test_a_calibration_beside_the_weights_changes_no_weights(played):
    "Evaluation lays its calibration and a card beside them, and what was trained is as it was."
    run, resume = played
    append(run.adapter/"calibration.json")
    append(run.adapter/"README.md")
    assert resume()[0] == ()


@pytest.mark.parametrize("name, first", [("environment.json", "00_setup"), ("catalog.csv", "03_data"), ("artifacts/dataset/test/rows.txt", "03_data"),
                                         ("artifacts/adapter/adapter_model.safetensors", "06_training"), ("predictions.csv", "07_evaluation"), ("config.yaml", "00_setup")])
@pytest.mark.parametrize("change", [append, Path.unlink])
def test_what_is_changed_or_deleted_is_made_again_and_so_is_all_after_it(played, name, first, change):
    "Also where the stage would write the same bytes again."
    run, resume = played
    if name == "config.yaml" and change is Path.unlink: return  # then it is no run any more
    change(run.artifacts/name.removeprefix("artifacts/") if name.startswith("artifacts/") else run.report(name))
    assert resume()[0] == PLAYED[PLAYED.index(first):]
    assert resume()[0] == ()


@pytest.mark.parametrize("stage, name", [("06_training", "artifacts/dataset"), ("06_training", "catalog.csv"), ("07_evaluation", "artifacts/adapter"), ("03_data", "environment.json")])
def test_a_stage_whose_input_alone_has_changed_is_not_skipped(played, stage, name):
    "What it wrote is untouched, and so are code and settings; only something that it read is another."
    run, _ = played
    manifest = runs.read_manifest(run)
    now = runs.snapshot(run)
    assert name in manifest["stages"][stage]["inputs"] and name not in manifest["stages"][stage]["outputs"]
    assert not runs.why_again(run, stage, manifest, now)
    assert runs.why_again(run, stage, manifest, {**now, name: "0"*64})
    without = {k: v for k, v in now.items() if k != name}
    assert runs.why_again(run, stage, manifest, without)


def test_a_stage_is_not_skipped_with_other_settings_code_or_status(played):
    run, _ = played
    manifest, now = runs.read_manifest(run), runs.snapshot(run)
    assert not runs.why_again(run, "03_data", manifest, now)
    assert runs.why_again(run, "04_model", manifest, now), "it was never done"
    assert runs.why_again(run, "03_data", {**manifest, "config": "0000000"}, now)
    for key, value in (("code", "0"*64), ("status", "failed"), ("status", "running")):
        entry = {**manifest["stages"]["03_data"], key: value}
        assert runs.why_again(run, "03_data", {**manifest, "stages": {"03_data": entry}}, now), key


def test_what_a_stage_writes_anew_is_its_output_and_no_input(played):
    "A log of an attempt that was stopped lies there when training begins again."
    run, resume = played
    run.report("log_history.csv").write_text("half a li")
    done, manifest = resume()
    assert done == ("06_training", "07_evaluation")
    training, evaluation = manifest["stages"]["06_training"], manifest["stages"]["07_evaluation"]
    assert "log_history.csv" in training["outputs"] and "log_history.csv" not in training["inputs"]
    assert "log_history.csv" in evaluation["inputs"] and "log_history.csv" not in evaluation["outputs"]
    assert resume()[0] == ()


def test_one_byte_of_the_weights_is_a_difference(played, tmp_path):
    "The files' contents count, not their names alone, and where in the folder they are."
    run, _ = played
    weights = run.adapter/"adapter_model.safetensors"
    before = runs.snapshot(run)
    weights.write_text("weighty"[:len(weights.read_text())])
    after = runs.snapshot(run)
    assert [name for name in before if before[name] != after[name]] == ["artifacts/adapter"]
    weights.rename(weights.with_name("other.safetensors"))
    assert runs.snapshot(run)["artifacts/adapter"] != after["artifacts/adapter"]


def test_a_snapshot_leaves_out_what_is_written_beside_the_stages(played):
    run, _ = played
    before = runs.snapshot(run)
    for name in ("report.html", ".lock", ".metrics.json.1.tmp", "00_setup.ipynb", "manifest.json"): run.report(name).write_text("more")
    assert runs.snapshot(run) == before and not {"report.html", "manifest.json", ".lock"} & set(before)
    (run.figures).mkdir()
    (run.figures/"loss.csv").write_text("step\n")
    assert "figures/loss.csv" in runs.snapshot(run)


def test_differences_between_two_runs(played, tmp_path):
    "By name: the same, another, gone, come."
    run, _ = played
    again = new_run(load_config("smoke"), tmp_path/"again")
    for stage in PLAYED: play(again, stage)
    append(again.adapter/"adapter_model.safetensors")
    again.report("catalog.csv").unlink()
    files.write_text(again.report("extra.csv"), "a")
    files.write_text(again.report("loss.png"), "a picture")
    append(again.report("environment.json"))
    assert reproduce.differences(run, again) == {
        "artifacts/adapter": "differs", "artifacts/dataset": "identical", "catalog.csv": "missing", "config.yaml": "not compared", "environment.json": "not compared",
        "extra.csv": "new", "log_history.csv": "identical", "loss.png": "not compared", "predictions.csv": "identical"}


def test_suspects_name_what_was_edited_or_deleted_since(played):
    run, _ = played
    files.write_json(run.report("environment.json"), setup.fingerprint())
    append(run.report("predictions.csv"))
    run.report("catalog.csv").unlink()
    found = reproduce.suspects(run)
    assert set(found["edited"]) == {"environment.json", "predictions.csv"} and found["gone"] == ["catalog.csv"]
    assert found["code"] == [] and found["environment"] == []


def test_what_differs_between_two_environments():
    then = {"python": "3.11", "packages": {"torch": "2.0", "numpy": "2"}, "git": {"commit": "a", "diff": ""}}
    now = {"python": "3.11", "packages": {"torch": "2.1", "numpy": "2"}, "git": {"commit": "a", "diff": "+secret line\n"}, "colab": True}
    found = {what: (one, two) for what, one, two in reproduce.environment_differences(then, now)}
    assert set(found) == {"packages.torch", "git.diff", "colab"}
    assert found["packages.torch"] == ("2.0", "2.1") and found["colab"] == (None, True)
    assert found["git.diff"][0] == "none" and found["git.diff"][1].startswith("1 lines, ") and "secret" not in found["git.diff"][1]
    other = {**now, "git": {"commit": "a", "diff": "+another line\n"}}
    assert [what for what, _, _ in reproduce.environment_differences(now, other)] == ["git.diff"], "of two changed checkouts, by their contents"


# finding runs, and going on with them

@pytest.fixture
def three_runs(tmp_path):
    "Runs of two presets, oldest first."
    names = ["demo/20260101T000000Z-aaaaaaa", "demo/20260102T000000Z-bbbbbbb", "other/20260101T120000Z-ccccccc"]
    for name in names: files.write_text(tmp_path/"reports"/name/"config.yaml", dump_config(load_config("smoke")))
    return names


@pytest.mark.parametrize("asked, found", [("latest", 1), ("demo", 1), ("other", 2), ("20260101T000000Z-aaaaaaa", 0), ("demo/20260101T000000Z-aaaaaaa", 0)])
def test_a_run_is_found_by_its_names(three_runs, tmp_path, asked, found):
    "The newest, of a preset or of all; the newest of all is not the last one in the alphabet."
    assert runs.find_run(asked, tmp_path).reports == tmp_path/"reports"/three_runs[found]
    assert runs.find_run(tmp_path/"reports"/three_runs[found]).reports == tmp_path/"reports"/three_runs[found]


def test_resume_goes_on_with_the_stages_that_were_wanted(played, tmp_path, monkeypatch):
    "The publish stage among them, when the run was to be published."
    run, _ = played
    finished = []
    monkeypatch.setattr(runs, "finish", lambda run, stages: finished.append(tuple(stages)))
    assert cli.invoke(cli_.app, ["resume", "--root", str(tmp_path)]).exit_code == 0
    assert finished == [PLAYED]


def test_a_grid_is_every_combination():
    assert runs.grid(["lora.r=4,8", "seed=1,2"]) == [["lora.r=4", "seed=1"], ["lora.r=4", "seed=2"], ["lora.r=8", "seed=1"], ["lora.r=8", "seed=2"]]
    assert runs.grid(["data.columns=question=q,question=p"]) == [["data.columns=question=q"], ["data.columns=question=p"]]
    for wrong in ("lora.r", "lora.r="):
        with pytest.raises(VerifierError, match="key=value"): runs.grid([wrong])


def test_the_time_that_is_left_is_guessed_from_what_is_done(tmp_path):
    "After a quarter of the work in a minute, three more."
    watch = runs.Watch("[1/7] stage", tmp_path/"progress.json")
    assert watch.line() == "[1/7] stage  0:00"
    watch.start -= 60
    (tmp_path/"progress.json").write_text(json.dumps({"done": 25, "total": 100, "unit": "steps", "at": time.time()}))
    assert watch.line() == "[1/7] stage  steps 25/100  1:00 so far, about 3:00 left"
    (tmp_path/"progress.json").write_text(json.dumps({"done": 25, "total": 100, "unit": "steps", "at": watch.start - 1}))
    assert watch.line() == "[1/7] stage  1:00", "what the stage before left there is not shown"


# a version with more settings

COMMITTED = [folder.parent for folder in Path(__file__).parents[1].glob("reports/*/2*/manifest.json")]


def test_a_setting_that_came_since_does_not_make_an_old_run_run_again(tmp_path):
    known = [folder for folder in COMMITTED if files.read_json(folder/"manifest.json")["config"] == config_.written_hash(folder/"config.yaml")]
    assert len(known) >= 3  # the settings of the others were edited after their run
    for folder in known:
        run, manifest = open_run(folder), files.read_json(folder/"manifest.json")
        manifest["stages"]["03_data"]["code"] = runs.code_hash("03_data")
        snapshot = manifest["stages"]["03_data"]["inputs"] | manifest["stages"]["03_data"]["outputs"]
        assert config_.config_hash(run.config) != manifest["config"], "this run knows all settings of today, so it shows nothing"
        assert runs.why_again(run, "03_data", manifest, snapshot) == ""
        edited = tmp_path/folder.name
        shutil.copytree(folder, edited)
        text = (edited/"config.yaml").read_text(encoding="utf-8")
        files.write_text(edited/"config.yaml", re.sub(r"(?m)^seed: \d+", "seed: 43", text))
        assert runs.why_again(open_run(edited), "03_data", manifest, snapshot) == "the config has changed since"
