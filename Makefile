# Everything starts from here: `make demo` shows the whole way, `make test` proves it. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_WORKERS ?= 2
FAISS := $(shell if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then echo gpu; else echo cpu; fi)

.PHONY: help install demo test test-long check format test-slurm clean

help:
	@echo "make install     .venv with everything in it (PYTHON=python3.11 chooses the Python)"
	@echo "make demo        the whole way on embedded images: shards, training, evaluation, report"
	@echo "make test        the everyday test suite"
	@echo "make check       formatter, linter, types, and the floors of the architecture"
	@echo "make test-long   100 random kills each of \`shards make\` and of training, the cost of saving; about an hour"
	@echo "make test-slurm  tests on a real 4-node SLURM on this machine (root; installs Debian packages)"
	@echo "make clean       remove .venv and caches; runs and shard sets stay"

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints.txt Makefile
	@PYTHON="$(PYTHON)" sh launcher/requirements.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing torch, DeepSpeed and the rest; about 4 minutes and 6 GB the first time"
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e ".[$(FAISS),test]"
	@echo "compiling DeepSpeed's CPU op"
	$(BIN)/python -c 'from retrieval_train.engine.sharded import compile_ops; compile_ops()' 
	@touch $@

demo: install
	@$(BIN)/python -m launcher.demo

test: install
	$(BIN)/python -m pytest --ignore tests/slurm -n $(TEST_WORKERS) --dist loadgroup

test-long: install
	KILLS=100 $(BIN)/python -m pytest tests/shards/test_stops.py -k killed_at_any_moment
	KILLS=100 $(BIN)/python -m pytest -s tests/test_kills.py
	LONG=1 $(BIN)/python -m pytest -s tests/retrieval_train/engine/test_saving_cost.py

test-slurm: install
	$(BIN)/python -m pytest tests/slurm -m slurm

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
