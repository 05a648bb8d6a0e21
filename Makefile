# make demo   record, train, plan and report on TwoRoom (six and a half minutes on two CPU cores, after the install)
# make test   the test suite        make lint   ruff and mypy        make install   the .venv they all share
#
# PYTHON=python3.12   another interpreter, 3.11 or newer
# TORCH=torch         another torch: any pip requirement or index option; plain `torch` is the CUDA build on Linux

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install clean
.DELETE_ON_ERROR:

demo: install
	@echo "== lewm demo: report in runs/demo/report.html"
	$(BIN)/lewm demo

test: install
	@echo "== pytest"
	$(BIN)/python -m pytest

lint: install
	@echo "== ruff, mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lewm needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "== installing into $(VENV) ($(TORCH))"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
