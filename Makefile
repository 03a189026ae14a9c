# Every target makes its own environment in .venv first; Python (3.10 or newer), git and make suffice.
#   make demo PYTHON=python3.12
#   make demo PIP_ARGS="--extra-index-url ..."   (the index of PyTorch's CPU builds: no CUDA download)
PYTHON ?= python3
PIP_ARGS ?=
# Small tensors gain nothing from a second thread, and two test processes lose by it.
export OMP_NUM_THREADS ?= 1
ARGS ?=
SECONDS ?= 600
# The inner loop: no estimates against exact gradients, no compiler behind torch's, no scripts, nothing that takes
# seconds, and of a test with cases the first one.
QUICK := $(addprefix --ignore=tests/,statistical runtime/backends docs examples benchmarks packaging) -m "not slow" --first-case

BIN := .venv/bin
READY := .venv/ready

# Another torch, in an environment of its own; with the oldest one the other requirements are the oldest too.
OLDEST := $(shell sed -n 's/^torch==//p' constraints-oldest.txt)
TORCH ?= $(OLDEST)
OTHER := .venv-torch-$(TORCH)
BACKENDS := $(addprefix tests/runtime/backends/test_,auto.py inductor.py report.py)

.PHONY: demo test quick fuzz test-torch lint format types bench clean

demo: $(READY)  ## train real models under several estimators; results in runs/
	$(BIN)/python examples/demo.py $(ARGS)

test: $(READY)  ## all tests, on two processes
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

quick: $(READY)  ## the tests of the inner loop, in less than 90 seconds
	$(BIN)/pytest -n 2 $(QUICK) $(ARGS)

fuzz: $(READY)  ## random programs against exact answers, for SECONDS; ARGS="--seeds 500:1000 --backend inductor"
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

test-torch: $(OTHER)/ready  ## the same, and those of the backends, with another torch: TORCH=2.11.0; else the oldest
	$(OTHER)/bin/pytest -n 2 $(QUICK) $(ARGS)
	$(OTHER)/bin/pytest -n 2 $(BACKENDS) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy, on the tree and on a user's program
	$(BIN)/mypy
	$(BIN)/mypy tests/packaging/typed_user.py

bench: $(READY)  ## the tables of docs/benchmarks.md; ARGS="--out docs/benchmarks.md" writes them there
	$(BIN)/python benchmarks/all.py $(ARGS)

clean:  ## everything that these targets made, the environment too
	rm -rf .venv .venv-torch-* build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache runs

# Made once, brought up to date when the project's requirements change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "pip>=22"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

# What the wanted torch, or the oldest of all, pins is left out of constraints.txt; so is setuptools, which torch bounds.
$(OTHER)/ready: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet "pip>=22"
	if [ $(TORCH) = $(OLDEST) ]; then cat constraints-oldest.txt; else echo torch==$(TORCH); fi >$(OTHER)/pins.txt
	awk -F== 'NR == FNR { pinned[$$1]; next } !($$1 in pinned) && $$1 != "setuptools"' \
		$(OTHER)/pins.txt constraints.txt >$(OTHER)/rest.txt
	$(OTHER)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(OTHER)/pins.txt -c $(OTHER)/rest.txt -e ".[dev]"
	touch $@
