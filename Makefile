# The only definition of every check and of every way to start things. CI and pre-commit call these targets.
# `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# The environment of the tools that inspect the project from outside.
AUDIT := .audit
LOCKED := pyproject.toml uv.lock torch-cpu.txt deploy/install.sh
# docs/log.md keeps its old entries as they are.
PAGES := $(filter-out docs/log.md,$(wildcard *.md docs/*.md docs/adr/*.md))
MDFORMAT := $(BIN)/mdformat --wrap 100 --number --compact-tables
# Replaces the shell by a command, and ends the command when make ends, even by kill -9.
LAUNCHER := exec $(BIN)/python -I -S local/launcher.py $$PPID 15
# Prometheus and Grafana run as users of their own and read files in deploy. The modes of the checkout may exclude them.
READABLE := chmod -R a+rX deploy
# A path for the shell. It can contain spaces and begin with ~/. Not every shell expands ~/ in an argument of make.
path = "$(patsubst ~/%,$(HOME)/%,$1)"

.DEFAULT_GOAL := help
.PHONY: demo test gpu wheels screenshots attack faults fuzz containers up down secrets backup restore bundle load check format lint types imports leaks audit bom lock venv clean help

demo: $(READY) ## prune a real language model to 60 % zeros and repair it, through the whole service
	@$(LAUNCHER) $(BIN)/python -m local demo

# Without compiled files, each start of a program compiles all its sources.
test: export PYTHONDONTWRITEBYTECODE :=
# With huge pages, the tests of one file took 3 % of the page faults and 75 % of the time on a virtual machine.
test: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
test: $(READY) ## run every test, with real Postgres, Valkey and S3
	@# Many tests wait for processes, so four at once fit two cores. A file stays in one process: its tests share fixtures.
	@$(LAUNCHER) $(BIN)/python -m pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder

fuzz: $(READY) ## call every operation of the API thousands of times, with valid and invalid requests
	@$(LAUNCHER) $(BIN)/python -m tests.fuzz

faults: $(READY) ## run 200 jobs with one random fault each: about an hour; resumes after an interruption
	@$(LAUNCHER) $(BIN)/python -m tests.faults

attack: $(READY) ## attack the running service with hostile models and floods of requests: minutes
	@$(LAUNCHER) $(BIN)/python -m tests.attack

wheels: $(READY) ## collect the wheels that `make gpu` needs, for Python 3.12, in build/wheels or WHEELS=: at most 60 MB
	@$(BIN)/python -m tests.gpu.wheels $(call path,$(or $(WHEELS),build/wheels))

gpu: ## test and measure on a card, without internet, into build/gpu.json: 25 minutes; PARTS= runs some parts only
	@$(PYTHON) -m tests.gpu.environment $(call path,$(or $(WHEELS),build/wheels)) build/gpu
	@$(LAUNCHER:$(BIN)/python=build/gpu/bin/python) build/gpu/bin/python -m tests.gpu $(PARTS) $(if $(MODEL),--model $(call path,$(MODEL)))

screenshots: $(READY) ## take the screenshots of the dashboard, from real jobs of a tiny model: minutes
	@$(LAUNCHER) $(BIN)/python -m tests.browser.screenshots

containers: $(READY) ## build and start docker-compose.yml, kill its worker during a job, stop and start it again
	@$(LAUNCHER) $(BIN)/python -m tests.containers

up: $(READY) ## start the stack in the background; print its addresses, an API key and the commands of an operator
	@$(BIN)/python -m local up

down: $(READY) ## stop that stack and keep its data
	@$(BIN)/python -m local down

secrets: ## write .env with new secrets and the profile gpu, or those of PROFILES=; fails if .env exists
	@umask 077; set -C; { echo COMPOSE_PROFILES=$(or $(PROFILES),gpu); \
		for name in DATABASE_PASSWORD DATABASE_SERVICE_PASSWORD BROKER_PASSWORD S3_PASSWORD GRAFANA_PASSWORD SECRET_KEY; do \
		echo "SEFT_$$name=$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"; done; } > .env
	@$(READABLE)

backup: ## save database and bucket of the Docker stack to backup/, or to FOLDER=
	@deploy/backup.sh save $(call path,$(or $(FOLDER),backup))

restore: ## fill an empty Docker stack from that folder and start it
	@deploy/backup.sh load $(call path,$(or $(FOLDER),backup))
	@docker compose up --detach --wait

bundle: ## save images, files and models for an offline machine to seft-bundle.tar, or to FILE=
	@deploy/bundle.sh save $(call path,$(or $(FILE),seft-bundle.tar))

load: ## load such a file, after checking its checksums
	@deploy/bundle.sh load $(call path,$(or $(FILE),seft-bundle.tar))
	@$(READABLE)

check: lint leaks types imports test ## run what CI runs, and look for keys and tokens in tracked files

format: $(READY) ## format code and documents
	@$(MDFORMAT) $(PAGES)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

lint: $(READY) ## check formatting and style of code, documents and scripts
	@$(BIN)/ruff format --quiet --check . || { echo "Run make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(MDFORMAT) --check $(PAGES) || { echo "Run make format"; exit 1; }
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/uv lock --quiet --check --offline || { echo "uv.lock does not match pyproject.toml: run make lock"; exit 1; }
	@$(BIN)/shellcheck .ci/run deploy/*.sh

types: $(READY) ## check the types
	@$(BIN)/mypy --no-error-summary

imports: $(READY) ## check the import contracts
	@$(BIN)/lint-imports

leaks: $(AUDIT)/ready ## look for keys and tokens in tracked files
	@# Entropy and words such as "password" are switched off: examples and hashes are full of both.
	@git ls-files -z | xargs -0 $(AUDIT)/bin/detect-secrets-hook $(addprefix --disable-plugin ,Base64HighEntropyString \
		HexHighEntropyString KeywordDetector BasicAuthDetector)

audit: $(AUDIT)/ready ## look up known vulnerabilities of the dependencies at PyPI
	@set -e; for part in '--all-extras --group build --group demo' '--only-group audit'; do \
		$(AUDIT)/bin/uv export --quiet --color=never --frozen --no-emit-project $$part > $(AUDIT)/locked.txt; \
		$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes --requirement $(AUDIT)/locked.txt; done

bom: $(READY) $(AUDIT)/ready ## write all dependencies with versions and licences to build/bom.json (CycloneDX)
	@mkdir -p build
	@$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file build/bom.json

venv: $(READY) ## install everything into .venv

lock: $(READY) ## make uv.lock match pyproject.toml again; `.venv/bin/uv lock --upgrade` takes the newest versions
	@$(BIN)/uv lock

$(AUDIT)/ready: $(LOCKED)
	@$(PYTHON) -m venv $(AUDIT)
	@deploy/install.sh $(AUDIT) --only-group audit
	@touch $@

$(READY): $(LOCKED) $(wildcard seft/native/*.cpp seft/native/*.h)
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and \
		f"Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is {v}. Name another one: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) (takes minutes, once, until the dependencies change)"
	@$(PYTHON) -m venv $(VENV)
	@deploy/install.sh $(VENV) --all-extras --group build --group demo
	@deploy/install.sh $(VENV) --only-group cuda
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

clean: ## stop the stack; remove .venv, caches, and .local with its data
	@if [ -e $(READY) ]; then $(BIN)/python -m local down; fi
	@rm -rf $(VENV) $(AUDIT) .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
