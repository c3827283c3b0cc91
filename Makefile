# Every target works from a clean clone: the first one called makes .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin
# One process per core, up to 8; the tests of a file share its runs.
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

# mutmut would reuse old verdicts where only tests have changed.
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

# Warnings are errors: broken links, pages that no other page links to. -E reads all pages again,
# because cached pages give no warnings.
docs: .venv/.installed
	rm -rf build/docs
	$(BIN)/sphinx-build -q -E -n -W --keep-going -d build/doctrees docs build/docs
	@echo 'The site is build/docs/index.html'

# The stamp is written last, so that a failed installation is repeated.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'delta-transfer needs Python 3.11 or newer, which "$(PYTHON)" is not.' \
			'Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing into .venv. The first time, this downloads a few GB and takes some minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@
