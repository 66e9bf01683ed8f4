# Every target is one line and makes what it needs. Works with plain Python >= 3.11 and pip; uses uv when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv)
CREATE := $(if $(UV),$(UV) venv -q --allow-existing --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
INSTALL := $(if $(UV),$(UV) pip install -q --python $(BIN)/python -e,$(BIN)/python -m pip install -q -e)
ARGS ?=
# Processes of the tests, three for two cores, since many tests wait; a file's tests stay together. `make test WORKERS=0` runs all in one.
WORKERS ?= 3
# What checks the types of the browser modules; without npm they go unchecked, and we say so.
TSC := node_modules/.bin/tsc
TYPES = if [ -x $(TSC) ]; then $(TSC) -p src/legato/web; else echo 'Types of src/legato/web not checked: they need npm (on Debian: apt install npm) and a registry.'; fi

.PHONY: serve test check faces bench clean

serve: $(VENV)/.serve ; @$(BIN)/legato serve $(ARGS)
test: $(VENV)/.test $(TSC) ; @$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
check: $(VENV)/.test $(TSC) ; @$(BIN)/python tools/faces.py --check && $(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . && $(BIN)/mypy --no-error-summary && $(TYPES)
faces: $(VENV)/.test ; @$(BIN)/python tools/faces.py
bench: $(VENV)/.bench ; @$(BIN)/python benchmarks $(ARGS)
clean: ; rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist node_modules

$(VENV)/.serve: pyproject.toml ; @$(CREATE) && $(INSTALL) '.[server]' && touch $@
$(VENV)/.test: pyproject.toml ; @$(CREATE) && $(INSTALL) '.[dev]' && touch $@ $(VENV)/.serve
$(VENV)/.bench: pyproject.toml ; @$(CREATE) && $(INSTALL) '.[dev,bench]' && touch $@ $(VENV)/.test $(VENV)/.serve
$(TSC): ; @npm install --prefix . --no-save --no-package-lock --no-audit --no-fund --silent --fetch-retries=1 --fetch-retry-mintimeout=1000 typescript@7.0.2 @types/react@19.3.0 || true
