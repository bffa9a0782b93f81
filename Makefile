# Two commands on a bare machine with Python 3.11, make and a compiler: `make demo`, `make test`.

PYTHON ?= python3
SLURM ?= trixie
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slurm lint docs docs-reference peers cluster cluster-packages filesystems clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: $(READY)  ## set up .venv, run the study `quick` on this machine, print its tables
	$(BIN)/python -m jobs run quick --cluster local

# two processes on two cores: more threads of torch would wait for one another
test test-slurm: export OMP_NUM_THREADS = 1
test: $(READY)  ## set up .venv, run the tests
	$(BIN)/python -m pytest -m 'not slurm and not filesystems' --numprocesses 2 $(PYTEST_ARGUMENTS)
	$(BIN)/python -m pytest -m 'slurm or filesystems' --numprocesses 3 --maxschedchunk 1 $(PYTEST_ARGUMENTS)  # they wait; each process has clusters and mounts of its own

test-slurm: $(READY)  ## the Slurm tests on another Debian release's Slurm: make test-slurm SLURM=trixie (24.11), forky (26.05)
	slurm/devcluster/devcluster in $(SLURM) $(BIN)/python -m pytest tests/slurm -m slurm --numprocesses 2 $(PYTEST_ARGUMENTS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation into build/site; fails on a dead link
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-reference: $(READY)  ## write the generated parts of the documentation
	$(BIN)/python docs/generate.py

peers: $(READY)  ## optional libraries: those that some strategies try, and accelerate and lightning for the callbacks
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'

cluster:  ## start a real four-node Slurm on this machine, and say what to export (needs its packages: make cluster-packages)
	slurm/devcluster/devcluster start

cluster-packages:  ## install the development cluster's Debian packages (as root)
	slurm/devcluster/devcluster install

filesystems: $(READY)  ## start five filesystems on this machine (as root), and run the study that compares them
	exports=$$(slurm/devcluster/devcluster filesystems start xfs btrfs-zstd overlay gluster cephfs) && \
		eval "$$exports" && $(BIN)/python -m jobs run filesystems --cluster local

clean:  ## remove what make made here: .venv and caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch first and by itself: where the package index offers a CPU build, this picks it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(READY)
