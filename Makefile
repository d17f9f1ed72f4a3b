# Everything runs in .venv. Every target that needs it makes it first, and does so in no time when nothing changed.
# PYTHON=/path/to/python3 names the Python to make it with. ARGS="…" goes to the program: make test ARGS="-k tracker".

VENV := .venv
READY := $(VENV)/.ready
JOBS ?= 3
BUSY := $(VENV)/.installing
BIN := $(VENV)/bin
CANDIDATES := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python /usr/bin/python3

# Either would let another environment's packages into ours.
unexport PYTHONHOME PYTHONPATH

.PHONY: help setup demo up test chaos hostile fanout scale bench bench-peers pictures docs check lock clean stale

help: ## show these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target does; do printf '  %-12s %s\n' "$$target" "$$does"; done

setup: $(READY) ## make .venv; afterwards .venv/bin/callsheet works from any folder
	@echo "Ready: $(BIN)/callsheet"

demo: $(READY) ## run jobs through every vendor on embedded parts, check every file, leave nothing running
	@$(BIN)/callsheet demo $(ARGS)

up: $(READY) ## web, worker, poller and sandbox until Ctrl-C; data stays under var/
	@$(BIN)/callsheet up $(ARGS)

test: $(READY) ## the whole test suite, in JOBS processes at once (3; 0: in this one, for a debugger)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

chaos: $(READY) ## the fault suite, some 15 minutes: everything dies, and nothing is lost; ARGS=--prove shows that it would notice
	@$(BIN)/python -m tests.chaos $(ARGS)

hostile: $(READY) ## hostile input, links and crowds against the real processes; a table of what came of it
	@$(BIN)/python -m tests.hostile $(ARGS)

fanout: $(READY) ## twenty endpoints, half of them bad, beside the same run without those; some minutes
	@$(BIN)/python -m tests.fanout $(ARGS)

bench: $(READY) ## what it costs beside floors, some ten minutes; ARGS="--quick callbacks polls" takes fewer
	@$(BIN)/python -m tests.bench $(ARGS)

bench-peers: $(READY) ## callbacks beside Fastify, Express and FastAPI too, which it installs from npm and PyPI
	@$(BIN)/python -m tests.bench --peers $(or $(ARGS),callbacks)

docs: $(READY) ## the documentation as a site, below build/site; a link that leads nowhere is an error
	@rm -rf build/pages && mkdir -p build/pages && cp -R *.md LICENSE app.json docs deploy build/pages && rm build/pages/docs/mkdocs.yml
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file docs/mkdocs.yml

scale: $(READY) ## the same 10,000 jobs by one process of each kind and by many: the same ledger, and what a job costs
	@$(BIN)/python -m tests.scale $(ARGS)

pictures: $(READY) ## take the documents' pictures of the dashboard anew
	@$(BIN)/python -m tests.pictures $(ARGS)

check: $(READY) ## lint, format, types, who may import whom, an audit of what is pinned, and validators of files for others
	@status=0; \
	$(BIN)/ruff check || status=1; \
	$(BIN)/ruff format --check || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports --no-cache --no-logo || status=1; \
	$(BIN)/python -m tests.monitoring || status=1; \
	$(BIN)/python -m tests.audit || status=1; \
	$(BIN)/python -m tests.manifests || status=1; \
	$(MAKE) --no-print-directory docs >/dev/null || status=1; \
	exit $$status

# Pins that still fit stay; ARGS=--upgrade takes the newest of everything. A mirror that pip is told of is used, never written down.
lock: ## write requirements.lock anew from pyproject.toml, and requirements.txt: what a deployment takes of it
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory setup
	@index="$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	compile="$(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes"; \
	$$compile --group dev --custom-compile-command 'make lock' $(ARGS) --output-file requirements.lock pyproject.toml >/dev/null && \
	$$compile --constraint requirements.lock --no-annotate --custom-compile-command 'make lock' --output-file requirements.txt pyproject.toml >/dev/null

clean: ## remove what can be made again; var/ is data, and stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info tests/node/node_modules
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is broken, whatever its age, when the folder has moved (scripts hold absolute paths) or its Python has gone.
ifneq ($(shell test "$$(cat $(READY) 2>/dev/null)" = "$(CURDIR)" && test -x $(BIN)/callsheet && $(BIN)/python -c 'import pip' 2>/dev/null && echo sound),sound)
$(READY): stale
endif

$(READY): export SETUP = $(SETUP_SCRIPT)
$(READY): requirements.lock pyproject.toml
	@sh -euc "$$SETUP"

define SETUP_SCRIPT
suits() { "$$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The marker holds the process that is installing, so that two makes do not install at once. One that its process
# did not live to remove tells that the environment may be half done: it is made from nothing.
mkdir -p $(VENV)
waited=; fresh=
until (set -C; echo $$$$ > $(BUSY)) 2>/dev/null; do
  if kill -0 "$$(cat $(BUSY) 2>/dev/null)" 2>/dev/null; then
    if [ -z "$$waited" ]; then echo "Waiting for process $$(cat $(BUSY)) to finish $(VENV) (if it is none of ours: rm -r $(VENV))"; fi
    waited=yes; sleep 1
  else
    rm -f $(BUSY); fresh=yes
  fi
done
trap 'rm -f $(BUSY)' EXIT
trap 'trap - EXIT; exit 130' HUP INT TERM

if [ -f $(READY) ] && [ "$$(cat $(READY))" != "$(CURDIR)" ]; then fresh=yes; fi
if ! suits $(BIN)/python || ! $(BIN)/python -c 'import pip' 2>/dev/null; then fresh=yes; fi
rm -f $(READY)
if [ -n "$$fresh" ]; then
  python=
  for candidate in $(CANDIDATES); do
    if suits "$$candidate"; then python=$$candidate; break; fi
  done
  if [ -z "$$python" ]; then
    echo "Callsheet needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv)." >&2
    echo "None of these is one: $(CANDIDATES). Name one: make setup PYTHON=/path/to/python3" >&2
    exit 1
  fi
  find $(VENV) -mindepth 1 -maxdepth 1 ! -name $(notdir $(BUSY)) -exec rm -rf {} +
  echo "Making $(VENV) with $$("$$python" --version)"
  "$$python" -m venv $(VENV)
fi
echo "Installing what requirements.lock pins"
$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
printf %s "$(CURDIR)" > $(READY)
endef
