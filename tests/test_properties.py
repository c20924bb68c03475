"""Properties that hold for any text: the parser, the prompt and the data check meet what nobody thought of.

A property with two outcomes counts how often its examples reach each: one that nothing reaches would say nothing."""
import random
from collections import Counter
from functools import lru_cache

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, event, given, settings, strategies as st

import small_data
from verifier_nb import numbers, solution as solution_, errors, prompt, rows as rows_
from verifier_nb.canonical import canonical
from verifier_nb.config import RunConfig, check_config, dump_config, load_config, parse_overrides, read_yaml
from verifier_nb.files import VerifierError, scrub

quick = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
few, many = settings(quick, max_examples=40), settings(quick, max_examples=500)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=120)
number = st.one_of(st.integers(0, 10**7).map(str), st.decimals(0, 10**5, places=2).map(str), st.integers(1000, 10**7).map("{:,}".format), st.sampled_from(["$5", "50%", "1/2", ".5", "9.00", "٣"]))
equation = st.tuples(number, st.sampled_from("+-*/x×÷"), number, st.sampled_from(["=", " = ", "=="]), number).map(lambda t: f"{t[0]} {t[1]} {t[2]}{t[3]}{t[4]}")
annotation = st.tuples(equation, number).map(lambda t: f"<<{t[0].replace(' ', '')}>>{t[1]}")
control = st.sampled_from(["<|end|>", "<|assistant|>", "<|system|>", "<|user|>", "<|endoftext|>", "<|pad|>", "<|end", "|>", "<<", ">>", "=", "####", "(((", "...", "\n\n", "\u202e", "[…]"])
solution = st.lists(st.one_of(text, equation, annotation, control), max_size=8).map(" ".join)


@lru_cache(1)
def tiny(): return prompt.load_tokenizer("tiny:llama")


class Outcomes:
    "Counts which outcome of a property its examples reach."
    def __init__(self, *names): self.counts = Counter(dict.fromkeys(names, 0))

    def reach(self, name):
        self.counts[name] += 1
        event(name)

    def check(self, share=0.2):
        "Every outcome is reached by a fifth of the examples."
        total = sum(self.counts.values())
        for name, n in self.counts.items(): assert n >= share*total, f"{name}: only {n} of {total} examples"


# the solution parser

@st.composite
def worked(draw):
    "A problem of our own with something strange put between its lines: (question, solution)."
    problem = draw(st.sampled_from(small_data.problems()))
    lines = problem["solution"].split("\n")
    for _ in range(draw(st.integers(0, 2))):
        lines.insert(draw(st.integers(0, len(lines)-1)), draw(st.one_of(text, equation, annotation, control)))
    return problem["question"], "\n".join(lines)


def test_any_text_can_be_parsed_and_checked():
    outcomes = Outcomes("no equation", "true ones only", "a false one")

    @many
    @given(st.one_of(solution, worked().map(lambda example: example[1])))
    def holds(s):
        solution_.parse(s)
        found = solution_.check(s)
        outcomes.reach("no equation" if not found else "true ones only" if all(e.ok for e in found) else "a false one")
        for e in found:
            assert 0 <= e.start < e.end <= len(s) and isinstance(e.ok, bool)
            assert e.ok or e.expected, "a false equation says what is right"

    holds()
    outcomes.check(0.12)


def test_any_text_can_be_asked_for_an_error():
    "Either a flawed solution with a known number of false equations, or a reason why not; the same for the same seed."
    outcomes = Outcomes("injected", "refused")
    strange = solution.map(lambda s: ("How many?", s))

    @quick
    @given(st.one_of(worked(), strange), st.integers(0, 10**6), st.sampled_from(["computational", "conceptual"]))
    def holds(drawn, seed, kind):
        question, s = drawn
        example = {"question": question, "solution": s}
        made, again = (errors.inject(example, kind, rng=random.Random(seed)) for _ in range(2))
        assert repr(made) == repr(again)
        outcomes.reach("injected" if made else "refused")
        if not made:
            assert isinstance(made, numbers.Refusal) and made.reason
            return
        assert made.solution != s and made.question == question and made.kind == kind
        assert sum(not e.ok for e in solution_.check(made.solution)) == (kind == "computational")
        assert all(0 <= start < end <= len(made.solution) for start, end in made.marks)

    holds()
    outcomes.check()


