# Everything runs in its own environment, .venv, made from the exact versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# One process a core, one thread each: small tensors gain nothing from threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
INSTALLED := .venv/.installed

.PHONY: demo test test-slow test-all experiments experiments-smoke docs lint types clean

demo: $(INSTALLED)
	$(BIN)/ppl-vae train --data digits --out runs/demo-$$(date +%Y-%m-%dT%H-%M-%S)

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

test-all: $(INSTALLED)
	$(PYTEST)

# Seconds each, on data that need no download.
experiments-smoke: $(INSTALLED)
	$(PYTEST) tests/test_experiments.py

# Hours: every table and figure of the CPU tier. Done cells are not run again.
experiments: $(INSTALLED)
	for run in experiments/*/run.py; do $(BIN)/python $$run || exit 1; done

# Every block of code in the pages is run; what it printed is kept until the library changes.
docs: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q docs build/docs
	@echo "pages  build/docs/index.html"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyright

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev,docs]"
	touch $(INSTALLED)

clean:
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
