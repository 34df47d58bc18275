# make run    set up and run the embedded experiment (results/report.html)
# make quick  the same rules in a few minutes: one seed, 16 steps (quick/results/report.html)
# make test   set up and run all tests;  make test-fast  leaves out those that run the workflow
# make lint   formatters, linters and types
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin

.PHONY: setup run quick test test-fast lint format clean
setup: .venv/.ready
run: .venv/.ready
	$(BIN)/snakemake --cores $(CORES)

quick: .venv/.ready
	mkdir -p quick
	$(BIN)/snakemake --cores $(CORES) --configfile config/config.yaml config/quick.yaml --directory quick

test: .venv/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-fast: .venv/.ready-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: .venv/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# torch is locked in the same command as all else, so that no other version of it is ever fetched.
.venv/.ready: envs/requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv/.ready-dev: .venv/.ready envs/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements-dev.txt
	touch $@

clean:
	rm -rf .venv quick
