"""Write README.md from nbs/index.ipynb: `python docs/readme.py [OUT]`. The notebook is run, its tables are taken over, the code that makes them is left out."""
import json, re, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent


def render(notebook=ROOT/"nbs"/"index.ipynb"):
    "The README's text."
    nb = nbformat.read(notebook, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(notebook.parent)}}).execute()
    config = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}})
    exporter = MarkdownExporter(config=config)
    exporter.register_preprocessor(TagRemovePreprocessor(config=config), enabled=True)
    return tidy(exporter.from_notebook_node(nb)[0])


def tidy(text):
    "Links as they are from the project's folder, `py` fences as `python`, no blank lines in a row."
    text = re.sub(r"\]\((\d\d\w+\.ipynb)\)", r"](nbs/\1)", text).replace("](../", "](").replace("```py\n", "```python\n")
    return "<!-- made from nbs/index.ipynb by `make readme` -->\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def heading(path):
    "What a notebook is for: the line behind its title."
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return re.search(r"^> (.+)", first, re.M)[1]


def map_of_notebooks():
    "One line for each notebook."
    paths = sorted((ROOT/"nbs").glob("[0-9]*.ipynb"))
    return "\n".join(["| notebook | what it is for |", "|---|---|", *(f"| [{p.stem}](nbs/{p.name}) | {heading(p)} |" for p in paths)])


def between(text, name, content):
    "A text with what stands between two marks replaced."
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, after = text.split(start)[0], text.split(end)[1]
    return f"{before}{start}\n{content}\n{end}{after}"


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT/"README.md"
    out.write_text(render(), encoding="utf-8")
    print(out)
    contributing = ROOT/"CONTRIBUTING.md"
    text = contributing.read_text(encoding="utf-8")
    contributing.write_text(between(text, "map", map_of_notebooks()), encoding="utf-8")
