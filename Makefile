# What to type.  `make run` and `make test` need python3 (3.11 or newer) with venv, and make; no root.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
LOWER := .venv-lower
# what depends on the three libraries; make full runs all unit tests
LOWER_TESTS ?= $(patsubst %,tests/unit/test_%.py,aiosmtpd_contract fsio fsio_soon local mx resolver restrictions server \
	server_deadlines server_tls smtp_agent spared stop_listening tls whole_way)
LOWER_BOUNDS := aiosmtpd==1.4.3 dnspython==2.3.0 aiofiles==23.1.0
TEST_TOOLS := pytest 'pytest-asyncio>=1.5' pytest-xdist hypothesis cryptography
TEST_ARGS ?=
PEERS_ARGS ?=
SYSTEM_ARGS ?=
BENCH := .venv-bench
BENCH_PYTHON ?= $(shell /usr/bin/python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo /usr/bin/python3 || echo $(PYTHON))
BENCH_ARGS ?= --chart
BENCH_SENDMAIL_ARGS ?=
KILLS ?= 100
STRIDE ?= 8
ERRNO_STRIDE ?= 1
CUT_EVERY ?= 12
SIM_SEEDS ?= 0-2000
SIM_OUT ?= var/sim-100k.txt
PARTS ?=
CUTS ?= var/powercut-matrix.txt
TABLE ?= var/kill-matrix.txt

.PHONY: help venv deb run check lint sim sim-full test test-root test-lower test-peers test-logs test-system rpm crash crash-full load full bench bench-sendmail flushes bench-venv coverage clean distclean

help:
	@sed -n 's/^## //p' Makefile

## make run         start on 127.0.0.1:2525 with everything under ./var, send one message, go on (ONCE=1: stop then)
run: $(VENV)/.run
	@ONCE="$(ONCE)" PORT="$(PORT)" $(PY) scripts/demo.py

## make check       ruff, mypy, unit tests and dialogues: under a minute, what one runs all day
check: lint
	$(PY) -m pytest -n auto --loops asyncio tests/unit tests/dialogs

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m mypy

## make test        the whole test suite, as any user
test: $(VENV)/.dev
	$(PY) -m pytest -n auto --dist worksteal $(TEST_ARGS)

## make coverage    branch coverage of what mail depends on, each part by its own tests; less than 100 % fails
coverage: $(VENV)/.dev
	$(PY) -m tests.coverage $(PARTS)

## make test-root   the tests that only root can run (they are in make test too, when root calls it)
test-root: $(VENV)/.dev
	$(PY) -m pytest -n auto -m needs_root $(TEST_ARGS)

## make test-lower  with the oldest supported dependencies (those of Debian 12): the unit tests of what depends on them
test-lower: $(LOWER)/.installed
	$(LOWER)/bin/python -m pytest -n auto $(LOWER_TESTS)

## make test-peers  real Postfix, Exim, unbound, cron, swaks, ... in chroots and namespaces of their own (root)
test-peers: $(VENV)/.dev
	$(PY) -m tests.peers $(PEERS_ARGS)

## make test-logs   the log of a simulated day, as pflogsumm, fail2ban and logwatch read it (fetches their packages)
test-logs: $(VENV)/.dev
	$(PY) -m pytest tests/logs

## make test-system the packages: .deb in a booted container, .rpm, `mta install` beside Postfix and Exim (root)
test-system: $(VENV)/.dev
	$(PY) -m tests.package $(SYSTEM_ARGS)

## make crash       kill -9 at KILLS random points (100) under load, and at each eighth step of every scenario; each errno
##                  at each call of each kind; as root also power cuts at each twelfth step: minutes
crash: $(VENV)/.dev
	AIOMTA_KILLS=$(KILLS) AIOMTA_STRIDE=$(STRIDE) AIOMTA_ERRNO_STRIDE=$(ERRNO_STRIDE) AIOMTA_RESTARTS=5 AIOMTA_LOAD=20000 \
		AIOMTA_CUT_EVERY=$(CUT_EVERY) $(PY) -m pytest -n 2 --loops asyncio --durations=12 tests/crash tests/powercut

