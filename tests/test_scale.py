"A table in blocks: shards, a merge, and Ray with two workers; the result is what one process alone writes."
import json, math, os, socket, threading, time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from asking import make_adapter
from typer.testing import CliRunner

from verifier_nb import blocks, cli, cluster, files, folders, score_file
from verifier_nb.files import VerifierError


@pytest.fixture(scope="module")
def adapter(tmp_path_factory): return make_adapter(tmp_path_factory.mktemp("adapter"))


def write_table(folder):
    "Nine blocks of 4,096 rows would take a minute: the tests' blocks are small."
    rows = [{"id": f"{i:03}", "question": f"{i} + {i % 7}?", "solution": f"{i} + {i % 7} = {i + i % 7 + (i % 3 == 0)}" if i % 10 else "", "label": int(i % 3 == 0)}
            for i in range(230)]
    pd.DataFrame(rows).to_csv(folder/"in.csv", index=False)
    return folder/"in.csv"


@pytest.fixture
def table(tmp_path): return write_table(tmp_path)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    plan = blocks.plan
    monkeypatch.setattr(blocks, "plan", lambda *args, **how: plan(*args, **{"pieces": 1, **how}))


def ask(*argv):
    found = CliRunner().invoke(cli.app, [str(a) for a in argv])
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def alone(adapter, tmp_path_factory):
    "What one process makes of the table: the file, and what it says."
    table = write_table(tmp_path_factory.mktemp("alone"))
    out = table.with_name("alone.csv")
    code, said = ask("score", table, "-O", out, "--adapter", adapter, "--all")
    assert code == 0, said
    return out.read_bytes(), said


def test_shards_in_any_order_are_the_result_of_one_process(table, adapter, alone):
    whole, said_alone = alone
    out = table.with_name("out.csv")
    score = "score", table, "-O", out, "--adapter", adapter, "--all"
    code, said = ask(*score, "--shard", "2/3")
    assert code == 0 and "64 rows scored; 3 of 4 blocks" in said and not out.exists()
    code, said = ask(*score, "--merge")
    assert code != 0 and "3 of 4 blocks have no part yet: 0, 2, 3" in said and not out.exists()
    code, said = ask(*score, "--shard", "2/3")
    assert "0 rows scored" in said  # nothing is done twice
    assert ask(*score, "--shard", "3/3")[0] == ask(*score, "--shard", "1/3")[0] == 0
    code, said = ask(*score, "--merge")
    assert code == 0 and out.read_bytes() == whole and not blocks.Job(str(table), str(out), None, "", 1).parts.exists()
    assert said.splitlines()[-8:] == said_alone.splitlines()[-8:]  # the metrics too


def test_parts_of_something_else_are_refused(table, adapter):
    out = table.with_name("out.csv")
    score = "score", table, "-O", out, "--adapter", adapter, "--shard", "1/2"
    assert ask(*score)[0] == 0
    code, said = ask(*score, "--alone")
    assert code != 0 and "with another alone" in said
    table.write_text(table.read_text() + "999,1 + 1?,1 + 1 = 2,0\n")
    code, said = ask(*score)
    assert code != 0 and "rows, sha256" in said
    code, said = ask(*score, "--merge")
    assert code != 0 and "do not go together" in said


def test_a_long_parquet_file_is_written_in_groups(tmp_path, monkeypatch):
    "No more than one group is held in memory; a column whose type shows late has it in all groups; mixed kinds are said in a sentence."
    import pyarrow.parquet as pq
    monkeypatch.setattr(score_file, "_GROUP", 100)
    table = pd.DataFrame({"question": [f"{i} + 1?" for i in range(330)], "solution": ["" if i < 120 else f"{i} + 1 = {i + 1}" for i in range(330)],
                          "late": [None]*250 + [1.5]*80, "some": [[i]*(i % 3) for i in range(330)]})
    table.to_parquet(tmp_path/"in.parquet")
    guess, held = _verifier(make_adapter(tmp_path/"a")), []
    add = score_file._RowGroups.add
    def counted(groups, piece):
        add(groups, piece)
        held.append(sum(map(len, groups.waiting)))
    monkeypatch.setattr(score_file._RowGroups, "add", counted)
    score_file.score_file(guess, tmp_path/"in.parquet", tmp_path/"out.parquet", progress=False)
    out = pq.ParquetFile(tmp_path/"out.parquet")
    assert max(held) < 100 and out.num_row_groups == 3 and str(out.schema_arrow.field("late").type) == "double"
    got = pd.read_parquet(tmp_path/"out.parquet")
    assert got.question.tolist() == table.question.tolist() and got.some.map(len).tolist() == [i % 3 for i in range(330)]
    assert got.p_flawed.isna().tolist() == [i < 120 for i in range(330)] and sorted(p.name for p in tmp_path.iterdir()) == ["a", "in.parquet", "out.parquet"]
    (tmp_path/"mixed.jsonl").write_text("".join(json.dumps({"question": "1 + 1?", "solution": "2", "x": x}) + "\n" for x in ("a", 1)))
    with pytest.raises(VerifierError, match="values of several kinds"): score_file.score_file(guess, tmp_path/"mixed.jsonl", tmp_path/"m.parquet", progress=False)
    assert not (tmp_path/"m.parquet").exists()


