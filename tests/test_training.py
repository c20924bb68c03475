"""Training on the tiny model: the loss that it sees, the checkpoint that it keeps, resuming."""
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from verifier_nb import prompt, data, model as model_, kernels, scoring, checkpoints, curves, training
from verifier_nb.config import load_config
from verifier_nb.folders import new_run
from verifier_nb.files import VerifierError

BASE = {"training.max_steps": 6, "training.evals_per_epoch": 3, "training.best_metric": "loss", "lora.dropout": 0.1}
PINNED = [5.782, 5.7413, 5.4813, 5.3576, 4.9288, 4.9249]  # since the model reads the canonical text: × ÷ • are * / -


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A run with its data set, ready to train."
    run = new_run(load_config("smoke", BASE), tmp_path_factory.mktemp("train"))
    data.run_stage(run)
    return run


@pytest.fixture(scope="module")
def trained(small): return training.run_stage(small)


@pytest.fixture(scope="module")
def rows(small):
    "The training rows, as samples."
    return list(training.to_samples(data.load_split(small, "train"), prompt.load_tokenizer("tiny:llama"), 1024))


def again(small, folder, changes=()):
    "A new run on the same data set, with other settings."
    run = new_run(load_config("smoke", {**BASE, **dict(changes)}), folder)
    shutil.copytree(small.dataset, run.dataset)
    return run


def one_by_one(net, samples):
    "The reference: the logits that predict each sample's label, without dropout, one forward pass a sample."
    net.eval()
    with torch.no_grad(): return torch.cat([net(input_ids=torch.tensor([s["input_ids"]])).logits[:, -1] for s in samples]).float()


def losses_by_hand(net, samples):
    "Cross entropy of each sample's label over the whole vocabulary."
    logs = torch.log_softmax(one_by_one(net, samples), -1)
    return np.array([-logs[i, s["label_id"]].item() for i, s in enumerate(samples)])


def learned(net):
    "All trainable numbers of a model."
    return torch.cat([p.detach().flatten() for n, p in sorted(net.named_parameters()) if p.requires_grad])


def weights(folder):
    "An adapter's tensors."
    return load_file(folder/"adapter_model.safetensors")


def same(one, two): return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# the loss

def test_the_loss_sequence_is_pinned(small, trained):
    "Same code, same data, same seed: the same losses. A change here is a change of the training, wanted or not."
    losses = pd.read_csv(small.report("log_history.csv"))["loss"].dropna().to_numpy()
    np.testing.assert_allclose(losses, PINNED, atol=2e-3, err_msg=f'now: {losses.round(4).tolist()}')


def test_the_loss_is_the_label_positions_alone(small):
    "Cross entropy at the last prompt token of each row, and nothing else."
    trainer = training.make_trainer(small)
    rows = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator(rows)
    inputs = {k: v for k, v in batch.items() if k != "rows"}
    with torch.no_grad(): ours = trainer.compute_loss(trainer.model.eval(), inputs).item()
    assert abs(ours - losses_by_hand(trainer.model, rows).mean()) < 1e-5


def test_gradient_accumulation_equals_one_large_batch(small, tmp_path):
    """Three unequal passes are one pass of eight rows: the same loss and gradient in the log, and the same step.
    Loss and gradient are compared before clipping and before Adam, which both hide a wrong scale."""
    logs, steps = [], []
    for passes in ([[0, 1, 2, 3, 4, 5, 6, 7]], [[0, 1, 2, 3, 4], [5, 6], [7]]):
        run = again(small, tmp_path/str(len(passes)), {"training.gradient_accumulation": len(passes), "training.max_steps": 1, "lora.dropout": 0.0})
        training.setup.seed_everything(0)  # the same adapter to begin with
        trainer = training.make_trainer(run)
        first_rows = [trainer.train_dataset[i] for i in range(8)]
        by_hand = losses_by_hand(trainer.model, first_rows).mean()
        trainer.batches = passes
        trainer.train()
        logs.append(next(line for line in trainer.state.log_history if "loss" in line))
        steps.append(learned(trainer.model))
    assert [line["loss"] for line in logs] == pytest.approx([by_hand]*2, abs=2e-4)
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-4)
    assert torch.allclose(*steps, atol=1e-6)


