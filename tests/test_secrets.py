"""Credentials are planted wherever they might come from; no file that a run writes, and nothing that it prints, holds one."""
import json
from html import escape
from pathlib import Path
from urllib.parse import quote

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_interrupted import hashes
from typer.testing import CliRunner
from zygote import SMALL

from verifier_nb import files, runs, stages, cli
from verifier_nb.config import load_config
from verifier_nb.folders import new_run
from verifier_nb.files import VerifierError

ENVIRONMENT = {  # names that say it, and values of every shape, also those that JSON, URLs and HTML spell in another way
    "HF_TOKEN": "hf_" + "Env1" * 9, "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "DB_PASSWORD": 'pa"ss\\wörd/<1>' + "&2", "MY_SECRET": "correct horse " + "battery",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfi" + "C" * 12, "LONG_TOKEN": "L" * 5000}
SHAPES = {  # not in the environment: known by their shape alone
    "hub": "hf_" + "Shape" * 7, "model": "sk-proj-" + "a1B2" * 8, "code": "ghp_" + "Zz9" * 12, "code 2": "github_pat_" + "Yy8" * 12, "cloud": "AKIA" + "Q7" * 8, "cloud 2": "AIza" + "b" * 35,
    "chat": "xoxb-1234567890-" + "abc" * 5, "signed": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NSJ9.abc-DEF_123", "bearer": "Bearer " + "tok" * 9, "query": "token=" + "q1w2" * 5}
URL_SECRETS = ["open-" + "sesame-77", "t0k" * 9]  # spelled so that this file, which may stand in a run's stored difference, does not hold them
URLS = [f"https://ann:{URL_SECRETS[0]}@example.org/level-1.zip", f"https://{URL_SECRETS[1]}@example.org/x.git"]
BARE = {k: v.removeprefix("Bearer ").removeprefix("token=") for k, v in SHAPES.items()}


def spellings(value):
    "As it may stand in plain text, a Python literal, HTML, a URL's path or query, and each of them in JSON, with and without escapes for letters beyond ASCII."
    plain = {value, repr(value)[1:-1], escape(value), quote(value), quote(value, safe="")}
    return plain | {json.dumps(x, ensure_ascii=ascii)[1:-1] for x in plain for ascii in (True, False)}


SECRETS = {s for v in [*ENVIRONMENT.values(), *BARE.values(), *URL_SECRETS] for s in spellings(v)}


def leaks(folder):
    "(file, credential) for each credential in any file below a folder, binary ones too."
    return [(p.relative_to(folder).as_posix(), s[:12]) for p in folder.rglob("*") if p.is_file() for b in [p.read_bytes()] for s in SECRETS if s.encode() in b]


@pytest.fixture
def planted(monkeypatch):
    for name, value in ENVIRONMENT.items(): monkeypatch.setenv(name, value)


EVERYWHERE = f"""
import html, json, os, sys, urllib.parse, warnings
from pathlib import Path
import pandas as pd
from IPython.display import HTML, JSON, Markdown, display
from verifier_nb import files
values = [os.environ[k] for k in {sorted(ENVIRONMENT)!r}] + {sorted(SHAPES.values())!r} + {URLS!r}
for v in values:
    print("printed", v)
    print("to the other stream", v, file=sys.stderr)
    display(HTML("<b>" + v + "</b>"), JSON({{"token": v}}), Markdown("`" + v + "`"), {{"as data": [v]}})
    warnings.warn("warned of " + v)
run = Path(run_dir)
files.write_text(run/"a.txt", " ".join(values))
files.write_json(run/"a.json", {{"values": values, **{{v: 1 for v in values}}}})
files.write_csv(run/"a.csv", pd.DataFrame({{"value": values, "quoted": ['x, "y" ' + v for v in values]}}))
files.write_text(run/"a.html", "".join(f"<a href='https://h/?q={{urllib.parse.quote(v)}}&r={{urllib.parse.quote(v, safe='')}}'>{{html.escape(v)}}</a>" for v in values))
parameter
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    "A stage notebook of our own, that runs in a real kernel."
    def write(*sources):
        first = new_code_cell("config = ''\nrun_dir = ''\noverrides = {}\nparameter = ''", metadata={"tags": ["parameters"]})
        (tmp_path/"nbs").mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[first, *map(new_code_cell, sources)], metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}), tmp_path/"nbs"/"00_setup.ipynb")
        for module in (runs, stages): monkeypatch.setattr(module, "notebook", lambda name: tmp_path/"nbs"/f"{name}.ipynb")
        real = runs.execute
        monkeypatch.setattr(runs, "execute", lambda run, name, label, kernels=None: real(run, name, label, {"parameter": " ".join([*SHAPES.values(), *URLS, ENVIRONMENT["MY_SECRET"]])}))
        return new_run(load_config("smoke"), tmp_path/"out")
    return write


def test_a_stage_that_shows_and_writes_credentials(planted, stage, capfd):
    "Printed, displayed, warned of, written as text, JSON, CSV and HTML, given as a parameter."
    run = stage(EVERYWHERE)
    runs.run_stages(run, ["00_setup"])
    assert leaks(run.reports) == []
    said = "".join(capfd.readouterr())
    assert not [s for s in SECRETS if s in said]
    for name in ("a.txt", "a.json", "a.csv", "a.html", "00_setup.ipynb"): assert run.report(name).read_text().count("[secret]") >= len(ENVIRONMENT) + len(SHAPES), name
    json.loads(run.report("a.json").read_text()), json.loads(run.report("00_setup.ipynb").read_text()), pd.read_csv(run.report("a.csv"))


@pytest.mark.parametrize("source", [
    "raise ValueError(f'the Hub refused {parameter}')",
    "from verifier_nb.files import VerifierError\nraise VerifierError(f'refused {parameter}', parameter, parameter)",
    "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import sys; sys.exit(3)', parameter], check=True)"])
def test_a_stage_that_fails_with_a_credential_in_its_message(planted, stage, source):
    "Notebook, manifest, message."
    run = stage("import os\n" + source.replace("{parameter}", '{parameter} {os.environ["DB_PASSWORD"]} {os.environ["LONG_TOKEN"]}'))
    result = CliRunner().invoke(_app(lambda: runs.run_stages(run, ["00_setup"])), ["do"])
    assert result.exit_code == 1 and "[secret]" in result.output and not [s for s in SECRETS if s in result.output], result.output
    assert leaks(run.reports) == [] and "[secret]" in run.report("manifest.json").read_text() and "[secret]" in run.report("00_setup.ipynb").read_text()


def _app(action):
    import typer
    app = typer.Typer(cls=cli._Group, pretty_exceptions_enable=False)
    app.command(name="do")(action)
    app.command(name="other")(print)
    return app


@pytest.mark.parametrize("setting, value", [("data.source", URLS[0]), ("model.base", "hf_" + "Shape" * 7), ("data.columns", {"solution": ENVIRONMENT["MY_SECRET"]}), ("data.exclude", [URLS[1]])])
def test_a_setting_that_holds_a_credential_is_refused(planted, tmp_path, setting, value):
    with pytest.raises(VerifierError, match="credential") as said: new_run(load_config("smoke", {setting: value}), tmp_path)
    assert setting in str(said.value) and not [s for s in SECRETS if s in str(said.value)] and list(tmp_path.iterdir()) == []


def test_the_command_line_shows_no_credential(planted, tmp_path):
    "Also in messages about settings that cannot be read."
    for words in (["run", "smoke", "-o", f"data.source={URLS[0]}"], ["run", "smoke", "-o", f"model.device={SHAPES['hub']}"], ["run", SHAPES["hub"]], ["resume", URLS[0]], ["run", "smoke", "-o", ENVIRONMENT["MY_SECRET"]]):
        result = CliRunner().invoke(cli.app, [*words, "--root", str(tmp_path)])
        assert result.exit_code == 2 and result.output.startswith("error: ") and not [s for s in SECRETS if s in result.output], result.output
    assert list(tmp_path.iterdir()) == []


def test_a_whole_run_with_credentials_in_its_environment(tmp_path, zygote, reference):
    "All stages; every file of reports and artifacts, the trainer's own among them. They change nothing either."
    found = zygote.attempt(["run", "smoke", *SMALL, "--root", tmp_path/"out"], env=ENVIRONMENT)
    assert found["code"] == 0 and not [s for s in SECRETS if s in found["said"]], found["said"]
    assert leaks(tmp_path/"out") == []
    assert sum(p.is_file() for p in (tmp_path/"out").rglob("*")) > 60
    assert hashes(next((tmp_path/"out"/"reports"/"smoke").iterdir())) == hashes(reference[0])


def test_leaks_would_be_found(tmp_path):
    (tmp_path/"a.bin").write_bytes(b"\0\1" + ENVIRONMENT["HF_TOKEN"].encode() + b"\0")
    assert leaks(tmp_path) == [("a.bin", ENVIRONMENT["HF_TOKEN"][:12])]


@pytest.mark.parametrize("text", ["total_tokens=4096", "token ids 15 and 16", "https://example.org:8080/a", "a task-oriented-approach-to-everything", "0123456789abcdef" * 4, "sha256: " + "ab" * 32, "mailto:a@b.org"])
def test_what_is_no_credential_stays(text): assert files.scrub(text) == text


# one rule each

@pytest.mark.parametrize("name", ["HF_TOKEN", "hf_token", "My_Api_Key", "APIKEY", "AWS_ACCESS_KEY_ID", "DB_PASSWD", "smtp_password", "CLIENT_SECRET", "SERVICE_CREDENTIALS"])
def test_a_variable_whose_name_says_credential_is_one(monkeypatch, name):
    "In capitals or not, at the name's beginning or end; in every spelling, also when it spreads over lines."
    value = "corr\"ect/hörse\nbattery <1> & 'staple'"
    monkeypatch.setenv(name, value)
    assert value in files.secret_values()
    for spelled in spellings(value): assert files.scrub(f"before {spelled} after") == "before [secret] after", spelled


@pytest.mark.parametrize("name, value", [("TOKEN_COUNT", "12345678901"), ("MY_TOKEN", "short"), ("HOME_OF_CREDENTIALS", str(Path(__file__).resolve())), ("EDITOR_NAME", "a rather long value")])
def test_a_variable_that_is_no_credential_stays(monkeypatch, name, value):
    "A number, a word that would blot out half of a text, a file's path, and what does not say so."
    monkeypatch.setenv(name, value)
    assert value not in files.secret_values() and files.scrub(f"see {value} here") == f"see {value} here"


def test_eight_characters_are_enough(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "ab3de6gh")
    assert files.scrub("x ab3de6gh y") == "x [secret] y"


def test_a_credential_that_begins_another_leaves_nothing_of_it(monkeypatch):
    monkeypatch.setenv("A_SECRET", "correcthorse")
    monkeypatch.setenv("B_SECRET", "correcthorsebattery")
    assert files.scrub("one correcthorse, two correcthorsebattery") == "one [secret], two [secret]"


KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nABCD\n-----END RSA " + "PRIVATE KEY-----"
FAMILIES = {"gho": "gho_" + "a1" * 15, "ghu": "ghu_" + "a1" * 15, "ghs": "ghs_" + "a1" * 15, "ghr": "ghr_" + "a1" * 15, "hub": "hf_" + "x" * 16, "model": "sk-" + "a" * 20,
            "chat": "xoxp-" + "1234567890", "git": "glpat-" + "b" * 20, "packages": "npm_" + "c" * 30, "key": KEY}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_is_known_by_itself(family):
    "At its shortest; a key over several lines is removed to its end."
    assert files.scrub(f"a {FAMILIES[family]} b") == "a [secret] b"


def test_what_stands_between_two_keys_stays():
    assert files.scrub(f"{KEY}\nand then\n{KEY}") == "[secret]\nand then\n[secret]"


@pytest.mark.parametrize("text, kept", [
    ("https://ann:{}@example.org/a", "https://[secret]@example.org/a"), ("https://{}{}@example.org/a", "https://[secret]@example.org/a"),
    ("https://h/?go=https%3A%2F%2Fann%3A{}%40example.org", "https://h/?go=https%3A%2F%2F[secret]%40example.org"), ("https://h/?go=https%3A//ann%3A{}%40example.org", "https://h/?go=https%3A//[secret]%40example.org"),
    ("?api_key={}&x=1", "?api_key=[secret]&x=1"), ("?APIKEY={}&x=1", "?APIKEY=[secret]&x=1"), ("?token%3D{}", "?token%3D[secret]"), ("password={}", "password=[secret]"),
    ("authorization: bearer {}{}", "authorization: bearer [secret]"), ("Authorization: Bearer%20{}{}", "Authorization: Bearer%20[secret]")])
def test_a_credential_in_a_url_or_header(text, kept):
    assert files.scrub(text.replace("{}", "open-sesame-7")) == kept


WAYS = {"text": lambda path, value: files.write_text(path, f"a {value}"), "json": lambda path, value: files.write_json(path, {value: [value]}),
        "csv": lambda path, value: files.write_csv(path, pd.DataFrame({"a": [value]}))}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_write_a_file_scrubs(tmp_path, planted, way):
    for name, value in ENVIRONMENT.items():
        if way == "csv" and '"' in value: continue  # see the next test
        WAYS[way](tmp_path/"a", value)
        assert leaks(tmp_path) == [] and "[secret]" in (tmp_path/"a").read_text(), name


def test_a_credential_with_a_quote_is_scrubbed_from_a_table(tmp_path, planted):
    WAYS["csv"](tmp_path/"a.csv", ENVIRONMENT["DB_PASSWORD"])
    assert "[secret]" in (tmp_path/"a.csv").read_text()


def test_the_error_of_a_stage_holds_no_credential(planted, stage):
    "Not only what the command line shows of it: a notebook that calls the runner shows the exception itself."
    run = stage("raise ValueError(f'refused {parameter}')")
    with pytest.raises(runs.StageError) as failed: runs.run_stages(run, ["00_setup"])
    texts = [str(failed.value), failed.value.what, failed.value.where, failed.value.fix]
    assert "[secret]" in texts[1] and not [s for s in SECRETS for text in texts if s in text]
