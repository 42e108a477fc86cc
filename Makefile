# Two commands matter: `make up` and `make test`. `make help` lists the rest.
# The work is done by small scripts in etc/; both commands install what they miss.

# The distribution's Python where there is one that fits: it is built with optimisations that a python3 which comes first
# in PATH often lacks, and takes two thirds of the time for everything here.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13 /usr/bin/python3.14) python3)
BIN := .venv/bin
export PYTHON
# Images of containers often forbid Python to keep what it has compiled. The tests start daemons some hundred times: each
# start would compile the program anew, which takes longer than all else that a start does.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait for servers half of the time: one process more than there are cores, and four at most.
PROCESSES ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 4)))
# In the order of tests/conftest.py. That of xdist ends with the files of the fewest tests, which are those that take longest.
PARALLEL = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# One lock for all platforms that an image may be built for.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--upgrade --generate-hashes --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.PHONY: help up test test-pymysql test-docker test-cluster test-deb test-upgrade test-oldest lint pytest simulate
.PHONY: simulate-bugs mutate fuzz audit
.PHONY: lock images base news bench fixtures docs docs-config capacity diagrams manifests pictures man dist deb proto
.PHONY: clean runtime dev packages
.PHONY: bench-packages diagram-packages docker-packages cluster-packages deb-packages

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

up: runtime ## serve https://localhost:4443 in the foreground, and print a session to try
	@etc/up.sh

test: packages lint pytest ## run every check: ruff, mypy, all tests with coverage

test-docker: docker-packages dev ## images, compose and content trust on a real Docker engine; takes minutes
	$(BIN)/pytest --override-ini=addopts='-ra --import-mode=importlib' -p no:randomly -v tests/docker

test-cluster: packages cluster-packages dev ## clusters of databases with kills and races; takes minutes
	$(BIN)/pytest --override-ini=addopts='-ra --import-mode=importlib' -p no:randomly -v tests/cluster

# make test has the contracts of the stores with PyMySQL. This is the rest; the directory hides mysqlclient from all processes.
test-pymysql: packages dev ## the tests of databases with PyMySQL in place of mysqlclient; takes minutes
	PYTHONPATH=tests/support/pymysql_only $(BIN)/pytest $(PARALLEL) -k "not mysqlclient" \
		$(addprefix tests/,$(PYMYSQL))

PYMYSQL ?= storage interop/test_client_life.py interop/test_database_start.py interop/test_switchover.py \
	interop/test_outage.py

# The oldest release of each library, and the newest of what only tests need. What goes through sockets and databases is
# there, what takes minutes is not.
test-oldest: packages dev ## the quick tests with the oldest releases that pyproject.toml allows; takes minutes
	@etc/venv.sh dev lock
	@mkdir -p build
	$(BIN)/python etc/audit.py --floors >build/oldest.txt
	$(BIN)/uv venv --quiet --clear --python "$(PYTHON)" build/oldest
	$(BIN)/uv pip install --quiet --python build/oldest --constraint build/oldest.txt --editable '.[all,dev]'
	build/oldest/bin/pytest $(PARALLEL) $(addprefix tests/,$(OLDEST))

OLDEST ?= tuf config storage work net observe envelope daemon peer server signer admin test_certs.py test_packaging.py \
	interop/test_client_life.py interop/test_pairings.py interop/test_life.py

lint: dev ## ruff and mypy only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

pytest: packages dev ## the tests only, in random order, in parallel, with branch coverage of notary/
	$(BIN)/pytest $(PARALLEL) --cov --cov-branch --cov-fail-under=90

simulate: dev ## a whole cluster from each seed: SEEDS=1000 new ones, or SEED=7 with its trace, WITHOUT=killer-1
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000)) \
		$(if $(WITHOUT),--without $(WITHOUT))

simulate-bugs: dev ## show which planted bugs (tests/simulation/bugs) the simulation finds; BUGS="names" for some
	$(BIN)/python -m tests.simulation.planted $(BUGS)

mutate: dev ## change notary/tuf in small ways and list the changes that tests/tuf does not notice. MUTANTS="names" for some
	@etc/venv.sh dev mutate
	$(BIN)/mutmut run --max-children $$(nproc) $(MUTANTS)
	$(BIN)/mutmut results | sed '/: not checked$$/d'

fuzz: dev ## feed every parser by a fuzzer: FUZZ_SECONDS=30 each, FUZZ="json http" for some only
	@etc/venv.sh dev fuzz
	$(BIN)/python -m tests.fuzz

