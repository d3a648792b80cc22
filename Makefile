# Two commands for a newcomer: `make demo` and `make test`. Everything happens in .venv.
PYTHON ?= python3
# A machine with an NVIDIA GPU gets the newest torch; elsewhere the version that our CI runs is enough.
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-rest lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/medseg demo --out demo

# Code that is compiled once is there for every process that the tests start.
test test-all test-rest: export PYTHONDONTWRITEBYTECODE =

# The tests of a file share the store and the run that they look at: one process has them all.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadscope -m "not slow and not gpu"

test-all: test test-rest

# The cells of sweeps, the examples of properties and the slow tests that `make test` leaves out; in the order of the
# files, for the longest are in those with the fewest tests, which xdist would begin last.
test-rest: $(VENV)/.installed-test
	MEDSEG_FULL_TESTS=rest OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadscope --no-loadscope-reorder \
		-m "not gpu"

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) demo dist build site

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("medseg needs Python 3.10 or newer; set PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test,notebooks,docs,export]"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@
