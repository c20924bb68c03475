"""Full disks, folders that cannot be written to or vanish, locks, and the mirror."""
import errno, json, os, shutil, subprocess, sys, time
from pathlib import Path

import pytest
from test_interrupted import hashes, litter, unfinish
from test_repeatable import copy_of
from zygote import SMALL

from verifier_nb import files, folders, checkpoints, training, lock, runs, cli
from verifier_nb.config import load_config
from verifier_nb.folders import new_run, open_run
from verifier_nb.files import VerifierError


# a full disk

@pytest.mark.parametrize("stage, bytes_free", [("00_setup", 700), ("03_data", 2000), ("06_training", 9000), ("07_evaluation", 1500), ("08_analysis", 30_000)])
def test_a_full_disk_is_said_and_costs_nothing(zygote, reference, tmp_path, stage, bytes_free):
    "No file may grow beyond a size, from a stage on: the message names the file and what to do, what was there is untouched, and with space again the run ends as ever."
    run = copy_of(reference[0], tmp_path)
    unfinish(run.reports, stage)
    if stage == "06_training": shutil.rmtree(run.checkpoints)
    before = hashes(run.reports)
    found = zygote.attempt(["resume", "latest", "--root", tmp_path], file_limit=bytes_free)
    assert found["code"] == 1 and "could not " in found["said"] and "Traceback" not in found["said"], found["said"]
    assert "File too large" in found["said"] and "free some space" in found["said"], found["said"]
    assert hashes(run.reports) == before and not run.report(".lock").exists()
    if stage == "06_training":
        assert zygote.attempt(["resume", "latest", "--root", tmp_path])["code"] == 0
        assert hashes(run.reports) == before and litter(run.reports) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOTCONN, errno.EIO, errno.EDQUOT])
def test_whatever_the_disk_says_the_old_file_stays(tmp_path, monkeypatch, number):
    files.write_text(tmp_path/"a.txt", "old")
    def refuse(_): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(VerifierError, match=os.strerror(number)) as said: files.write_text(tmp_path/"a.txt", "new")
    assert "free some space" in str(said.value) and (tmp_path/"a.txt").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_real_full_disk(tmp_path):
    "A file system of 64 KiB in memory, where this may be made."
    place = tmp_path/"small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode: pytest.skip("this account may not mount a file system")
    try:
        run = new_run(load_config("smoke"), place)
        files.write_text(run.report("a.txt"), "old")
        with pytest.raises(VerifierError, match="No space left") as said: files.write_text(run.report("a.txt"), "x" * 100_000)
        assert run.report("a.txt").read_text() == "old" and "free some space" in str(said.value)
        with pytest.raises(VerifierError, match="could not write checkpoints: the disk took only a part"):
            with files.disk_errors(run.checkpoints):
                import torch
                torch.save(torch.zeros(100_000), run.report("weights.pt"))
    finally: subprocess.run(["umount", "-l", place], check=True)


# folders

def test_a_folder_that_cannot_be_written_to():
    from typer.testing import CliRunner
    if not Path("/proc/self").exists(): pytest.skip("needs /proc, where nobody may write")
    result = CliRunner().invoke(cli.app, ["run", "smoke", "--root", "/proc/here"])
    assert result.exit_code == 2 and "cannot make the run's folder" in result.output and "--root" in result.output


def test_a_run_that_became_read_only(tmp_path):
    if os.getuid() == 0: pytest.skip("root may write everywhere")
    run = new_run(load_config("smoke"), tmp_path)
    run.reports.chmod(0o500)
    try:
        with pytest.raises(VerifierError, match="cannot lock the run"): runs.run_stages(run)
    finally: run.reports.chmod(0o700)


@pytest.mark.parametrize("stage", ["03_data", "06_training", "08_analysis"])
def test_a_folder_that_vanishes(zygote, reference, tmp_path, stage):
    "The run's reports are moved away as a stage begins, as if a drive were unmounted; when they are back, the run ends as ever."
    run = copy_of(reference[0], tmp_path)
    unfinish(run.reports, stage)
    if stage == "06_training": shutil.rmtree(run.checkpoints)
    before = hashes(run.reports)
    found = zygote.attempt(["resume", "latest", "--root", tmp_path], vanish=stage)
    assert found["code"] in (1, 2) and "has vanished" in found["said"] and "mount or restore it" in found["said"] and "Traceback" not in found["said"], found["said"]
    shutil.rmtree(tmp_path/"reports"/"smoke", ignore_errors=True)
    (tmp_path/"reports"/"away").rename(tmp_path/"reports"/"smoke")
    assert hashes(run.reports) == before
    if stage == "08_analysis": assert zygote.attempt(["resume", "latest", "--root", tmp_path])["code"] == 0 and hashes(run.reports) == before


