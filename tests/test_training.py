"""Training on the tiny model: the loss that it sees, checkpoints, resuming."""
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from verifier_nb import data, scoring, training
from verifier_nb.config import load_config, new_run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A run with its data set, ready to train."
    run = new_run(load_config("smoke", {"training.max_steps": 6, "training.evals_per_epoch": 3, "lora.dropout": 0.1}), tmp_path_factory.mktemp("train"))
    data.run_stage(run)
    return run


@pytest.fixture(scope="module")
def trained(small): return training.run_stage(small)


def test_the_loss_sequence_is_pinned(small, trained):
    "Same code, same data, same seed: the same losses. A change here is a change of the training, wanted or not."
    losses = pd.read_csv(small.report("log_history.csv"))["loss"].dropna().to_numpy()
    np.testing.assert_allclose(losses, PINNED, atol=2e-3, err_msg=f'now: {losses.round(4).tolist()}')


def test_the_loss_is_the_label_positions_alone(small):
    "Cross entropy at the last prompt token of each row, and nothing else."
    trainer = training.make_trainer(small)
    rows = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator(rows)
    net = trainer.model.eval()
    with torch.no_grad():
        ours = trainer.compute_loss(net, {k: v for k, v in batch.items() if k != "rows"}).item()
        byhand = []
        for row in rows:
            logits = net(input_ids=torch.tensor([row["input_ids"]])).logits[0, -1]  # the logit before the label predicts it
            byhand.append(-torch.log_softmax(logits.float(), -1)[row["label_id"]].item())
    assert abs(ours - np.mean(byhand)) < 1e-5


def test_gradient_accumulation_equals_one_large_batch(tmp_path):
    "Four passes of two rows teach what one pass of eight rows teaches."
    weights = []
    for size, times in ((8, 1), (2, 4)):
        run = new_run(load_config("smoke", {"training.batch_size": size, "training.gradient_accumulation": times, "training.max_steps": 1, "lora.dropout": 0.0, "training.evals_per_epoch": 1}), tmp_path)
        data.run_stage(run)
        trainer = training.make_trainer(run)
        order = list(range(8))
        trainer.batches.__class__.__iter__, kept = (lambda self: iter([order[i:i+size] for i in range(0, 8, size)])), trainer.batches.__class__.__iter__
        try: trainer.train()
        finally: type(trainer.batches).__iter__ = kept
        weights.append(torch.cat([p.detach().flatten() for n, p in sorted(trainer.model.named_parameters()) if p.requires_grad]))
    assert torch.allclose(*weights, atol=1e-6)


def test_an_interrupted_training_ends_the_same(small, trained, tmp_path):
    "Training that breaks off after a checkpoint and resumes gives byte-identical weights."
    run = new_run(small.config, tmp_path)
    shutil.copytree(small.dataset, run.dataset)
    training.setup.seed_everything(run.config.seed)
    trainer = training.make_trainer(run)

    class PowerCut(training.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5: raise RuntimeError("power cut")
    trainer.add_callback(PowerCut())
    with pytest.raises(RuntimeError, match="power cut"): trainer.train()
    assert training.latest_checkpoint(run.checkpoints).name in ("checkpoint-2", "checkpoint-4")
    training.run_stage(run)
    assert (run.adapter/"adapter_model.safetensors").read_bytes() == (small.adapter/"adapter_model.safetensors").read_bytes()


def test_a_half_written_checkpoint_is_skipped(small, trained, tmp_path):
    folder = tmp_path/"checkpoints"
    shutil.copytree(small.checkpoints, folder)
    newest = training.latest_checkpoint(folder)
    (newest/"adapter_model.safetensors").write_bytes(b"half")
    with pytest.warns(UserWarning, match="not complete"): found = training.latest_checkpoint(folder)
    assert found is not None and found != newest


def test_the_best_checkpoint_becomes_the_adapter(small, trained):
    import safetensors.torch
    best = small.checkpoints/f"checkpoint-{trained['best_step']}"
    one, two = (safetensors.torch.load_file(p/"adapter_model.safetensors") for p in (best, small.adapter))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_no_room_for_checkpoints_is_said_before_training(small, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(training.VerifierError, match="are free"): training.train(small)


PINNED = [5.782, 5.7245, 5.4989, 5.3564, 4.9099, 4.9408]
