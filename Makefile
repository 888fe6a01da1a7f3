# Each target works as the first command in a clean clone: all it needs is python3 (3.10 or newer) with venv.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# One process more than cores: ranks of tests sleep while they wait for each other.
PYTEST = -m pytest --numprocesses $$($(PYTHON) -c 'import os; print(min(os.cpu_count() + 1, 8))') --dist loadfile
OLDEST := $(addprefix tests/test_,$(addsuffix .py,actions declared distributed laws layout lightning lightning_ranks monitor \
	observe_loss private_names replay resume sinks_journal sinks_tensorboard sinks_wandb sizes tally tally_arrays tally_metric tokens))

.PHONY: help demo test test-all test-oldest test-newest gpu docs lint clean

help:
	@echo "make demo    train a small model for about two minutes and see a corrupted sequence found"
	@echo "             (ARGS='--steps 200 --logger wandb' passes flags; ARGS=--help names them)"
	@echo "make test    run the tests (ARGS='-k perplexity' passes flags to pytest)"
	@echo "make gpu     what only a GPU can tell, with a PYTHON that has PyTorch and Triton; installs nothing"
	@echo "             (ARGS=--dry proves it without a GPU; the tables go to runs/gpu)"
	@echo "make test-all  the slow tests, too, and the page in a browser where there is a Chromium"
	@echo "make test-oldest  the tests of what counts, the sinks and Lightning with the oldest versions stated (PYTHON=python3.10)"
	@echo "make test-newest  the tests with the newest versions there are (PYTHON=python3.13)"
	@echo "make docs    build the site of docs/ into build/site, and serve it (ARGS=--no-serve only builds)"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove the environment and what tools left"

demo: .venv/installed
	$(BIN)/pplmon demo $(ARGS)

# One thread in each process: -n 0 in ARGS runs them in this one.
test: export OMP_NUM_THREADS ?= 1
test: .venv/installed
	$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

# The slow ones, too, and the page in a browser where the system has a Chromium.
test-all: export OMP_NUM_THREADS ?= 1
test-all: .venv/browser
	$(BIN)/python $(PYTEST) $(ARGS)

# In an environment of its own, of the oldest versions stated: what counts, the sinks, ranks and Lightning.
test-oldest: export OMP_NUM_THREADS ?= 1
test-oldest:
	$(PYTHON) -m venv --clear .oldest
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check $$($(PYTHON) -m tests.oldest)
	.oldest/bin/python $(PYTEST) -m "not slow" $(OLDEST) $(ARGS)

# In another, of the newest that pip finds: constraints.txt is for the environment of make test alone.
test-newest: export OMP_NUM_THREADS ?= 1
test-newest:
	$(PYTHON) -m venv --clear .newest
	.newest/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	.newest/bin/python $(PYTEST) -m "not slow" $(ARGS)

gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

# Python 3.11 or newer: what builds the site wants it.
docs: .venv/docs
	$(BIN)/mkdocs build --strict
ifneq ($(ARGS),--no-serve)
	$(BIN)/mkdocs serve $(ARGS)
endif

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Installed once, and again when what is wanted changes. The stamp comes last, so that a broken install is repeated.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pplmon needs Python 3.10 or newer; name one with make PYTHON=...")'
	@echo "installing into .venv: once, a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@

.venv/browser: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,browser]"
	@touch $@

clean:
	rm -rf .venv .oldest .newest .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
