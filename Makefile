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
# The address that `make serve` listens at, and options for `make lab`: both matter in a container (book/setup.md).
BIND        ?= 127.0.0.1
LAB         ?=
# RECORD=1 lets `make bench` rewrite the figures that the book shows; ONLY=NAME runs one benchmark.
RECORD      ?=
ONLY        ?=
# Another built book for `make accessibility`.
SITE        ?=
# CHAPTERS="01 05" makes the slides, or the exam, of these chapters alone; MINUTES=60 or MINUTES=all an exam of another length.
CHAPTERS    ?=
MINUTES     ?=
# For `make grade`: the folder of submissions, the seed of the tests, and how students' code is kept apart (book/teaching.md).
# GRADED=FOLDER is another folder of results, of a second class or from a container.
SUBMITTED   ?=
SEED        ?=
ISOLATION   ?=
GRADED      ?= _build/grading

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

# What was set by hand for the environment; everything else follows the environment that is there.
GIVEN := $(foreach name,PYTHON TORCH_INDEX WHEELHOUSE,$(if $(filter command environment,$(origin $(name))),$\
  $(if $($(name)),'$(name)=$($(name))')))
EXISTS := $(wildcard $(VENV)/pyvenv.cfg)
PYTHON_MATTERS := $(if $(EXISTS),$(findstring 'PYTHON=,$(GIVEN)),yes)

define check_python
version=$$('$(PYTHON)' -c 'import platform; print(platform.python_version())' 2>/dev/null); \
case "$$version" in 3.11.*|3.12.*|3.13.*) ;; *) \
  if ! command -v '$(PYTHON)' >/dev/null; then what='is not there'; \
  else case "$$version" in [0-9]*) what="is $$version" ;; *) what='did not answer with a version' ;; esac; fi; \
  echo "ganprune needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' $$what:" \
    "run 'make PYTHON=python3.12 ...' with one you have." >&2; exit 1 ;; \
esac
endef

define check_torch
case '$(TORCH)|$(TORCH_INDEX)' in '|'*|cpu\|?*) ;; \
  cpu*) echo "TORCH=cpu needs TORCH_INDEX=ADDRESS, an index that offers CPU builds of torch (book/setup.md)." >&2; exit 1 ;; \
  *) echo "TORCH must be empty or cpu, got '$(TORCH)'." >&2; exit 1 ;; \
esac
endef

export WHEELHOUSE
export PYTHONDONTWRITEBYTECODE = 1

.DEFAULT_GOAL := help
.PHONY: help accessibility assignments grade totals settings profile env book test lab serve lint format strip bench student slides exam wheelhouse lock clean

help:  ## show this list
	@echo "usage: make TARGET   (start with: make book)"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1|\2/' | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
	@echo "settings: PYTHON=$(PYTHON) PROFILE=smoke|laptop|gpu TORCH=cpu TORCH_INDEX=ADDRESS WHEELHOUSE=FOLDER"
	@echo "          JOBS=$(JOBS) (test)  PORT=$(PORT) BIND=$(BIND) (serve)  LAB=OPTIONS (lab)  ONLY=NAME RECORD=1 (bench)"
	@echo "          SITE=FOLDER (accessibility)  SUBMITTED=FOLDER SEED=SECRET ISOLATION=unshare|user|none (grade)"
	@echo "          GRADED=$(GRADED) (grade, totals)"
	@echo "          CHAPTERS=\"01 05\" (slides, exam)  SEED=SECRET MINUTES=$(or $(MINUTES),90)|all (exam)"

env: $(READY)  ## create the environment in .venv

# Settings are looked at before anything else happens, also when the environment is there already.
settings:
	@$(check_torch)
	$(if $(PYTHON_MATTERS),@$(check_python))
	$(if $(EXISTS),$(if $(GIVEN),@'$(if $(PYTHON_MATTERS),$(PYTHON),$(BIN)/python)' tools/environment.py '$(VENV)' check $(GIVEN)))

$(READY): pyproject.toml constraints.txt | settings
	@echo "Installing into $(VENV): up to 6 GB, 2 to 10 minutes, as your network allows (book/setup.md has smaller ways)."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { '$(PYTHON)' -m venv $(if $(EXISTS),--clear) '$(VENV)' && \
	  '$(PYTHON)' tools/environment.py '$(VENV)' remember 'TORCH_INDEX=$(TORCH_INDEX)' 'WHEELHOUSE=$(WHEELHOUSE)'; }
	$(if $(TORCH_INDEX),$(PIP) install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) install --quiet $(OFFLINE) -c constraints.txt -e '.[book,test,grading]'
	@touch $@

profile:
	@case '$(PROFILE)' in smoke|laptop|gpu) ;; *) echo "PROFILE must be smoke, laptop or gpu, got '$(PROFILE)'." >&2; exit 1 ;; esac

book: profile $(READY)  ## build the book to _build/html
	@GANPRUNE_PROFILE=$(PROFILE) $(BIN)/python tools/book.py

