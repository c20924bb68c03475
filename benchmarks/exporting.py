"""What an export to ONNX Runtime is worth: agreement with `Verifier` on 200 rows, size, rows a second of process time.

    python benchmarks/exporting.py -o benchmarks/results/serve/onnx-box.json

The rows are fresh everyday problems (`verifier_nb.everyday`), half of them flawed. Speed: one row at a time, and 16 rows filled up to the
longest; each engine in turn, three times, the median counts. Start it with OMP_NUM_THREADS=1: process time then says what a free core does, on a busy machine too."""
import argparse, os, tempfile, time
from pathlib import Path

import numpy as np

BATCH, TURNS = 16, 3


def rows_of(n, seed=20261128):
    "As many correct as flawed rows: (questions, solutions, labels)."
    from verifier_nb import data
    from verifier_nb.config import DataSettings
    settings = DataSettings(source="everyday", problems=n, validation_fraction=0.0, test_fraction=0.0)
    frame = data.load_source(settings, seed)["train"].to_pandas().sort_values(["index", "label"])
    halves = [frame[frame.label == label].head(n//2) for label in (0, 1)]
    return [sum((half[name].tolist() for half in halves), []) for name in ("question", "solution", "label")]


def rate(run, n):
    "Rows a second of this process's time on all cores."
    start = time.process_time()
    run()
    return n/(time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--adapter", default="default")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--timed", type=int, default=32, help="rows that are timed")
    args = parser.parse_args()
    import onnxruntime, torch
    from scipy.special import expit
    from sklearn.metrics import roc_auc_score
    from verifier_nb import export, files
    questions, solutions, labels = rows_of(args.rows)
    verifier, threads = export.open_merged(args.adapter), torch.get_num_threads()
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = threads
    p = {"Verifier": verifier.score(questions, solutions, progress=False).p_flawed.to_numpy()}
    with tempfile.TemporaryDirectory() as tmp:
        folder, start = Path(tmp)/"onnx", time.perf_counter()
        export.export_verifier(verifier, "onnx", folder)
        found = {"adapter": args.adapter, "rows": len(labels), "threads": threads, "onnxruntime": onnxruntime.__version__, "torch": torch.__version__,
                 "seconds_of_the_export": time.perf_counter() - start, "load": os.getloadavg(), "engines": {}}
        sessions = {name: onnxruntime.InferenceSession(str(folder/name), how, providers=["CPUExecutionProvider"]) for name in ("model.onnx", "model-int8.onnx")}
        sizes = {name: (folder/name).stat().st_size for name in sessions}
    ids, pad = [verifier.sample(q, s)["input_ids"] for q, s in zip(questions, solutions)], verifier.tokenizer.pad_token_id
    def graph(session, n, batch): return [export.run_graph(session, ids[i:i + batch], pad) for i in range(0, n, batch)]
    for name, session in sessions.items(): p[name] = expit(np.concatenate(graph(session, len(ids), BATCH)))
    n = args.timed
    def own(batch): return lambda: [verifier.score(questions[i:i + batch], solutions[i:i + batch], progress=False) for i in range(0, n, batch)]
    runs = {"Verifier": own, **{name: (lambda session: lambda batch: lambda: graph(session, n, batch))(session) for name, session in sessions.items()}}
    rates = {(name, batch): [] for name in runs for batch in (1, BATCH)}
    for _ in range(TURNS):
        for name, batch in rates: rates[name, batch].append(rate(runs[name](batch), n))
    for name in runs:
        found["engines"][name] = {
            "auroc": roc_auc_score(labels, p[name]), "largest_difference": float(np.abs(p[name] - p["Verifier"]).max()), "mean_difference": float(np.abs(p[name] - p["Verifier"]).mean()),
            "bytes": sizes.get(name), "rows_per_cpu_s_one_by_one": float(np.median(rates[name, 1])), f"rows_per_cpu_s_in_{BATCH}": float(np.median(rates[name, BATCH]))}
        print(name, found["engines"][name], flush=True)
    files.write_json(args.out, found)


if __name__ == "__main__": main()
