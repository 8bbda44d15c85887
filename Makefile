# Thin aliases: `make -n TARGET` shows the command, which works by itself in an activated .venv.

INVENTORY = inventories/local
# Goes to every playbook: make demo ARGS='-e local_host_ui_port=8081'
ARGS =
PYTHON = python3
# make down-volumes CONFIRM=yes, make restore CONFIRM=yes
CONFIRM =
# make token NAME=shop, make rotate NAME=postgres_password, make revoke NAME=shop DIGEST=3fa9,
# make promote NAME=code-search VERSION=3, make wheels NAME=wine VERSION=3
NAME =
DIGEST =
VERSION =

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Ansible insists on UTF-8, and starts a second later where Python may not keep what it compiled.
export LC_ALL := C.UTF-8
unexport PYTHONDONTWRITEBYTECODE
# Borders would cut the lines of what molecule runs.
export MOLECULE_COMMAND_BORDERS := false

PLAYBOOK = ansible-playbook -i $(INVENTORY) $(ARGS)
# Beside another inventory it gives each appliance PostgreSQL.
POSTGRES = -i inventories/postgres.yml
CONFIRMED = $(if $(CONFIRM),-e confirm=$(CONFIRM))
PIP_SYNC = UV_SYSTEM_CERTS=1 uv pip sync --quiet --python .venv --require-hashes
PIP_COMPILE = UV_NO_CONFIG=1 uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

.PHONY: help demo demo-down site dev postgres serve train monitoring full dev-postgres dev-full down down-volumes \
	status components logs shell-train promote wheels token tokens revoke rotate backup restore docker-build test-docker \
	dashboards test lint unit molecule bench-provision bench-serving bench-hostile bench-flavours bench-appliance setup \
	setup-dev lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z %-]*:.*## / { sub(/%/, "SERVICE", $$1); n = split($$1, names, " "); \
	  for (i = 1; i <= n; i++) printf "%-18s %s\n", names[i], $$2 }' Makefile

demo: setup  ## From nothing to an answered question, on a host made on this machine
	$(PLAYBOOK) playbooks/local_host.yml
	$(PLAYBOOK) site.yml --tags full,train --extra-vars training_only_when_missing=true
	$(PLAYBOOK) playbooks/summary.yml

demo-down: setup  ## Remove that host and everything on it
	$(PLAYBOOK) playbooks/local_host_absent.yml

site: setup  ## Make every host what the inventory says
	$(PLAYBOOK) site.yml

dev postgres serve train monitoring full: setup  ## Apply this profile
	$(PLAYBOOK) site.yml --tags $@

dashboards: setup-dev  ## Write the dashboards from their code
	python -m dashboards

dev-postgres: setup  ## Apply dev, with PostgreSQL as MLflow's database
	$(PLAYBOOK) $(POSTGRES) site.yml --tags dev,postgres

dev-full: setup  ## Apply full, with PostgreSQL as MLflow's database
	$(PLAYBOOK) $(POSTGRES) site.yml --tags full

down: setup  ## Stop everything and keep all data; any profile brings its services back
	$(PLAYBOOK) playbooks/down.yml

down-volumes: setup  ## Stop everything and delete all data but backups; asks, or CONFIRM=yes
	$(PLAYBOOK) playbooks/down_volumes.yml $(CONFIRMED)

status: setup  ## Show every unit and the served model; fail when something that should be up is not
	$(PLAYBOOK) playbooks/status.yml

components: setup  ## Show what the images are made of and which holes are known, now, and fetch the lists
	$(PLAYBOOK) playbooks/components.yml

# The playbook writes the script, which has the terminal that Ansible cannot give.
logs: setup  ## Follow the journal; without following: ARGS='-e follow=false -e lines=500'
	$(PLAYBOOK) playbooks/logs.yml
	@.local/logs

logs-%: setup  ## Follow the journal of one service: logs-mlflow
	$(PLAYBOOK) playbooks/logs.yml -e service=$*
	@.local/logs

