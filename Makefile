# Two commands do everything on a machine with Python 3.11 or newer and make:
#   make study   install what the study needs, measure the paper's claims, write the report
#   make test    install the development set, run the whole test suite

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: study test setup lint docs clean

study: $(VENV)/.study
	$(BIN)/roundoff study flash-attention

# One thread a worker: OpenMP's threads wait for one another where the cores are taken.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

setup: $(VENV)/.dev

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder html docs docs/_build/html

$(VENV)/.study: pyproject.toml constraints.txt | $(VENV)/.made
	$(INSTALL) --editable '.[study]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.study

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "roundoff needs Python 3.11 or newer; set PYTHON, e.g. make study PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) docs/_build