def test_a_pass_that_does_not_fit_is_done_in_halves(small, rows, tmp_path, monkeypatch):
    "Loss and gradients are those of one pass, also on top of a pass before; what the broken pass left behind is gone."
    eight = rows[:8]

    def gradients(trainer):
        net = trainer.model
        net.zero_grad()
        trainer.training_step(net, trainer.data_collator(rows[8:10]), num_items_in_batch=10)
        loss = trainer.training_step(net, trainer.data_collator(eight), num_items_in_batch=10)
        return float(loss), torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])

    trainer = training.make_trainer(again(small, tmp_path, {"lora.dropout": 0.0}))
    loss, expected = gradients(trainer)
    assert loss == pytest.approx(losses_by_hand(trainer.model, eight).sum()/10, abs=1e-4)
    real = scoring.label_logits

    def small_gpu(net, batch):
        if len(batch["labels"]) <= 2: return real(net, batch)
        for p in net.parameters():
            if p.requires_grad: p.grad = torch.full_like(p, 7.0)  # half of a backward pass
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scoring, "label_logits", small_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # gradients are kept aside on a GPU only
    halved, got = gradients(trainer)
    assert trainer.splits == 3 and halved == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(got, expected, atol=1e-6)
    monkeypatch.setattr(scoring, "label_logits", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(VerifierError, match="one sample alone"): gradients(trainer)


# what it reads

def test_samples_carry_label_group_and_length(small):
    tokenizer, table = prompt.load_tokenizer("tiny:llama"), data.load_split(small, "train").select(range(6))
    zero, one = prompt.label_ids(tokenizer)
    plain = training.to_samples(table, tokenizer, 2048)
    assert plain["label_id"] == [(zero, one)[label] for label in table["label"]]
    assert plain["group"] == [str(i) for i in table["index"]]
    assert plain["length"] == [len(ids) + 1 for ids in plain["input_ids"]]
    marked = training.to_samples(table, tokenizer, 2048, marks=True)
    expected = [prompt.encode(tokenizer, q, s, 2048, marks=True)["input_ids"] for q, s in zip(table["question"], table["solution"])]
    assert marked["input_ids"] == expected != plain["input_ids"]


def test_samples_that_do_not_fit_are_shortened_or_left_out(small):
    tokenizer, table = prompt.load_tokenizer("tiny:llama"), data.load_split(small, "train").select(range(6))
    lengths = training.to_samples(table, tokenizer, 1024)["length"]
    limit = int(np.median(lengths))
    short = [n for n in lengths if n <= limit]
    assert 0 < len(short) < len(table)
    assert training.to_samples(table, tokenizer, limit, "drop")["length"] == short
    assert all(len(ids) + 1 <= limit for ids in training.to_samples(table, tokenizer, limit)["input_ids"])
    assert len(training.to_samples(table, tokenizer, 10)) == 0


def test_training_reads_the_training_rows_and_validates_on_the_others(small, tmp_path):
    "The trainer's own validation, in the middle of training, gives the numbers of one forward pass a row, without dropout."
    trainer = training.make_trainer(again(small, tmp_path, {"lora.dropout": 0.5}))
    for name, p in trainer.model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.1)  # else dropout would change nothing
    splits = {name: data.load_split(small, name) for name in ("train", "validation")}
    assert set(trainer.train_dataset["group"]) == set(map(str, splits["train"]["index"]))
    assert set(trainer.eval_dataset["group"]) == set(map(str, splits["validation"]["index"]))
    trainer.model.train()
    found = trainer.evaluate()
    assert trainer.model.training
    logits = one_by_one(trainer.model, trainer.eval_dataset)
    zero, one = trainer.label_tokens
    odds = (logits[:, one] - logits[:, zero]).numpy()
    truth = np.array(splits["validation"]["label"])
    assert found["eval_loss"] == pytest.approx(losses_by_hand(trainer.model, trainer.eval_dataset).mean(), abs=1e-4)
    assert found["eval_accuracy"] == pytest.approx(((odds > 0) == truth).mean())
    wins = [(odds[i] > odds[j]) + (odds[i] == odds[j])/2 for i in np.flatnonzero(truth) for j in np.flatnonzero(1 - truth)]
    assert found["eval_auroc"] == pytest.approx(np.mean(wins))


