# Two commands: `make compare` answers the question, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TESTING := .venv/installed-test

.PHONY: compare test torture lint clean

compare: $(INSTALLED)
	$(BIN)/python -m experiments.compare

test: $(TESTING)
	$(BIN)/python -m pytest -m "not slow"

# A hundred faults for each of five commands: hours.
torture: $(TESTING)
	$(BIN)/python -m tests.torture

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

clean:
	rm -rf .venv runs
