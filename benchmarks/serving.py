"""How a server bears its clients: what batching brings, how long an answer takes, whether any answer is lost, mixed up, or a crash.

    python benchmarks/serving.py -o benchmarks/results/serve/load.json                       # the box for speed, a tiny model for many requests
    python benchmarks/serving.py --parts speed --adapter RUN -o /tmp/x.json             # another verifier, its speed alone

The server is `verifier-nb serve` in a process of its own; the clients are threads of this process, each with a connection that it keeps.
One request at a time and sixteen clients take turns, so that what else a machine does falls on both; every answer is compared with what
`Verifier.score` says of the same row. The workloads: `problems`: every request another problem; `candidates`: eight solutions of each
problem, as best-of-n and reinforcement learning ask."""
import argparse, http.client, json, os, platform, random, socket, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENTS, TURNS, CLOSE = 16, 3, 1e-3  # threads; turns of each; largest difference of a probability


def rows_of(workload, n, seed=0):
    "Short rows, each different from all others: {question, solution}."
    rng, rows = random.Random(seed), []
    while len(rows) < n:
        bags, apples, eaten = rng.randint(2, 60), rng.randint(3, 90), rng.randint(1, 5)
        question = f"Ann has {bags} bags of {apples} apples and eats {eaten}. How many are left?"
        wrong = [0] if workload == "problems" else range(8)
        for k in wrong:
            product, left = bags*apples, bags*apples - eaten + (k or rng.choice((0, 0, 3)))
            rows.append({"question": question, "solution": f"{bags} * {apples} = {product}\n{product} - {eaten} = {left}\n#### {left}"})
    return rows[:n]


@contextmanager
def server(adapter):
    "`verifier-nb serve`: yields its port."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", "from verifier_nb.cli import main; main()", "serve", adapter, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    said = process.stdout.readline()
    assert "answers" in said, said + process.stdout.read()
    try: yield port
    finally:
        process.terminate()
        said = process.stdout.read()
        process.wait(60)
        assert "Traceback" not in said, said


def post(connection, body, path="/score"):
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def ask(port, rows, clients, seconds=None, requests=None):
    "Clients ask for rows in turn until time or requests are up: [(seconds, row's number, status, P(flawed)) of each request]."
    out, lock, numbers = [], threading.Lock(), iter(range(requests or 10**9))
    until = time.monotonic() + seconds if seconds else float("inf")
    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while time.monotonic() < until:
            with lock: i = next(numbers, None)
            if i is None: break
            start = time.perf_counter()
            status, body = post(connection, json.dumps(rows[i % len(rows)]))
            took = time.perf_counter() - start
            with lock: out.append((took, i % len(rows), status, json.loads(body).get("p_flawed")))
        connection.close()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for t in threads: t.start()
    for t in threads: t.join()
    return out, time.perf_counter() - start


def judged(got, wanted):
    "How many answers are missing or another row's."
    lost = sum(status != 200 or p is None for _, _, status, p in got)
    mixed = sum(p is not None and abs(p - wanted[i]) > CLOSE for _, i, _, p in got)
    return {"requests": len(got), "lost": lost, "mixed_up": mixed}


def percentile(values, share):
    values = sorted(values)
    return values[min(int(share*len(values)), len(values) - 1)]


def speed(port, rows, wanted, seconds):
    "One request at a time against sixteen clients, in turns."
    out = {}
    for _ in range(TURNS):
        for name, clients in (("one_at_a_time", 1), (f"{CLIENTS}_clients", CLIENTS)):
            got, took = ask(port, rows, clients, seconds)
            one = out.setdefault(name, {"got": [], "seconds": 0.0, "rates": []})
            one["got"] += got
            one["seconds"] += took
            one["rates"].append(round(len(got)/took, 2))
    for one in out.values():
        got = one.pop("got")
        latency = [took for took, *_ in got]
        one |= judged(got, wanted) | {"requests_per_s": len(got)/one["seconds"], "p50_ms": 1e3*percentile(latency, 0.5), "p99_ms": 1e3*percentile(latency, 0.99)}
    first, many = out.values()
    return out | {"times_the_throughput": many["requests_per_s"]/first["requests_per_s"]}


