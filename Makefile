# Everything runs in .venv, installed from the locks, and writes to data/. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
ROOT := $(CURDIR)
BIN := $(ROOT)/.venv/bin

# Captioned photographs for the demo (docs/data.md); without any, it generates its own.
DATA ?=
# The language of their captions. Not ?=, because desktops set this variable of gettext in the environment.
LANGUAGE =
unexport LANGUAGE
ENCODER ?= random

# Without bytecode each start of TensorFlow or Airflow takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPATH := $(ROOT)
# Airflow starts its components by the name `airflow`.
export PATH := $(BIN):$(PATH)
export AIRFLOW_HOME ?= $(ROOT)/data/airflow
export AIRFLOW__CORE__DAGS_FOLDER := $(ROOT)/dags
export AIRFLOW__CORE__PLUGINS_FOLDER := $(ROOT)/plugins
export AIRFLOW__CORE__LOAD_EXAMPLES := False
export AIRFLOW__CORE__PARALLELISM := 4
export AIRFLOW__WORKERS__EXECUTION_API_RETRIES := 20
export AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX := 15
export AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL := 1
export AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL := 30
export AIRFLOW__API__HOST := 127.0.0.1
export AIRFLOW__API__PORT ?= 8080
# The beginning of links in notifications.
export AIRFLOW__API__BASE_URL ?= http://127.0.0.1:$(AIRFLOW__API__PORT)
export AIRFLOW__CORE__EXECUTION_API_SERVER_URL := http://127.0.0.1:$(AIRFLOW__API__PORT)/execution/
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS := admin:admin
export AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE := $(AIRFLOW_HOME)/passwords.json
# The tests that need more than Python, by marker: CONTRIBUTING.md describes them.
TIERS := airflow or browser or kills or photographs or services
# Two processes run the tests, a file at a time; more threads than cores would slow both down.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 $(BIN)/python -m pytest
MLFLOW_PORT ?= 5000
export MLFLOW_DISABLE_TELEMETRY ?= true
# The server's own job queue would start several processes that are not needed here.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false

.PHONY: help demo up mlflow bench docs lint lock sbom clean \
    test test-rest test-airflow test-browser test-kills test-photographs test-services test-cluster test-by-hand stress pictures
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

demo: .venv/installed $(AIRFLOW_HOME)/ready  ## train a captioner and caption photographs in Airflow; DATA=folder|file|URI LANGUAGE=de ENCODER=resnet50|random|file for your own
	@PYTHONPATH=$(ROOT):$(ROOT)/plugins $(BIN)/python scripts/demo.py --data "$(DATA)" --language "$(LANGUAGE)" --encoder "$(ENCODER)"

up: .venv/installed $(AIRFLOW_HOME)/ready  ## start Airflow on 127.0.0.1:8080 with all DAGs; Ctrl-C stops it
	@PYTHONPATH=$(ROOT):$(ROOT)/plugins $(BIN)/python scripts/up.py

mlflow: .venv-mlflow/installed  ## start MLflow on 127.0.0.1:5000, with the trainings recorded in data/mlflow.db; Ctrl-C stops it
	@mkdir -p $(ROOT)/data/mlflow
	@echo "MLflow will be at http://127.0.0.1:$(MLFLOW_PORT) in a few seconds: choose Model training, then the experiment captioner"
	@$(ROOT)/.venv-mlflow/bin/mlflow server --backend-store-uri sqlite:///$(ROOT)/data/mlflow.db \
	    --artifacts-destination $(ROOT)/data/mlflow --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1

bench: .venv/installed  ## measure the speed against common baselines, and write benchmarks/results.json
	@$(BIN)/python -m benchmarks

test: .venv/installed-dev  ## run the tests that need nothing but Python, all of the pipeline among them (a quarter of an hour)
	@$(PYTEST) $(TWO) -m "not ($(TIERS) or cluster or by_hand)" $(PYTEST_ARGS)

test-rest: .venv/installed-dev  ## run the next five tiers together (twelve minutes)
	@$(PYTEST) $(TWO) -m "$(TIERS)" $(PYTEST_ARGS)

test-airflow: .venv/installed-dev  ## follow retrainings and nights through a whole Airflow
test-browser: .venv/installed-dev  ## use that Airflow, and the gallery in it, in Chromium
test-kills: .venv/installed-dev  ## kill commands at their writes, and at random
test-photographs: .venv/installed-dev  ## read and caption real photographs; CONTRIBUTING.md says where they are looked for
test-services: .venv/installed-dev  ## hold SeaweedFS and Redis, as docker-compose.yaml starts them, to what is promised of them
test-airflow test-browser test-kills test-photographs test-services:
	@$(PYTEST) $(TWO) -m $(@:test-%=%) $(PYTEST_ARGS)

test-cluster: .venv/installed-dev  ## run both DAGs on PostgreSQL, Redis and Celery workers, and kill each of them (eleven minutes)
	@$(PYTEST) -m cluster $(PYTEST_ARGS)

