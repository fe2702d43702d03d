# Two commands do everything on a machine with git, make and Python 3.11 or newer:
#   make quickstart   sets up and trains on synthetic heads made on the fly
#   make test         sets up and runs every check
# PYTHON=python3.12 chooses the interpreter of a new .venv.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: quickstart test setup lint clean

quickstart: $(STAMP)
	$(BIN)/python -m dex.fit

# Two files at a time on a thread each: most tests are too small to fill two cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

setup: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy dex benchmarks
	$(BIN)/lint-imports

# Training needs no system library beyond the wheels, so a library that only data_prep wants does not stop the setup.
$(STAMP): pyproject.toml constraints.txt
	@python=; for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c '$(USABLE)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or newer with its venv module among: $(CANDIDATES)." \
	        "On Debian or Ubuntu: apt-get install python3 python3-venv; elsewhere: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	"$$python" -m venv $(VENV)
	@echo "Installing the pinned environment into $(VENV): about 7 GB, some minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[prep,dev]'
	@$(BIN)/python -m dex.doctor --install || echo "data_prep will not run before that; training and its tests do."
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find dex data_prep benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