def malformed(port, n, seed=5):
    "Wrong requests: {status: how many}."
    rng, counts = random.Random(seed), {}
    good = json.dumps(rows_of("problems", 1)[0])
    fixed = ["", "{", "[]", "null", "[" * 5000, '{"question": "x"}', '{"question": 1, "solution": "y"}', '{"question": " ", "solution": "y"}', '{"rows": [3]}', "x" * 2_000_000]
    for i in range(n):
        body = fixed[i] if i < len(fixed) else good[:rng.randint(0, len(good) - 1)] if i % 2 else good.replace(rng.choice(("question", "solution")), rng.choice(("a", "b c", "é")), 1)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try: status, _ = post(connection, body.encode(), rng.choice(("/score", "/rank", "/steps", "/get_reward")))
        except ConnectionError: status = "closed"  # too long a body is not read to its end
        counts[str(status)] = counts.get(str(status), 0) + 1
        connection.close()
    return counts


def opened(adapter):
    from verifier_nb.ask import open_verifier
    return open_verifier(adapter)


def wanted_of(verifier, rows): return verifier.score([r["question"] for r in rows], [r["solution"] for r in rows], progress=False).p_calibrated.tolist()


def tiny_adapter(folder):
    sys.path.insert(0, str(ROOT/"tests"))
    from asking import PLAIN, make_adapter
    return str(make_adapter(Path(folder)/"tiny", calibration=PLAIN))


def many(adapter, requests):
    "Many requests of sixteen clients, wrong ones, and right ones behind them."
    rows = rows_of("problems", 1000)
    wanted = wanted_of(opened(adapter), rows)
    with server(adapter) as port:
        got, took = ask(port, rows, CLIENTS, requests=requests)
        latency = [t for t, *_ in got]
        found = judged(got, wanted) | {"seconds": took, "requests_per_s": len(got)/took, "p50_ms": 1e3*percentile(latency, 0.5), "p99_ms": 1e3*percentile(latency, 0.99)}
        wrong = malformed(port, 1000)
        return {"many": found, "malformed": wrong, "right_after_the_malformed": judged(ask(port, rows, CLIENTS, requests=100)[0], wanted)}


def speeds(adapter, n, seconds):
    "What batching brings, on each workload."
    works = {name: rows_of(name, n) for name in ("problems", "candidates")}
    verifier = opened(adapter)
    wants = {name: wanted_of(verifier, rows) for name, rows in works.items()}
    del verifier
    with server(adapter) as port:
        ask(port, works["problems"], 2, seconds=3)  # warm
        return {name: speed(port, rows, wants[name], seconds) for name, rows in works.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", required=True, help="a JSON file; parts that are not measured now stay as they are there")
    parser.add_argument("--parts", default="many,speed")
    parser.add_argument("--adapter", default="default")
    parser.add_argument("--many", help="adapter for the many requests; default: a tiny one")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--rows", type=int, default=96, help="different rows of a workload")
    args = parser.parse_args()
    import torch
    from verifier_nb import files
    out = Path(args.out)
    found = files.read_json(out) if out.exists() else {}
    for part in args.parts.split(","):
        before = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
        if part == "many":
            with tempfile.TemporaryDirectory() as folder: made = many(args.many or tiny_adapter(folder), args.requests)
            before["adapter"] = args.many or "tiny"
        else: made, before["adapter"] = speeds(args.adapter, args.rows, args.seconds), args.adapter
        found[part] = before | made | {"load_behind": os.getloadavg()[0]}
        print(json.dumps(found[part], indent=1), flush=True)
        files.write_json(out, found)


if __name__ == "__main__": main()