# The tests see the book in the smoke profile: every cell runs, in seconds. It is built while the other tests run, and
# then looked at; tests that build books of their own wait for it, as only one build runs at a time. The copies for students run in a folder of their own, far from the repository, as at a student's.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -c pyproject.toml --rootdir . -n $(JOBS) --dist loadfile
SITE_TESTS = tests/test_site.py tests/test_site_browser.py tests/test_second_browser.py tests/test_in_the_browser.py tests/test_browser_kernel.py tests/test_build.py tests/test_serve.py tests/test_slides_browser.py

test: lint  ## run every test: package, notebooks, copies for students, built site
	@echo "Building a book and running every test: about 20 minutes on two cores (JOBS=$(JOBS))."
	copies="$$(mktemp -d)"; trap 'rm -rf "$$copies"' EXIT; $(BIN)/python tools/students.py --output "$$copies" || exit 1; \
	  export GANPRUNE_PROFILE=smoke; OMP_NUM_THREADS=1 $(BIN)/python tools/book.py --output _build/smoke >"$$copies/book.log" 2>&1 & book=$$!; \
	  $(PYTEST) --nbval-lax --nbval-current-env --nbval-cell-timeout=300 $(SITE_TESTS:%=--ignore %) tests notebooks "$$copies"; tests=$$?; \
	  wait $$book || { cat "$$copies/book.log"; echo "What the book's build complained of:"; \
	    grep -A 6 -E ': (WARNING|ERROR|CRITICAL): |Error: ' "$$copies/book.log"; exit 1; }; \
	  GANPRUNE_SITE=$(SMOKE) $(PYTEST) $(SITE_TESTS) && exit $$tests

lint: $(READY)  ## the static checks alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify $(STRIP) $(NOTEBOOKS)
	$(BIN)/codespell

format: $(READY)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

accessibility: $(READY)  ## check every page of the built book against WCAG 2.2 AA, two widths and themes
	$(BIN)/python tools/accessibility.py $(if $(SITE),--site '$(SITE)')

strip: $(READY)  ## take pictures and noise out of the notebooks' stored outputs
	$(BIN)/nbstripout $(STRIP) $(NOTEBOOKS)

lab: profile $(READY)  ## open JupyterLab on the notebooks
	GANPRUNE_PROFILE=$(PROFILE) $(BIN)/jupyter lab $(LAB) notebooks

serve: profile $(READY)  ## build the book and serve it on this machine
	@GANPRUNE_PROFILE=$(PROFILE) $(BIN)/python tools/serve.py --port '$(PORT)' --bind '$(BIND)'

bench: $(READY)  ## measure what the book claims about speed, to _build/bench
	$(BIN)/python -m benchmarks $(if $(RECORD),--record) $(if $(ONLY),--only $(ONLY))

student: $(READY)  ## write copies of the chapters without solutions to _build/student
	$(BIN)/python tools/students.py

slides: profile $(READY)  ## make slides, handouts and teacher's plans in _build/slides, from the chapters' notebooks
	@GANPRUNE_PROFILE=$(PROFILE) $(BIN)/python tools/slides.py $(if $(CHAPTERS),--chapters $(CHAPTERS))

assignments: $(READY)  ## write the assignments to hand out, and the teacher's part, to _build/assignments
	$(BIN)/python tools/assignments.py release

# Seeds go through the environment, where other users of this machine do not see them.
exam: export GANPRUNE_EXAM_SEED = $(SEED)
exam: $(READY)  ## make an exam and, apart, its solutions in _build/exam; SEED=YOUR-SECRET decides all numbers
	@$(BIN)/python tools/exam_sheets.py $(if $(CHAPTERS),--chapters $(CHAPTERS)) $(if $(MINUTES),--minutes $(MINUTES))

grade: export GANPRUNE_GRADING_SEED = $(SEED)
grade: profile $(READY)  ## grade the submissions in SUBMITTED=FOLDER, to GRADED
	@test -n '$(SUBMITTED)' || { echo "say where the submissions are: make grade SUBMITTED=FOLDER SEED=YOUR-SECRET" >&2; exit 1; }
	@GANPRUNE_PROFILE=$(PROFILE) ISOLATION='$(ISOLATION)' $(BIN)/python tools/assignments.py grade '$(SUBMITTED)' --output '$(GRADED)'

totals: $(READY)  ## count the teacher's marks for words in GRADED
	@$(BIN)/python tools/assignments.py totals --output '$(GRADED)'

wheelhouse: $(READY)  ## fill wheelhouse/ with everything an installation downloads
	@echo "Downloading to wheelhouse/ (on Linux some gigabytes): 2 to 10 minutes, as your network allows."
	$(PIP) download --quiet -d wheelhouse -c constraints.txt '.[book,test,grading]' 'setuptools>=77'
	$(BIN)/python tools/javascript.py --download wheelhouse

lock: pyproject.toml  ## resolve all dependencies anew and write constraints.txt
	@$(check_python)
	@echo "Installing the newest versions that pyproject.toml allows into a fresh environment: 2 to 10 minutes."
	rm -rf _build/lock
	'$(PYTHON)' -m venv _build/lock
	_build/lock/bin/python -m pip install --quiet --upgrade -e '.[book,test,grading]'
	_build/lock/bin/python tools/freeze.py
	rm -rf _build/lock

clean:  ## remove everything that was built; the environment stays
	rm -rf _build build ganprune.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
