"""Put Colab's badge and the cell that installs the package into every numbered notebook: `python docs/badges.py`. Run again, it changes nothing.

The badge opens the notebook that it stands in; the cell installs the package where it is not, which is nowhere but there. Both stand
behind the title, so that a notebook read on GitHub still begins with what it is for. The cell is not exported, and has the tag `install`:
a run leaves it out, and outputs do not grow stale by it.
"""
import json, sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAG = "install"


def project():
    "Where the project lives: owner/name and branch, from settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    return settings["git_url"].removeprefix("https://github.com/"), settings["branch"]


def badge(path):
    "The badge that opens this notebook, as Markdown."
    repository, branch = project()
    opened = f"https://colab.research.google.com/github/{repository}/blob/{branch}/nbs/{path.name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({opened})"


def install():
    "The cell's code, which does nothing where the package is."
    repository, _ = project()
    pip = f'get_ipython().system("pip install -q git+https://github.com/{repository}")'
    return ["from importlib.util import find_spec\n", f'if not find_spec("verifier_nb"): {pip}']


def is_badge(cell): return cell["cell_type"] == "markdown" and "colab-badge.svg" in "".join(cell["source"])


def is_title(cell): return cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith("# ")


def is_install(cell): return TAG in cell["metadata"].get("tags", [])


def with_badge(nb, path):
    "The notebook with its title first and both cells behind it, in the place of older ones."
    others = [cell for cell in nb["cells"] if not is_badge(cell) and not is_install(cell)]
    title = next(cell for cell in others if is_title(cell))
    rest = [cell for cell in others if cell is not title]
    shown = dict(cell_type="markdown", id="colab-badge", metadata={}, source=[badge(path)])
    code = dict(cell_type="code", id="colab-install", metadata={"tags": [TAG]}, execution_count=None, outputs=[], source=install())
    return {**nb, "cells": [title, shown, code, *rest]}


def notebooks(): return sorted((ROOT/"nbs").glob("[0-9][0-9]*_*.ipynb"))


def text_of(nb): return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(paths):
    for path in paths:
        before = path.read_text(encoding="utf-8")
        after = text_of(with_badge(json.loads(before), path))
        if after == before: continue
        path.write_text(after, encoding="utf-8")
        print(path.name)


if __name__ == "__main__": main([Path(name) for name in sys.argv[1:]] or notebooks())
