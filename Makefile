# `make demo` and `make test` set up what they need; a second call starts at once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# files of tests by two processes: most of the time of those that start Ray is waiting
SIDE_BY_SIDE := -n 2 --dist loadfile
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-all bench check format clean

demo: $(VENV)/.installed ## train, attack and certify on the embedded data set; then a report
	$(BIN)/python pipelines/sweep.py --dataset avdigits

test: $(VENV)/.installed-dev ## the fast tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: $(VENV)/.installed-dev ## all tests, also those that take minutes
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-dev ## how fast, beside baselines on this machine: one table
	$(BIN)/python -m benchmarks --rounds 3 --save

check: $(VENV)/.installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment; runs and caches stay
	rm -rf $(VENV) *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
