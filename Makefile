# make demo   the four stages on real text, under seven minutes on two cores with AVX-512, eleven without
# make test   what CI runs
# make check  ruff and mypy
# make docs   the documentation as a site with a search box, site/index.html
# Each makes .venv on first use. PYTHON=python3.12 make demo chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

DEMO_GRID := sae.dict_size=64,128,256,512 sae.l1=1.28,2.56,5.12,10.24 seed=0,1

.PHONY: demo test check docs

demo: .venv/demo
	$(RUN) train_lm.py experiment=demo
	$(RUN) harvest.py experiment=demo
	$(RUN) train_sae.py -m experiment=demo $(DEMO_GRID)
	$(RUN) analyze.py experiment=demo
	@echo 'To try next: every run with its curves, in the terminal, and another kind of dictionary'
	@echo '  $(BIN)/wandb leet outputs/demo/wandb'
	@echo '  $(RUN) train_sae.py -m experiment=demo sae=topk sae.k=4,8,16 sae.dict_size=64,128,256,512'

test: .venv/dev
	$(RUN) -m pytest

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo 'To open: site/index.html'

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/demo
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/docs: .venv/demo
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@
