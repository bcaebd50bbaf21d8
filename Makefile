# make demo   fine-tune four small models with and without inverted activations, and write a report
# make test   run the tests
# make lint   check style and types
# make clean  remove the environment and the demo's results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Nothing that these commands run needs the Hugging Face hub.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test lint clean env

demo: env
	@echo "== Fine-tuning GPT-2, BERT, Mistral and Llama (small ones) with and without inverted activations"
	@$(BIN)/python scripts/compare.py configs/demo.yaml

# Some tests run processes that compete for the cores.
test: export OMP_WAIT_POLICY = PASSIVE
test: env
	@echo "== Running the tests"
	@$(BIN)/python -m pytest

lint: env
	@echo "== Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	@echo "== Creating the environment in $(VENV) (once; a few minutes, most of it PyTorch's download)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scripts,dev]'
	@touch $@

clean:
	rm -rf $(VENV) results/demo
