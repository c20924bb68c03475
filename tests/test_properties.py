"""Properties that hold for any text: the parser, the prompt and the data check meet what nobody thought of."""
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from verifier_nb import data, errors
from verifier_nb.config import RunConfig, check_config, dump_config, load_config, parse_overrides, read_yaml
from verifier_nb.setup import VerifierError, scrub

quick = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
few, many = settings(quick, max_examples=40), settings(quick, max_examples=500)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=120)
number = st.one_of(st.integers(0, 10**7).map(str), st.decimals(0, 10**5, places=2).map(str), st.integers(1000, 10**7).map("{:,}".format), st.sampled_from(["$5", "50%", "1/2", ".5", "9.00", "٣"]))
equation = st.tuples(number, st.sampled_from("+-*/x×÷"), number, st.sampled_from(["=", " = ", "=="]), number).map(lambda t: f"{t[0]} {t[1]} {t[2]}{t[3]}{t[4]}")
annotation = st.tuples(equation, number).map(lambda t: f"<<{t[0].replace(' ', '')}>>{t[1]}")
control = st.sampled_from(["<|end|>", "<|assistant|>", "<|system|>", "<|user|>", "<|endoftext|>", "<|pad|>", "<|end", "|>", "<<", ">>", "=", "####", "(((", "...", "\n\n", "\u202e", "[…]"])
solution = st.lists(st.one_of(text, equation, annotation, control), max_size=8).map(" ".join)


# the solution parser

@many
@given(solution)
def test_any_text_can_be_parsed_and_checked(s):
    errors.parse(s)
    for e in errors.check(s):
        assert 0 <= e.start <= e.end <= len(s) and isinstance(e.ok, bool)
        assert e.ok or e.expected, "a false equation says what is right"


@quick
@given(solution, st.integers(0, 10**6), st.sampled_from(["computational", "conceptual"]))
def test_any_text_can_be_asked_for_an_error(s, seed, kind):
    "Either a flawed solution that differs, or a refusal that says why; the same for the same seed."
    made = [errors.inject({"question": "How many?", "solution": s}, kind, rng=random.Random(seed)) for _ in range(2)]
    assert repr(made[0]) == repr(made[1])
    assert isinstance(made[0], errors.Refusal) or made[0].solution != s


@quick
@given(st.integers(-999, 9999), st.integers(1, 999), st.sampled_from("+-*"), st.integers(-3, 3))
def test_a_plain_equation_is_judged_by_its_value(a, b, op, off):
    value = {"+": a + b, "-": a - b, "*": a * b}[op]
    if a < 0 or value < 0: return
    found = errors.check(f"{a} {op} {b} = {value + off if value + off >= 0 else value}")
    assert len(found) == 1 and found[0].ok == (off == 0 or value + off < 0)


# the prompt

def controls(tokenizer, ids):
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return [i for i in ids if i in special]


def holds(tokenizer, question, s):
    "What the prompt promises for any question and solution."
    plain = data.prompt_ids(tokenizer, "q", "s")
    ids = data.prompt_ids(tokenizer, question, s)
    assert controls(tokenizer, ids) == controls(tokenizer, plain), "text never becomes a control token"
    zero, one = data.label_ids(tokenizer)
    assert zero != one and tokenizer.pad_token_id not in (zero, one)
    for label, expected in ((0, zero), (1, one)):
        whole = data._ids(tokenizer, data.messages(question, s, label), False)
        assert whole[:len(ids)] == ids and whole[len(ids)] == expected, "prompt and label are how the conversation begins"


@quick
@given(solution, solution)
def test_prompt_and_label_begin_the_conversation(question, s):
    holds(data.load_tokenizer("tiny:llama"), question, s)


@few
@given(question=solution, s=solution)
def test_the_same_with_the_real_tokenizer(phi, question, s):
    holds(phi, question, s)


@pytest.fixture(scope="module")
def phi(shared): return data.load_tokenizer(str(shared/"tokenizers"/"phi-4-mini"))


@few
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=600), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), st.integers(200, 700))
def test_a_shortened_sample_fits_and_keeps_the_solution(question, s, limit):
    tokenizer = data.load_tokenizer("tiny:llama")
    got = data.encode(tokenizer, question, s, max_length=limit)
    if got is None: return
    assert len(got["input_ids"]) + 1 <= limit and got["shortened"] == (got["length"] > limit)
    tail = tokenizer(s, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids, end = got["input_ids"], controls(tokenizer, data.prompt_ids(tokenizer, "q", "s"))[-2:]
    assert ids[-len(end)-len(tail):-len(end)] == tail and ids[-len(end):] == end, "the solution's end is never cut"


# the data check

value = st.one_of(st.integers(-2, 3), st.booleans(), st.none(), st.floats(), text, st.lists(st.integers(), max_size=2))
frame = st.lists(st.fixed_dictionaries({"index": st.one_of(st.integers(0, 5), value), "question": st.one_of(text, value), "solution": st.one_of(text, value), "label": st.one_of(st.sampled_from([0, 1]), value),
                                        "error_type": st.one_of(st.sampled_from(["correct", "conceptual", "computational", "unknown"]), value), "source": st.just("x")}), max_size=6)


@settings(quick, max_examples=250)
@given(frame, frame)
def test_the_data_check_accepts_or_explains(a, b):
    "Whatever stands in a table: it is accepted, or refused with words; what is accepted is sound."
    frames = {"train": pd.DataFrame(a, dtype=object), "test": pd.DataFrame(b, dtype=object)}
    try: data.validate(frames)
    except VerifierError as e:
        assert e.fix and e.where
        return
    for df in frames.values():
        assert len(df) and set(df.label) <= {0, 1} and all(isinstance(x, str) and x.strip() for x in [*df.question, *df.solution])
    assert not {data.normalise(q) for q in frames["train"].question} & {data.normalise(q) for q in frames["test"].question}


@quick
@given(text)
def test_normalising_twice_changes_nothing(s):
    assert data.normalise(data.normalise(s)) == data.normalise(s)


@quick
@given(st.lists(st.integers(0, 30), min_size=12, max_size=60), st.integers(0, 99))
def test_a_problem_stands_in_one_split_whatever_the_order(keys, seed):
    if len(set(keys)) < 5: return
    one, two = data.split_problems(keys, 0.2, 0.2, seed), data.split_problems(list(reversed(keys)), 0.2, 0.2, seed)
    assert one == two and set(one) == set(keys) and set(one.values()) == {"train", "validation", "test"}


# config and secrets

@quick
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)), lambda inner: st.dictionaries(st.one_of(st.sampled_from([*RunConfig.model_fields, "epochs", "r", "source"]), st.text(max_size=6)), inner, max_size=4), max_leaves=8))
def test_any_settings_are_accepted_or_explained(given_settings):
    try: cfg = check_config(given_settings)
    except VerifierError as e:
        assert e.fix
        return
    assert check_config(read_yaml(dump_config(cfg))) == cfg


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
