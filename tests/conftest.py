"""Fixtures for all tests."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def root():
    "The project's folder."
    return ROOT


@pytest.fixture(scope="session")
def shared():
    "The folder with real data beside the project; tests that need it are skipped where it is missing."
    folder = ROOT.parent/"shared"
    if not (folder/"data").is_dir(): pytest.skip("needs the data folder ../shared beside the project, which is not part of it")
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    "One small run, from the data to the evaluation, shared by all tests that only read it."
    from verifier_nb import evaluation
    from verifier_nb.config import load_config
    from verifier_nb.folders import new_run

    run = new_run(load_config("smoke"), tmp_path_factory.mktemp("smoke"))
    evaluation.run_stage(run)
    return run


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    "A process that forks killable runs; see zygote.py."
    from zygote import Zygote
    with Zygote(tmp_path_factory.mktemp("zygote")) as z: yield z


@pytest.fixture(scope="session")
def reference(zygote):
    "An uninterrupted run of the tests' small config, and what the attempt said: the run's folder, seconds and changes by stage."
    from zygote import SMALL
    root = zygote.folder/"reference"
    found = zygote.attempt(["run", "smoke", *SMALL, "--root", root])
    assert found["code"] == 0, found["said"]
    return next((root/"reports"/"smoke").iterdir()), found