def test_a_damaged_part_is_not_taken(table, adapter):
    out = table.with_name("out.csv")
    score = "score", table, "-O", out, "--adapter", adapter
    assert ask(*score, "--shard", "1/1")[0] == 0
    part = out.with_name("out.csv.parts")/"000001.jsonl"
    part.write_text("".join(part.read_text().splitlines(True)[:-1]))
    code, said = ask(*score, "--merge")
    assert code != 0 and "the part has 63 rows, the block 64" in said and not out.exists()


def test_what_is_no_cluster_is_said_in_a_sentence(table, adapter, monkeypatch):
    out = table.with_name("out.csv")
    code, said = ask("score", table, "-O", out, "--adapter", adapter, "--ray", "127.0.0.1:1")
    assert code != 0 and "no Ray cluster answers at 127.0.0.1:1" in said and not out.exists()
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    code, said = ask("score", table, "-O", out, "--adapter", adapter, "--ray", "auto")
    assert code != 0 and "Ray is not installed" in said and "verifier_nb[scale]" in said


@pytest.fixture(scope="module")
def ray_cluster():
    "The address of a cluster with two cores, as `ray start --head` makes one."
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster
    here = str(Path(blocks.__file__).parent.parent)
    with pytest.MonkeyPatch.context() as env:
        env.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        env.setenv("OMP_NUM_THREADS", "1")
        cluster = start_within_its_time(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}))
        yield cluster.address
        cluster.shutdown()


def start_within_its_time(start, tries=3):
    "Ray gives its own processes half a minute to start, which is short on a busy machine."
    for n in range(tries):
        try: return start()
        except Exception:
            if n == tries - 1: raise


def kill_a_worker(parts, killed):
    "When Ray's workers have written a part, kill one of them."
    until, workers, before = time.time() + 120, {}, len(list(parts.glob("0*.jsonl")))
    while time.time() < until and len(list(parts.glob("0*.jsonl"))) == before:
        named = [p for p in psutil.process_iter(["cmdline"]) if "ray::MapWorker" in " ".join(p.info["cmdline"] or [])]  # its title while it starts
        workers |= {p.pid: p for p in named}
        time.sleep(0.05)
    for worker in [p for p in workers.values() if p.is_running()][:1]:
        worker.kill()
        killed.append(worker.pid)


@pytest.mark.timeout(300)
def test_ray_goes_on_after_a_killed_worker(table, adapter, alone, ray_cluster, monkeypatch):
    "With relative paths: the cluster was started in another folder. What stops all workers is said in a sentence."
    monkeypatch.chdir(table.parent)
    here, killed = os.path.relpath(adapter), []
    job = blocks.plan("in.csv", "out.csv", blocks.identity(here), 64)
    done_before = blocks.score_shard(_verifier(adapter), job, 1, 4, progress=False)
    kept = job.part(0).stat().st_mtime_ns
    threading.Thread(target=kill_a_worker, args=(job.parts, killed)).start()
    rows = cluster.score_blocks(job, here, address=ray_cluster, workers=2, progress=False)
    assert done_before == 64 and rows <= 230 - 64 and job.missing() == [] and job.part(0).stat().st_mtime_ns == kept
    job.part(1).rename("kept")
    table.rename("elsewhere")
    with pytest.raises(VerifierError) as e: cluster.score_blocks(job, here, address=ray_cluster, workers=1, progress=False)
    assert "the workers could not go on: there is no such file" in e.value.what and "\n" not in e.value.what and str(job.parts) in str(e.value.where)
    Path("elsewhere").rename(table)
    Path("kept").rename(job.part(1))
    blocks.merge(job, more=True, progress=False)
    assert Path("out.csv").read_bytes() == alone[0] and killed


def _verifier(adapter):
    from verifier_nb.ask import open_verifier
    return open_verifier(str(adapter))


