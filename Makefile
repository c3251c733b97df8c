# neuroage: `make demo` and `make test` set up everything they need themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types contracts bench docs clean

help:  ## List these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## Create .venv and install neuroage into it (once; again only when pyproject.toml changed)

$(READY): pyproject.toml
	@echo "Setting up $(VENV) (once; PyTorch alone is some gigabytes) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,docs]'
	@touch $(READY)

demo: $(READY)  ## Make a phantom cohort, train T1 and TOF models, compare them, and show the page
	@$(BIN)/neuroage demo --out demo

test: $(READY)  ## Run the test suite, with a worker for each core
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

contracts: $(READY)
	@$(BIN)/lint-imports

check: lint types contracts test  ## Lint, types, import contracts and tests: what CI runs

bench: $(READY)  ## Run every benchmark that needs no data (40 minutes; `make bench QUICK=1`: 8)
	@$(BIN)/python benchmarks/targets.py $(if $(QUICK),--quick)

docs: $(READY)  ## Build the documentation into site/
	@$(BIN)/mkdocs build --strict --quiet && echo "Open site/index.html"

clean:  ## Remove what the commands above made (not the virtual environment)
	rm -rf demo bench site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
