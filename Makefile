# Everything is set up below environments/ of this folder; nothing outside it is touched but the caches of pip and uv.
PYTHON ?= python3.11
UV_VERSION := 0.13.9
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

BIN := environments/gateway/bin
STAMP := environments/gateway/.made

.PHONY: help serve demo test loadtest bench lint docs site audit clean
help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

serve: $(STAMP) ## install what is missing, then serve on 127.0.0.1:8000 until Ctrl-C
	@exec $(BIN)/forcegate serve

demo: $(STAMP) ## three structures through both models, side by side
	@exec $(BIN)/forcegate demo

test: $(STAMP) ## install what is missing, then run every test
	@tests/run

loadtest: $(STAMP) ## perf_analyzer over gRPC: CSV, table and plot in var/loadtest
	@exec $(BIN)/python -m benchmarks.loadtest

bench: $(STAMP) ## served over in process and over peers: JSON, tables and plots in benchmarks/results; docs/benchmarks.md
	@exec $(BIN)/python -m benchmarks.bench

lint: $(STAMP) ## formatting, style and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

docs: $(STAMP) ## write the generated documents anew
	@$(BIN)/python -m docs.generate && $(BIN)/python -m frontend.documentation && $(BIN)/python -m exporters.repository && $(BIN)/python -m docker.generate

site: environments/docs/.made ## the documentation as a site, in var/site
	@NO_MKDOCS_2_WARNING=1 environments/docs/bin/mkdocs build --quiet && echo "open var/site/index.html"

audit: environments/audit/.made ## every pinned package against the published advisories; needs the network
	@$(BIN)/python -m exporters.audit

# Of tools that have nothing to do with the service: docs, audit, deploy.
environments/%/.made: requirements/%.txt $(STAMP)
	@echo "environment $*: installing $$(grep -c == $<) pinned packages"
	@environments/uv/bin/uv venv --quiet --clear --python $$($(PYTHON) -c 'import sys; print(sys.executable)') environments/$*
	@environments/uv/bin/uv pip install --python environments/$*/bin/python --quiet -r $< \
	  || { echo "The packages of requirements/$*.txt could not be installed: is the package registry reachable?"; exit 1; }
	@touch $@

clean: ## remove everything that was built
	rm -rf environments var

$(STAMP): pyproject.toml requirements/gateway.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: no $(PYTHON) on this machine. Set PYTHON=... to the one to use."; exit 1; }
	@echo "environment uv: installing uv $(UV_VERSION)"
	@test -x environments/uv/bin/uv || { $(PYTHON) -m venv environments/uv && environments/uv/bin/pip install --quiet uv==$(UV_VERSION) \
	  || { echo "uv could not be installed: is the package registry reachable?"; rm -rf environments/uv; exit 1; }; }
	@echo "environment gateway: installing $$(grep -c == requirements/gateway.txt) pinned packages"
	@environments/uv/bin/uv venv --quiet --clear --python $$($(PYTHON) -c 'import sys; print(sys.executable)') environments/gateway
	@environments/uv/bin/uv pip install --python $(BIN)/python --quiet -r requirements/gateway.txt \
	  || { echo "The gateway's packages could not be installed: is the package registry reachable, and is there room on the disk?"; exit 1; }
	@environments/uv/bin/uv pip install --python $(BIN)/python --quiet --no-deps --editable . \
	  || { echo "Forcegate could not be installed into environments/gateway: is the package registry reachable, and is there room on the disk?"; exit 1; }
	@touch $@
