# The daily commands; `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Marks of the installed packages: of those that runs need, and of all (also extras and development).
STAMP := $(VENV)/requirements-run.lock
DEV_STAMP := $(VENV)/requirements.lock
# Stages call `python`, which must be the environment's. One OpenMP thread in tests: two test processes share two cores.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# An unknown user id, as in some containers, has neither; DVC needs a name, and libraries a home for their caches.
export USER ?= user
export HOME ?= $(CURDIR)/$(VENV)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# If this variable is set, as in many containers, Python compiles the packages again at every start, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help dev repro compare experiments flow audit results verify test test-changed operations faults fuzz kills lint site format bench ui serve lock clean

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(DEV_STAMP)
	sed -n '/^uv==/,/[^\\]$$/p' $(1) | \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement /dev/stdin
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python $(1)
endef

# The lock file is copied last, so that an interrupted installation is repeated.
$(DEV_STAMP): requirements.lock
	$(call install,$<)
	cp requirements-run.lock $(STAMP)
	cp $< $@

# An environment for development has all packages that runs need.
$(STAMP): requirements-run.lock
	$(if $(shell cmp -s requirements.lock $(DEV_STAMP) || echo other),$(call install,$<))
	cp $< $@

dev: $(DEV_STAMP)  ## Install the packages of all extras and for development, too

repro: $(STAMP) environment.yaml  ## Compute every result that is not up to date (dvc repro)
	python -m flows.verify || test $$? -eq 3
	dvc repro

compare: $(STAMP)  ## Compare all defences of params.yaml, as an experiment of DVC
	dvc exp run -S "selected_defences=[$$(python -c 'from tasks.params import load_params; print(*load_params().defences, sep=",")')]"

# DVC has no setting for the default columns of its table: it shows every key of params.yaml.
experiments: $(STAMP)  ## Show DVC's experiments: changed parameters and headline metrics
	dvc exp show --only-changed --keep balanced_accuracy --drop '.*/' --drop images --drop models --drop plugins

flow: $(STAMP)  ## Run the same steps as a Prefect flow
	python -m flows.pipeline

audit: $(STAMP)  ## Audit a trained classifier; MODEL=, IMAGES=, TABLE=, OPTIONS=
	python -m flows.audit --model "$(MODEL)" --images "$(IMAGES)" $(if $(TABLE),--table "$(TABLE)") $(OPTIONS)

results: $(STAMP)  ## Compute and archive the published results; DATA="FOLDER ...", NAME="TABLE ...", OPTIONS=
	python -m docs.make_results $(NAME) --data $(DATA) $(OPTIONS)

verify: $(STAMP)  ## Compare all results and DVC's cache with the recorded hashes
	python -m flows.verify

test: $(DEV_STAMP) lint  ## Run lint and all fast tests
	OMP_NUM_THREADS=1 python -m pytest --durations 15 --numprocesses auto --dist loadfile --no-loadscope-reorder

# A change without tests is a success here; pytest alone would end with exit code 5.
test-changed: $(DEV_STAMP)  ## Run the tests of the changed modules, in about a minute
	@files="$$(python -m tests.changed)"; test -z "$$files" || \
		OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $$files

operations: $(DEV_STAMP)  ## Test outages, shared servers and remotes with real servers on loopback
	OMP_NUM_THREADS=1 python -m pytest --durations 15 -m operations tests

faults: $(DEV_STAMP)  ## Test kills, full disks, damaged files, parallel runs; fuzzing
	OMP_NUM_THREADS=1 python -m pytest --durations 15 -m faults tests

fuzz: SECONDS ?= 600
fuzz: $(DEV_STAMP)  ## Fuzz all readers of a user's files, each for SECONDS=600
	set -e; for name in images dicom nifti params table request; do python -W ignore -m tests.faults.fuzz $$name $(SECONDS); done

kills: N_KILLS ?= 20
kills: $(DEV_STAMP)  ## Kill a Prefect worker N_KILLS=20 times
	N_KILLS=$(N_KILLS) OMP_NUM_THREADS=1 python -m pytest -s -m operations tests/operations/test_deployments.py -k killed

lint: $(DEV_STAMP)  ## Check code, types, import rules, spelling and style of the text
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-cache
	codespell
	python -m docs.check_prose

site: $(DEV_STAMP)  ## Build the site of the documentation in site/
	zensical build --strict -f mkdocs.yml

format: $(DEV_STAMP)  ## Format the code
	ruff check --fix .
	ruff format .

# All scripts of tests/benchmarks; the figures go to docs/evidence/performance/.
bench: $(DEV_STAMP)  ## Run the speed benchmarks
	uv pip install --quiet --no-deps --target $(VENV)/benchmarks --requirements tests/benchmarks/requirements.txt
	set -e; export PYTHONPATH=$(VENV)/benchmarks; for script in $$(grep -l '__main__' tests/benchmarks/*.py); do \
		name=$$(basename $$script .py); echo "== $$name"; \
		python -m tests.benchmarks.$$name --json docs/evidence/performance/$$name.json; \
	done

ui: PORT ?= 5000
ui: $(STAMP)  ## Compare runs in MLflow's UI, on loopback; PORT=5000
	@python -c 'import socket, sys; sys.exit(socket.socket().connect_ex(("127.0.0.1", $(PORT))) == 0 and \
		"port $(PORT) is in use. Choose another one: make ui PORT=5001")'
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_BACKEND_STORE_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" \
		mlflow server --host 127.0.0.1 --port $(PORT) --workers 1

serve: PORT ?= 4200
serve: $(STAMP)  ## Start Prefect's server, the deployments and a worker, on loopback; PORT=4200
	python -m flows.serve --port $(PORT)

lock: $(DEV_STAMP)  ## Update both lock files from pyproject.toml
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate --generate-hashes --group dev pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --generate-hashes --group run --constraints requirements.lock pyproject.toml -o requirements-run.lock
	$(MAKE) --no-print-directory environment.yaml

# Stages depend on this file, so that a new version of a library that computes makes trainings and attacks stale.
environment.yaml: requirements.lock
	printf '# Versions of the libraries that compute; written by make lock from requirements.lock.\n' > $@
	awk -F'==' '/^(adversarial-robustness-toolbox|imagecodecs|nibabel|numpy|pillow|pydicom|scikit-learn|scipy|tifffile|torch|torchvision)==/ \
		{ sub(/ *\\$$/, "", $$2); versions[$$1] = versions[$$1] (versions[$$1] ? ", " : "") $$2 } \
		END { for (name in versions) printf "%s: \"%s\"\n", name, versions[name] }' requirements.lock | sort >> $@

clean:  ## Remove the environment and caches, not the results
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
