"""Execute the notebooks and keep what they show: `python docs/outputs.py [NAME …]`.

A reader on GitHub sees what the code does without running it. Each notebook runs on a fresh kernel, on the CPU, without
the network. What differs from run to run or from machine to machine (counts, temporary folders, addresses, warnings of
other people's libraries) is left out, and a hash of the code is kept in the metadata: it says when outputs are stale.
"""
import hashlib, json, os, re, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 400_000  # bytes of a notebook with its outputs
KEY = "outputs_of"  # in the notebook's metadata: the hash of the code that its outputs come from
QUIET = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1", "COLUMNS": "100"}
PER_RUN = [
    (re.compile(r"/tmp/(?:[\w.-]*/)*?(?:tmp|verifier_nb-)\w{8}"), "/tmp/…"),  # a temporary folder
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x…"),  # an address in memory
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{7}"), "20260101T000000Z-0000000"),  # a run's name
]


def notebooks(names=()):
    "All numbered notebooks, or those that are named."
    every = sorted((ROOT/"nbs").glob("[0-9][0-9]*_*.ipynb"))
    return [p for p in every if p.stem in names] if names else every


def source(cell): return "".join(cell["source"])


def hash_of_code(nb):
    "SHA-256 of a notebook's code, cell by cell, without the cell that installs the package."
    code = [source(c) for c in nb["cells"] if c["cell_type"] == "code" and "install" not in c.get("metadata", {}).get("tags", [])]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def without_places(text):
    "A text without what differs from run to run and from machine to machine."
    for place in (f"{ROOT}/", f"{ROOT}"): text = text.replace(place, "")
    for pattern, instead in PER_RUN: text = pattern.sub(instead, text)
    return text.replace(f"{Path.home()}/", "~/")


def cleaned(value):
    "An output's data, text by text."
    if isinstance(value, str): return without_places(value)
    if isinstance(value, list): return [cleaned(v) for v in value]
    if isinstance(value, dict): return {k: v if k.startswith("image/") else cleaned(v) for k, v in value.items()}
    return value


def kept(output):
    "An output as it is committed; None for what a reader does not need."
    if output["output_type"] == "stream" and output["name"] == "stderr": return None
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data: return None  # a progress bar
    return {**cleaned(output), **({"execution_count": None} if "execution_count" in output else {})}


def execute(path):
    "A notebook with its outputs."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return json.loads(nbformat.writes(nb))


def write(path):
    "Execute a notebook and put its outputs into the file."
    nb, run = json.loads(path.read_text(encoding="utf-8")), execute(path)
    for cell, executed in zip(nb["cells"], run["cells"]):
        if cell["cell_type"] != "code": continue
        outputs = [kept(o) for o in executed["outputs"]]
        cell["outputs"] = [o for o in outputs if o]
    nb["metadata"][KEY] = hash_of_code(nb)
    text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if len(text.encode()) > LARGEST: raise SystemExit(f"{path.name}: {len(text.encode()):,} bytes with its outputs; at most {LARGEST:,}")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return len(text)


def stale(path):
    "Whether a notebook's outputs are older than its code."
    nb = json.loads(path.read_text(encoding="utf-8"))
    return nb["metadata"].get(KEY) != hash_of_code(nb)


def main(names):
    os.environ.update(QUIET)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["HF_HOME"] = empty
        for path in notebooks(names): print(f"{path.name:30} {write(path):8,} bytes", flush=True)


if __name__ == "__main__": main(sys.argv[1:])
