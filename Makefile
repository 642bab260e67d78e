# make book   builds everything: environment, a small bridge trained and tried, the rendered book
# make test   runs every test and every notebook
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/embedded

.PHONY: book test demo clean

book: demo
	$(BIN)/jupyter-book build --warningiserror --nitpick --keep-going .
	@echo "The book: _build/html/index.html   Before and after: $(RUN)/restored.png"

# a bridge learns to deblur photographs that ship inside scikit-image and scikit-learn
demo: .venv/ready
	@mkdir -p runs
	@test -f $(RUN)/metrics.json || { \
	  $(BIN)/i2sb train --preset embedded --out $(RUN) $$(test ! -f $(RUN)/state.pt || echo --resume) && \
	  $(BIN)/i2sb evaluate --checkpoint $(RUN) --data embedded --nfe 1 3 --samplers ode --out $(RUN); }

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests
	$(BIN)/pytest --nbval book

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[metrics,book,dev]"
	@touch $@

clean:
	rm -rf _build runs
