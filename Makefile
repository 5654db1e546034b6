# Two commands do everything on a fresh machine: `make demo` and `make test`. Both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
unexport PYTHONDONTWRITEBYTECODE  # the tests start many processes, and each would compile the project for itself
export PATH := $(CURDIR)/$(BIN):$(PATH)

PORT ?= 8000
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=15
COMPUTING := indexing gallery two_stage calibration export inplace models clip teachers temporal golden compatibility

.PHONY: demo serve study test slow portable kernels architectures faults abuse mutations videos fuzz two-hosts reference docs lint install clean

demo: install  ## the whole arrow on the embedded corpus, and one table
	$(BIN)/python tools/demo.py

serve: install  ## after `make demo`: a page that searches its gallery (PORT=8000)
	$(BIN)/python tools/serve.py demo/gallery --port $(PORT) --examples "a hatching chick" "a red apple, then a fire engine" "an octopus spins on a blue background"

study: install  ## the demo's comparison over several seeds, with intervals (many hours; tools/demo_study.py --rows runs some rows)
	$(BIN)/python tools/demo_study.py --records docs/study

test: install lint  ## lint, types and all tests but the slow ones
	$(PYTEST) -m "not slow"

slow: install  ## the tests that take longest: real launchers, many kills, measured figures; CI runs them too
	$(PYTEST) -m slow

portable: install  ## tests that compute, under kernels that every processor has; CI runs it too
	$(BIN)/python tests/kernels.py --setting portable $(COMPUTING:%=tests/test_%.py) -k "not killed and not processes and not gather"

kernels: install  ## all tests under every setting that gives the processor other kernels (hours)
	$(BIN)/python tests/kernels.py

architectures: install  ## features of every open_clip architecture below a billion parameters beside open_clip's own (long, 8 GB of memory)
	ARCHITECTURES=1000 $(PYTEST) -n 0 tests/test_architectures.py

faults: install  ## 400 kills of packing, labelling, training, galleries and servers; random walks of galleries (an hour or so)
	$(BIN)/python tests/faults --kills 400
	$(BIN)/python tests/galleries.py --walks 100

abuse: install  ## clients that do not behave, beside others that do: a server under each kind for ten seconds (six minutes)
	$(PYTEST) -n 0 -s -m slow tests/test_abuse.py

mutations: install  ## 2,000 damaged and hostile files into every reader (a few minutes)
	$(BIN)/python tests/mutations --count 2000

videos: install  ## 200 drawn videos beside a decoder of all frames: seconds, pixels and choices (a minute or two)
	$(BIN)/python tests/videos --count 200

fuzz: install  ## thousands of made-up requests at the server that `make serve` runs; no finding is allowed
	$(BIN)/schemathesis --config-file tests/schemathesis.toml run http://127.0.0.1:$(PORT)/openapi.json --checks all -n 2000

two-hosts: install  ## launches over two network namespaces with ssh, as root; docs/multi-node.md
	$(BIN)/python tests/two_hosts.py

reference: install  ## writes docs/recipes.md and the tables of docs/architecture.md and tests/README.md from the code
	$(BIN)/python tests/reference.py
	$(BIN)/python tests/house.py

docs: install  ## README and docs/ as a site in build/site, which opens from the folder; nothing is loaded from elsewhere
	rm -rf build/pages && mkdir -p build/pages
	tar c README.md CONTRIBUTING.md tests/README.md docs/*.md | tar x -C build/pages
	$(BIN)/zensical build --strict --clean

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --summarize-errors

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt distill/model/inplace.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11")'
	@echo "Making $(VENV) and installing what constraints.txt names into it: a few minutes, most of them downloads (torch)."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[train,demo,serve,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo runs build .cache *.egg-info distill/model/*.so