def test_a_plain_equation_is_judged_by_its_value():
    outcomes = Outcomes("true", "false")
    wrong_by = st.one_of(st.just(0), st.integers(1, 300))

    @quick
    @given(st.integers(0, 9999), st.integers(1, 999), st.sampled_from("+-*"), wrong_by)
    def holds(a, b, op, off):
        if op == "-": a, b = a + b, a  # so that nothing is negative
        right = {"+": a + b, "-": a - b, "*": a * b}[op]
        found = solution_.check(f"{a} {op} {b} = {right + off}")
        outcomes.reach("true" if off == 0 else "false")
        assert len(found) == 1 and found[0].ok == (off == 0)
        assert (found[0].value, found[0].stated) == (right, str(right + off)) and found[0].expected == str(right)

    holds()
    outcomes.check()


# the prompt

def controls(tokenizer, ids):
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return [i for i in ids if i in special]


def holds(tokenizer, question, s):
    "What the prompt promises for any question and solution."
    plain = prompt.prompt_ids(tokenizer, "q", "s")
    ids = prompt.prompt_ids(tokenizer, question, s)
    assert controls(tokenizer, ids) == controls(tokenizer, plain), "text never becomes a control token"
    zero, one = prompt.label_ids(tokenizer)
    assert zero != one and tokenizer.pad_token_id not in (zero, one)
    for label, expected in ((0, zero), (1, one)):
        whole = prompt._read(tokenizer, prompt.messages(question, s, label), False).ids
        assert whole[:len(ids)] == ids and whole[len(ids)] == expected, "prompt and label are how the conversation begins"


@quick
@given(solution, solution)
def test_prompt_and_label_begin_the_conversation(question, s):
    holds(tiny(), question, s)


@few
@given(question=solution, s=solution)
def test_the_same_with_the_real_tokenizer(phi, question, s):
    holds(phi, question, s)


@pytest.fixture(scope="module")
def phi(shared): return prompt.load_tokenizer(str(shared/"tokenizers"/"phi-4-mini"))


