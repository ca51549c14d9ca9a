# `make quickstart`, `make annotate` and `make test` need nothing but Python 3.11+; both install into $(VENV) what constraints.txt pins.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
PIP_INSTALL = $(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart annotate test check format clean

quickstart: $(VENV)/.installed
	$(RUN)/python examples/quickstart.py

annotate: $(VENV)/.installed-annotate
	$(RUN)/python -m annotate serve --demo true

test: $(VENV)/.installed-test
	$(RUN)/python -m pytest --numprocesses 2 --durations 15

check: $(VENV)/.installed-test
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

format: $(VENV)/.installed-test
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d found, expected 3.11 or newer: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-annotate: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[annotate]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