@pytest.mark.timeout(400)
def test_a_sweep_on_ray_is_the_runs_in_their_folders(tmp_path, ray_cluster):
    from zygote import SMALL
    shared = [s for s in SMALL if s != "-o"]
    combinations = [[*shared, f"training.learning_rate={rate}"] for rate in ("1e-3", "nonsense")]
    rows = cluster.sweep("smoke", combinations[:1], tmp_path, ray_cluster, stop_early=True, shared=len(shared))
    (settings, run, how), = rows
    assert settings == ["training.learning_rate=1e-3"] and how == "done" and run.report("metrics.json").exists()
    assert run.reports.is_relative_to(tmp_path/"reports"/"smoke") and cluster.validations(run)
    assert "done" in cli._sweep_table(rows) and str(run.reports.name) in cli._sweep_table(rows)


def test_a_trial_is_stopped_politely(tmp_path):
    from zygote import SMALL
    process = cluster.Process("smoke", [s for s in SMALL if s != "-o"], tmp_path, tmp_path/"log")
    until = time.time() + 60
    while process.run() is None and time.time() < until: time.sleep(0.1)
    process.stop()
    assert process.process.returncode == 130 and "verifier-nb resume" in process.failed()
    assert not (process.run().report(".lock")).exists()
    with pytest.raises(RuntimeError, match="stopped"): cluster.Watched(process).step()


def test_a_share_is_two_numbers():
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0", ""):
        with pytest.raises(VerifierError): blocks.shard_of(wrong)

def test_seats_are_shared_when_there_are_more_workers_than_gpus():
    seats = cluster.seats
    assert seats({"CPU": 2.0}) == (2, {"num_cpus": 1}) and seats({"CPU": 2.0}, 8) == (8, {"num_cpus": 0.25})
    assert seats({"CPU": 16.0, "GPU": 2.0}) == (2, {"num_gpus": 1, "num_cpus": 1}) and seats({"CPU": 16.0, "GPU": 1.0}, 4) == (4, {"num_gpus": 0.25, "num_cpus": 1})
    assert seats({"CPU": 1.0, "GPU": 2.0}) == (2, {"num_gpus": 1, "num_cpus": 0.5}) and seats({}) == (1, {"num_cpus": 1})


class Ended:
    "A process that is over, as `Watched` sees it."
    def __init__(self, run, words=""): self.found, self.words = run, words
    def run(self): return self.found
    def ended(self): return True
    def failed(self): return self.words


def test_a_run_is_heard_from_validation_to_validation(tmp_path):
    "The newest checkpoint by its number; a file that is being written is none; the last words of one that failed."
    run = folders.Run(None, tmp_path/"reports", tmp_path/"artifacts")
    assert cluster.validations(run) == [] and math.isnan(cluster.Watched(Ended(None)).step()["auroc"])
    for step, seen in ((9, [0.5]), (10, [0.5, 0.75])):
        history = [{"loss": 1.0}, *({"eval_auroc": auroc} for auroc in seen)]
        files.write_json(run.checkpoints/f"checkpoint-{step}"/"trainer_state.json", {"log_history": history})
    assert cluster.validations(run) == [0.5, 0.75]
    watched = cluster.Watched(Ended(run))
    said = [watched.step() for _ in range(3)]
    assert [(s["auroc"], s["validation"], s["done"]) for s in said] == [(0.5, 1, False), (0.75, 2, False), (0.75, 2, True)] and said[0]["run"] == str(run.reports)
    failed = cluster.Watched(Ended(run, "it broke"))
    assert [failed.step()["auroc"] for _ in range(2)] == [0.5, 0.75]  # what it saw before it broke counts
    with pytest.raises(RuntimeError, match="it broke"): failed.step()
    (run.checkpoints/"checkpoint-10"/"trainer_state.json").write_text("{")
    assert cluster.validations(run) == []


def test_how_a_trial_ended_is_told():
    def told(error=None, **metrics): return cluster._row(["a=1", "b=2"], SimpleNamespace(error=error, metrics=metrics or None), 1)
    assert told(done=True) == (["b=2"], None, "done") and told(done=False) == (["b=2"], None, "stopped early")
    assert told(error="x", done=True)[2] == "failed" and told()[2] == "stopped early"


def test_a_run_s_output_says_where_it_is_and_what_it_said_last(tmp_path):
    from fake_run import make_run
    made = make_run(tmp_path)
    process = cluster.Process.__new__(cluster.Process)
    process.log, process.root, process.process = tmp_path/"log", tmp_path, SimpleNamespace(poll=lambda: 1)
    process.log.write_text("loading\n")
    assert process.run() is None
    process.log.write_text(f"loading\nrun {made.reports.relative_to(tmp_path)}\n" + "x"*3000 + "the end")
    assert process.run().reports == made.reports and process.failed().endswith("the end") and len(process.failed()) == 2000
    process.process = SimpleNamespace(poll=lambda: 0)
    assert process.ended() and process.failed() == ""


