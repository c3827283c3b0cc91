# Every target works from a clean clone: the first one called makes .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin
# A process a core, up to 8; the tests of a file share its runs.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

.PHONY: demo test test-all coverage mutants check docs

demo: .venv/.installed
	$(BIN)/delta-transfer demo

test: .venv/.installed
	$(PYTEST)

test-all: .venv/.installed
	$(PYTEST) -m ''

coverage: .venv/.installed
	$(PYTEST) --cov=delta_transfer --cov-report=term:skip-covered

# It would keep the verdicts of before where only tests have changed.
mutants: .venv/.installed
	rm -rf mutants
	$(BIN)/mutmut run --max-children 1
	$(BIN)/mutmut results

check: .venv/.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r src

# A warning is an error: a link that leads nowhere, a page that nobody can reach. -E reads all pages
# again, as cached ones would not be warned of.
docs: .venv/.installed
	rm -rf build/docs
	$(BIN)/sphinx-build -q -E -n -W --keep-going -d build/doctrees docs build/docs
	@echo 'The site is build/docs/index.html'

# The stamp comes last, so an installation that failed is tried again.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'delta-transfer needs Python 3.11 or newer, which "$(PYTHON)" is not.' \
			'Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing into .venv. The first time, this downloads a few GB and takes some minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@
