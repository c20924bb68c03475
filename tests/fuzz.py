"""Fuzz targets (atheris, libFuzzer): `make fuzz`, or `python tests/fuzz.py solution|archive -max_total_time=60`.

A target fails when something is raised that is not a `VerifierError`, when a promise about positions or numbers does not hold, when an archive writes outside of its folder
or leaves more than it may, or when one input takes more than ten seconds. libFuzzer then keeps the input in a file named crash-….
"""
import io, os, shutil, sys, tempfile, zipfile
from pathlib import Path

try: import atheris
except ImportError: sys.exit("atheris is not installed; `make fuzz` installs it, or: pip install atheris (Linux and macOS, Python 3.11 to 3.13)")

os.environ.setdefault("OMP_NUM_THREADS", "1")
with atheris.instrument_imports(include=["verifier_nb", "zipfile"]):
    from verifier_nb import canonical, solution as solution_, errors, rows
from verifier_nb.files import VerifierError

TEXTS = ["5% of 20 is 0.05*2,=<<.05*20=1>9>1", "There are 3 * 4 = <<3*4=12>>12 apples.\n#### 12", "1,000.50 / 2 = $500.25", "5% of 20 is 0.05*20=<<.05*20=1>>1", "-3 - -2 = -1", "x = 2(3+4)/7", "¾ + ½ = 1¼", "2^10 = 1e3", "#### 0x10",
         r"\[\begin{align*}\frac{1}{3} \times 18 &= 6 \\ &= \sqrt{36}\end{align*}\]", r"**Step 2:** $\$5 \cdot 3 = \$15$, so \boxed{15 \text{ dollars}}", "| a | 3 × 4 = 12 |\n|---|---|\n> * `2**3 = 8`",
         "half of 48, which is 24; 18 / 4 = 4 remainder 2; 2 1/2 + ½ = 3", "2,5 · 3 = 7,5", r"\left(\dfrac{a+b}{c}\right) \approx 1{,}000 {\bf x"]


def solution(raw):
    "Parse, check, and ask for every kind of error."
    text = raw.decode("utf-8", "ignore")
    parsed = solution_.parse(text)
    plain = canonical.canonical(text)
    assert canonical.canonical(plain.text).text == plain.text, "a canonical form is its own"
    equations, unread = solution_.findings(text)
    for place in [*equations, *unread]: assert 0 <= place.start < place.end <= len(text), "what is found stands in its text"
    for kind in ("computational", "conceptual"):
        made = errors.inject({"question": "How many?", "solution": text}, kind)
        assert not made or made.solution != text, "an injected error changes the solution"
    return parsed


def archive(raw):
    "Unpack and read; nothing may appear outside of the folder."
    provider = atheris.FuzzedDataProvider(raw)
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=BASE))
    try:
        content = provider.ConsumeBytes(provider.remaining_bytes()) if provider.ConsumeBool() else _zip(provider)
        (place/"a.zip").write_bytes(content)
        (place/"inside").mkdir()
        try:
            rows.unpack(place/"a.zip", place/"inside", max_bytes=100_000)
            rows.read_folder(place/"inside")
        except VerifierError: pass
        assert sorted(os.listdir(place)) == ["a.zip", "inside"] and len(os.listdir(BASE)) == 1, "nothing outside of the folder"
        assert sum(p.lstat().st_size for p in (place/"inside").rglob("*") if p.is_file()) <= 100_000 and not any(p.is_symlink() for p in (place/"inside").rglob("*"))
    finally: shutil.rmtree(place)


def _zip(provider):
    "A well-formed archive with strange names, kinds and contents."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for _ in range(provider.ConsumeIntInRange(1, 4)):
            name = provider.PickValueInList(["dataset_dict.json", "d/dataset_dict.json", "d/train/state.json", "d/train/data-00000-of-00001.arrow", "../x", "/x", "d/../../x", "C:\\x", "a\0b", ""]) if provider.ConsumeBool() else provider.ConsumeUnicodeNoSurrogates(30)
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name, provider.ConsumeInt(4) & 0xFFFFFFFF
            content = provider.PickValueInList([b'{"splits": ["train"]}', b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}', b"[]", b""]) if provider.ConsumeBool() else provider.ConsumeBytes(200)
            try: z.writestr(info, content)
            except (ValueError, UnicodeError, OverflowError): pass
    return out.getvalue()


def corpus(name):
    "A folder with seeds to begin from."
    folder = Path(tempfile.mkdtemp(prefix="fuzz-seeds-"))
    seeds = [t.encode() for t in TEXTS]
    if name == "archive":
        from datasets import Dataset, DatasetDict, disable_progress_bars
        disable_progress_bars()
        DatasetDict({"train": Dataset.from_dict({"question": ["q"], "solution": ["s"], "label": [0]})}).save_to_disk(str(folder/"made"))
        shutil.make_archive(str(folder/"seed"), "zip", folder/"made")
        seeds = [(folder/"seed.zip").read_bytes() + b"\1", b"\0"]
        shutil.rmtree(folder/"made"), (folder/"seed.zip").unlink()
    for i, seed in enumerate(seeds): (folder/str(i)).write_bytes(seed)
    return str(folder)


if __name__ == "__main__":
    target = {"solution": solution, "archive": archive}[sys.argv[1]]
    BASE = Path(tempfile.mkdtemp(prefix="fuzz-work-"))
    atheris.Setup([sys.argv[0], corpus(sys.argv[1]), "-timeout=10", "-rss_limit_mb=4096", "-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={tempfile.gettempdir()}/", *sys.argv[2:]], target)
    atheris.Fuzz()
