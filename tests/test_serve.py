"The server: right answers for each client, plain refusals, a queue with an end, a token at the door, and an end that finishes what was accepted."
import asyncio, html, json, os, re, shlex, signal, socket, subprocess, sys, threading, time, urllib.request
import numpy as np, pytest
from asking import HYBRID, PLAIN, load, make_adapter
from verifier_nb import reward, serve
from verifier_nb.files import VerifierError
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
from starlette.testclient import TestClient

QUESTIONS = [f"Ann has {n} bags of 4 apples. How many?" for n in range(2, 14)]
SOLUTIONS = [f"{n} * 4 = {4*n + n%2}\n#### {4*n + n%2}" for n in range(2, 14)]

@pytest.fixture(scope="module")
def adapter(tmp_path_factory): return make_adapter(tmp_path_factory.mktemp("adapter"), calibration=PLAIN)

@pytest.fixture(scope="module")
def verifier(adapter): return load(adapter)

@pytest.fixture(scope="module")
def own(verifier): return verifier.score(QUESTIONS, SOLUTIONS).p_calibrated.to_numpy()

@pytest.fixture(scope="module")
def client(verifier):
    with TestClient(serve.serve_app(verifier, serve.Limits(body=40_000, rows=20, waiting=64))) as c: yield c

def rows_of(n=12): return [{"question": q, "solution": s} for q, s in zip(QUESTIONS[:n], SOLUTIONS[:n])]

def test_scores_are_the_verifiers(client, own, verifier):
    assert np.ptp(own) > 0.01  # the rows are told apart
    got = client.post("/score", json={"rows": rows_of()}).json()["rows"]
    assert np.allclose([row["p_flawed"] for row in got], own) and {row["verdict"] for row in got} <= {"correct", "flawed"}
    assert [row["verdict"] == "flawed" for row in got] == (own >= verifier.threshold).tolist()
    one = client.post("/score", json=rows_of()[3]).json()
    assert one["p_flawed"] == pytest.approx(own[3], abs=1e-5) and one["error"] is None and one["p_uncalibrated"] == pytest.approx(verifier.score(QUESTIONS[3], SOLUTIONS[3]).p_flawed[0], abs=1e-5)
    assert client.post("/score", json={"rows": []}).json() == {"rows": []}

def test_a_row_that_cannot_be_read_leaves_the_others_alone(client, own):
    rows = [*rows_of(3), {"question": "Long?", "solution": "word "*900}, rows_of(5)[4]]
    got = client.post("/score", json={"rows": rows}).json()["rows"]
    assert np.allclose([row["p_flawed"] for row in got if not row["error"]], own[[0, 1, 2, 4]], atol=1e-5) and got[3]["error"] == "longer than 600 tokens" and got[3]["p_flawed"] is None
    alone = client.post("/score", json=rows[3])
    assert alone.status_code == 422 and "longer than 600 tokens" in alone.json()["error"]

def test_ranking(client, verifier):
    solutions = [*SOLUTIONS[:4], "word "*900]
    got = client.post("/rank", json={"question": QUESTIONS[0], "solutions": solutions}).json()
    wanted = verifier.rank(QUESTIONS[0], SOLUTIONS[:4])["rank"].tolist()
    assert [row["rank"] for row in got["rows"]] == [*wanted, None] and got["best"] == wanted.index(1)
    assert client.post("/rank", json={"question": "x", "solutions": []}).json() == {"best": None, "rows": []}

def test_the_hybrid_counts_where_there_is_one(tmp_path):
    from verifier_nb.ask import judge_solutions
    both = load(make_adapter(tmp_path/"a", calibration=PLAIN | {"baselines": {"hybrid": {**HYBRID, "features": HYBRID["features"][:4], "mean": HYBRID["mean"][:4], "scale": HYBRID["scale"][:4], "coef": HYBRID["coef"][:4]}}}))
    wanted = judge_solutions(both, QUESTIONS[:3], SOLUTIONS[:3], both.calibration, progress=False)
    got = serve.judge_pairs(both, list(zip(QUESTIONS[:3], SOLUTIONS[:3])))
    assert [row["p_flawed"] for row in got] == wanted.p_hybrid.tolist() and [row["p_calibrated"] for row in got] == wanted.p_calibrated.tolist()

