# Needs make, git and Python 3.11 or newer with pip; all else goes into .venv. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
OUT ?= demo
BUDGET ?= 6h
FOLD_BUDGET ?= 1h

BIN := .venv/bin
STAMP := .venv/.installed
# One thread a process: with a busy neighbour two OpenMP threads can be ten times slower than one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# An installation is current while this Python, this place and these two files are the same.
KEY = { $(PYTHON) --version; pwd; cat pyproject.toml requirements/constraints.txt; } | cksum

.PHONY: help venv demo head-neck lint check test slow wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST)

venv: ## .venv with medseg, its tested dependencies and the developer's tools
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "medseg needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
	  echo "Name another one: make venv PYTHON=python3.12" >&2; exit 1; }
	@set -e; key=$$($(KEY)); \
	if [ -x $(BIN)/python ] && [ "$$(cat $(STAMP) 2>/dev/null)" = "$$key" ]; then exit 0; fi; \
	rm -f $(STAMP); \
	if ! { [ -x $(BIN)/python ] && grep -qF "$$(pwd)/.venv/" $(BIN)/pip; } 2>/dev/null; then \
	  echo "making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; fi; \
	echo "installing medseg and its tools into .venv (about 2 minutes, 6 GB with torch's CUDA libraries)"; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'; \
	echo "$$key" > $(STAMP); echo "installed: $(BIN)/medseg is the program, $(BIN)/python imports the library"

demo: venv ## train on real CT scans, contour two unseen patients, measure (about 8 minutes); OUT=DIR for another folder
	@$(BIN)/medseg demo --out "$(OUT)"

head-neck: OUT := runs/head-neck
head-neck: venv ## make the bundled model from DATA=hn_oar, about 11 hours (BUDGET=6h, FOLD_BUDGET=1h); run again, it goes on
	@test -n "$(DATA)" || { echo "name the dataset: make head-neck DATA=hn_oar" >&2; exit 2; }
	@$(BIN)/python -m pipelines.head_neck "$(DATA)" --out "$(OUT)" --budget "$(BUDGET)" --fold-budget "$(FOLD_BUDGET)"

lint: venv ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint ## lint and the unit tests (at most 3 minutes)
	$(PYTEST) tests/unit tests/architecture

test: lint ## check and every other test that is not marked slow; what CI runs
	$(PYTEST) -m "not slow"

slow: venv ## the tests that take minutes each
	$(PYTEST) -m slow

wheel: venv ## wheel and source archive in dist/
	$(BIN)/python -m build --outdir dist

clean: ## caches and built files; .venv, demo/ and runs/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find medseg pipelines tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
