"""A soak of `verifier-nb score BIG.parquet --ray auto`: a million rows, two workers, one of them killed in the middle.

    python benchmarks/soak_rows.py -o benchmarks/results/soak-rows.json                    # a million rows: about half an hour on two cores
    python benchmarks/soak_rows.py -o /tmp/soak.json --rows 20000

The verifier is a tiny one with a hybrid, so that the model, the equation checker and the calibration are all asked; the rows are short and all different,
one in a thousand has no solution. Memory (RSS) of the command and of its workers is sampled every two seconds. At the end every row must be there once and in
order, and pieces drawn from the whole table must be what a plain `score` writes of the same rows, letter for letter."""
import argparse, json, os, random, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
EVERY, PIECE, DRAWN = 2.0, 64, 64  # seconds between looks; rows that are scored at once on a CPU; pieces that are compared
COMMAND = [sys.executable, "-W", "ignore", "-c", "from verifier_nb.cli import main; main()", "score"]


def row_of(i):
    "A short problem with its solution: right, wrong, or (one in a thousand) none."
    more = i % 7 + 2
    solution = f"{i} + {more} = {i + more + (i % 3 == 0)}"
    return {"id": i, "question": f"{i} + {more}?", "solution": "" if i % 1000 == 999 else solution}


def write_table(path, numbers):
    "Rows with these numbers, in groups of 65,536."
    import pyarrow as pa, pyarrow.parquet as pq
    schema = pa.schema([("id", pa.int64()), ("question", pa.string()), ("solution", pa.string())])
    numbers = list(numbers)
    with pq.ParquetWriter(path, schema) as out:
        for start in range(0, len(numbers), 2**16):
            out.write_table(pa.Table.from_pylist([row_of(i) for i in numbers[start:start + 2**16]], schema))


def tiny_adapter(folder):
    "A tiny verifier that joins the checker's findings."
    sys.path.insert(0, str(ROOT/"tests"))
    from asking import HYBRID, PLAIN, make_adapter
    four = {name: value[:4] if isinstance(value, list) else value for name, value in HYBRID.items()}
    return make_adapter(Path(folder)/"tiny", calibration=PLAIN | {"baselines": {"hybrid": four}})


def workers_of(session):
    "Ray's processes that score, among those that this run started."
    found = []
    for p in psutil.process_iter(["cmdline", "environ", "pid"]):
        said = " ".join(p.info["cmdline"] or [])
        if "ray::" in said and "MapWorker" in said and (p.info["environ"] or {}).get("VERIFIER_NB_SOAK") == session: found.append(p)
    return found


def rss(p):
    try: return p.memory_info().rss/2**20
    except psutil.Error: return None


def watch(process, parts, blocks, session, kill_at):
    "Look at memory and parts until the command ends; kill a worker when so many parts are there: (looks, who was killed)."
    looks, killed, start, driver = [], None, time.monotonic(), psutil.Process(process.pid)
    while process.poll() is None:
        workers = workers_of(session)
        done = len(list(parts.glob("0*.jsonl")))
        memory = {str(p.pid): mib for p in workers if (mib := rss(p)) is not None}
        looks.append({"s": round(time.monotonic() - start, 1), "parts": done, "driver": rss(driver), "workers": memory})
        if killed is None and done >= kill_at and memory:
            victim = workers[0]
            victim.kill()
            killed = {"pid": victim.pid, "parts": done, "s": looks[-1]["s"]}
        time.sleep(EVERY)
    return looks, killed


def tenths(looks, of):
    "The median memory (MiB) in each tenth of the time."
    values = [(look["s"], of(look)) for look in looks if of(look)]
    if not values: return []
    last, found = values[-1][0] + 1e-6, [[] for _ in range(10)]
    for s, mib in values: found[int(10*s/last)].append(mib)
    return [round(statistics.median(some)) if some else None for some in found]


def check_rows(out, n):
    "Every row once and in order; how many have no score."
    import pyarrow.parquet as pq
    expected, empty = 0, 0
    for batch in pq.ParquetFile(out).iter_batches(2**16, columns=["id", "p_flawed", "reason"]):
        ids, p = batch.column(0).to_pylist(), batch.column(1).to_pylist()
        assert ids == list(range(expected, expected + len(ids))), f"rows are lost, repeated or out of order behind {expected}"
        assert [x is None for x in p] == [i % 1000 == 999 for i in ids], f"a row without a score behind {expected}"
        expected, empty = expected + len(ids), empty + p.count(None)
    assert expected == n, f"{expected} rows of {n}"
    return {"rows": expected, "without_a_score": empty}


def check_sample(out, n, adapter, folder, seed=17):
    "Whole pieces, drawn at random, are what a plain `score` writes of these rows: how many rows were compared."
    import pandas as pd
    pieces = sorted(random.Random(seed).sample(range(n//PIECE), min(DRAWN, n//PIECE)))
    numbers = [i for piece in pieces for i in range(piece*PIECE, (piece + 1)*PIECE)]
    write_table(folder/"sample.parquet", numbers)
    subprocess.run([*COMMAND, str(folder/"sample.parquet"), "-O", str(folder/"alone.parquet"), "--adapter", str(adapter), "--all"], check=True, capture_output=True)
    alone = pd.read_parquet(folder/"alone.parquet")
    mine = pd.read_parquet(out, filters=[("id", "in", numbers)])
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), alone, check_exact=True)
    return len(alone)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="for the table and its parts; default: a temporary one")
    args = parser.parse_args()
    from verifier_nb import files
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        folder, session = Path(tmp), f"{os.getpid()}"
        adapter, table, out = tiny_adapter(folder), folder/"big.parquet", folder/"out.parquet"
        write_table(table, range(args.rows))
        blocks = -(-args.rows//(64*PIECE))
        here = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "VERIFIER_NB_SOAK": session, "PYTHONPATH": here, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        words = [str(table), "-O", str(out), "--adapter", str(adapter), "--all", "--ray", "auto", "--workers", str(args.workers)]
        found = {"rows": args.rows, "workers": args.workers, "cores": os.cpu_count(), "load": os.getloadavg()[0], "table_bytes": table.stat().st_size}
        log, start = open(folder/"log", "w+"), time.monotonic()
        process = subprocess.Popen([*COMMAND, *words], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=folder)
        try: looks, killed = watch(process, folder/"out.parquet.parts", blocks, session, blocks//2)
        finally:
            if process.poll() is None: process.terminate()
        seconds = time.monotonic() - start
        log.seek(0)
        said = log.read()
        assert process.returncode == 0, said[-3000:]
        assert killed, "no worker was killed: the run was too short"
        pids = {pid for look in looks for pid in look["workers"]}
        found |= {"seconds": round(seconds), "rows_per_s": round(args.rows/seconds, 1), "killed": killed, "worker_processes": len(pids), "load_behind": os.getloadavg()[0],
                  "driver_mib": tenths(looks, lambda look: look["driver"]), "driver_peak_mib": round(max(look["driver"] or 0 for look in looks)),
                  "workers_mib": tenths(looks, lambda look: statistics.mean(look["workers"].values()) if look["workers"] else None),
                  "worker_peak_mib": round(max(mib for look in looks for mib in look["workers"].values())), "said": [line for line in said.splitlines() if "rows/s" in line][-1]}
        found |= {"checked": check_rows(out, args.rows), "compared_with_plain_score": check_sample(out, args.rows, adapter, folder)}
    print(json.dumps(found, indent=1))
    files.write_json(args.out, found)


if __name__ == "__main__": main()