test-by-hand: .venv/installed-dev .venv-mlflow/installed  ## run what takes long and changes rarely, and is in no other target
	@$(PYTEST) -m by_hand $(PYTEST_ARGS)

stress: .venv/installed-dev  ## run all tests but those of servers on every combination, and on very many random inputs (hours)
	@CAPTION_TESTS=stress $(PYTEST) $(TWO) -m "not (airflow or browser or services or cluster or by_hand)" --timeout 14400 $(PYTEST_ARGS)
	@$(BIN)/python -m tests.support.fuzz

pictures: .venv/installed-dev  ## take the screenshots of docs/airflow.md again, with the browser tests
	@mkdir -p docs/pictures
	@CAPTION_PICTURES=docs/pictures $(PYTEST) -m browser

docs: .venv/installed  ## write docs/cli.md, configuration.md, sql.md and store.md from the code
	@PYTHONPATH=$(ROOT):$(ROOT)/plugins $(BIN)/python scripts/write_docs.py

lint: .venv/installed-dev  ## check style, words, imports and types, and the locked packages for known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python scripts/check_words.py
	@$(BIN)/python scripts/audit.py requirements.txt requirements-dev.txt requirements-gpu.txt requirements-mlflow.txt requirements-sbom.txt requirements-training.txt

# The lock of training is the first, because it holds most: the others take its versions.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes
lock:  ## compile the locks from pyproject.toml and the .in files (needs uv)
	$(COMPILE) pyproject.toml --extra airflow --extra training requirements-training.in --override requirements-override.in \
	    -o requirements-training.txt
	$(COMPILE) pyproject.toml --extra airflow --extra inference -c requirements-training.txt -o requirements.txt
	$(COMPILE) pyproject.toml --extra airflow --extra training requirements-gpu.in -c requirements-training.txt \
	    -o requirements-gpu.txt
	$(COMPILE) requirements-dev.in --override requirements-override.in -o requirements-dev.txt
	$(COMPILE) requirements-mlflow.in -o requirements-mlflow.txt
	$(COMPILE) requirements-sbom.in -o requirements-sbom.txt

# One for each image, by the names that its stage has in the Dockerfile, and one for MLflow's server.
SBOMS := $(addprefix build/sbom-,$(addsuffix .cdx.json,light train gpu mlflow))
sbom: $(SBOMS)  ## write what the images' locks hold as build/sbom-*.cdx.json, in CycloneDX
build/sbom-light.cdx.json: requirements.txt
build/sbom-train.cdx.json: requirements-training.txt
build/sbom-gpu.cdx.json: requirements-gpu.txt
build/sbom-mlflow.cdx.json: requirements-mlflow.txt
$(SBOMS): .venv-sbom/installed pyproject.toml
	@mkdir -p build
	@.venv-sbom/bin/cyclonedx-py requirements $(firstword $(filter requirements%,$^)) --pyproject pyproject.toml \
	    --output-reproducible -o $@ 2> $@.log || { cat $@.log; exit 1; }
	@rm $@.log
	@echo "$@"

clean:  ## remove the environment, the caches and built wheels, but not data/
	rm -rf .venv .venv-mlflow .venv-sbom .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build dist

# The locks are complete, so pip looks for no other packages: it would choose versions of its own where one asks for an
# extra of another, and would add tensorflow to tensorflow-cpu, because Keras Hub requires it by that name.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r

.venv/installed: requirements-training.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 …")'
	@echo "installing the packages into .venv (a few minutes, once)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python $(INSTALL) requirements-training.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@$(BIN)/python $(INSTALL) requirements-dev.txt
	@touch $@

# MLflow's server needs older packages than the pipeline, so it has an environment of its own.
.venv-mlflow/installed: requirements-mlflow.txt
	@echo "installing MLflow's server into .venv-mlflow (a minute or two, once)"
	@[ -x .venv-mlflow/bin/python ] || $(PYTHON) -m venv .venv-mlflow
	@.venv-mlflow/bin/python $(INSTALL) requirements-mlflow.txt
	@touch $@

# A program that needs none of the pipeline's packages, and is not to change their versions.
.venv-sbom/installed: requirements-sbom.txt
	@[ -x .venv-sbom/bin/python ] || $(PYTHON) -m venv .venv-sbom
	@.venv-sbom/bin/python $(INSTALL) requirements-sbom.txt
	@touch $@

$(AIRFLOW_HOME)/ready: .venv/installed
	@mkdir -p $(AIRFLOW_HOME)
	@$(BIN)/airflow db migrate > $(AIRFLOW_HOME)/migrate.log 2>&1 || { cat $(AIRFLOW_HOME)/migrate.log; exit 1; }
	@$(BIN)/airflow pools set gpu 1 "the accelerator, or all cores where there is none" > /dev/null
	@touch $@
