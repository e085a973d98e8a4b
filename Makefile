# `make demo` and `make test` work on a machine with nothing but Python 3.10 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
STAMP := $(VENV)/.installed

define NEXT

SmolLM2-135M is a toy: it shows the form, and most of what it says is wrong. Read demo_out/README.md
for what came out; the rows are below demo_out/data, and on the page that is named last. With a real model, at any OpenAI-compatible
server (put its address and model in):

  $(BIN)/mminstruct generate SAMPLE --limit 4 --model_source openai --openai_base_url http://localhost:8000/v1 --model NAME --show 3 --output_path real_out
endef
export NEXT

.PHONY: demo test check bench rehearse compat uvloop clean

demo: $(DEMO)  ## four drawn scenes, three instruction types, SmolLM2-135M on the CPU
	$(BIN)/mminstruct generate SAMPLE --limit 4 --max_tokens 320 --seed 1 --show 3 --output_path demo_out
	@echo "$$NEXT"
	@$(BIN)/mminstruct view demo_out

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -q -n 2

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## start-up, requests/s, stored reruns, annotation reading, each beside its alternative; damaged files
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/coco_reader.py
	$(BIN)/python benchmarks/own_reader.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/parsing.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/open_images_reader.py
	$(BIN)/python benchmarks/annotation_fuzz.py
	$(BIN)/python benchmarks/gguf_engines.py
	$(BIN)/python benchmarks/transformers_engines.py

rehearse: $(STAMP)  ## a full release of COCO train2017 against stand-ins, which may take an hour
	$(BIN)/python benchmarks/rehearse.py

compat: $(STAMP)  ## supported lines of datasets and the extra tgi, each by itself; the client on uvloop
	$(BIN)/nox -s compat
	$(BIN)/nox -s uvloop -- tests/test_client.py tests/test_faults.py

uvloop: $(STAMP)  ## all tests of the network on uvloop, which take some minutes
	$(BIN)/nox -s uvloop

clean:
	rm -rf $(VENV) demo_out bench_out dist

$(DEMO): pyproject.toml
	@echo "Installing what the demo needs into $(VENV): a minute, or five where llama.cpp has to be compiled."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

$(STAMP): $(DEMO)
	@echo "Installing what tests and checks need besides, torch among it: some minutes."
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