restart-%: setup  ## Restart one service and wait until it is healthy: restart-mlflow
	$(PLAYBOOK) playbooks/restart.yml -e service=$*

shell-train: setup  ## Open a shell in the training container
	$(PLAYBOOK) playbooks/shell_train.yml --tags train
	@.local/shell-train

promote: setup  ## Sign a version and make it the champion: make promote NAME=code-search VERSION=3
	$(PLAYBOOK) playbooks/promote.yml -e model='$(NAME)' -e version='$(VERSION)'

wheels: setup  ## Bring the wheels of a version to a host without network: make wheels NAME=wine VERSION=3
	$(PLAYBOOK) playbooks/wheels.yml -e model='$(NAME)' -e version='$(VERSION)'

token: setup  ## Make a token of the model API and show it, once: make token NAME=shop
	$(PLAYBOOK) playbooks/token.yml -e client='$(NAME)'

tokens: setup  ## List whose tokens the model API takes
	$(PLAYBOOK) playbooks/tokens.yml

revoke: setup  ## Revoke the tokens of a client, or one: make revoke NAME=shop DIGEST=3fa9
	$(PLAYBOOK) playbooks/revoke.yml -e client='$(NAME)' -e digest='$(DIGEST)'

rotate: setup  ## Make a secret of the host anew, for all who have it: make rotate NAME=postgres_password
	$(PLAYBOOK) playbooks/rotate.yml --tags full -e secret='$(NAME)'

backup: setup  ## Back up everything that cannot be made again
	$(PLAYBOOK) playbooks/backup.yml

restore: setup  ## Bring back a backup; asks when the host has data, or CONFIRM=yes
	$(PLAYBOOK) playbooks/restore.yml $(CONFIRMED)

docker-build: setup  ## Provide all images and start nothing
	$(PLAYBOOK) playbooks/images.yml --tags full,train

test-docker: setup  ## Check that what runs works: every unit, every endpoint, an answered question
	$(PLAYBOOK) playbooks/status.yml playbooks/summary.yml

test: setup-dev  ## Run every check and test, and say how long each took
	.ci/timed lint unit molecule

lint: setup-dev  ## Check style and types
	ansible-lint --offline
	yamllint --strict .
	ruff check
	ruff format --check
	mypy

unit: setup-dev  ## Run the tests that need no host; those that start servers run as on a slow machine
	pytest -m 'not timing'
	.ci/beside-load pytest -m timing

molecule: setup-dev  ## Run the tests on hosts of their own
	molecule test --all

bench-provision: setup  ## Measure clone to served prediction, and the second run
	.ci/bench-provision

bench-serving: setup-dev  ## Measure the model server beside MLflow's and MLServer
	.ci/bench-serving

bench-hostile: setup-dev  ## Measure small requests beside hostile ones at the model server
	.ci/bench-hostile

bench-flavours: setup-dev  ## Measure models of many flavours to their first answer, each with the packages it brings
	.ci/bench-flavours

bench-appliance: setup  ## Measure the model API through nginx beside the model server itself, on the demo's host
	.ci/bench-appliance

setup: .venv/.setup  ## Make .venv with what the playbooks need

setup-dev: .venv/.setup-dev  ## Add what the tests need

lock: .venv/.uv  ## Resolve the requirements anew
	$(PIP_COMPILE) requirements-uv.in --output-file requirements-uv.txt
	$(PIP_COMPILE) requirements.in --output-file requirements.txt
	$(PIP_COMPILE) app/requirements-environments.in --output-file app/requirements-environments.txt
	$(PIP_COMPILE) requirements-dev.in --output-file requirements-dev.txt
	$(PIP_COMPILE) molecule/production/requirements-sslyze.in --output-file molecule/production/requirements-sslyze.txt
	$(PIP_COMPILE) roles/components/files/requirements.in --output-file roles/components/files/requirements.txt

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
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && test -d /usr/share/javascript/dygraphs \
	  || { apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver libjs-dygraphs; }
	$(PIP_SYNC) requirements-dev.txt
	@touch .venv/.setup $@
