# make demo   train, score and look at a detector, from nothing, in a few minutes
# make test   the whole suite, from nothing
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.opticus-installed
WORKERS ?= 2

.PHONY: demo test check format lint types architecture wheel bench tables parity docs clean

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/opticus demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests

format: $(STAMP)
	$(BIN)/ruff format --check src tests tools bench

lint: $(STAMP)
	$(BIN)/ruff check src tests tools bench

types: $(STAMP)
	$(BIN)/pyright src

architecture: $(STAMP)
	$(BIN)/python -m pytest tests/test_architecture.py

wheel: $(STAMP)
	$(BIN)/python tools/check_wheel.py

check: format lint types architecture wheel
	$(MAKE) test

bench: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev,reference]"
	$(BIN)/python bench/run.py

parity: $(STAMP)
	for adapter in $$(grep -l '^PAPER' tools/references/*.py); do $(BIN)/python tools/record_parity.py --full $$adapter || exit 1; done

tables: $(STAMP)
	$(BIN)/python tools/make_tables.py $(ARGS)

docs: $(STAMP)
	$(BIN)/python tools/make_zoo.py

clean:
	rm -rf $(VENV) runs build dist
