"""Whole files, checksums, locks and the mirror, without a model: what a run's storage is made of."""
import errno, hashlib, json, os, shutil, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verifier_nb import files, folders, lock, runs
from verifier_nb.folders import MIRROR, new_run, open_run
from verifier_nb.config import load_config
from verifier_nb.files import VerifierError


# whole files

def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    "Written beside the old one, waited for, renamed: in this order, and nothing is left beside it."
    files.write_text(tmp_path/"a.txt", "old")
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("on the disk"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("renamed"), replace(a, b)))
    files.write_text(tmp_path/"a.txt", "new")
    assert order == ["on the disk", "renamed"]
    assert (tmp_path/"a.txt").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_fails_while_writing_leaves_the_old_file(tmp_path):
    "Not a disk's error, but one of the program that writes."
    files.write_text(tmp_path/"a.txt", "old")
    with pytest.raises(ZeroDivisionError):
        with files.atomic(tmp_path/"a.txt") as f:
            f.write("half")
            assert (tmp_path/"a.txt").read_text() == "old"
            1 / 0
    assert (tmp_path/"a.txt").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_the_same_text_for_the_same_values(tmp_path):
    "Whatever the order of the keys; and what JSON has no word for is null."
    files.write_json(tmp_path/"a.json", {"b": float("nan"), "a": float("inf"), "c": [-float("inf"), np.float64(0.5), np.int64(2)], "d": "ö", "e": np.bool_(True)})
    files.write_json(tmp_path/"b.json", {"e": True, "d": "ö", "c": (None, 0.5, 2), "a": None, "b": None})
    assert (tmp_path/"a.json").read_bytes() == (tmp_path/"b.json").read_bytes()
    assert files.read_json(tmp_path/"a.json") == {"a": None, "b": None, "c": [None, 0.5, 2], "d": "ö", "e": True}


def test_a_table_keeps_every_digit(tmp_path):
    frame = pd.DataFrame({"p": [0.1 + 0.2, 1 / 3, 1e-300], "text": ['x, "y"', "ö\nz", ""]})
    files.write_csv(tmp_path/"a.csv", frame)
    assert (tmp_path/"a.csv").read_bytes().startswith(b"p,text\n0.30000000000000004,")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/"a.csv", keep_default_na=False, float_precision="round_trip"), frame)


@pytest.mark.parametrize("error, said", [(OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"), (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"), "PytorchStreamWriter"),
                                         (RuntimeError("unexpected pos 64 vs 0"), "took only a part"), (ValueError("I/O error: No space left on device"), "No space left")])
def test_whatever_a_library_raises_when_the_disk_refuses(tmp_path, error, said):
    with pytest.raises(VerifierError, match="could not write checkpoints: ") as shown:
        with files.disk_errors(tmp_path/"checkpoints"): raise error
    assert said in shown.value.what and "free some space" in shown.value.fix and shown.value.where == str(tmp_path)


@pytest.mark.parametrize("error", [ValueError("a shape is wrong"), VerifierError("No space left for words", "here", "shorten them")])
def test_what_is_no_fault_of_the_disk_stays_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as shown:
        with files.disk_errors(tmp_path/"checkpoints"): raise error
    assert shown.value is error


def test_every_file_of_a_folder_is_waited_for(tmp_path, monkeypatch):
    for name in ("a.bin", "sub/b.bin", "sub/deeper/c.bin"): files.write_text(tmp_path/name, name)
    seen, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (seen.append(os.fstat(f).st_ino), fsync(f)))
    files.flush(tmp_path)
    assert set(seen) == {p.stat().st_ino for p in tmp_path.rglob("*.bin")}
    seen.clear()
    files.flush(tmp_path/"a.bin")
    assert seen == [(tmp_path/"a.bin").stat().st_ino]


