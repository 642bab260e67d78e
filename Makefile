# make book        builds everything: environment, a small bridge trained and tried, the rendered book
# make test        runs every test and every notebook
# make test-fast   checks style, spelling and types, and runs the tests that are quick
# make check-book  renders the book and opens every page in headless Chromium
# make pdf         renders the book and prints it as _build/i2sb-book.pdf, in headless Chromium
# make execute     runs the chapters whose code changed, or one: make execute CHAPTER=07_two_algorithms
# make bench-quick runs every script that compares speeds, in little, into runs/bench-quick
# make help        says this
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/embedded
WORKERS := $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count() or 1))")
# one thread a worker: small tensors gain nothing from more, and the workers do not fight;
# files in their order: the last ones, at which a worker may wait for another, are short notebooks
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

RENDER := $(BIN)/jupyter-book build --warningiserror --nitpick --keep-going .

.PHONY: book test test-fast check-book pdf execute bench-quick demo lint clean help

book: demo
	$(RENDER)
	@echo "The book: _build/html/index.html   Before and after: $(RUN)/restored.png"

# a bridge that is told the blur learns to undo it on photographs inside scikit-image and scikit-learn;
# waiting threads sleep: beside other programs, spinning ones take many times as long
demo: export OMP_WAIT_POLICY := passive
demo: .venv/ready
	@mkdir -p runs
	@test -f $(RUN)/metrics.json || { \
	  echo "Training a small bridge on real photographs: about a minute on two idle cores."; \
	  $(BIN)/i2sb train --preset embedded --out $(RUN) $$(test ! -f $(RUN)/state.pt || echo --resume) && \
	  $(BIN)/i2sb evaluate --checkpoint $(RUN) --data embedded --nfe 1 3 --samplers ode --out $(RUN); }

test: .venv/ready
	$(PYTEST) --nbval tests book

test-fast: lint
	$(PYTEST) -p no:nbval -m "not slow" tests

# a formatter, a linter, spelling and types: half a minute in a fresh clone
lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

check-book: .venv/ready
	$(RENDER)
	$(BIN)/python tests/browser/check_pages.py _build/html

pdf: .venv/ready
	$(RENDER)
	$(BIN)/python book/pdf.py

execute: .venv/ready
	$(BIN)/python book/execute.py $(CHAPTER)

# one thread, as in the records
bench-quick: export OMP_NUM_THREADS := 1
bench-quick: .venv/ready
	@for name in solving operators evaluating restoring training normalisation; do \
	  echo "benchmarks/$$name.py"; \
	  $(BIN)/python benchmarks/$$name.py --quick --out runs/bench-quick/$$name || exit 1; done

.venv/ready: pyproject.toml book/versions.txt
	@echo "Making the environment in .venv: PyTorch alone is several GB, so this takes minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint book/versions.txt --editable ".[all]"
	@# what pip leaves out here, on all cores; some packages hold templates that are no Python
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@

help:
	@sed -n 's/^# make /make /p' Makefile

clean:
	rm -rf _build runs
