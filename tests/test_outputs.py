"""The notebooks are committed with their outputs: fresh, small, and the same on every machine."""
import ast, importlib.util, json, re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tool():
    spec = importlib.util.spec_from_file_location("outputs", ROOT/"docs"/"outputs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


tool = load_tool()
NOTEBOOKS = tool.notebooks()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])


def cells(path): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def text_of(output):
    "All text of an output, without its pictures."
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([data, output.get("text", "")], ensure_ascii=False)


def ends_on_a_value(code):
    "Whether a cell's last line is an expression that a notebook shows."
    body = ast.parse(code).body
    if not body or not isinstance(body[-1], ast.Expr): return False
    last = body[-1].value
    return not (isinstance(last, ast.Call) and isinstance(last.func, ast.Name) and last.func.id == "print")


@each
def test_outputs_are_not_stale(path):
    assert not tool.stale(path), f"the code has changed since: make outputs NOTEBOOKS={path.stem}"


@each
def test_every_cell_that_ends_on_a_value_shows_it(path):
    lessons = [c for c in cells(path) if not tool.source(c).startswith("#|")]
    silent = [tool.source(c) for c in lessons if ends_on_a_value(tool.source(c)) and not c["outputs"]]
    assert silent == []


@each
def test_outputs_are_small_and_name_no_place(path):
    assert path.stat().st_size <= tool.LARGEST
    places = re.compile(r"/tmp/(?!…)|/home/(?!me/|you/)\w|/root/|" + re.escape(str(ROOT)))
    shown = [text_of(o) for c in cells(path) for o in c["outputs"]]
    assert [s for s in shown if places.search(s)] == []


@each
def test_no_output_is_an_error_or_a_warning(path):
    outputs = [o for c in cells(path) for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []


# the tool itself

def notebook(code): return {"cells": [dict(cell_type="code", source=[code], outputs=[])], "metadata": {}}


def test_a_changed_cell_makes_outputs_stale(tmp_path):
    path = tmp_path/"a.ipynb"
    nb = notebook("1 + 1")
    nb["metadata"][tool.KEY] = tool.hash_of_code(nb)
    path.write_text(json.dumps(nb))
    assert not tool.stale(path)
    nb["cells"][0]["source"] = ["1 + 2"]
    path.write_text(json.dumps(nb))
    assert tool.stale(path)


def test_what_differs_between_runs_and_machines_is_left_out():
    shown = {"output_type": "execute_result", "execution_count": 7, "metadata": {},
             "data": {"text/plain": [f"<A at 0x7f01ab23cd45> in {ROOT}/reports and {Path.home()}/a and /tmp/tmpab12cd34/b"]}}
    kept = tool.kept(shown)
    assert kept["data"]["text/plain"] == ["<A at 0x…> in reports and ~/a and /tmp/…/b"] and kept["execution_count"] is None
    assert tool.kept({"output_type": "stream", "name": "stderr", "text": ["a warning"]}) is None
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "0x7f01ab23cd45"}}
    assert tool.kept(picture) == picture
