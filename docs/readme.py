"""Write README.md from nbs/index.ipynb: `python docs/readme.py [OUT]`. The notebook is run, its tables are taken over, the code that makes them is left out."""
import re, sys
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


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT/"README.md"
    out.write_text(render(), encoding="utf-8")
    print(out)
