# Commands from nothing: `make demo`, `make real`, `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo real test quick docs build install
demo: install
	$(BIN)/landscape demo

# The same story on SmolLM2-135M-Instruct: 451 MB of downloads, up to half an hour on 2 cores.
real: install
	$(BIN)/landscape demo --real

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --durations=25

# What to run at every save: the tests that take at most a few seconds each.
quick: install
	$(BIN)/pytest -n 2 -m 'not slow'

# The documentation site, in build/site: open build/site/index.html. A broken link or an unknown name is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What is released, in dist/; and whether the wheel alone, outside of this folder, is the whole package.
build: install
	rm -rf dist build/wheel
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/wheel dist/*.whl
	cd build/wheel && PYTHONPATH=. ../../$(BIN)/python -P -m landscape metrics --json > /dev/null

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "landscape needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@
