# make demo · make test · make lint · make bench · make clean. Everything is installed into .venv and nowhere else;
# only `make test` as root installs Debian packages (tests/debian-packages.txt).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOK := notebooks/00_quickstart.ipynb
STEP := .ci/step
SOURCES := pyproject.toml $(shell find sandbox magics kernelspec -name '*.py' 2>/dev/null)
# In CI a test that is skipped because the host cannot do something is a failure.
ifeq ($(CI),true)
export REQUIRE_ALL ?= 1
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check lint bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	@$(BIN)/python -m magics.demo $(NOTEBOOK)

# Linters and types first: they take seconds. pytest's own summary is the last line.
test: $(VENV)/.tests
	@.ci/debian-packages
	@$(MAKE) --no-print-directory lint check

check:
	@# By itself: xdist would spread one notebook's cells over two kernels. 05 is checked among the tests that make its Debian base.
	@SANDBOX_NETWORK=none $(BIN)/pytest -p no:cacheprovider --nbval notebooks --ignore notebooks/05_services.ipynb  # leave no bridge here
	@$(BIN)/pytest -n 2 --dist loadgroup tests

lint: $(VENV)/.tests
	@$(STEP) "ruff" $(BIN)/ruff check --quiet .
	@$(STEP) "mypy --strict" $(BIN)/mypy --no-error-summary
	@$(STEP) "import direction" $(BIN)/lint-imports --no-logo

bench: $(VENV)/.tests
	@$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@.ci/venv $(PYTHON) $(VENV)

# The plain installation a user has. An editable one (make test) serves as well.
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@test -e $(VENV)/.tests || $(STEP) --retry "installing jupyter-sandbox" $(BIN)/pip install --quiet .
	@touch $@

$(VENV)/.tests: $(BIN)/python pyproject.toml
	@$(STEP) --retry "installing jupyter-sandbox and what its tests need" $(BIN)/pip install --quiet -e '.[test,lab]'
	@touch $@