def test_a_folders_checksum_is_of_names_and_contents(tmp_path):
    "Whatever the order in which the files were made; of a large file its end counts, too."
    one, two = tmp_path/"one", tmp_path/"two"
    names = [f"{i}/{i*7 % 10}.txt" for i in range(10)]
    for folder, order in ((one, names), (two, names[::-1])):
        for name in order: files.write_text(folder/name, name)
    whole = files.sha256(one)
    assert whole == files.sha256(two)
    by_hand = "".join(f"{name}\0{len(name)}\0{name}" for name in sorted(names))  # each file holds its own name
    assert whole == hashlib.sha256(by_hand.encode()).hexdigest()
    (two/"3"/"1.txt").rename(two/"3"/"2.txt")
    assert files.sha256(two) != whole, "a file has another name"
    (two/"3"/"2.txt").rename(two/"3"/"1.txt")
    assert files.sha256(two) == whole
    (two/"3"/"1.txt").write_text("3/2.txt")
    assert files.sha256(two) != whole, "a file has another content"
    large = b"x" * (2 << 20)
    (tmp_path/"large").write_bytes(large)
    assert files.sha256(tmp_path/"large") == hashlib.sha256(large).hexdigest()


def test_a_folder_that_is_gone_is_no_run(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    run.still_there()
    run.reports.rename(tmp_path/"away")
    with pytest.raises(VerifierError, match="has vanished"): run.still_there()
    with pytest.raises(VerifierError, match="has vanished"):
        with lock.lock(run): pass
    assert not run.reports.exists(), "no second, empty folder is made"


# locks

def test_a_lock_is_held_inside_and_gone_after(tmp_path):
    "Also when the work fails; a second one in this process is refused meanwhile."
    run = new_run(load_config("smoke"), tmp_path)
    with pytest.raises(ZeroDivisionError):
        with lock.lock(run):
            held = json.loads(run.report(".lock").read_text())
            assert held["pid"] == os.getpid() and os.environ[lock.MARK] == held["mark"]
            with pytest.raises(VerifierError, match="another process works on this run"):
                with lock.lock(run): pass
            assert json.loads(run.report(".lock").read_text()) == held
            1 / 0
    assert not run.report(".lock").exists() and lock.MARK not in os.environ


def test_a_lock_that_somebody_else_took_since_is_left_alone(tmp_path):
    "Ours was deleted by hand and another process took the run: its lock is not ours to remove."
    run = new_run(load_config("smoke"), tmp_path)
    theirs = json.dumps({**lock._me(), "mark": "theirs"})
    with lock.lock(run): run.report(".lock").write_text(theirs)
    assert run.report(".lock").read_text() == theirs


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    "In folders of the run, at any depth, when its stale lock is taken over; what is whole stays."
    run = new_run(load_config("smoke"), tmp_path)
    halves = [run.figures/".loss.png.77.tmp", run.report(".metrics.json.77.tmp"), run.artifacts/".dataset.new"/"train"/"data.arrow", run.artifacts/"adapter.tmp"/"weights", run.checkpoints/"checkpoint-2"/".state.77.tmp"]
    whole = [run.figures/"loss.png", run.report("notes.tmp"), run.dataset/"train"/"data.arrow", run.adapter/"weights", run.checkpoints/"checkpoint-2"/"state"]
    for path in halves + whole: files.write_text(path, "text")
    run.report(".lock").write_text(json.dumps({**lock._me(), "pid": 2**22 + 1, "mark": "gone"}))
    with lock.lock(run): pass
    assert [p.name for p in halves if p.exists()] == [] and [p.name for p in whole if not p.exists()] == []


def test_what_a_stopped_run_has_started_is_ended_before_the_next(tmp_path):
    "A process of the stage that carries the dead holder's mark would write on; one with another mark is not ours to end."
    run = new_run(load_config("smoke"), tmp_path)
    sleep = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    ours, others = (subprocess.Popen(sleep, stdout=subprocess.PIPE, env={**os.environ, lock.MARK: mark}) for mark in ("of-the-dead", "of-another"))
    try:
        for process in (ours, others): assert process.stdout.readline().strip() == b"up"
        run.report(".lock").write_text(json.dumps({**lock._me(), "pid": 2**22 + 1, "mark": "of-the-dead"}))
        with lock.lock(run):
            ours.wait(timeout=10)  # it would have slept for longer
            assert others.poll() is None
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


# the mirror

@pytest.fixture
def copied(tmp_path, monkeypatch):
    "A run with a few files of every kind, and a folder that mirrors it."
    run = new_run(load_config("smoke"), tmp_path/"here")
    for path in (run.report("manifest.json"), run.report("predictions.csv"), run.figures/"loss.png", run.dataset/"train"/"rows", run.adapter/"weights",
                 run.checkpoints/"checkpoint-2"/"manifest.json", run.checkpoints/"checkpoint-2"/"weights", run.checkpoints/"checkpoint-4"/"weights", run.checkpoints/"origin.json"):
        files.write_text(path, f"first {path.name}")
    run.report(".lock").write_text("held")
    monkeypatch.setenv(MIRROR, str(tmp_path/"drive"))
    return run, tmp_path/"drive"


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_is_finished_is_mirrored(copied):
    "Reports, artifacts and whole checkpoints; no lock, no checkpoint that is half written, and the manifest last: it says what is there."
    run, drive = copied
    assert folders.mirror(run)
    here, there = contents(drive.parent/"here"), contents(drive)
    left_out = {name for name in here if name not in there}
    assert {Path(name).name for name in left_out} == {".lock", "weights"} and sum("checkpoint-4" in name for name in left_out) == 1
    assert there == {name: text for name, text in here.items() if name not in left_out}
    assert folders._worth_copying(run)[-1] == run.report("manifest.json")


def test_the_mirror_follows_what_changes(copied):
    "A file of the same size with another content, a file in a folder, a checkpoint that is pruned."
    run, drive = copied
    folders.mirror(run)
    for path in (run.report("predictions.csv"), run.adapter/"weights"):
        path.write_text(path.read_text().replace("first", "other"))
        os.utime(path, (time.time() + 10, time.time() + 10))
    files.write_text(run.dataset/"test"/"rows", "more rows")
    shutil.rmtree(run.checkpoints/"checkpoint-2")
    files.write_text(run.checkpoints/"checkpoint-4"/"manifest.json", "whole now")
    assert folders.mirror(run)
    copy = open_run(drive/"reports"/"smoke"/run.reports.name)
    assert copy.report("predictions.csv").read_text() == "other predictions.csv" and (copy.adapter/"weights").read_text() == "other weights"
    assert (copy.dataset/"test"/"rows").read_text() == "more rows" and (copy.checkpoints/"checkpoint-4"/"weights").exists()
    assert not (copy.checkpoints/"checkpoint-2").exists()
    assert not [name for name in contents(drive) if "/." in name], "nothing half copied is left"


def test_what_is_in_the_mirror_already_is_not_copied_again(copied):
    run, drive = copied
    folders.mirror(run)
    before = {p: p.stat().st_ino for p in drive.rglob("*")}
    folders.mirror(run)
    assert {p: p.stat().st_ino for p in drive.rglob("*")} == before


def test_a_mirror_that_refuses_is_a_warning(copied):
    run, drive = copied
    drive.write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be copied to its mirror"): assert not folders.mirror(run)


def test_a_run_in_the_mirror_itself_is_not_mirrored(tmp_path, monkeypatch):
    "Going on from the copy, with the setting still there; what stood in the environment before stands there after."
    monkeypatch.setenv(MIRROR, "before")
    with runs.mirrored(tmp_path, tmp_path/"sub"/".."): assert MIRROR not in os.environ
    with runs.mirrored(tmp_path/"drive", tmp_path): assert os.environ[MIRROR] == str(tmp_path/"drive")
    with runs.mirrored(None, tmp_path): assert MIRROR not in os.environ
    assert os.environ[MIRROR] == "before"
