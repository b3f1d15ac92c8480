# Every target sets up what it needs in .venv, once for each state of pyproject.toml and constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Through the environment the pins also hold for what pip installs to build the package (pip 25.3 and later
# reads the second name for that).
PINS := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test lint bench docs clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY) ## Fit the digits VAE at two values of lambda and write runs/digits/report.html.
	$(BIN)/banel fit models.vae:digits --lam 0,0.4 --seed 0 --out runs/digits --resume

test: lint ## Lint, then every test and every doctest.
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(READY) ## Style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## Time training against Pyro, PyTorch by hand, NumPyro and pythae; writes runs/speed (an hour).
	$(PINS) $(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m demos.speed

docs: $(READY) ## Build the documentation into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove .venv, runs, site and caches.
	rm -rf .venv runs dist site .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PINS) $(BIN)/python -m pip install -e '.[dev]'
	touch $@