def test_an_address_is_tried_before_ray_waits_for_it():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        cluster._knock(f"127.0.0.1:{s.getsockname()[1]}")
        cluster._knock(f"ray://127.0.0.1:{s.getsockname()[1]}")
    for wrong, words in (("", "is no address"), ("here", "is no address"), (":6379", "is no address"), ("127.0.0.1:99999", "no Ray cluster answers"), ("127.0.0.1:1", "no Ray cluster answers")):
        with pytest.raises(VerifierError, match=words): cluster._knock(wrong)


def test_paths_are_whole_before_they_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"mine").mkdir()
    job = blocks.Job("in.csv", "~/out.csv", score_file.TableLayout(1, [], "question", "solution"), "v", 64)
    whole, adapter, root = cluster._from_anywhere(job, "mine", ".")
    assert (whole.path, whole.out) == (str(tmp_path/"in.csv"), str(Path.home().resolve()/"out.csv")) and whole.piece == 64
    assert adapter == str(tmp_path/"mine") and root == str(tmp_path) and cluster._from_anywhere(job, "default", ".")[1] == "default"


def test_what_stops_workers_is_one_sentence():
    class RayError(Exception): pass
    ray, job = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError)), SimpleNamespace(parts=Path("x.parts"))
    ours = "The actor died\n  File ray.py\nverifier_nb.files.VerifierError: there is no such file\n  where: /x\n  what to do: look"
    for text, words in ((ours, "there is no such file"), ("Traceback\n  somewhere\nKilled by the system\n", "Killed by the system"), ("", "RayError")):
        with pytest.raises(VerifierError) as e:
            with cluster._in_a_sentence(ray, job): raise RayError(text)
        assert e.value.what == f"the workers could not go on: {words}" and "finished blocks are kept" in e.value.fix
    with pytest.raises(KeyError):
        with cluster._in_a_sentence(ray, job): raise KeyError("not of Ray")


def test_another_verifier_has_another_identity(tmp_path):
    folder = make_adapter(tmp_path/"a")
    first = blocks.identity(str(folder))
    assert blocks.identity(str(folder)) == first
    files.write_json(folder/"calibration.json", {**files.read_json(folder/"calibration.json"), "threshold": 0.9})
    second = blocks.identity(str(folder))
    with open(folder/"adapter_model.safetensors", "ab") as f: f.write(b" ")
    assert len({first, second, blocks.identity(str(folder))}) == 3


def test_a_late_comer_cuts_as_the_first_did(table):
    blocks.plan(table, table.with_name("out.csv"), "v", 64)
    late = blocks.plan(table, table.with_name("out.csv"), "v", 2048)
    assert (late.piece, late.blocks) == (64, 4) and [late.rows_of(n) for n in range(4)] == [64, 64, 64, 38]


def test_a_reader_goes_back(table):
    reader = blocks.BlockReader(blocks.plan(table, table.with_name("out.csv"), "v", 64))
    first = {n: reader.read(n).id.iloc[0] for n in (0, 2, 3, 1, 1, 0)}
    assert first == {0: "000", 2: "128", 3: "192", 1: "064"}
    with pytest.raises(VerifierError, match="no block 4"): reader.read(4)


def test_a_finished_block_is_not_scored_again(table, adapter):
    job = blocks.plan(table, table.with_name("out.csv"), "v", 64)
    job.part(3).write_text("mine")
    guess, reader = _verifier(adapter), blocks.BlockReader(job)
    assert blocks.score_block(guess, job, reader, 3) == 0 and job.part(3).read_text() == "mine"
    assert blocks.score_block(guess, job, reader, 1) == 64 and job.missing() == [0, 2]


def test_what_a_person_wishes_reaches_the_blocks(tmp_path):
    "--alone takes the verifier's own probability; an aim alone, without a prior, moves the threshold."
    from asking import HYBRID, PLAIN
    aims = {"bias": 0.3, "aim": "balanced", "base_rate": 0.5, "thresholds": {"balanced": 0.6, "accuracy": 0.5, "few-false-alarms": 0.8, "recall": 0.2, "f1": 0.4}}
    folder, table = make_adapter(tmp_path/"a", calibration=PLAIN | aims | {"baselines": {"hybrid": HYBRID | {"thresholds": aims["thresholds"]}}}), write_table(tmp_path)
    found = {}
    for alone in (False, True):
        job = blocks.plan(table, tmp_path/f"{alone}.csv", "v", 64, alone=alone, aim="recall")
        guess = blocks.open_judge(job, str(folder))
        blocks.score_block(guess, job, blocks.BlockReader(job), 3)
        found[alone] = pd.DataFrame(map(json.loads, job.part(3).read_text().splitlines()), columns=score_file.columns_of(True))
    scored = found[True][found[True].verdict != ""]
    assert (scored.p_flawed == scored.p_calibrated).all() and guess.threshold == 0.2
    assert (found[False].p_flawed != found[False].p_calibrated).any()
