"""How the library and its notebooks read, in numbers: `python docs/style.py`. A mirror, not a target to be gamed.

Lines and functions are those of `verifier_nb/`, cells those of `nbs/`. Only the standard library is used.
"""
import ast, json, statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension, ast.Assert, ast.BoolOp, ast.Match)
WIDEST = 120


def percentile(values, share):
    "The value below which this share of the values lies."
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def modules():
    "Name -> source of the library's modules."
    paths = sorted((ROOT/"verifier_nb").glob("*.py"))
    return {p.name: p.read_text(encoding="utf-8") for p in paths if p.name != "_modidx.py"}


def functions(source):
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def complexity(function):
    "Branches of a function plus one (McCabe 1976); each further `and` or `or` counts."
    inside = [n for n in ast.walk(function) if isinstance(n, BRANCHES)]
    return 1 + sum(len(n.values) - 1 if isinstance(n, ast.BoolOp) else 1 for n in inside)


def code_cells():
    "Code cells of all notebooks: (source, whether it is exported, whether it has an output)."
    for path in sorted((ROOT/"nbs").glob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.strip(): yield source, source.startswith("#| export"), bool(cell["outputs"])


def written(source):
    "Lines with something in them."
    return [line for line in source.splitlines() if line.strip()]


def definitions(source):
    return sum(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.parse(source).body)


def ends_on_a_value(source):
    body = ast.parse(source).body
    return bool(body) and isinstance(body[-1], ast.Expr)


def of_library():
    library = modules()
    lines = [line for source in library.values() for line in written(source) if not line.startswith("# %%")]
    every = [f for source in library.values() for f in functions(source)]
    yield f"lines over {WIDEST} characters in the library", f"{sum(len(l) > WIDEST for l in lines) / len(lines):.1%}", "≤ 1 %"
    yield "syntax-tree nodes in a function, median", statistics.median(sum(1 for _ in ast.walk(f)) for f in every), "≤ 60"
    yield "branches (cyclomatic complexity), 90th percentile", percentile([complexity(f) for f in every], .9), "≤ 8"
    yield f"lines of a module, largest of {len(library)}", max(len(s.splitlines()) for s in library.values()), "≤ 500"


def of_notebooks():
    cells = list(code_cells())
    exported = [len(written(s)) for s, export, _ in cells if export]
    lessons = [(s, shown) for s, export, shown in cells if not export and not s.startswith("#|")]
    share = sum(exported) / sum(len(written(s)) for s, _, _ in cells)
    showing = [shown for s, shown in lessons if ends_on_a_value(s)]
    yield "lines of an export cell, 90th percentile", percentile(exported, .9), "≤ 30"
    yield "export cells over 60 lines", sum(n > 60 for n in exported), "0"
    yield "definitions in an export cell, mean", f"{statistics.mean(definitions(s) for s, e, _ in cells if e):.2f}", "≤ 1.6"
    yield "share of notebook code that is exported", f"{share:.0%}", "≤ 70 %"
    yield "lesson cells that end on an expression, with its output", f"{sum(showing)} of {len(showing)}", "all"


if __name__ == "__main__":
    print("| | now | wanted |\n|---|---|---|")
    for what, now, wanted in [*of_library(), *of_notebooks()]: print(f"| {what} | {now} | {wanted} |")
