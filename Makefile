# `make run` and `make test` are all a newcomer needs; the other targets are the steps they are made of.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONFIG ?= quickstart
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: box outputs lint help run test notebooks-test pytest lab export readme lock bench bench-gpu fuzz soak soak-rows mutants setup develop demo

help:  ## what can be done here
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.run  ## make the virtual environment with the locked packages that a run needs

develop: $(VENV)/.dev  ## the same, with what the tests, JupyterLab and the page in the browser need

$(VENV)/.run: requirements.lock requirements-nodeps.lock setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "verifier_nb needs Python 3.10 or newer; say which: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements.lock
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.run requirements-demo.lock
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements.lock -r requirements-demo.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements-dev.lock
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements.lock -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps axe-playwright-python==0.1.8  # the checker axe; its browser driver is not used
	@touch $@

run: setup  ## run the main job (CONFIG=quickstart) and say where its report is
	@$(BIN)/verifier-nb run $(CONFIG)

box: setup  ## train the box's verifier anew, on one large GPU: solvers, samples, training, evaluation (DATA=a folder with GSM8K)
	@$(BIN)/verifier-nb run default-verifier -o data.source=$(or $(DATA),gsm8k)+everyday+sampled -o data.exclude="[$(or $(DATA),gsm8k)#test]"

demo: $(VENV)/.demo  ## open the page to try the verifier
	@$(BIN)/verifier-nb demo

test: develop lint notebooks-test pytest  ## the code's look, every notebook's own tests, then tests/

notebooks-test: develop
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing --skip_file_re '^[_.]|colab'

pytest: develop
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lab: develop  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

export: develop  ## write the library from the notebooks and clean them
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

outputs: develop  ## execute the notebooks and keep what they show (NOTEBOOKS="02_reader 03_data": only these)
	$(BIN)/python docs/outputs.py $(NOTEBOOKS)

lint: develop  ## how the code looks: the library, and the notebooks it comes from
	$(BIN)/ruff check verifier_nb nbs

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.10 setup.py --no-annotate --no-header
OURS = grep -vE '^(nvidia-|cuda-|triton|pycosat)'

lock: develop  ## resolve the versions anew; GPU libraries are left to torch, which pins its own
	touch setup.py  # uv looks at its time to see whether the requirements changed
	$(COMPILE) --extra templates | $(OURS) > requirements.lock.tmp && mv requirements.lock.tmp requirements.lock
	$(COMPILE) --extra templates --extra demo -c requirements.lock | $(OURS) | grep -vxFf requirements.lock > requirements-demo.lock
	$(COMPILE) --extra templates --extra demo --extra scale --extra serve --extra export --extra dev -c requirements.lock -c requirements-demo.lock | $(OURS) \
		| grep -vxFf requirements.lock | grep -vxFf requirements-demo.lock > requirements-dev.lock

bench: develop  ## measure speed and memory on this CPU (up to 40 minutes); a table and a chart in benchmarks/
	$(BIN)/python benchmarks/bench.py run --device cpu --seconds 12 --limit 128 --minutes 40 -o benchmarks/results/cpu.json
	$(BIN)/python benchmarks/bench.py report benchmarks/results/*.json

bench-gpu: develop  ## the same on one GPU, with Phi-4-mini's shape and SmolLM2's
	$(BIN)/python benchmarks/bench.py run --shape phi4-mini --minutes 12 --seconds 6 -o benchmarks/results/gpu-phi4-mini.json
	$(BIN)/python benchmarks/bench.py run --shape smollm2-135m --minutes 3 --seconds 4 --parts all,ours,score -o benchmarks/results/gpu-smollm2.json
	$(BIN)/python benchmarks/bench.py report benchmarks/results/*.json

soak: develop  ## kill runs at KILLS (200) random moments; each ends with the same bytes
	OMP_NUM_THREADS=1 VERIFIER_NB_SOAK_KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -q -s -m soak tests/test_interrupted.py

soak-rows: develop  ## score a million rows on a local Ray with two workers and kill one of them (half an hour or more on two cores)
	$(BIN)/python -W ignore benchmarks/soak_rows.py -o benchmarks/results/serve/soak-rows.json

mutants: develop  ## plant small bugs one at a time and see whether the tests notice (SAMPLE=20 SEED=1: only some of them)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(if $(SAMPLE),--sample $(SAMPLE) --seed $(or $(SEED),0),--report)

fuzz: develop  ## fuzz the solution parser and the archive reader for SECONDS (60) each
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --progress-bar off atheris==3.0.0
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz.py solution -max_total_time=$(or $(SECONDS),60)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz.py archive -max_total_time=$(or $(SECONDS),60)

readme: develop  ## write README.md from nbs/index.ipynb
	$(BIN)/python docs/readme.py
