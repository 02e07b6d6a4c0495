# Every target makes its own environment in .venv from the hashed lock file. PYTHON chooses the interpreter.
PYTHON ?= python3
# Files of tests that run at once, each in a process of its own.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help native check test test-long coverage bench demo docs pictures release fix lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Freehold needs Python 3.11 or newer; $(PYTHON) is older. Run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu run: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

native: $(STAMP)  ## Build the native serving engine; needs cargo (one to three minutes, once)
	$(BIN)/python -m runtime.native.build
	@$(BIN)/python -m runtime.native

check: $(STAMP)  ## Static checks: format, lint, types, import contracts, style (one minute)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_tidy.py tests/test_prose.py

test: $(STAMP)  ## All that must pass before a change lands
	@base=$$(mktemp -d /tmp/fhXXXXXX) && \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --basetemp=$$base/t --durations=15 && rm -rf $$base || \
	{ echo "what the tests left, logs among it: $$base"; exit 1; }

test-long: $(STAMP)  ## Long hauls; results are committed
	$(BIN)/python -m pytest -m long --timeout 7200

coverage: $(STAMP)  ## Branch coverage of protocols/ by its own tests; fails under 95 %
	$(BIN)/python -m pytest tests/unit tests/scenarios --cov=protocols --cov-branch --cov-report=term --cov-fail-under=95

bench: $(STAMP)  ## Measure, beside a peer where there is one; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

demo: $(STAMP)  ## Show the whole thing working; exits 0 only if all was as said (KEEP=1: and keep it up)
	$(BIN)/python -m examples.demo

$(VENV)/.publishing: $(STAMP) docs/requirements.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r docs/requirements.txt
	@touch $@

pictures: $(VENV)/.publishing  ## Make docs/pictures anew: screenshots of the console, a recording of a terminal; needs Chromium
	PYTHONPATH=. $(BIN)/python docs/pictures.py

docs: $(VENV)/.publishing  ## Build the site into docs/_build; a link that leads nowhere is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build
	@echo "open docs/_build/index.html"

release: $(VENV)/.publishing  ## Make dist/: wheel, sdist, bill of materials, checksums; each is tried in a clean environment
	PYTHON=$(BIN)/python bash .ci/release

fix: $(STAMP)  ## Format and apply safe lint fixes
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock: $(STAMP)  ## Pin every dependency, with hashes and without an index address
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-header --no-strip-extras --quiet -o requirements.txt
	$(BIN)/uv pip compile pyproject.toml --extra publish -c requirements.txt --universal --generate-hashes \
	  --python-version 3.11 --no-emit-index-url --no-header --no-strip-extras --no-annotate --quiet -o docs/requirements.txt

clean:  ## Remove the environment and the caches
	rm -rf $(VENV) .cache build dist docs/_build *.egg-info runtime/native/target runtime/native/*.so runtime/native/Cargo.lock
