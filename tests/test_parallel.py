"""Several processes compute what one does: the same losses, the same adapter, the same bytes of predictions; and a death is heard."""
import os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from safetensors.numpy import load_file
from verifier_nb import data, evaluation, parallel, training
from verifier_nb.checkpoints import latest_checkpoint
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError
from verifier_nb.folders import new_run

# 24 rows in passes of 5 are 6 passes: with two passes a step all steps are whole; with four the last is half empty
SETTINGS = ["model.device=cpu", "training.gradient_accumulation=4", "training.batch_size=5", "training.logging_steps=1", "lora.dropout=0.0",
            "training.epochs=2.0", "evaluation.baselines=false", "evaluation.resamples=100"]


@pytest.fixture(autouse=True)
def one_process_again():
    yield
    parallel.ask_for(1)


def prepared(folder, *more):
    "A run whose data are there."
    run = new_run(load_config("smoke", [*SETTINGS, *more]), folder)
    data.run_stage(run)
    return run


def losses(run): return pd.read_csv(run.report("log_history.csv"))[["step", "loss", "grad_norm", "eval_loss"]]


def adapter(run): return load_file(run.adapter/"adapter_model.safetensors")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "The same run on one process and on two, trained and evaluated."
    runs = []
    for processes in (1, 2):
        run = prepared(tmp_path_factory.mktemp(f"on_{processes}"))
        parallel.ask_for(processes)
        training.run_stage(run)
        evaluation.run_stage(run)
        runs.append(run)
    return runs


def test_two_processes_take_the_steps_of_one(pair):
    one, two = map(losses, pair)
    assert len(one) == len(two) > 4
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)


def test_two_processes_end_with_the_adapter_of_one(pair):
    one, two = map(adapter, pair)
    assert max(np.abs(weights).max() for weights in one.values()) > 0.01  # something was learned
    for name, weights in one.items(): np.testing.assert_allclose(two[name], weights, atol=1e-4, err_msg=name)


def test_predictions_have_the_same_bytes(pair):
    for name in ("predictions.csv", "validation_predictions.csv"):
        first, second = (pd.read_csv(run.report(name)) for run in pair)
        np.testing.assert_allclose(first.p_flawed, second.p_flawed, atol=1e-4)  # the adapters differ in their last bits


def test_sharded_scores_are_those_of_one_process(pair):
    "One adapter, scored by one process and by two."
    run = pair[1]
    before = {name: run.report(name).read_bytes() for name in ("predictions.csv", "validation_predictions.csv")}
    parallel.ask_for(1)
    evaluation.run_stage(run)
    assert {name: run.report(name).read_bytes() for name in before} == before


def test_the_facts_say_how_many_processes_it_were(pair):
    from verifier_nb.files import read_json
    assert [read_json(run.report("training.json"))["processes"] for run in pair] == [1, 2]


def test_a_killed_process_is_named_and_the_run_goes_on_with_one(tmp_path, pair):
    run = prepared(tmp_path)
    code = ("import sys; from verifier_nb import parallel, training; from verifier_nb.folders import open_run\n"
            "parallel.ask_for(2)\n"
            "try: training.run_stage(open_run(sys.argv[1]))\n"
            "except Exception as e: print(e)")
    with subprocess.Popen([sys.executable, "-c", code, str(run.reports)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as stage:
        killed = None
        while stage.poll() is None and killed is None:
            if latest_of(run): killed = kill_worker(run, rank=1)
            time.sleep(0.02)
        said = stage.communicate(timeout=120)[0]
    if killed is None: pytest.skip("it was done before it could be killed")
    assert "process 1 died" in said and "resume" in said, said
    assert latest_checkpoint(run.checkpoints) is not None
    parallel.ask_for(1)
    training.run_stage(run)
    one, two = losses(pair[0]), losses(run)
    pd.testing.assert_frame_equal(one.tail(3).reset_index(drop=True), two.tail(3).reset_index(drop=True), rtol=0, atol=1e-5)


def latest_of(run):
    "The newest sealed checkpoint; half-written ones are not looked at."
    return sorted(run.checkpoints.glob("checkpoint-*/manifest.json"))


def kill_worker(run, rank):
    "SIGKILL the worker of this rank; returns its process id, or None."
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try: environment = entry.read_bytes().split(b"\0")
        except OSError: continue
        ours = f"RANK={rank}".encode() in environment and str(run.reports).encode() in (entry.parent/"cmdline").read_bytes()
        if ours:
            os.kill(int(entry.parent.name), signal.SIGKILL)
            return int(entry.parent.name)


def test_processes_that_cannot_share_a_step_are_refused():
    parallel.ask_for(3)
    with pytest.raises(VerifierError, match="3 processes cannot share the 4 passes"): parallel.wanted(load_config("smoke", SETTINGS))


@pytest.mark.skipif(parallel._gpus() > 0, reason="there are GPUs")
def test_fsdp_needs_gpus(tmp_path):
    run = new_run(load_config("smoke", SETTINGS), tmp_path)
    parallel.ask_for(2, "fsdp2")
    with pytest.raises(VerifierError, match="fsdp2 needs GPUs"): parallel.launch("verifier_nb.training:train_and_save", run, 2)


def test_a_missing_settings_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "find_shared", lambda name: tmp_path)
    with pytest.raises(VerifierError, match="accelerate's settings are missing"): parallel.settings_file("ddp")


def test_what_fails_in_a_worker_is_said_in_its_own_words(tmp_path):
    run = new_run(load_config("smoke", SETTINGS), tmp_path)  # without data
    with pytest.raises(VerifierError, match="the run has no data set yet"): parallel.launch("verifier_nb.training:train_and_save", run, 2)


def test_an_unchanged_command_under_torchrun(tmp_path):
    "Both processes run the whole program; one of them runs the stages."
    code = "from verifier_nb import parallel; print('runs', parallel.world(), parallel.take_over(), parallel.world())"
    (tmp_path/"program.py").write_text(code)
    said = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(parallel._free_port()), str(tmp_path/"program.py")],
                          capture_output=True, text=True, timeout=120).stdout
    assert "World(rank=0, size=2) True World(rank=0, size=1)" in said and "World(rank=1, size=2) False" in said
