"""The runner of planted bugs, on a project of one module: what is noticed, what is not, and what cannot be planted."""
import os, subprocess, sys, textwrap
from pathlib import Path

import mutants
import pytest

RUNNER = Path(mutants.__file__)
MODULE = '''
def area(width, height): return width * height

def half(x): return x / 2

def greet(name): return f"hello {name}"
'''
TESTS = '''
import os, subprocess, sys
from verifier_nb.sums import area, half

def test_area(): assert area(2, 2) == 4

def test_half_in_a_process_of_its_own():
    code = "from verifier_nb.sums import half; print(half(8))"
    said = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True).stdout
    assert said == "4.0\\n"

def test_it_waits(): assert half(1 + 1) != -1
'''
TABLE = '''
- bug: The sum instead of the product.
  module: sums
  old: width * height
  new: width + height
  tests: [tests/test_sums.py]
- bug: A quarter instead of a half.
  module: sums
  old: x / 2
  new: x / 4
  tests: ["tests/test_sums.py::test_half_in_a_process_of_its_own"]
- bug: It waits for ever.
  module: sums
  old: x / 2
  new: __import__("time").sleep(60)
  tests: ["tests/test_sums.py::test_it_waits"]
- bug: Nobody is greeted.
  module: sums
  old: hello {name}
  new: hello
  tests: [tests/test_sums.py]
  equivalent: a greeting is only shown
'''
STALE = '''
- bug: A text that is not there.
  module: sums
  old: x / 3
  new: x / 4
  tests: [tests/test_sums.py]
'''


@pytest.fixture
def project(tmp_path):
    "A small project, and a function that runs the runner on it and returns its exit status and what it said."
    files = {"verifier_nb/__init__.py": "", "verifier_nb/sums.py": MODULE, "tests/test_sums.py": TESTS, "tests/mutants/sums.yaml": TABLE,
             "docs/RELIABILITY.md": "before\n<!-- mutants -->\nold\n<!-- end of mutants -->\nafter\n"}
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(text)

    def run(*words):
        command = [sys.executable, RUNNER, "--project", tmp_path, "--preload", "pytest", "--limit", "6", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""})
        return done.returncode, done.stdout + done.stderr
    run.root = tmp_path
    return run


def test_killed_late_survived_and_equivalent(project):
    "2 + 2 is 2 * 2, so the first bug survives; the second is seen in a process that the tests start, the third by the clock."
    status, said = project("--report")
    assert status == 1, said
    assert "| sums | 4 | 2 | 1 | 1 |" in said and "66.7% killed" in said
    assert "- sums: The sum instead of the product." in said
    assert "killed " in said and "late " in said and "test_half_in_a_process_of_its_own]" in said
    page = (project.root/"docs"/"RELIABILITY.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| all | 4 | 2 | 1 | 1 |" in page and "Equivalent: a greeting is only shown" in page
    assert (project.root/"verifier_nb"/"sums.py").read_text() == MODULE, "bugs are planted in copies only"


def test_it_goes_on_where_it_stopped_and_tries_again_what_changed(project):
    "A better test kills the survivor; what is known and did not change is not run again."
    for_product = ("--match", "product")
    assert project(*for_product)[0] == 1
    status, said = project(*for_product)
    assert status == 1 and "green" not in said and "survived  " not in said
    better = TESTS.replace("area(2, 2) == 4", "area(2, 3) == 6")
    (project.root/"tests"/"test_sums.py").write_text(better)
    status, said = project(*for_product)
    assert status == 0 and "killed" in said, said


def test_what_cannot_be_planted_is_said_loudly(project):
    table = project.root/"tests"/"mutants"/"sums.yaml"
    table.write_text(STALE)
    status, said = project()
    assert status == 2 and "ERROR IN THE TABLE  sums: A text that is not there." in said and "stands 0 times" in said
    table.write_text(STALE.replace("x / 3", "return"))
    assert "stands 3 times" in project()[1]
    table.write_text(STALE.replace("x / 3", "x / 2").replace("x / 4", "x /"))
    assert "is not Python" in project()[1]
    table.write_text(STALE.replace("x / 3", "x / 2").replace("test_sums", "test_other"))
    assert "there is no tests/test_other.py" in project()[1]


def test_tests_that_fail_without_a_bug_prove_nothing(project):
    (project.root/"tests"/"test_sums.py").write_text(TESTS + "\ndef test_red(): assert False\n")
    status, said = project("--match", "product")
    assert status == 2 and "without a bug" in said and "0.0% killed" in said


def test_a_sample_is_drawn_by_its_seed():
    "The same seed draws the same bugs, in the table's order; together the seeds reach all of them."
    bugs = [*range(20)]
    samples = [mutants.draw(bugs, 5, seed) for seed in range(40)]
    assert samples == [mutants.draw(bugs, 5, seed) for seed in range(40)]
    assert all(len(drawn) == 5 and drawn == sorted(drawn) for drawn in samples)
    assert set().union(*samples) == set(bugs) and mutants.draw(bugs, 99, 1) == bugs


def test_every_entry_of_the_tables_can_be_planted(root):
    "The old text stands exactly once in its module, the new one is Python, and the tests are there."
    project = mutants.Project(root)
    assert [f"{bug.area}: {bug.bug} {project.wrong(bug)}" for bug in project.bugs() if project.wrong(bug)] == []