def test_each_epoch_has_every_row_once_in_another_order():
    lengths = np.random.default_rng(0).integers(50, 200, 40)
    for sizes in ({"batch_size": 8}, {"batch_tokens": 1000}):
        sampler, epochs = training.EpochBatches(lengths, **sizes, seed=3), []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
            assert sorted(i for b in epochs[-1] for i in b) == list(range(40))
            assert len(epochs[-1]) == len(sampler)
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        repeated, other = (training.EpochBatches(lengths, **sizes, seed=s) for s in (3, 4))
        assert list(repeated) == epochs[0] != list(other)


def test_batches_keep_groups_together_and_their_size():
    rng = np.random.default_rng(1)
    lengths = rng.integers(50, 200, 60)
    groups = [f"problem {i}" for i in rng.integers(0, 25, 60)]
    for sizes in ({"batch_size": 9}, {"batch_tokens": 1500}):
        batches = list(training.EpochBatches(lengths, **sizes, groups=groups))
        homes = [{groups[i] for i in b} for b in batches]
        assert sum(map(len, homes)) == len(set(groups)), "a group is in one batch only"
        costs = [len(b) if "batch_size" in sizes else lengths[b].sum() for b in batches]
        assert max(costs) <= next(iter(sizes.values()))
    full = [len(b) for b in training.EpochBatches(lengths[:20], batch_size=8)]
    assert max(full) <= 8 and len(full) == 3  # as few batches as hold them


# the checkpoint that is kept

def test_validation_metrics_by_hand():
    "Four rows; a sign, a swapped column or a missing average changes each of the numbers."
    p = np.array([[.6, .1], [.2, .5], [.1, .7], [.4, .3]])
    labels = np.array([0, 0, 1, 1])
    found = training.validation_metrics(np.log(p), labels)
    assert found["loss"] == pytest.approx(-np.log([.6, .2, .7, .3]).mean())
    assert found["accuracy"] == 0.5  # rows 0 and 2
    # flawed rows: odds 7 and 3/4; correct ones: 1/6 and 5/2; 7 beats both, 3/4 beats 1/6
    assert found["auroc"] == 0.75
    assert found["label_mass"] == pytest.approx(np.mean([.7, .7, .8, .7]))


@pytest.mark.parametrize("p, labels, accuracy, auroc", [
    ([[.5, .5], [.3, .3]], [0, 1], 0.5, 0.5),  # a tie is called correct, and wins half a comparison
    ([[.2, .3], [.3, .4]], [0, 1], 0.5, 0.0),  # odds 3/2 and 4/3: both are called flawed, in the wrong order
    ([[.4, .1], [.3, .2]], [0, 0], 1.0, 0.5), ([[.3, .4], [.4, .1]], [1, 1], 0.5, 0.5)])  # one class only: nothing to compare
def test_validation_metrics_of_ties_and_of_one_class(p, labels, accuracy, auroc):
    found = training.validation_metrics(np.log(p), np.array(labels))
    assert (found["accuracy"], found["auroc"]) == (accuracy, auroc)


def planted_scores(labels):
    "Log odds of three validations: the first has the best loss, the second the best accuracy, the third the best AUROC."
    flawed, half = labels == 1, len(labels)//2
    first_of = {y: np.flatnonzero(labels == y)[0] for y in (0, 1)}
    some = np.arange(len(labels)) % 6 >= 4  # a third of the rows, pairs of one correct and one flawed
    sign = np.where(flawed, 1.0, -1.0)
    best_loss = np.where(some, -0.2, 0.3)*sign
    best_accuracy = 3.0*sign
    best_accuracy[first_of[1]] = -30.0  # one row that is terribly wrong
    best_auroc = np.where(flawed, 3.0, 2.9)  # all are called flawed, and in the right order
    assert half == flawed.sum() >= 3
    return best_loss, best_accuracy, best_auroc