def test_a_shortened_sample_fits_and_keeps_the_solution():
    outcomes = Outcomes("whole", "shortened", "dropped")
    letters = st.characters(exclude_categories=["Cs"])
    questions, solutions = st.text(letters, min_size=40, max_size=300), st.text(letters, min_size=1, max_size=60)

    @quick
    @given(questions, solutions, st.integers(-60, 260))
    def holds(question, s, too_many):
        question, s = canonical(question).text, canonical(s).text  # what the model reads
        assume(canonical(question).text == question and canonical(s).text == s)
        tokenizer = tiny()
        whole = prompt.prompt_ids(tokenizer, question, s)
        limit = len(whole) + 1 - too_many
        got = prompt.encode(tokenizer, question, s, max_length=limit)
        outcomes.reach("dropped" if got is None else "shortened" if got["shortened"] else "whole")
        if too_many > 0: assert prompt.encode(tokenizer, question, s, max_length=limit, too_long="drop") is None
        room = limit - 1 - len(prompt.prompt_ids(tokenizer, "", s))
        if got is None:
            assert room < 60, "dropped, though much was left for the question"
            return
        assert got["length"] == len(whole) + 1 and got["shortened"] == (too_many > 0)
        ids, end = got["input_ids"], controls(tokenizer, prompt.prompt_ids(tokenizer, "q", "s"))[-2:]
        assert limit - 40 < len(ids) + 1 <= limit if too_many > 0 else ids == whole, "no more is cut than must be"
        tail = tokenizer(s, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids[-len(end)-len(tail):-len(end)] == tail and ids[-len(end):] == end, "the solution's end is never cut"
        if too_many > 0: keeps_both_ends(tokenizer.decode(ids), question)

    holds()
    outcomes.check(0.1)


def keeps_both_ends(said, question):
    "Of a shortened question the beginning and the end are left."
    said = said.split("### Problem:\n", 1)[1]
    said = said[:said.rindex("\n\n### Solution:\n")]
    places = [i for i in range(len(said)) if said.startswith(prompt.CUT, i)]
    parts = [(said[:i], said[i+len(prompt.CUT):]) for i in places]
    both = [(head, tail) for head, tail in parts if head and tail]
    assert any(question.startswith(head) and question.endswith(tail) for head, tail in both)


# the data check

TYPES = {0: ["correct"], 1: ["conceptual", "computational", "unknown"]}
words = st.one_of(text, st.sampled_from([" \n", "correct", "unknown"]))
value = st.one_of(st.integers(-2, 3), st.booleans(), st.none(), st.floats(), words, st.lists(st.integers(), max_size=2))
cells = {column: value for column in ("index", "question", "solution", "label", "error_type")}
anything = st.lists(st.fixed_dictionaries({**cells, "source": st.just("x")}), max_size=4)


@st.composite
def sound_rows(draw, split):
    "Rows of a split with which nothing is wrong; no other split's questions begin as theirs do."
    rows = []
    for index in range(draw(st.integers(1, 3))):
        for label in draw(st.sampled_from([[0], [1], [0, 1]])):
            said = {"question": f"{split} {index} {draw(text)}", "solution": f"so {draw(text)}"}
            kind = draw(st.sampled_from(TYPES[label]))
            rows.append({"index": index, **said, "label": label, "error_type": kind, "source": "x"})
    return rows


@st.composite
def tables(draw):
    "Rows of train and test: sound ones, ones with something wrong in one place, or anything."
    how = draw(st.sampled_from(["sound", "sound", "a cell", "a character", "a row", "a question", "anything"]))
    if how == "anything": return draw(anything), draw(anything)
    train, test = draw(sound_rows("train")), draw(sound_rows("test"))
    rows = draw(st.sampled_from([train, test]))
    if how == "a cell": draw(st.sampled_from(rows))[draw(st.sampled_from([*rows[0]]))] = draw(value)
    if how == "a character":
        row, column = draw(st.sampled_from(rows)), draw(st.sampled_from(["question", "solution", "index", "source"]))
        row[column] = str(row[column]) + draw(st.sampled_from(["\0", "\ud800", "\udfff", "\ue000", "\U0001d800"]))
    if how == "a row": rows.append(dict(draw(st.sampled_from(rows))))
    if how == "a question": test[-1]["question"] = train[0]["question"].upper() + "!"
    return train, test


def sound(rows):
    "Whether nothing is wrong with a split's rows, said without pandas."
    def is_text(said):
        return isinstance(said, str) and said.strip() and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in said)
    def is_number(said): return isinstance(said, (int, float)) and not isinstance(said, bool) and said == said
    def is_row(row):
        whole = type(row["label"]) is int and row["label"] in TYPES
        named = isinstance(row["index"], str) or is_number(row["index"])
        sourced = row["source"] is not None and row["source"] == row["source"]
        written = not any("\ud800" <= c <= "\udfff" for said in row.values() if isinstance(said, str) for c in said)
        told = is_text(row["question"]) and is_text(row["solution"])
        return whole and named and sourced and written and told and row["error_type"] in TYPES[row["label"]]
    keys = [(str(row["index"]), str(row["label"])) for row in rows]
    return len(rows) > 0 and all(map(is_row, rows)) and len(set(keys)) == len(keys)


def test_the_data_check_accepts_or_explains():
    "Whatever stands in a table: it is accepted exactly when it is sound, else refused with words."
    outcomes = Outcomes("accepted", "refused")

    @settings(quick, max_examples=150)
    @given(tables())
    def holds(rows):
        train, test = rows
        asked = [{rows_.normalise(row["question"]) for row in part if isinstance(row["question"], str)} for part in rows]
        expected = sound(train) and sound(test) and not asked[0] & asked[1]
        try:
            rows_.validate({"train": pd.DataFrame(train, dtype=object), "test": pd.DataFrame(test, dtype=object)})
            accepted = True
        except VerifierError as e:
            accepted = False
            assert e.fix and e.where
        outcomes.reach("accepted" if accepted else "refused")
        assert accepted == expected

    holds()
    outcomes.check()


@quick
@given(text)
def test_normalising_twice_changes_nothing(s):
    assert rows_.normalise(rows_.normalise(s)) == rows_.normalise(s)


