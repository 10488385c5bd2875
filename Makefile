# Everything runs in .venv, which these targets make: see CONTRIBUTING.md.
PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet
PINS   := -c requirements/dev.txt
HASHED := --no-deps --require-hashes
# two processes with one thread each: two threads in one process wait for each other more than they compute
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -q -n 2 --dist worksteal

.PHONY: help setup demo test sanitize gate lint docs browser format coverage
.DEFAULT_GOAL := help

help:
	@echo 'make demo      set up what it needs and run the main job on a real trained network'
	@echo 'make test      set up everything, lint, run every test'
	@echo 'make setup     all that development needs, in .venv'
	@echo 'make sanitize  the kernels, every access checked'
	@echo 'make gate      the speed of kernels against PyTorch, compared with its floors'
	@echo 'make lint      ruff, mypy, import-linter'
	@echo 'make docs      the book, in build/site'
	@echo 'make format    let ruff rewrite the code'
	@echo 'make coverage  every test, with the lines that none reached'

setup: .venv/.ready

demo: .venv/.package
	$(BIN)/reconv demo

test: .venv/.ready
	$(MAKE) --no-print-directory -j 2 -O lint docs sanitize browser
	$(PYTEST) --durations=15
	$(BIN)/python benchmarks/gate.py

# whether kernels are still as much faster than PyTorch as they were; after the tests, when nothing else runs
gate: .venv/.ready
	$(BIN)/python benchmarks/gate.py

# the case tables of the kernels with every access and every operation checked; left out: what starts other processes
# with the same table, or measures the process's memory, of which the sanitizer takes its own
sanitize: .venv/.ready
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DRECONV_SANITIZE=address,undefined >/dev/null
	$(BIN)/cmake --build build/sanitize
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 RECONV_KERNELS=$(CURDIR)/build/sanitize/_kernels.so OMP_NUM_THREADS=2 \
	    $(BIN)/pytest -q -p no:cacheprovider tests/test_families.py tests/test_deform_native.py tests/test_separable_native.py tests/test_kernels.py -k 'not instruction_set and not beyond and not memory and not surroundings'

lint: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# what it cannot compute, a link to nowhere, or anything that a page would fetch from elsewhere is an error
docs: .venv/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# in which the explorer is tested
browser:
	@command -v chromium >/dev/null || (apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium) || \
	    { echo 'The tests of the explorer need Chromium: apt-get install chromium' >&2; exit 1; }

format: .venv/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: .venv/.ready browser
	$(PYTEST) --cov --cov-report=term-missing --cov-report=json:build/coverage.json
	$(BIN)/python trust/lines.py build/coverage.json

# The environment, in three steps, each with its stamp. What is installed must have a known hash (requirements/pins.py),
# torch apart, of which machines have different builds. What it needs is there before it, and it before what needs it.
.venv/.torch: requirements/dev.txt requirements/hashes/package.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'reconv needs Python 3.11 or newer: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo 'No virtual environment could be made: apt-get install python3-venv' >&2; exit 1; }
	$(PIP) $(HASHED) -r requirements/hashes/package.txt
	$(PIP) $(PINS) $$(grep '^torch==' requirements/dev.txt)
	@touch $@

.venv/.package: .venv/.torch pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.ready: .venv/.package requirements/hashes/ready.txt
	$(PIP) $(HASHED) -r requirements/hashes/ready.txt
	@touch $@