## make sim         SIM_SEEDS (0-2000) of the simulator: the whole MTA on a simulated disk, net and clock; see tests/sim
sim: $(VENV)/.dev
	$(PY) -m tests.sim --seeds $(SIM_SEEDS)

## make sim-full    100,000 seeds, resumable, figures in SIM_OUT (var/sim-100k.txt); an hour or two
sim-full: $(VENV)/.dev
	@mkdir -p $(dir $(SIM_OUT))
	$(PY) -m tests.sim --seeds 0-100000 --out $(SIM_OUT)

## make crash-full  kill -9 at every step of every scenario, once, and again after the start that follows, and by strace at
##                  every call of each process, tables beside TABLE (var/kill-matrix.txt); 50 restarts; power cuts at every
##                  step, three file systems, two kinds of cut, the table in CUTS (var/powercut-matrix.txt); root, hours
crash-full: $(VENV)/.dev crash sim-full
	@mkdir -p $(dir $(TABLE))
	$(PY) -m tests.crash.kill_matrix --table $(TABLE)
	$(PY) -m tests.crash.kill_matrix --twice --table $(TABLE:.txt=-twice.txt)
	$(PY) -m tests.crash.kill_strace --table $(TABLE:.txt=-strace.txt)
	$(PY) -m tests.crash.storms --restarts 50
	AIOMTA_CUT_EACH=1 $(PY) -m pytest --loops asyncio tests/crash/test_bit_rot.py
	@mkdir -p $(dir $(CUTS))
	$(PY) -m tests.powercut --jobs 4 --table $(CUTS)

## make load        a start with 100,000 deferred messages: first 250, scan, memory, cost of new mail (disk, minutes)
load: $(VENV)/.dev
	nice -n 5 $(PY) -m tests.crash.load --messages 100000

## make full        everything above
full: export AIOMTA_PAIRS = 1
full: LOWER_TESTS = tests/unit
full: check test test-lower coverage test-peers test-logs test-system sim crash

## make bench       beside Postfix, Exim and OpenSMTPD; makes docs/bench.svg anew; BENCH_ARGS (root)
bench: $(BENCH)/.installed
	$(BENCH)/bin/python -m tests.bench $(BENCH_ARGS)

## make bench-sendmail   one sendmail -t -i of the .deb beside that of Debian's Postfix, in turn; BENCH_SENDMAIL_ARGS (root)
bench-sendmail: $(VENV)/.dev
	$(PY) -m tests.package.bench_sendmail $(BENCH_SENDMAIL_ARGS)

## make flushes     device flushes per message: accepting, and the whole way beside Postfix, 10, 16 and 32 sessions (root)
flushes: $(BENCH)/.installed
	$(BENCH)/bin/python -m tests.powercut.flushes

## make bench-venv  the environment of the benchmark in .venv-bench, with the Python of the distribution
bench-venv: $(BENCH)/.installed

## make deb         dist/aiomta_VERSION_all.deb for Debian 12 (needs dpkg-deb and python3, nothing else)
deb:
	$(PYTHON) -m scripts.build_deb

## make rpm         dist/aiomta-VERSION-1.noarch.rpm for Fedora and EL10 (needs rpmbuild: apt-get install rpm)
rpm:
	$(PYTHON) -m scripts.build_rpm

## make venv        the development environment in .venv
venv: $(VENV)/.dev

$(PY):
	@test -n "$(PYTHON)" || { echo "no python3 >= 3.11 with venv found: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(PY)
	$(PIP) install -e .
	$(PY) -m sendmail_compat.install $(VENV)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	$(PIP) install -e '.[dev]'
	$(PY) -m sendmail_compat.install $(VENV)
	@touch $@ $(VENV)/.run

$(LOWER)/.installed: pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "no python3 >= 3.11 with venv found: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip --disable-pip-version-check -q install $(LOWER_BOUNDS) -e . $(TEST_TOOLS)
	@touch $@

$(BENCH)/.installed: pyproject.toml
	$(BENCH_PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip --disable-pip-version-check -q install -e '.[bench]'
	@touch $@

## make clean       remove what was built and ./var; distclean: the environments too
clean:
	rm -rf var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWER) $(BENCH)
