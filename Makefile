# The two commands: `make demo`, `make test`. README.md gives both without make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
BENCH  ?= cpu_step cpu_products sft_step rollouts checkpoint_stall mirror_stall muon english tokens batches data_memory own_data near_duplicates generation serving startup

.PHONY: demo demo-chat test test-slow test-browser test-gpu check bench docs screenshots format ui update clean

demo: $(READY)  ## materialize the whole pipeline for experiments/demo.yaml
	@echo "The demo: data, training and evaluations on the CPU, about six minutes on two free cores."
	@$(BIN)/gpt-pipeline run experiments/demo.yaml

demo-chat: $(READY)  ## continue the demo: fine-tuned on answers, then trained on rewards; compare the three
	@$(BIN)/gpt-pipeline run experiments/demo-rl.yaml
	@$(BIN)/gpt-pipeline compare experiments/demo.yaml experiments/demo-sft.yaml experiments/demo-rl.yaml

test: $(READY)  ## the default test suite, two files at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## what takes longer: fault loops, long waits, the benchmarks' commands
	@$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

test-browser: $(READY)  ## the web pages, driven by Chromium where it is found
	@$(BIN)/python -m pytest -m browser

test-gpu: $(READY)  ## what needs a GPU; python3 -m benchmarks.gpu_proof does it with torch alone
	@$(BIN)/python -m pytest -m gpu

check: $(READY)  ## format, lint, types, import layers, generated files, the tests of what has changed
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python -m gpt_pipeline_tests.changed

bench: $(READY)  ## measurements, one after the other; BENCH="english tokens" chooses
	@for name in $(BENCH); do echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: $(READY)  ## write what docs/ and experiments/ take from the code
	@$(BIN)/python docs/generate.py

screenshots: $(READY)  ## the pictures of docs/images, from the running product in Chromium
	@$(BIN)/python -m docs.screenshots

update:  ## move constraints.txt to the newest versions that pass; TORCH=2.14.1 moves torch too
	@$(PYTHON) -m gpt_pipeline_tests.newest $(if $(TORCH),--torch $(TORCH))

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

ui: $(READY)  ## the web pages of Dagster and MLflow
	@$(BIN)/gpt-pipeline ui

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "found Python %d.%d, need 3.11 or newer; set PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "Installing into $(VENV), once: two or three minutes, some 2 GB (with a GPU build of torch, 6 GB)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:  ## remove the environment; data, checkpoints and history stay
	rm -rf $(VENV)
