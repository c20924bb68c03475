# `make run` and `make test` are all a newcomer needs; the other targets are the steps they are made of.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONFIG ?= quickstart
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: outputs lint help run test notebooks-test pytest lab export readme lock bench bench-gpu fuzz soak mutants setup

help:  ## what can be done here
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.installed  ## make the virtual environment with the locked packages

$(VENV)/.installed: requirements.lock requirements-nodeps.lock setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "verifier_nb needs Python 3.10 or newer; say which: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements.lock
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps --editable .
	@touch $@

run: setup  ## run the main job (CONFIG=quickstart) and say where its report is
	@$(BIN)/verifier-nb run $(CONFIG)

test: setup lint notebooks-test pytest  ## the code's look, every notebook's own tests, then tests/

notebooks-test: setup
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing

pytest: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lab: setup  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

export: setup  ## write the library from the notebooks and clean them
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

outputs: setup  ## execute the notebooks and keep what they show (NOTEBOOKS="02_reader 03_data": only these)
	$(BIN)/python docs/outputs.py $(NOTEBOOKS)

lint: setup  ## how the code looks: the library, and the notebooks it comes from
	$(BIN)/ruff check verifier_nb nbs

lock: setup  ## resolve the versions anew (needs uv); GPU libraries are left to torch, which pins its own
	touch setup.py  # uv looks at its time to see whether the requirements changed
	uv pip compile --quiet --universal --python-version 3.10 setup.py --extra dev --extra data --extra demo --no-annotate --no-header \
		| grep -vE '^(nvidia-|cuda-|triton|pycosat)' > requirements.lock.tmp && mv requirements.lock.tmp requirements.lock

bench: setup  ## measure speed and memory on this CPU (up to 40 minutes); a table and a chart in benchmarks/
	$(BIN)/python benchmarks/bench.py run --device cpu --seconds 12 --limit 128 --minutes 40 -o benchmarks/results/cpu.json
	$(BIN)/python benchmarks/bench.py report benchmarks/results/*.json

bench-gpu: setup  ## the same on one GPU, with Phi-4-mini's shape and SmolLM2's
	$(BIN)/python benchmarks/bench.py run --shape phi4-mini --minutes 12 --seconds 6 -o benchmarks/results/gpu-phi4-mini.json
	$(BIN)/python benchmarks/bench.py run --shape smollm2-135m --minutes 3 --seconds 4 --parts all,ours,score -o benchmarks/results/gpu-smollm2.json
	$(BIN)/python benchmarks/bench.py report benchmarks/results/*.json

soak: setup  ## kill runs at KILLS (200) random moments; each ends with the same bytes
	OMP_NUM_THREADS=1 VERIFIER_NB_SOAK_KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -q -s -m soak tests/test_interrupted.py

mutants: setup  ## plant small bugs one at a time and see whether the tests notice (SAMPLE=20 SEED=1: only some of them)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(if $(SAMPLE),--sample $(SAMPLE) --seed $(or $(SEED),0),--report)

fuzz: setup  ## fuzz the solution parser and the archive reader for SECONDS (60) each
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --progress-bar off atheris==3.0.0
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz.py solution -max_total_time=$(or $(SECONDS),60)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz.py archive -max_total_time=$(or $(SECONDS),60)

readme: setup  ## write README.md from nbs/index.ipynb
	$(BIN)/python docs/readme.py