# locks

def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    run.report(".lock").write_text(json.dumps({**lock._me(), "pid": 2**22 + 1, "mark": "gone"}))
    code = f"""
import sys, time
from verifier_nb import runs
run = runs.open_run({str(run.reports)!r})
time.sleep(max(0, {time.time() + 6} - time.time()))
try:
    with runs.lock(run): print("got it"); time.sleep(2)
except runs.VerifierError as e: print(e.what)
"""
    tries = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(p.communicate()[0].strip() for p in tries)
    assert said.count("got it") == 1 and all("another process" in s for s in said if s != "got it"), said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1'])
def test_a_lock_that_was_not_written_to_its_end_is_stale(tmp_path, text):
    run = new_run(load_config("smoke"), tmp_path)
    run.report(".lock").write_text(text)
    with lock.lock(run): assert json.loads(run.report(".lock").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_machine_is_respected(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    run.report(".lock").write_text(json.dumps({**lock._me(), "host": "elsewhere"}))
    with pytest.raises(VerifierError, match="on elsewhere") as said:
        with lock.lock(run): pass
    assert "delete the lock file" in str(said.value)


def test_a_reused_process_number_is_not_the_holder(tmp_path):
    run = new_run(load_config("smoke"), tmp_path)
    run.report(".lock").write_text(json.dumps({**lock._me(), "started": 1}))
    with lock.lock(run): pass


def test_two_runs_in_the_same_second(tmp_path):
    made = [new_run(load_config("smoke"), tmp_path) for _ in range(5)]
    assert len({r.reports for r in made}) == len({r.artifacts for r in made}) == 5


# the mirror

def test_a_run_goes_on_from_its_mirror(zygote, reference, tmp_path):
    "Killed in training after a checkpoint; the machine and its disk are gone; the copy ends with the same bytes."
    here, drive = tmp_path/"here", tmp_path/"drive"
    changes = reference[1]["changes"]["06_training"]
    found = zygote.attempt(["run", "smoke", *SMALL, "--root", here, "--mirror", drive], kill={"stage": "06_training", "how": "SIGKILL", "at": int(changes * 0.7)})
    assert found["hit"] == "06_training"
    shutil.rmtree(here)
    copy = next((drive/"reports"/"smoke").iterdir())
    kept = training.latest_checkpoint(open_run(copy).checkpoints)
    assert kept is not None and not (copy/".lock").exists()
    stamp = (kept/"manifest.json").stat().st_mtime_ns
    found = zygote.attempt(["resume", "latest", "--root", drive])
    assert found["code"] == 0 and "03_data  done before" in found["said"] and hashes(copy) == hashes(reference[0])
    assert not (kept/"manifest.json").exists() or (kept/"manifest.json").stat().st_mtime_ns == stamp, "training went on from the copied checkpoint"


def test_a_finished_run_is_whole_in_its_mirror(zygote, reference, tmp_path):
    copy_of(reference[0], tmp_path/"here")
    found = zygote.attempt(["resume", "latest", "--root", tmp_path/"here", "--mirror", tmp_path/"drive"])
    copy = next((tmp_path/"drive"/"reports"/"smoke").iterdir())
    assert found["code"] == 0 and hashes(copy) == hashes(reference[0]) and (copy/"report.html").exists()
    assert all(checkpoints.is_whole(p) for p in open_run(copy).checkpoints.glob("checkpoint-*"))


def test_a_mirror_that_cannot_be_written_is_a_warning(zygote, reference, tmp_path):
    run = copy_of(reference[0], tmp_path/"here")
    unfinish(run.reports, "08_analysis")
    (tmp_path/"drive").write_text("not a folder")
    found = zygote.attempt(["resume", "latest", "--root", tmp_path/"here", "--mirror", tmp_path/"drive"])
    assert found["code"] == 0 and hashes(run.reports) == hashes(reference[0]) and "report:" in found["said"]
    with pytest.warns(UserWarning, match="could not be copied to its mirror"):
        with runs.mirrored(tmp_path/"drive", tmp_path/"here"): assert not folders.mirror(run)