@pytest.mark.parametrize("metric, best", [("loss", 2), ("accuracy", 4), ("auroc", 6)])
def test_the_checkpoint_that_is_best_by_its_own_metric_becomes_the_adapter(small, tmp_path, monkeypatch, metric, best):
    "Three validations whose scores are planted; each metric has another favourite."
    run = again(small, tmp_path, {"training.best_metric": metric, "training.keep_checkpoints": 1})
    planted = []

    def scores(net, rows, label_tokens, **_):
        labels = np.array([label_tokens.index(t) for t in rows["label_id"]])
        odds = planted_scores(labels)[len(planted)]
        planted.append(odds)
        return scoring.Scores(np.stack([-np.logaddexp(0, odds), -np.logaddexp(0, -odds)], 1), [])

    monkeypatch.setattr(scoring, "score_samples", scores)
    real = training.make_trainer
    snapshots = {}

    class Snapshot(training.TrainerCallback):
        "The weights at each validation, taken from the model and not from a checkpoint."
        def on_evaluate(self, args, state, control, model, **_):
            snapshots[state.global_step] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def watched(run, net=None):
        trainer = real(run, net)
        trainer.add_callback(Snapshot())
        return trainer

    monkeypatch.setattr(training, "make_trainer", watched)
    found = training.run_stage(run)
    assert list(snapshots) == [2, 4, 6]
    kept_weights = weights(run.adapter)
    by_step = {step: {n.replace(".default", ""): p for n, p in saved.items()} for step, saved in snapshots.items()}
    assert [step for step, saved in by_step.items() if same(saved, kept_weights)] == [best]
    assert found["best_step"] == best and found["best_metric"] == metric
    folders = {p.name for p in run.checkpoints.glob("checkpoint-*")}
    assert folders == {f"checkpoint-{best}", "checkpoint-6"}  # the best and the newest, whatever is to be kept


def test_the_adapter_is_as_good_as_its_checkpoints_say(small, trained):
    "Every checkpoint is loaded and judged by its own scores; the adapter has the lowest loss of them."
    held_out = list(training.to_samples(data.load_split(small, "validation"), prompt.load_tokenizer("tiny:llama"), 1024))

    def loss(folder):
        net = model_.load_adapter(model_.load_base(small.config.model), folder)
        return losses_by_hand(net, held_out).mean()

    steps = sorted(int(p.name.split("-")[1]) for p in small.checkpoints.glob("checkpoint-*"))
    own = [loss(small.checkpoints/f"checkpoint-{step}") for step in steps]
    logged = pd.read_csv(small.report("log_history.csv")).dropna(subset=["eval_loss"])
    assert steps == logged.step.tolist() == [2, 4, 6]
    assert own == pytest.approx(logged.eval_loss.tolist(), abs=1e-4) and min(own) < max(own) - 0.01
    assert loss(small.adapter) == pytest.approx(min(own), abs=1e-6)


def test_what_the_training_says_of_itself(small, trained):
    "The facts, from the log and the data set."
    log = pd.read_csv(small.report("log_history.csv"))
    validations = log.dropna(subset=["eval_loss"])
    lowest = validations.eval_loss.min()
    assert trained["best_value"] == pytest.approx(lowest)
    assert trained["best_step"] == validations.step[validations.eval_loss == lowest].iloc[0]
    splits = {name: len(data.load_split(small, name)) for name in ("train", "validation")}
    assert (trained["steps"], trained["train_rows"], trained["validation_rows"]) == (6, splits["train"], splits["validation"])
    numbers = sum(t.numel() for t in weights(small.adapter).values())
    assert (trained["layout"], trained["trainable_parameters"], trained["passes_split_for_memory"]) == ("shared", numbers, 0)


def test_the_curves_are_summed_up():
    frame = lambda *losses: pd.DataFrame({"step": range(1, len(losses) + 1), "eval_loss": losses})
    assert "after step 2: validation loss rose from 0.500 to 0.700" in curves.curve_finding(frame(0.9, 0.5, 0.7))
    assert "still falling at step 3" in curves.curve_finding(frame(0.9, 0.7, 0.5))
    assert "too few" in curves.curve_finding(frame(0.9))


# settings

def test_every_setting_reaches_the_trainer(tmp_path):
    wanted = {"epochs": 2.5, "learning_rate": 3e-3, "schedule": "cosine", "warmup": 0.25, "weight_decay": 0.125, "max_grad_norm": 0.75, "batch_size": 3,
              "gradient_accumulation": 5, "optimizer": "adamw_torch_fused", "logging_steps": 7, "best_metric": "loss", "workers": 2}
    cfg = load_config("smoke", {"seed": 77, **{f"training.{k}": v for k, v in wanted.items()}})
    args = training.training_arguments(cfg, tmp_path, 20, "float32")
    assert (args.seed, args.data_seed, args.max_steps) == (77, 77, -1)
    names = {"epochs": "num_train_epochs", "schedule": "lr_scheduler_type", "warmup": "warmup_steps", "batch_size": "per_device_train_batch_size",
             "gradient_accumulation": "gradient_accumulation_steps", "optimizer": "optim", "best_metric": "metric_for_best_model", "workers": "dataloader_num_workers"}
    assert {k: getattr(args, names.get(k, k)) for k in wanted} == wanted
    assert (args.bf16, args.fp16) == (False, False)


