# Thin aliases: `make -n TARGET` shows the command, which works by itself in an activated .venv.

INVENTORY = inventories/local
# Goes to every playbook: make demo ARGS='-e local_host_ui_port=8081'
ARGS =
PYTHON = python3

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Ansible insists on UTF-8, and starts a second later where Python may not keep what it compiled.
export LC_ALL := C.UTF-8
unexport PYTHONDONTWRITEBYTECODE
# Borders would cut the lines of what molecule runs.
export MOLECULE_COMMAND_BORDERS := false

PLAYBOOK = ansible-playbook -i $(INVENTORY) $(ARGS)
PIP_SYNC = UV_SYSTEM_CERTS=1 uv pip sync --quiet --python .venv --require-hashes
PIP_COMPILE = UV_NO_CONFIG=1 uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

.PHONY: help demo demo-down site dev serve train full dashboards test lint unit molecule bench-provision bench-serving setup setup-dev lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / { printf "%-22s %s\n", $$1, $$2 }' Makefile

demo: setup  ## From nothing to an answered question, on a host made on this machine
	$(PLAYBOOK) playbooks/local_host.yml
	$(PLAYBOOK) site.yml --tags full,train --extra-vars training_only_when_missing=true
	$(PLAYBOOK) playbooks/summary.yml

demo-down: setup  ## Remove that host and everything on it
	$(PLAYBOOK) playbooks/local_host_absent.yml

site: setup  ## Make every host what the inventory says
	$(PLAYBOOK) site.yml

dev serve train full: setup  ## Apply one profile
	$(PLAYBOOK) site.yml --tags $@

dashboards: setup-dev  ## Write the dashboards that Grafana gets from their code
	python -m dashboards

test: setup-dev  ## Run every check and test, and say how long each took
	.ci/timed lint unit molecule

lint: setup-dev  ## Check style and types
	ansible-lint --offline
	yamllint --strict .
	ruff check
	ruff format --check
	mypy

unit: setup-dev  ## Run the tests that need no host
	pytest

molecule: setup-dev  ## Run the tests on a host of their own
	molecule test

bench-provision: setup  ## Measure clone to served prediction, and the second run
	.ci/bench-provision

bench-serving: setup-dev  ## Measure the model server beside MLflow's and MLServer
	.ci/bench-serving

setup: .venv/.setup  ## Make .venv with what the playbooks need

setup-dev: .venv/.setup-dev  ## Add what the tests need

lock: .venv/.uv  ## Resolve the requirements anew
	$(PIP_COMPILE) requirements-uv.in --output-file requirements-uv.txt
	$(PIP_COMPILE) requirements.in --output-file requirements.txt
	$(PIP_COMPILE) requirements-dev.in --output-file requirements-dev.txt

clean:  ## Remove .venv and the caches
	rm -rf .venv .*_cache

.venv/.uv: requirements-uv.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update && apt-get install --yes python3-venv; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements-uv.txt
	@touch $@

.venv/.setup: requirements.txt .venv/.uv
	$(PIP_SYNC) requirements.txt
	@rm -f .venv/.setup-dev && touch $@

# It holds all of requirements.txt, at the same versions.
.venv/.setup-dev: requirements-dev.txt .venv/.uv
	$(PIP_SYNC) requirements-dev.txt
	@touch .venv/.setup $@