audit: dev ## look up known holes of what we depend on; status 2 if the advisories cannot be reached
	@etc/venv.sh dev audit
	$(BIN)/python etc/audit.py

lock: dev ## write docker/*.lock and debian/*.lock anew: the newest releases that pyproject.toml allows, with their hashes
	@etc/venv.sh dev lock
	$(LOCK) --extra mysql --extra postgres --output-file docker/requirements.lock pyproject.toml
	$(LOCK) --constraint docker/requirements.lock --output-file docker/libpq.lock docker/libpq.in
	$(LOCK) --output-file docker/build.lock docker/build.in
	$(LOCK) --output-file docker/sbom.lock docker/sbom.in
	$(LOCK) --extra all --constraint docker/requirements.lock --output-file debian/requirements.lock pyproject.toml

images: ## the three images by Docker, with bills of materials and provenance: build/images/; ENGINE=podman
	$(PYTHON) etc/images.py

base: ## pin the newest base of the images by its digest, in docker/*Dockerfile
	@etc/base.sh

news: dev ## show what changelog.d/ will add to CHANGELOG.md
	$(BIN)/towncrier build --draft --version unreleased

bench: packages dev bench-packages ## ours beside the Go original, in numbers: docs/benchmarks.md; QUICK=1 only prints
	$(BIN)/python -m tests.bench

fixtures: dev ## make all certificates and keys in fixtures/ anew (ten years)
	$(BIN)/python fixtures/regenerate.py

docs: dev ## the documentation as a site: build/site/index.html; a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/site

dist: dev ## the source archive and the wheel, the same in every byte for one commit: dist/
	$(BIN)/python etc/dist.py

deb: deb-packages dist ## the Debian package, of this release or of SUITE=noble (wants root): dist/
	etc/deb.sh $(SUITE)

test-deb: packages deb-packages dev ## the Debian package, of this release or of SUITE=noble: its whole life; takes minutes
	SUITE=$(SUITE) $(BIN)/pytest --override-ini=addopts='-ra --import-mode=importlib' -p no:randomly -v tests/deb

# The release before, or what stands for it until there is one.
OLDER ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo 55faafa)
test-upgrade: packages dev ## another release beside this one on one database, and back: OLDER=tag, commit or wheel; takes minutes
	etc/older.sh "$(OLDER)"
	$(BIN)/pytest --override-ini=addopts='-ra --import-mode=importlib' -p no:randomly -v tests/upgrade

man: dev ## the manual pages of the three programs: build/man/
	$(BIN)/python etc/manual.py build/man

capacity: dev ## write the tables of docs/capacity.md from docs/benchmarks.md
	$(BIN)/python etc/capacity.py

diagrams: diagram-packages ## draw docs/diagrams/*.svg anew from the .dot files beside them
	@etc/diagrams.sh

manifests: packages dev ## write deploy/kubernetes/ from the Helm chart in deploy/helm/notary
	$(BIN)/python etc/manifests.py

pictures: packages dev ## draw docs/pictures/ anew: a session and the dashboard, from a run of three minutes
	$(BIN)/python etc/pictures.py

docs-config: dev ## write docs/configuration.md from the table in notary/config/
	$(BIN)/python -m notary.config >docs/configuration.md

# The modules that this compiler writes run on every protobuf that pyproject.toml allows. Newer compilers write a check
# that refuses all releases before their own: docs/adr/0047-oldest-releases.md.
proto: ## write the Python modules in notary/proto/ from the .proto files there
	$(PYTHON) -m venv build/proto
	build/proto/bin/pip --disable-pip-version-check install --quiet grpcio-tools==1.62.3
	build/proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. notary/proto/*.proto

clean: ## remove .venv, caches and build leftovers; var/ with its database stays
	rm -rf .venv build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis mutants _trial_temp twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- what those need ----------------------------------------------------------------------------------------------------

runtime:
	@etc/require-packages.sh up
	@etc/venv.sh runtime

dev:
	@etc/require-packages.sh dev
	@etc/venv.sh dev

packages:
	@etc/require-packages.sh test

diagram-packages:
	@etc/require-packages.sh diagrams

bench-packages:
	@etc/require-packages.sh bench

docker-packages:
	@etc/require-packages.sh docker

cluster-packages:
	@etc/require-packages.sh cluster

deb-packages:
	@etc/require-packages.sh deb