def test_steps(client, adapter):
    said = client.post("/steps", json={"question": QUESTIONS[0], "solution": SOLUTIONS[0]})
    assert said.status_code == 422 and "not trained on steps" in said.json()["error"]
    stepper = load(adapter, steps={"temperature": 0.05})
    wanted = stepper.steps(QUESTIONS[0], SOLUTIONS[0])
    with TestClient(serve.serve_app(stepper)) as c: got = c.post("/steps", json={"question": QUESTIONS[0], "solution": SOLUTIONS[0]}).json()
    assert np.allclose([step["p"] for step in got["steps"]], wanted.p_calibrated, atol=1e-5) and [step["verdict"] for step in got["steps"]] == wanted.verdict.tolist()
    assert got["p_flawed"] == pytest.approx(stepper.score(QUESTIONS[0], SOLUTIONS[0]).p_calibrated[0], abs=1e-5)

def test_openrlhf_gets_its_rewards(client, own):
    asked = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS]
    body = {"query": [p + s + "<|im_end|>" for p, s in zip(asked, SOLUTIONS)] + [asked[0]], "prompts": [*asked, asked[0]], "labels": [None]*13}
    got = client.post("/get_reward", json=body).json()["rewards"]
    assert np.allclose(got[:12], 1 - own, atol=1e-5) and got[12] == 0.0
    for wrong in ({**body, "prompts": asked}, {"query": ["ab"], "prompts": ["x"]}): assert client.post("/get_reward", json=wrong).status_code == 422

