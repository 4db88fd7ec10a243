# Two commands: `make compare` answers the question, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TESTING := .venv/installed-test
SEVERAL := tests/parallel/test_distributed.py tests/parallel/test_sharding.py \
	tests/experiments/test_mesh.py tests/study/test_ray_executor.py tests/experiments/test_cluster.py

.PHONY: compare test fault_injection lint constraints clean

compare: $(INSTALLED)
	$(BIN)/python -m experiments.compare

test: $(TESTING)
	$(BIN)/python -m pytest -m "not slow"

# The long forms: a hundred faults for each of eight commands, fuzz, processes and meshes, a soak.
fault_injection: $(TESTING)
	$(BIN)/python -m tests.fault_injection
	FM_FUZZ_CASES=100 $(BIN)/python -m pytest tests/fuzz
	$(BIN)/python -m pytest -m slow -n 0 $(SEVERAL)
	$(BIN)/python -m tests.fault_injection.soak

lint: $(TESTING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# uv installs several times as fast; where its registry cannot be reached, pip goes its own way.
define install
$(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --compile-bytecode \
	--python $(BIN)/python --editable "$(1)" || { echo "uv could not install $(1), pip does" >&2; \
	$(BIN)/python -m pip install --quiet --editable "$(1)"; }
endef

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(INSTALLED): $(BIN)/python pyproject.toml
	$(call install,.)
	touch $@

$(TESTING): $(INSTALLED)
	$(call install,.[test])
	touch $@

# The versions of this environment, for `pip install -e ".[test]" -c constraints.txt`.
constraints: $(TESTING)
	$(BIN)/python -m tests.constraints

# Results in runs/ stay.
clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
