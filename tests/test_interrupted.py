"""A run that is killed again and again ends with the bytes of a run that was left in peace."""
import hashlib, json, os, random, shutil
from collections import Counter
from pathlib import Path

import psutil
import pytest
from zygote import SMALL

from verifier_nb import runs
from verifier_nb.folders import _artifacts_of

SEED = int(os.environ.get("VERIFIER_NB_KILL_SEED", 7))
HOW = ("SIGKILL", "SIGTERM", "SIGINT", "raise")
PER_STAGE = {"00_setup": 3, "01_config": 2, "03_data": 5, "04_model": 4, "06_training": 7, "07_evaluation": 5, "08_analysis": 4}


def plan(changes, seconds, seed, times=1):
    "Kill points, stage after stage: most at a random change to a file, a quarter after a random time."
    rng, out = random.Random(seed), []
    for stage, n in PER_STAGE.items():
        for i in range(n * times):
            timed = i % 4 == 3
            how = "SIGKILL" if timed else HOW[(i + len(out)) % 4]
            out.append({"stage": stage, "how": how, **({"after": rng.uniform(0.05, 0.9) * seconds[stage]} if timed else {"at": rng.randint(1, changes[stage])})})
    return out


def hashes(report):
    "SHA-256 of what must not depend on interruptions."
    files = [report/n for n in ("predictions.csv", "validation_predictions.csv", "metrics.json", "metrics_by_type.csv", "calibration.json", "catalog.csv", "data_summary.csv", "log_history.csv")]
    artifacts = _artifacts_of(report)
    files += [artifacts/"adapter"/"adapter_model.safetensors", *sorted(p for p in (artifacts/"dataset").rglob("*") if p.is_file())]
    return {p.name if p.is_relative_to(report) else p.relative_to(artifacts).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def litter(report):
    "Half-written things."
    return sorted(p.name for folder in (report, _artifacts_of(report)) for p in folder.rglob("*") if p.name.startswith(".") or p.name.endswith(".tmp"))


def check_after(found, kill, report):
    "What an ending should leave: exit status, lock, manifest."
    if found["hit"] is None: return
    how, lock = kill["how"], json.loads((report/".lock").read_text()) if (report/".lock").exists() else None
    if how == "SIGKILL": assert found["code"] == -9
    else:
        assert found["code"] in ((130,) if how != "raise" else (1, 70)), found
        assert lock is None, "a polite ending releases the lock"
        if how != "raise": assert f"stopped{': stopped by SIGTERM' if how == 'SIGTERM' else ''}; verifier-nb resume" in found["said"], found["said"][-500:]
        assert found["hit"] in {s for s, e in json.loads((report/"manifest.json").read_text())["stages"].items() if e["status"] in ("failed", "done")}


def orphans(root):
    "Kernels that were started for runs below a folder and still live."
    def ours(p):
        try: return str(root) in p.environ().get("ZYGOTE_KILL", "")
        except (psutil.Error, OSError): return False
    return [p for p in psutil.process_iter() if ours(p)]


def unfinish(report, stage):
    "An attempt that was not hit in time finished the stage; forget it, so that there is something to kill."
    path = report/"manifest.json"
    if not path.exists() or (manifest := json.loads(path.read_text()))["stages"].get(stage, {}).get("status") != "done": return
    manifest["stages"] = {s: e for s, e in manifest["stages"].items() if s < stage}
    path.write_text(json.dumps(manifest))


def chain(zygote, reference, root, kills, kernel_kills=()):
    "One run through all kill points. Returns how often each stage was hit, and by what."
    reports = root/"reports"/"smoke"
    hits, command = Counter(), ["run", "smoke", *SMALL, "--root", root]
    for kernels, kill in sorted([((), k) for k in kills] + [((k["stage"],), k) for k in kernel_kills], key=lambda x: x[1]["stage"]):
        if reports.exists(): unfinish(next(reports.iterdir()), kill["stage"])
        found = zygote.attempt(command, kill=kill, kernels=kernels)
        report = next(reports.iterdir())
        command = ["resume", "latest", "--root", root]
        if found["hit"]: hits[found["hit"], kill["how"] + (" in a kernel" if kernels else "")] += 1
        else: assert found["code"] == 0, found["said"]
        if not kernels: check_after(found, kill, report)
        elif kill.get("self") and found["hit"]: assert found["code"] == 1 and "the stage's process died" in found["said"]
        assert len(list(reports.iterdir())) == 1
    last = zygote.attempt(command)
    assert last["code"] == 0, last["said"]
    assert hashes(report) == hashes(reference[0])
    assert litter(report) == []
    assert {e["status"] for e in json.loads((report/"manifest.json").read_text())["stages"].values()} == {"done"}
    assert (report/"report.html").exists() and not orphans(root)
    return hits


KERNEL_KILLS = [{"stage": "03_data", "how": "SIGKILL", "at": 5}, {"stage": "06_training", "how": "SIGKILL", "at": 12}, {"stage": "06_training", "how": "SIGTERM", "at": 9},
                {"stage": "07_evaluation", "how": "SIGKILL", "at": 1, "self": True}]


@pytest.mark.timeout(600)
def test_killed_everywhere_it_ends_with_the_same_bytes(zygote, reference, tmp_path, record_property):
    "At least 25 kill points over all stages, by SIGKILL, SIGTERM, SIGINT and an exception, some of them with the stage in a kernel of its own."
    kills = plan(reference[1]["changes"], reference[1]["seconds"], SEED)
    hits = chain(zygote, reference, tmp_path, kills, KERNEL_KILLS)
    by_stage, by_way = Counter(), Counter()
    for (stage, way), n in hits.items(): by_stage[stage] += n; by_way[way] += n
    print(f"\nkill points survived: {sum(hits.values())}; by stage: {dict(by_stage)}; by way: {dict(by_way)}")
    record_property("kill_points", sum(hits.values()))
    assert sum(hits.values()) >= 25 and set(by_stage) == set(runs.STAGES), hits
    assert set(HOW) <= set(by_way) and by_way["SIGKILL in a kernel"] >= 2


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(zygote, reference, tmp_path):
    "Chains with other random moments until VERIFIER_NB_SOAK_KILLS kill points are survived."
    wanted, survived, seed = int(os.environ.get("VERIFIER_NB_SOAK_KILLS", 200)), 0, SEED
    while survived < wanted:
        seed += 1
        survived += sum(chain(zygote, reference, tmp_path/str(seed), plan(reference[1]["changes"], reference[1]["seconds"], seed), KERNEL_KILLS).values())
        shutil.rmtree(tmp_path/str(seed))
        print(f"seed {seed}: {survived} of {wanted} kill points survived", flush=True)
