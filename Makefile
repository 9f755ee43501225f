# Everything a reader or an author does with this book. `make` alone lists it.
#
#   PYTHON       which Python makes the environment           (default: python3)
#   PIP_OPTIONS  handed to every `pip install`, for example to choose the CPU build
#                of PyTorch (see the README)                  (default: none)
#   ONLY         chapters to work on, by slug, for `execute` and `sweep`
#                                                             (default: all)
#   JOBS         how many processes run tests and notebooks side by side; more pay only
#                on a machine with more cores                 (default: 2)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_OPTIONS ?=
ONLY ?=
JOBS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
CHAPTERS := $(wildcard chapters/*.ipynb)

# One thread per process: the numbers in the book are those of one thread, and two
# processes with two threads each would fight over two cores.
export OMP_NUM_THREADS := 1
# A sibling checkout on PYTHONPATH must not stand in for this one.
unexport PYTHONPATH

.PHONY: help set-up book test lint unit notebooks pages execute sweep bench lab chapter \
  update clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

set-up: $(READY) ## make the environment (the others do it by themselves)

$(READY): requirements.txt pyproject.toml .ci/prerequisites.py
	@command -v $(PYTHON) > /dev/null || { echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) .ci/prerequisites.py
	@[ ! -L $(VENV) ] || { echo "$(VENV) is a link, and setting up would empty what it points at. Remove the link: rm $(VENV)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes)."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -r requirements.txt
	@$(RUN) -m shared.kernels
	@touch $@

book: $(READY) ## render the executed notebooks to _build/html
	@$(VENV)/bin/jupyter-book build . --all -W -n --keep-going --quiet
	@echo "The book is built. Open it: $(CURDIR)/_build/html/index.html"

test: lint unit notebooks pages ## run every check that CI runs

lint: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

unit: $(READY)
	@$(RUN) -m pytest tests --ignore tests/test_pages.py -n $(JOBS) --dist worksteal

notebooks: $(READY)
	@$(RUN) -m pytest -p tests.figure_guard --nbval --nbval-kernel-name warm \
	  --nbval-cell-timeout 120 --nbval-sanitize-with tests/nbval.cfg \
	  -n $(JOBS) --dist loadscope $(CHAPTERS)

pages: book
	@$(RUN) -m pytest tests/test_pages.py -n $(JOBS)

execute: $(READY) ## re-execute and save the notebooks (ONLY="slug ..." or ONLY=changed)
	@$(RUN) -m shared.notebooks execute $(ONLY)

sweep: $(READY) ## run the sweeps' grids into chapters/sweeps/*.csv (ONLY="slug ...")
	@$(RUN) -m shared.sweep $(ONLY)

bench: $(READY) ## time sweeps and nbval against stock papermill and nbval (half an hour)
	@$(RUN) tests/bench.py --jobs $(JOBS)

lab: $(READY) ## open the chapters in JupyterLab
	@$(RUN) -m jupyterlab chapters

chapter: $(READY) ## start a new chapter: make chapter slug=my_failure
	@$(RUN) -m shared.notebooks new "$(slug)"

update: ## install the newest releases and pin them (the only way pins change)
	@$(PYTHON) .ci/prerequisites.py
	@$(PYTHON) .ci/pins.py update $(PIP_OPTIONS)
	@echo "Pinned. Now: make sweep, make execute, make test."

clean: ## remove the built book and the environment
	rm -rf _build $(VENV)
