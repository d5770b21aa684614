# Every target but `venv` makes .venv first when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo
# Two ranks, however many cores: the demo is the whole way a cluster would go, at a size for a laptop.
RANKS ?= 2
# Where they meet. With --standalone torchrun finds one itself, and unpickles what anyone puts there.
FREE_PORT = $$($(BIN)/python -c 'import socket; one = socket.create_server(("localhost", 0)); print(one.getsockname()[1])')
# Processes that tests run in, a file of tests in one of them; each takes about 4 GiB.
JOBS ?= 2
# Broken inputs of `make fuzz`, and the seed that they follow from.
CASES ?= 2000
SEED ?= 0

.PHONY: venv demo test fuzz lint bench clean

venv: $(STAMP)

# Pinned to what was tested; "-e ." alone installs the newest that pyproject.toml allows.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m geochip.synthetic $(DEMO)/data --train 48 --val 6 --test 4 --size 256 --overwrite
	$(BIN)/python -m geochip.chipping --config examples/demo.yaml --run_dir $(DEMO)/run --data.root $(DEMO)/data
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=$(RANKS) --master-port=$(FREE_PORT) -m geochip.train_ddp \
	  --config examples/demo.yaml --run_dir $(DEMO)/run --data.root $(DEMO)/data
	$(BIN)/python -m geochip.infer --config examples/demo.yaml --run_dir $(DEMO)/run --data.root $(DEMO)/data
	$(BIN)/python -m geochip.evaluate --config examples/demo.yaml --run_dir $(DEMO)/run --data.root $(DEMO)/data
	@$(BIN)/python -c 'import json; (one,) = (i for i in json.load(open("$(DEMO)/run/eval.json"))["overall"] if i.get("class_name") == "building"); f1 = one["metrics"]["f1"]; assert f1 >= 0.8, f"building F1 is {f1}, below 0.8"'
	@echo
	@echo "Chips:       $(DEMO)/run/chips.zarr        xarray.open_datatree"
	@echo "Model:       $(DEMO)/run/model             model.safetensors and model.json"
	@echo "Log:         $(DEMO)/run/train/log.csv     and tensorboard --logdir $(DEMO)/run/train/tensorboard"
	@echo "Predictions: $(DEMO)/run/predictions.zarr  geochip.open_scene; $(DEMO)/run/predictions/*.tif for QGIS"
	@echo "Report:      $(DEMO)/run/eval.json"

test: $(STAMP)
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz --cases $(CASES) --seed $(SEED)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_chipping.py
	$(BIN)/python benchmarks/bench_chipping_scale.py

clean:
	rm -rf $(VENV) $(DEMO)
