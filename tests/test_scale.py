"A table in blocks: shards, a merge, and Ray with two workers; the result is what one process alone writes."
import json, os, threading, time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from asking import make_adapter
from typer.testing import CliRunner

from verifier_nb import blocks, cli, cluster, score_file
from verifier_nb.files import VerifierError


@pytest.fixture(scope="module")
def adapter(tmp_path_factory): return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def table(tmp_path):
    "Nine blocks of 4,096 rows would take a minute: the tests' blocks are small."
    rows = [{"id": f"{i:03}", "question": f"{i} + {i % 7}?", "solution": f"{i} + {i % 7} = {i + i % 7 + (i % 3 == 0)}" if i % 10 else "", "label": int(i % 3 == 0)}
            for i in range(230)]
    pd.DataFrame(rows).to_csv(tmp_path/"in.csv", index=False)
    return tmp_path/"in.csv"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    plan = blocks.plan
    monkeypatch.setattr(blocks, "plan", lambda *args, **how: plan(*args, **{"pieces": 1, **how}))


def ask(*argv):
    found = CliRunner().invoke(cli.app, [str(a) for a in argv])
    return found.exit_code, found.output


def alone(table, adapter):
    out = table.with_name("alone.csv")
    code, said = ask("score", table, "-O", out, "--adapter", adapter, "--all")
    assert code == 0, said
    return out.read_bytes(), said


def test_shards_in_any_order_are_the_result_of_one_process(table, adapter):
    whole, said_alone = alone(table, adapter)
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
    start = time.time()
    code, said = ask("score", table, "-O", out, "--adapter", adapter, "--ray", "127.0.0.1:1")
    assert code != 0 and "no Ray cluster answers at 127.0.0.1:1" in said and time.time() - start < 20 and not out.exists()
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
def test_ray_goes_on_after_a_killed_worker(table, adapter, ray_cluster, monkeypatch):
    whole, _ = alone(table, adapter)
    plan, out, killed = blocks.plan, table.with_name("out.csv"), []
    monkeypatch.setattr(blocks, "plan", lambda *args, **how: plan(*args, **how))
    job = blocks.plan(table, out, blocks.identity(str(adapter)), 64)
    done_before = blocks.score_shard(_verifier(adapter), job, 1, 4, progress=False)
    kept = job.part(0).stat().st_mtime_ns
    threading.Thread(target=kill_a_worker, args=(job.parts, killed)).start()
    rows = cluster.score_blocks(job, str(adapter), address=ray_cluster, workers=2, progress=False)
    assert done_before == 64 and rows <= 230 - 64 and job.missing() == [] and job.part(0).stat().st_mtime_ns == kept
    blocks.merge(job, more=True, progress=False)
    assert out.read_bytes() == whole and killed


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
