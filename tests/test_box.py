"""The verifier in the box from one command, in small: solvers, samples, training with steps, report, and the folder that ships."""
import json, shutil

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from verifier_nb import cli as cli_, data, files, pack, runs, sources, verify
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError, read_json
from verifier_nb.lean import adapter_tensors
from verifier_nb.scoring import Verifier

SMALL = {"model.base": "tiny:llama", "model.dtype": "float32", "model.device": "cpu", "model.compile": False, "lora.r": 4,
         "data.problems_of": {"everyday": 60}, "data.repeats": 1, "data.heldout_repeats": 1, "data.validation_fraction": 0.15,
         "data.max_length": 2048, "data.exclude": [], "training.batch_tokens": 8192, "training.evals_per_epoch": 1,
         "training.optimizer": "adamw_torch", "training.workers": 0, "training.logging_steps": 1, "evaluation.resamples": 200, "evaluation.behaviour_rows": 40}
QUICK = {"data.problems": None, "solver.epochs": 30, "solver.batch_tokens": 512, "sampling.samples": 4, "sampling.round": 2,
         "sampling.new_tokens": 40}


class Killed(BaseException): "The power is gone."


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    "Problems that a tiny solver can learn, with a test split of their own."
    folder = tmp_path_factory.mktemp("sums")
    every = [dict(question=f"Add {a} and {b}.", solution=f"<<{a}+{b}={a+b}>>{a+b}\n#### {a+b}") for a in range(2, 9) for b in range(2, 8)]
    for name, rows in (("train", every[:36]), ("test", every[36:])):
        (folder/f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def made(sums, tmp_path_factory):
    "The run; it is stopped behind the samples, and begun again."
    root = tmp_path_factory.mktemp("box")
    quick = root/"quick.yaml"
    quick.write_text(yaml.safe_dump(load_config("sample-tiny", QUICK | {"data.source": str(sums)}).model_dump(mode="json")))
    settings = SMALL | {"data.source": f"{sums}+everyday+sampled", "data.sampled": "quick"}
    said = []

    def say(text):
        said.append(text)
        if text.startswith("run ") and len([line for line in said if line.startswith("run ")]) == 1: raise Killed
    patch = pytest.MonkeyPatch()
    for module in ("config", "sampling"): patch.setattr(f"verifier_nb.{module}.presets", lambda: {"quick": quick, "default-verifier": _preset()})
    try:
        with pytest.raises(Killed): runs.start("default-verifier", settings, root, say=say)
        run = runs.start("default-verifier", settings, root, say=say)
    finally: patch.undo()
    return run, said


def _preset():
    from verifier_nb.setup import find_shared
    return find_shared("configs")/"default-verifier.yaml"


def test_all_parts_are_made_once(made):
    run, said = made
    assert sum(line.startswith("solver ") for line in said) == 2  # not again for the second run
    stages = runs.read_manifest(run)["stages"]
    assert set(stages) == set(runs.STAGES) and {stage["status"] for stage in stages.values()} == {"done"}
    rows = data.load_split(run, "train").to_pandas()
    assert {"everyday", "sampled"} < set(rows.source) and len(set(rows.source)) == 3
    known = rows[rows.source != "sampled"].first_error
    assert known.notna().all() and (known[rows.label == 1] >= 0).all()
    assert rows[(rows.source == "sampled") & (rows.label == 1)].first_error.isna().all()


def test_the_report_is_whole_and_every_number_follows(made):
    run, _ = made
    assert verify.verify(run).empty
    page = run.report("report.html").read_text(encoding="utf-8")
    assert "By aim" in page and "Where it goes wrong" in page
    assert read_json(run.report("calibration.json"))["steps"]["n"] > 0


def test_the_folder_that_ships_is_small_and_answers(made):
    run, said = made
    folder = run.artifacts/"box"
    assert said[-2 if said[-1].startswith("\n") else -1].startswith("packed: ")
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors", "calibration.json"}
    assert max(path.stat().st_size for path in folder.iterdir()) <= pack.LARGEST_FILE
    assert read_json(run.report("pack.json"))["mean_apart"] < 0.02
    got = CliRunner().invoke(cli_.app, ["check", "Add 3 and 4.", "3 + 4 = 7\n#### 7", "--adapter", str(folder), "--json", "--aim", "few-false-alarms", "--prior", "0.2"])
    answer = json.loads(got.stdout)
    assert got.exit_code == 0 and 0 < answer["p_flawed"] < 1 and len(answer["steps"]) >= 1 and answer["prior"] == 0.2
    card = (folder/"README.md").read_text(encoding="utf-8")
    assert "## What it is not good at" in card and 'from_pretrained("default")' in card and "weight 1" in card


def test_an_adapter_in_parts_is_the_same_adapter(made, tmp_path):
    "For the quick reader, the one that folds, and peft; a missing part is told."
    folder = made[0].artifacts/"box"
    parted = tmp_path/"parted"
    shutil.copytree(folder, parted, ignore=shutil.ignore_patterns("*.safetensors"))
    from safetensors.torch import load_file
    paths = pack.save_weights(load_file(folder/"adapter_model.safetensors"), parted, largest=2**16 + 6000)
    assert len(paths) > 2
    whole, parts = adapter_tensors(folder), adapter_tensors(parted)
    assert whole.keys() == parts.keys() and all((whole[name] == parts[name]).all() for name in whole)
    texts = ["Add 3 and 4."]*2, ["3 + 4 = 7\n#### 7", "3 + 4 = 8\n#### 8"]
    one, two = (Verifier.from_pretrained(str(place)).score(*texts) for place in (folder, parted))
    assert one.p_flawed.tolist() == two.p_flawed.tolist()
    from verifier_nb import model
    from verifier_nb.config import ModelSettings
    settings = ModelSettings(base="tiny:llama", device="cpu")
    adapted = model.load_adapter(model.load_base(settings), parted)
    assert len([name for name, _ in adapted.named_parameters() if "lora_" in name]) == len(whole)
    paths[1].unlink()
    with pytest.raises(VerifierError, match=f"1 of {len(paths)} parts"): Verifier.from_pretrained(str(parted))


def test_what_is_not_what_was_measured_is_not_packed(made, tmp_path):
    run = made[0]
    copy = tmp_path/"reports"/"x"/run.reports.name
    shutil.copytree(run.reports, copy)
    shutil.copytree(run.artifacts, tmp_path/"artifacts"/"x"/run.reports.name)
    from verifier_nb.folders import open_run
    other = open_run(copy)
    shutil.rmtree(other.artifacts/"box")
    rows = pd.read_csv(other.report("predictions.csv"))
    files.write_csv(other.report("predictions.csv"), rows.assign(p_flawed=1 - rows.p_flawed.round()))
    with pytest.raises(VerifierError, match="says something else than the run"): pack.pack(other)
    assert not (other.artifacts/"box").exists()
    other.config.training.trainable = "linear"
    with pytest.raises(VerifierError, match="all weights were trained"): pack.pack(other)


def test_an_empty_sampled_set_is_told(sums, tmp_path):
    (tmp_path/sources.SAMPLED_FILE).write_text("\n")
    cfg = load_config("smoke", {"data.source": "sampled", "data.sampled": str(tmp_path), "data.problems": None})
    with pytest.raises(VerifierError, match="holds no rows"): sources.load_problems(cfg.data, cfg.seed)
