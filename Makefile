# Everything a fresh clone needs. `make demo` and `make test` install into .venv by themselves.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := train,sim,export,serve
DEV    := $(EXTRAS),gpu,openvino,ray,ros2,docs,dev
export OMP_NUM_THREADS ?= 1
TEST_WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile

CAPPED_TESTS := $(addprefix tests/test_,precision.py finetune.py lora.py packed_linear.py native.py)

.PHONY: setup setup-dev demo test test-capped test-gpu bench-gpu test-all test-matrix check format bench docs site browser interop release-check board-emulated clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.demo  ## install what the demo needs into .venv
setup-dev: $(VENV)/.dev  ## the same, and what the tests need

$(VENV)/.python:
	@echo "== creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo "Python 3.10 or newer is needed; name it: make PYTHON=python3.12 ..." && false)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt constraints-py310.txt
	@$(BIN)/python scripts/install.py $(EXTRAS)
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt constraints-py310.txt
	@$(BIN)/python scripts/install.py $(DEV)
	@# openpi's own client drives our server in the tests; it pins an old numpy that it does not need.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps openpi-client dm-tree || echo "openpi-client: not to be had, its tests are skipped"
	@touch $@ $(VENV)/.demo $(VENV)/.docs

$(VENV)/.docs: $(VENV)/.python pyproject.toml constraints.txt constraints-py310.txt
	@$(BIN)/python scripts/install.py docs
	@touch $@

demo: setup  ## the main job, whole: recordings in, a better, bounded, deployable policy out, with evidence
	@$(BIN)/athena demo $(ARGS)

test: setup-dev browser  ## what CI runs: lint, types, unit tests, a short demo and its page in a browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python --level error
	$(PYTEST)
	rm -rf runs/ci && $(BIN)/athena demo --quick --out runs/ci
	ATHENA_DEMO=runs/ci $(BIN)/pytest -m demo
	$(MAKE) test-capped

test-capped: setup-dev  ## the training tests and a short demo, as on a processor without AVX-512 and bfloat16
	scripts/capped.sh $(PYTEST) $(CAPPED_TESTS)
	rm -rf runs/ci-capped && scripts/capped.sh $(BIN)/athena demo --quick --out runs/ci-capped
	ATHENA_DEMO=runs/ci-capped scripts/capped.sh $(BIN)/pytest -m demo tests/test_precision.py

test-gpu: setup-dev  ## what needs a CUDA card: every family and engine on it, beside the processor
	ATHENA_TEST_GPU=1 $(PYTEST) -n 0 -m gpu

bench-gpu: setup-dev  ## times and memory on a CUDA card at full size, at most 8 minutes each; without a card each says so
	timeout 480 $(BIN)/python benchmarks/bench_gpu_deploy.py
	timeout 480 $(BIN)/python benchmarks/bench_gpu_train.py
	timeout 480 $(BIN)/python benchmarks/bench_gpu_models.py

test-all: setup-dev browser  ## also the slow tests
	$(PYTEST) -m 'slow or not slow'

test-matrix:  ## install and run the unit tests with every Python found, and with the oldest packages: hours
	$(PYTHON) scripts/test_matrix.py

check: setup-dev  ## lint and types only
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python --level error

format: setup-dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: setup-dev  ## measure everything that can be measured on this machine, into benchmarks/
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: setup-dev  ## run every command and example of README.md and docs/
	$(BIN)/pytest -m 'slow or not slow' tests/test_docs.py

site: $(VENV)/.docs  ## the documentation as a site, in build/site; opens from disk, fetches nothing
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "== open build/site/index.html"

browser:  ## headless Chromium for the page tests, where Debian's package manager is at hand
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq -y install --no-install-recommends chromium >/dev/null; } \
	  || echo "no Chromium: the page tests will be skipped (install it with: apt-get install chromium)"

interop: $(VENV)/.dev  ## our files against the real lerobot, TensorRT Edge-LLM and llama.cpp, each in its own environment
	$(PYTHON) interop/run.py
	$(PYTHON) interop/edge_llm.py
	$(BIN)/python interop/llama.py

release-check: $(VENV)/.dev  ## what has to hold before a release: version, wheel, demo and notebook without the clone; ten minutes
	$(BIN)/python scripts/release_check.py

board-emulated: $(VENV)/.dev  ## filter, wire and a small policy on emulated aarch64; needs debootstrap and qemu-user-static
	$(BIN)/python scripts/board_emulated.py

clean:  ## remove what the targets made, not your recordings
	rm -rf .venv .matrix build dist .pytest_cache .ruff_cache runs/ci runs/ci-capped
