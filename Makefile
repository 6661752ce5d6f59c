# demo and test do all their set-up themselves. `make clean` removes what they made in this folder.
.PHONY: demo test lint bench soak clean
PYTHON = .venv/bin/python

demo:
	@tools/bootstrap
	@$(PYTHON) tools/demo.py

test: lint
	$(PYTHON) -m pytest

lint:
	@tools/bootstrap test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) tools/conformance.py --check

bench:
	@tools/bootstrap
	@$(PYTHON) -m bench

soak:
	@tools/bootstrap test
	$(PYTHON) -m pytest tests/soak -m soak

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
