# The daily commands; `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/requirements.lock
# Stages call `python`: the environment's, not the system's. One BLAS thread in tests keeps two cores from crawling.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# Containers like to set it; then every start compiles mlflow, torch and all the others anew, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help repro benchmark flow verify test operations faults lint format bench ui serve lock clean

help:  ## List these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The copy of the lock file is made last, so that a broken installation is never taken for a whole one.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	cp requirements.lock $(STAMP)

repro: $(STAMP)  ## Bring every result up to date (dvc repro)
	python -m flows.verify || true
	dvc repro

benchmark: $(STAMP)  ## The same with every defence of params.yaml, as an experiment of DVC
	dvc exp run -S "benchmark=[$$(python -c 'from tasks.params import load_params; print(*load_params().defences, sep=",")')]"

flow: $(STAMP)  ## The same steps in one process, by Prefect
	python -m flows.pipeline

verify: $(STAMP)  ## Read all results and DVC's cache: do they hold the bytes that were recorded?
	python -m flows.verify

test: $(STAMP) lint  ## Lint, types, import rules, tests
	OMP_NUM_THREADS=1 python -m pytest --durations 15 --numprocesses auto --dist loadfile --no-loadscope-reorder

operations: $(STAMP)  ## Outages, shared servers and remotes, with real servers on loopback
	OMP_NUM_THREADS=1 python -m pytest --durations 15 -m operations tests

faults: $(STAMP)  ## Kills, full disks, broken files, several at once, fuzzing
	OMP_NUM_THREADS=1 python -m pytest --durations 15 -m faults tests

lint: $(STAMP)  ## Ruff, mypy, import-linter
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-cache

format: $(STAMP)  ## Put code into shape
	ruff check --fix .
	ruff format .

# Every script of tests/benchmarks that is one: measured figures go to docs/evidence/performance/.
bench: $(STAMP)  ## Run the benchmarks one after the other
	uv pip install --quiet --no-deps --target $(VENV)/benchmarks --requirements tests/benchmarks/requirements.txt
	set -e; export PYTHONPATH=$(VENV)/benchmarks; for script in $$(grep -l '__main__' tests/benchmarks/*.py); do \
		name=$$(basename $$script .py); echo "== $$name"; \
		python -m tests.benchmarks.$$name --json docs/evidence/performance/$$name.json; \
	done

ui: $(STAMP)  ## Compare runs in MLflow's UI, on loopback
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_BACKEND_STORE_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" \
		mlflow server --host 127.0.0.1 --port 5000 --workers 1

serve: $(STAMP)  ## Prefect's server, the deployments and a worker, on loopback
	python -m flows.serve

lock: $(STAMP)  ## Resolve the dependencies of pyproject.toml anew
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate --group dev pyproject.toml -o requirements.lock
	$(MAKE) --no-print-directory environment.yaml

# Stages depend on this file, so that a new version of a library that computes makes trainings and attacks stale.
environment.yaml: requirements.lock
	printf '# Versions of the libraries that compute; written by make lock from requirements.lock.\n' > $@
	awk -F'==' '/^(adversarial-robustness-toolbox|numpy|pillow|scikit-learn|scipy|torch|torchvision)==/ \
		{ versions[$$1] = versions[$$1] (versions[$$1] ? ", " : "") $$2 } \
		END { for (name in versions) printf "%s: \"%s\"\n", name, versions[name] }' requirements.lock | sort >> $@

clean:  ## Remove the environment and caches, not the results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