@pytest.mark.parametrize("template", ["<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>", "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "<|user|>{}<|end|><|assistant|>", "[INST] {} [/INST]", "{}\n"])
def test_the_problem_is_found_in_a_prompt(template):
    before = template.format("Another one: 7 + 7?") + "14"
    for prompt in (template.format(QUESTIONS[0]), before + template.format(QUESTIONS[0])) if "{}\n" != template else (template.format(QUESTIONS[0]),):
        assert reward.chat_pairs([prompt + "2 * 4 = 8</s>"], [prompt]) == [(QUESTIONS[0], "2 * 4 = 8")]

def wrong_requests():
    "A thousand requests that are wrong, each in its own way: (path, body)."
    rng = np.random.default_rng(5)
    good = json.dumps({"rows": rows_of(2)}).encode()
    bodies = [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"question": "\\ud800", "solution": 3}', b'{"a":' + b"1"*5000 + b"}", b"["*9000, b'{"question": NaN, "solution": "x"}', b'{"question": "x", "solution": " "}',
              b'{"question": "x", "solution": "y", "rows": []}', b'{"rows": [1]}', b'{"rows": {"question": "x"}}', b'{"question": ["x"], "solution": "y"}', b'{"questions": "x", "solution": "y"}', good + b"}", b"x"*50_000]
    while len(bodies) < 1000:
        cut = bytearray(good)
        for _ in range(rng.integers(1, 4)): cut[rng.integers(len(cut))] = rng.integers(256)
        if rng.random() < 0.5: cut = cut[:rng.integers(len(cut))]
        try: serve.ScoreRequest(**json.loads(bytes(cut)))
        except Exception: bodies.append(bytes(cut))
    return [(("/score", "/rank", "/steps", "/get_reward")[i % 4] if i > 40 else "/score", body) for i, body in enumerate(bodies)]

def test_a_thousand_wrong_requests(client, own):
    "Each is refused with a plain message, none with a 500, and the next right one is answered."
    codes = {}
    for path, body in wrong_requests():
        said = client.post(path, content=body)
        codes[said.status_code] = codes.get(said.status_code, 0) + 1
        assert said.status_code in (400, 413, 422) and said.json()["error"], (path, body[:80], said.text)
        assert "Traceback" not in said.text and "Value error" not in said.text
    assert sum(codes.values()) == 1000 and codes[413] == 1
    assert client.post("/score", json=rows_of(1)[0]).json()["p_flawed"] == pytest.approx(own[0], abs=1e-5)

def test_what_a_message_says(client):
    assert client.post("/score", content=b'{"question": "x"}').json()["error"] == "give question and solution, or rows, a list of objects with both"
    assert client.post("/score", json={"rows": [{"question": "x", "solution": "y"}, {"question": "x"}]}).json()["error"] == "rows.1.solution: Field required"
    assert "20" in client.post("/score", json={"rows": rows_of()*2}).json()["error"]
    assert client.get("/nothing").status_code == 404 and client.get("/score").status_code == 405
    assert client.post("/score", content=json.dumps(rows_of(1)[0]), headers={"Content-Type": "application/x-www-form-urlencoded"}).status_code == 200  # curl -d
    odd = client.post("/score", content=b'{"question": "a\\ud800\\u0000?", "solution": "1 + 1 = 2 <|end|>"}')
    assert odd.status_code in (200, 422)

def test_the_numbers(client):
    before, after = (client.post("/score", json={"rows": rows_of(5)}) and re.search(r"verifier_solutions_total (\d+)", client.get("/metrics").text)[1] for _ in range(2))
    assert int(after) - int(before) == 5 and client.get("/health").json()["status"] == "ok"
    client.get("/made-up-by-somebody")
    assert "made-up" not in client.get("/metrics").text

def outside(page):
    "Addresses that a page loads, wherever they stand."
    return [address for address in re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import|fetch\(|import\(""", page) if not str(address[0]).startswith("#")]

def test_the_page_needs_no_network(client):
    "It loads nothing, shows every address and every field's meaning, and its policy lets nothing else run."
    said, schema = client.get("/docs"), client.get("/openapi.json").json()
    assert said.status_code == 200 and said.headers["content-type"].startswith("text/html")
    assert outside(said.text) == [("openapi.json", "")] and "default-src 'none'" in said.text
    assert {"/score", "/rank", "/steps", "/get_reward", "/health", "/metrics"} == set(schema["paths"])
    for path in schema["paths"]: assert f"http://testserver{path}" in said.text
    for shape in ("Verdict", "Ranking", "Steps", "Rewards", "AskedSolution"):
        assert f'id="{shape}"' in said.text
        for field, told in schema["components"]["schemas"][shape]["properties"].items(): assert f"<td>{field}</td>" in said.text and told.get("description", "") in said.text
    assert "HTTPValidationError" not in said.text and client.get("/redoc").status_code == 404

def typed(page):
    "The bodies of the lines to paste, by their path."
    lines = [html.unescape(line) for line in re.findall(r"<code>(curl .*?)</code>", page)]
    words = [shlex.split(line) for line in lines]
    return {line[-1].removeprefix("http://testserver"): line[line.index("-d") + 1] for line in words if "-d" in line}

def test_the_lines_of_the_page_are_answered(adapter):
    with TestClient(serve.serve_app(load(adapter, steps={"temperature": 0.05}))) as c:
        lines = typed(c.get("/docs").text)
        answers = {path: c.post(path, content=body.encode()) for path, body in lines.items()}
    assert set(lines) == {"/score", "/rank", "/steps", "/get_reward"} and {said.status_code for said in answers.values()} == {200}
    assert answers["/rank"].json()["best"] in (0, 1) and answers["/steps"].json()["steps"]

def test_the_page_names_the_token_and_does_not_tell_it(verifier):
    with TestClient(serve.serve_app(verifier, token="a secret of ours")) as c: page = html.unescape(c.get("/docs").text)
    assert page.count('-H "Authorization: Bearer $VERIFIER_TOKEN"') == 6 and "a secret" not in page

def test_a_server_judges_as_the_person_wishes(tmp_path, monkeypatch):
    "The same threshold and the same probabilities as the verifier that was asked to; a wish that is none is refused before the port is taken."
    from typer.testing import CliRunner
    from verifier_nb import cli
    aims = PLAIN | {"bias": 0.3, "aim": "balanced", "base_rate": 0.5, "thresholds": {"balanced": 0.6, "accuracy": 0.5, "few-false-alarms": 0.8, "recall": 0.2, "f1": 0.4}}
    folder, started = str(make_adapter(tmp_path/"a", calibration=aims)), []
    monkeypatch.setattr(serve, "run_server", lambda verifier, listening, *rest: (listening.close(), started.append(verifier)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    def ask(*more): return CliRunner().invoke(cli.app, ["serve", folder, "--port", port, *more])
    assert ask("--aim", "recall", "--prior", "0.1").exit_code == 0 and ask().exit_code == 0
    wanted = load(folder).aim_at("recall", 0.1)
    got, plain = ([row["p_flawed"] for row in serve.judge_pairs(one, [(QUESTIONS[0], SOLUTIONS[0])])] for one in started)
    assert got == pytest.approx(wanted.score(QUESTIONS[:1], SOLUTIONS[:1]).p_calibrated.tolist()) != plain and started[0].threshold == wanted.threshold != started[1].threshold
    said = ask("--aim", "nonsense")
    assert said.exit_code == 2 and "nonsense" in said.output and len(started) == 2

def test_a_token_is_asked_for(verifier):
    with TestClient(serve.serve_app(verifier, token="a secret of ours")) as c:
        for said in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "a secret of ours"}, {"Authorization": "Bearer é".encode()}):
            assert c.post("/score", json=rows_of(1)[0], headers=said).status_code == 401 and c.get("/metrics", headers=said).status_code == 401
        assert c.get("/health").status_code == 200 and c.post("/score", json=rows_of(1)[0], headers={"Authorization": "Bearer a secret of ours"}).status_code == 200
    for host in ("0.0.0.0", "::", "192.168.1.2"):
        with pytest.raises(VerifierError, match="without a token"): serve.check_door(host, "")
        serve.check_door(host, "x")

def run_queue(judge, limits, asks):
    "Answers, or what was raised, to requests that come at the same time: (pairs, steps) of each."
    async def all_of_them():
        queue = serve.Queue(judge, limits)
        worker = asyncio.create_task(queue.work())
        try: return await asyncio.gather(*(queue.ask(*one) for one in asks), return_exceptions=True), queue.waiting
        finally: worker.cancel()
    return asyncio.run(all_of_them())

def test_batches_are_joined_in_order_by_kind_and_never_too_large():
    seen = []
    def judge(pairs, steps):
        seen.append((len(pairs), steps))
        return [(*pair, steps) for pair in pairs]
    asks = [([(i, j) for j in range(n)], steps) for i, (n, steps) in enumerate([(1, False), (3, True), (2, False), (6, False), (1, True), (9, False), (1, False)])]
    answers, waiting = run_queue(judge, serve.Limits(batch=8), asks)
    assert answers == [[(*pair, steps) for pair in pairs] for pairs, steps in asks] and waiting == 0
    assert seen == [(4, False), (4, True), (6, False), (9, False)]  # what does not fit any more waits for the next; a large one goes alone

def test_a_full_queue_says_so_and_an_error_is_only_theirs():
    def judge(pairs, steps):
        if any(q == "bad" for q, _ in pairs): raise RuntimeError("boom")
        return [q for q, _ in pairs]
    answers, waiting = run_queue(judge, serve.Limits(batch=1, waiting=4), [([("a", "")],), ([("bad", "")],), ([("b", ""), ("c", "")],), ([("d", "")],)])
    assert answers[0] == ["a"] and isinstance(answers[1], RuntimeError) and answers[2] == ["b", "c"] and isinstance(answers[3], serve.RefusedRequest) and answers[3].status == 429 and waiting == 0

def test_a_busy_server_answers_429(verifier, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(serve, "judge_pairs", lambda v, pairs, steps: gate.wait(20) and [serve._no_answer("x") for _ in pairs])
    with TestClient(serve.serve_app(verifier, serve.Limits(waiting=3))) as c:
        got = {}
        def ask(name, n): got[name] = c.post("/score", json={"rows": rows_of(n)}).status_code
        first = threading.Thread(target=ask, args=("first", 3)); first.start()
        while c.get("/health").json()["waiting"] < 3: time.sleep(0.01)
        said = c.post("/score", json={"rows": rows_of(1)})
        gate.set(); first.join()
    assert said.status_code == 429 and said.headers["Retry-After"] == "1" and "waiting already" in said.json()["error"] and got == {"first": 200}

@pytest.fixture
def server(adapter):
    "A server in a process of its own: (process, its address)."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", "from verifier_nb.cli import main; main()", "serve", str(adapter), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    line = process.stdout.readline()
    assert "answers" in line, line + process.stdout.read()
    yield process, f"http://127.0.0.1:{port}"
    if process.poll() is None: process.kill()
    process.wait()

def post(url, body): return json.load(urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=60))

def test_many_clients_rewards_and_the_end(server, own, adapter, monkeypatch):
    "Sixteen clients get each their own answers; the reward goes there; a second server cannot have the port; SIGTERM finishes what was accepted."
    process, url = server
    mixed = []
    def ask(k):
        for i in range(k, k + 6):
            i %= 12
            if abs(post(url + "/score", rows_of()[i])["p_flawed"] - own[i]) > 1e-4: mixed.append(i)
    threads = [threading.Thread(target=ask, args=(k,)) for k in range(16)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not mixed
    monkeypatch.setenv("VERIFIER_URL", url + "/")
    assert np.allclose(reward.reward(prompts=["x"]*3, completions=[*SOLUTIONS[:2], "word "*900], question=QUESTIONS[:3]), [*(1 - own[:2]), 0.0], atol=1e-5)
    with pytest.raises(VerifierError, match="in use"): serve.take_port("127.0.0.1", int(url.rpartition(":")[2]))
    got = []
    def slow(): got.append(post(url + "/score", {"rows": rows_of()*20})["rows"])
    accepted = [threading.Thread(target=slow) for _ in range(3)]
    for t in accepted: t.start()
    while json.load(urllib.request.urlopen(url + "/health"))["waiting"] < 480: time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    for t in accepted: t.join()
    assert [len(rows) for rows in got] == [240]*3 and all(np.allclose([row["p_flawed"] for row in rows], np.tile(own, 20), atol=1e-4) for rows in got)
    assert process.wait(30) in (0, -signal.SIGTERM) and "Traceback" not in process.stdout.read()
    with pytest.raises(VerifierError, match="does not answer"): reward.reward(prompts=["x"], completions=["1"], question=["x"])
