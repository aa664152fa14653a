# The two commands that matter are `make book` and `make test`; each does all the set-up it needs.

PYTHON   ?= python3
VENV     ?= .venv
PROFILE  ?= $(or $(GANPRUNE_PROFILE),laptop)
PORT     ?= 8000
# Workers of the test run. Each runs its own notebook kernels, about 2 GiB at most.
JOBS     ?= 2
# TORCH=cpu takes torch from an index of yours that offers CPU builds: make book TORCH=cpu TORCH_INDEX=ADDRESS
TORCH       ?=
TORCH_INDEX ?=
# A folder filled by `make wheelhouse`: then nothing is downloaded.
WHEELHOUSE  ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))
SMOKE := _build/smoke/_build/html
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# the list of types ends where the next option begins, so it must not come last
STRIP := --keep-output-type stream execute_result --keep-count --keep-id

export WHEELHOUSE
export PYTHONDONTWRITEBYTECODE = 1

.DEFAULT_GOAL := help
.PHONY: help env book test lab serve lint format strip bench student wheelhouse lock clean

help:  ## show this list
	@echo "usage: make TARGET   (start with: make book)"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1|\2/' | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'
	@echo "settings: PYTHON=$(PYTHON) PROFILE=smoke|laptop|gpu TORCH=cpu TORCH_INDEX=ADDRESS WHEELHOUSE=FOLDER PORT=$(PORT)"

env: $(READY)  ## create the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "ganprune needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is" \
	    "$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo 'not there'):" \
	    "run 'make PYTHON=python3.12 ...' with one you have." >&2; exit 1; }
	@case '$(TORCH)|$(TORCH_INDEX)' in '|'*|cpu\|?*) ;; \
	  cpu*) echo "TORCH=cpu needs TORCH_INDEX=ADDRESS, an index that offers CPU builds of torch (book/setup.md)." >&2; exit 1 ;; \
	  *) echo "TORCH must be empty or cpu, got '$(TORCH)'." >&2; exit 1 ;; esac
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) install --quiet $(OFFLINE) -c constraints.txt -e '.[book,test]'
	@touch $@

book: $(READY)  ## build the book to _build/html
	@GANPRUNE_PROFILE=$(PROFILE) $(BIN)/python tools/book.py

# The tests see the book in the smoke profile: every cell runs, in seconds.
test: lint  ## run every test: package, notebooks, built site
	GANPRUNE_PROFILE=smoke $(BIN)/python tools/book.py --output _build/smoke
	GANPRUNE_PROFILE=smoke GANPRUNE_SITE=$(SMOKE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=300 tests notebooks

lint: $(READY)  ## the static checks alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify $(STRIP) $(NOTEBOOKS)

format: $(READY)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

strip: $(READY)  ## take pictures and noise out of the notebooks' stored outputs
	$(BIN)/nbstripout $(STRIP) $(NOTEBOOKS)

lab: $(READY)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

serve: book  ## build the book and serve it on this machine
	@echo "open http://localhost:$(PORT)  (Ctrl-C stops)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

bench: $(READY)  ## measure what the book claims about speed
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

student: $(READY)  ## write copies of the notebooks without solutions to _build/student
	$(BIN)/python tools/students.py

wheelhouse: $(READY)  ## fill wheelhouse/ with everything an installation downloads
	$(PIP) download --quiet -d wheelhouse -c constraints.txt '.[book,test]' 'setuptools>=77'
	$(BIN)/python tools/javascript.py --download wheelhouse

lock: pyproject.toml  ## resolve all dependencies anew and write constraints.txt
	rm -rf _build/lock
	$(PYTHON) -m venv _build/lock
	_build/lock/bin/python -m pip install --quiet --upgrade -e '.[book,test]'
	_build/lock/bin/python tools/freeze.py
	rm -rf _build/lock

clean:  ## remove everything that was built; the environment stays
	rm -rf _build build ganprune.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
