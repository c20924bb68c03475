"An installed copy: a wheel put under a prefix, without a virtual environment, used from another folder."
import os, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest

CLI = "from verifier_nb.cli import main; main()"

def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words), "-q", "--no-deps", "--disable-pip-version-check"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    "The project as a wheel, built from a copy, so that nothing is left in the checkout."
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".git", ".venv", "reports", "artifacts", "build", "*.egg-info", "__pycache__")
    shutil.copytree(root, folder/"source", ignore=skip)
    pip("wheel", folder/"source", "--no-build-isolation", "-w", folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A function that runs a command of the copy under a prefix, from a folder that has nothing to do with it."
    prefix, elsewhere = tmp_path_factory.mktemp("prefix"), tmp_path_factory.mktemp("elsewhere")
    pip("install", wheel, "--prefix", prefix, "--no-index", "--ignore-installed")  # or pip removes the installation that runs these tests
    place = next(prefix.rglob("verifier_nb/__init__.py")).parent.parent
    assert not list(prefix.rglob("share/verifier_nb"))

    def run(*words):
        env = {**os.environ, "PYTHONPATH": str(place)}
        return subprocess.run([sys.executable, *words], cwd=elsewhere, env=env, capture_output=True, text=True, timeout=300)
    run.place = place
    return run


def test_the_wheel_holds_presets_notebooks_and_the_box(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [*root.glob("configs/*.yaml"), *root.glob("nbs/*.ipynb"), *root.glob("models/default/*"),
              *root.glob("verifier_nb/words/*"), *root.glob("verifier_nb/templates/*")]
    inside = {p: p.relative_to(root).as_posix() for p in wanted}
    missing = [name for name in inside.values() if not {name, f"verifier_nb/{name}"} & names]
    assert not missing and len(wanted) > 70


def test_an_installed_copy_finds_its_own_files(installed):
    said = installed("-c", "from verifier_nb import setup; print(*[setup.find_shared(n) for n in ('configs', 'nbs', 'models')], sep='\\n')")
    assert said.returncode == 0, said.stderr
    assert [Path(line).parent for line in said.stdout.split()] == [installed.place/"verifier_nb"]*3


def test_an_installed_copy_checks_a_solution(installed):
    said = installed("-c", CLI, "check", "Ann has 3 apples and buys 4. How many has she?", "3 + 4 = 8\n#### 8")
    assert said.returncode == 0, said.stderr
    assert "3 + 4 = 8" in said.stdout and "false: it is 7" in said.stdout and "verdict: flawed" in said.stdout


def test_an_installed_copy_lists_its_presets_into_a_pipe_that_closes(installed):
    code = "import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'from verifier_nb.cli import main; main()', 'presets'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n" \
           "p.stdout.close(); print(p.stderr.read().decode())"
    said = installed("-c", code)
    assert said.returncode == 0 and not said.stdout.strip(), said.stdout + said.stderr
    assert "quickstart" in installed("-c", CLI, "presets").stdout


# Colab

@pytest.mark.parametrize("torch", ["2.11.0", "2.13.0"])
def test_the_requirements_resolve_beside_colabs_own_versions(torch, root, tmp_path):
    "For Python 3.12, with the versions of torch and numpy kept; resolved, not installed. The install cell of nbs/colab.ipynb keeps them so."
    from configparser import ConfigParser
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not uv: pytest.skip("uv is not installed")
    parser = ConfigParser(delimiters=["="])
    parser.read(root/"settings.ini", encoding="utf-8")
    wanted = parser["DEFAULT"]["requirements"] + parser["DEFAULT"]["templates_requirements"]
    (tmp_path/"wanted.in").write_text(wanted)
    (tmp_path/"kept.txt").write_text(f"torch=={torch}\nnumpy==2.0.2\n")
    done = subprocess.run([uv, "pip", "compile", "-q", "wanted.in", "-c", "kept.txt", "--no-header", "--no-annotate", "--python-version", "3.12",
                           "--python-platform", "x86_64-manylinux_2_28"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    if "error sending request" in done.stderr: pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    assert {f"torch=={torch}", "numpy==2.0.2"} <= set(done.stdout.split())