@pytest.mark.parametrize("steps_per_epoch, changes, every", [
    (20, {"evals_per_epoch": 4}, 5), (21, {"evals_per_epoch": 4}, 6), (3, {"evals_per_epoch": 8}, 1),
    (100, {"evals_per_epoch": 2, "max_steps": 9}, 5), (10, {"evals_per_epoch": 5, "max_steps": 90}, 2)])
def test_validations_are_spread_over_an_epoch_or_over_the_steps_there_are(tmp_path, steps_per_epoch, changes, every):
    cfg = load_config("smoke", {f"training.{k}": v for k, v in changes.items()})
    args = training.training_arguments(cfg, tmp_path, steps_per_epoch, "float32")
    assert args.eval_steps == args.save_steps == every


def test_the_last_step_is_validated_and_saved(small, tmp_path):
    "Also when it falls between two validations."
    run = again(small, tmp_path, {"training.max_steps": 3, "training.evals_per_epoch": 2})
    trainer = training.train(run)
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [2, 3]
    assert training.latest_checkpoint(run.checkpoints).name == "checkpoint-3"


@pytest.mark.parametrize("trainable", ["lora", "linear", "all"])
def test_what_is_trained_is_what_was_asked_for(trainable):
    net = training.prepare_model(load_config("smoke", {"training.trainable": trainable}))
    trains = {n for n, p in net.named_parameters() if p.requires_grad}
    base = kernels.base_of(net)
    linear = {f"{n}.weight" for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    if trainable == "linear": assert trains == linear
    elif trainable == "all": assert trains == {n for n, _ in net.named_parameters()}
    else: assert trains and all("lora_" in n for n in trains)


def test_a_whole_model_is_saved_with_its_tokenizer(small, tmp_path):
    run = again(small, tmp_path, {"training.trainable": "all"})
    trainer = training.make_trainer(run)
    run.merged.mkdir(parents=True)
    (run.merged/"of-before.txt").write_text("old")
    training.save_model(run, trainer)
    assert not (run.merged/"of-before.txt").exists() and not run.adapter.exists()
    net = model_.load_base(run.config.model.model_copy(update={"base": str(run.merged)}))
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad(): assert torch.allclose(net(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits, atol=1e-5)
    text = "12 * 3 = 36"
    assert prompt.load_tokenizer(str(run.merged))(text)["input_ids"] == trainer.processing_class(text)["input_ids"]


# breaking off and going on

def power_cut(trainer, at):
    "Train, and break off at the end of a step."
    class PowerCut(training.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == at: raise RuntimeError("power cut")
    trainer.add_callback(PowerCut())
    with pytest.raises(RuntimeError, match="power cut"): trainer.train()


def test_an_interrupted_training_ends_the_same(small, trained, tmp_path):
    "Training that breaks off after a checkpoint and resumes gives byte-identical weights, at the best step and at the last one."
    run = again(small, tmp_path)
    training.setup.seed_everything(run.config.seed)
    trainer = training.make_trainer(run)
    power_cut(trainer, at=5)
    assert training.latest_checkpoint(run.checkpoints).name == "checkpoint-4"
    first = (run.checkpoints/"checkpoint-2"/"manifest.json").stat().st_mtime_ns
    training.run_stage(run)
    assert (run.checkpoints/"checkpoint-2"/"manifest.json").stat().st_mtime_ns == first, "it began anew instead of going on"
    for place in ("adapter", "checkpoint-6"):  # step 6 comes after the interruption, and needs the optimiser's state and the random state
        ours, theirs = ((r.adapter if place == "adapter" else r.checkpoints/place)/"adapter_model.safetensors" for r in (run, small))
        assert ours.read_bytes() == theirs.read_bytes(), place
    logs = [pd.read_csv(r.report("log_history.csv")) for r in (run, small)]
    pd.testing.assert_frame_equal(*logs)


def test_a_half_written_checkpoint_is_skipped(small, trained, tmp_path):
    folder = tmp_path/"checkpoints"
    shutil.copytree(small.checkpoints, folder)
    newest = training.latest_checkpoint(folder)
    (newest/"adapter_model.safetensors").write_bytes(b"half")
    with pytest.warns(UserWarning, match="not complete"): found = training.latest_checkpoint(folder)
    assert found is not None and found != newest


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    "By number and not by name; one file that changed, is missing, or was never sealed is enough to skip it."
    for step in (9, 10, 100, 200, 300):
        folder = tmp_path/f"checkpoint-{step}"
        (folder/"inner").mkdir(parents=True)
        (folder/"a.txt").write_text(f"weights of step {step}")
        (folder/"inner"/"z.txt").write_text(f"state of step {step}")
        if step != 300: training.seal(folder)  # 300: the power failed before
    (tmp_path/"checkpoint-200"/"inner"/"z.txt").write_text("state of step 2OO")  # as long as before
    (tmp_path/"checkpoint-100"/"a.txt").unlink()
    with pytest.warns(UserWarning, match="not complete") as said: found = training.latest_checkpoint(tmp_path)
    assert found.name == "checkpoint-10"
    assert [str(w.message).split()[0] for w in said] == ["checkpoint-300", "checkpoint-200", "checkpoint-100"]
    assert training.latest_checkpoint(tmp_path/"nothing") is None


def test_checkpoints_of_another_training_are_set_aside(small, tmp_path, monkeypatch):
    "Of other settings, of other data, of other code: each alone is enough. The same again is not."
    run = again(small, tmp_path)
    training.claim_checkpoints(run)
    (run.checkpoints/"checkpoint-2").mkdir()
    training.claim_checkpoints(run)
    assert (run.checkpoints/"checkpoint-2").exists()
    package = tmp_path/"package"
    shutil.copytree(Path(training.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def change_settings(): run.config = run.config.model_copy(update={"seed": 7})
    def change_data():
        file = max((p for p in run.dataset.rglob("*.arrow")), key=lambda p: p.stat().st_size)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1  # one bit; name and size stay
        file.write_bytes(content)
    def change_code():
        monkeypatch.setattr(training.setup, "package_folder", lambda: package)
        (package/"scoring.py").write_text((package/"scoring.py").read_text() + "# another loss\n")

    for number, (what, change) in enumerate({"settings": change_settings, "data": change_data, "code": change_code}.items(), 1):
        change()
        with pytest.warns(UserWarning, match=f"with other {what};"): training.claim_checkpoints(run)
        assert training.latest_checkpoint(run.checkpoints) is None
        assert run.checkpoints.with_name(f"checkpoints-old-{number}").is_dir()
        training.claim_checkpoints(run)


def test_no_room_for_checkpoints_is_said_before_training(small, monkeypatch):
    "Weights and two moments in float32 for each trainable number, in as many checkpoints as may lie there at once."
    trainer = training.make_trainer(small)
    numbers = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    need = 12*numbers*(small.config.training.keep_checkpoints + 2)  # the best, and the one that is being written
    usage = type("Usage", (), {"free": need})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    checkpoints.check_room(small, trainer.model)
    usage.free = need - 1
    with pytest.raises(VerifierError, match="are free"): training.train(small)


def test_lora_plus_lets_b_learn_faster_by_its_factor(tmp_path):
    "After one step of Adam a matrix that began at zero holds about the learning rate; the factor shows in it."
    moved = {}
    for plus in (1.0, 4.0):
        cfg = load_config("smoke", {"lora.plus": plus, "training.max_steps": 1, "training.evals_per_epoch": 1, "data.problems": 12,
                                    "training.schedule": "constant", "training.warmup": 0.0, "training.learning_rate": 1e-3})
        run = new_run(cfg, tmp_path/str(plus))
        data.run_stage(run)
        trainer = training.train(run)
        weights = dict(trainer.model.named_parameters())
        moved[plus] = max(w.abs().max().item() for name, w in weights.items() if "lora_B" in name)
        rates = {group["lr"] for group in trainer.optimizer.param_groups if group["params"]}
        assert rates == ({1e-3} if plus == 1 else {1e-3, 4e-3})
    assert moved[4.0] == pytest.approx(4*moved[1.0], rel=0.05) and moved[1.0] == pytest.approx(1e-3, rel=0.05)
