# `make demo` and `make test` work on a machine with nothing but Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench compat clean

demo: $(STAMP)  ## four drawn scenes, three instruction types, SmolLM2-135M on the CPU
	$(BIN)/mminstruct generate SAMPLE --limit 4 --max_tokens 320 --seed 1 --show 3 --output_path demo_out

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -q

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## requests/s, stored reruns, annotation reading, each beside its alternative; damaged files
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/coco_reader.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/open_images_reader.py
	$(BIN)/python benchmarks/annotation_fuzz.py
	$(BIN)/python benchmarks/gguf_engines.py
	$(BIN)/python benchmarks/transformers_engines.py

compat: $(STAMP)  ## the oldest and newest supported lines of datasets, and the extra tgi, each by itself
	$(BIN)/nox -s compat

clean:
	rm -rf $(VENV) demo_out bench_out dist

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