@quick
@given(st.lists(st.integers(0, 30), min_size=12, max_size=60), st.integers(0, 99))
def test_a_problem_stands_in_one_split_whatever_the_order(keys, seed):
    keys = keys + [31, 32, 33, 34, 35]  # fewer problems could not be split
    one, two = rows_.split_problems(keys, 0.2, 0.2, seed), rows_.split_problems(list(reversed(keys)), 0.2, 0.2, seed)
    assert one == two and set(one) == set(keys) and set(one.values()) == {"train", "validation", "test"}


# config and secrets

share, whole, yes = st.floats(0, 0.45), st.integers(1, 10**6), st.booleans()
names = st.text(max_size=6)
sound_data = st.fixed_dictionaries({"source": st.sampled_from(["rows.csv", "gsm8k", "a+b"])}, optional={
    "problems": st.one_of(st.none(), whole), "validation_fraction": share, "test_fraction": share,
    "columns": st.dictionaries(names, names, max_size=2), "exclude": st.lists(names, max_size=2),
    "max_length": st.integers(16, 9999), "too_long": st.sampled_from(["shorten", "drop"]),
    "forms": st.lists(st.sampled_from(["original", "plain", "hash"]), min_size=1, max_size=3),
    "types": st.fixed_dictionaries({"conceptual": st.floats(0.1, 9)}, optional={"computational": st.floats(0, 9)})})
sound_training = st.fixed_dictionaries({}, optional={
    "epochs": st.floats(0.01, 99), "learning_rate": st.floats(1e-9, 1), "batch_size": whole,
    "schedule": st.sampled_from(["linear", "cosine"])})
sound_lora = st.fixed_dictionaries({}, optional={
    "r": whole, "alpha": st.floats(0.1, 99), "targets": st.lists(names, max_size=2)})
sound_publish = st.fixed_dictionaries({}, optional={"private": yes, "repo_id": st.one_of(st.none(), names)})
run_name = st.from_regex(r"[a-z0-9][a-z0-9_\-]{0,20}", fullmatch=True)
sound_settings = st.fixed_dictionaries({"name": run_name, "data": sound_data}, optional={
    "seed": st.integers(0, 2**32 - 1), "deterministic": yes,
    "lora": sound_lora, "training": sound_training, "publish": sound_publish})

a_key = st.one_of(st.sampled_from([*RunConfig.model_fields, "epochs", "r", "source"]), names)
a_leaf = st.one_of(st.none(), yes, st.integers(), st.floats(), st.text(max_size=8))
any_settings = st.recursive(a_leaf, lambda inner: st.dictionaries(a_key, inner, max_size=4), max_leaves=8)
a_block = st.sampled_from([*RunConfig.model_fields])
a_setting = st.sampled_from(["source", "problems", "types", "max_length"])


def test_any_settings_are_accepted_or_explained():
    "Sound settings are accepted and survive their own file; with something strange among them they may be explained."
    outcomes = Outcomes("accepted", "refused")

    def accepted(tried):
        try: cfg = check_config(tried)
        except VerifierError as e: return bool(e.fix) and not outcomes.reach("refused")
        outcomes.reach("accepted")
        assert check_config(read_yaml(dump_config(cfg))) == cfg
        given_blocks = {block: tried[block] for block in ("data", "training") if block in tried}
        for block, values in given_blocks.items():
            read = getattr(cfg, block)
            for name, said in values.items(): assert getattr(read, name) == said, f"{block}.{name} is not what was said"

    @quick
    @given(sound_settings, any_settings, a_block, a_setting)
    def holds(good, strange, block, setting):
        before = outcomes.counts["accepted"]
        accepted(good)
        assert outcomes.counts["accepted"] == before + 1, "sound settings are refused"
        accepted({**good, block: strange})
        accepted({**good, "data": {**good["data"], setting: strange}})

    holds()
    outcomes.check()


@quick
@given(st.text(max_size=60))
def test_any_yaml_is_read_or_explained(s):
    try: read_yaml(s, "x.yaml")
    except VerifierError as e: assert e.where == "x.yaml" and e.fix


@quick
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-12, max_value=1e12))
def test_numbers_survive_the_config_file(x):
    assert parse_overrides([f"training.learning_rate={x!r}"])["training"]["learning_rate"] == x


@quick
@given(text, st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=20, max_size=40), text)
def test_a_token_is_scrubbed_from_any_text(before, token, after):
    secret = f"hf_{token}"
    assert token not in scrub(f"{before} {secret} {after}") or token in before + after
