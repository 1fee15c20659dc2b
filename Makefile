# Every target sets up what it needs by itself: a virtual environment in .venv, versions as in constraints.txt.
# Python >= 3.10 and a network are enough. Another interpreter: make test PYTHON=python3.12
# Arguments for the tool behind a target: make test ARGS="-k window"; make bench ARGS="--rounds 3"

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# The constraints hold for the build environment too; since pip 25.3 that has a variable of its own.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install -qq --disable-pip-version-check
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test reliability lint format bench docs clean distclean

help:
	@echo "make demo       train a small GAN with two optimizers, automatic mode"
	@echo "make test       all tests"
	@echo "make reliability 200 trainings that are killed, each compared with the one that nobody killed"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make format     let ruff rewrite what 'make lint' complains about"
	@echo "make bench      time per step beside a hand-written loop and the peers; import time"
	@echo "make docs       API pages in build/docs"
	@echo "make clean      remove what was built; make distclean: and .venv"

demo: $(VENV)/.examples
	@$(BIN)/python examples/digits_gan.py $(ARGS)

# As many processes as there are cores, up to four; make test ARGS="-n 0" runs one, which a debugger needs.
test: $(VENV)/.all
	@$(ONE_THREAD) $(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

# ARGS="--signals" sends SIGTERM, SIGINT and SIGHUP instead; ARGS="--framework pytorch_lightning --modes one manual"
reliability: $(VENV)/.all
	@$(ONE_THREAD) $(BIN)/python tests/reliability/kill.py $(ARGS)

# All four, whichever of them complains.
lint: $(VENV)/.all
	@status=0; \
	$(BIN)/ruff check --quiet . || status=1; \
	$(BIN)/ruff format --check --quiet --output-format concise . || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports --no-logo || status=1; \
	exit $$status

format: $(VENV)/.all
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(VENV)/.all
	@$(ONE_THREAD) $(BIN)/python benchmarks/step.py $(ARGS)
	@$(ONE_THREAD) $(BIN)/python benchmarks/import_time.py

docs: $(VENV)/.all
	@$(BIN)/python -W ignore -m pdoc --docformat google --output-directory build/docs leyden
	@echo "build/docs/index.html"

clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

# Set-up, once: each stamp is written only after its step went through.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		found=$$($(PYTHON) --version 2>/dev/null) || found="not installed"; \
		echo "leyden needs Python >= 3.10, but '$(PYTHON)' is $$found." \
			"Name another interpreter: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.examples: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing leyden[examples] into $(VENV) (once, some minutes)"
	@$(INSTALL) --editable '.[examples]'
	@touch $@

$(VENV)/.all: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing leyden[all] into $(VENV) (once, some minutes)"
	@$(INSTALL) --editable '.[all]'
	@touch $@ $(VENV)/.examples
