# Waybill. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# One way of building for all but the race detector, so that dependencies are compiled once.
export CGO_ENABLED := 0

# Linters, generators and the S3 server of development are of a module of their own.
TOOLS   := internal/tools
TOOL    := go tool -modfile=$(TOOLS)/go.mod
# What drives a browser is of another one.
BROWSER := test/browser
# What reads PromQL, of a third.
PROMQL  := test/promql
# What this machine's containers are composed with.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
# Everything but what tools generate.
GOFILES  = $(wildcard $(shell git ls-files --cached --others --exclude-standard -- '*.go' ':!*.pb.go'))

# Flags of `waybill dev` for make run, and of `go test` for make test.
ARGS      ?=
TESTFLAGS ?=
PKGS      ?= ./...
# REPORT= names the directory of the report that make test-browser opens, instead of a new one.
REPORT    ?=
# RACE= runs the tests without the race detector, which needs a C compiler.
RACE      ?= -race

##@ Use

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: need-postgres build bin/versitygw ## Run the whole system on this machine (flags: ARGS='--once 20000')
	exec bin/waybill dev $(ARGS)

.PHONY: test
test: need-postgres need-cc need-faketime need-curl bin/versitygw ## Run all tests (some: PKGS=./pipeline TESTFLAGS='-run Settle')
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw RACE='$(RACE)' TESTFLAGS='$(TESTFLAGS)' scripts/test $(PKGS)

.PHONY: test-browser
test-browser: need-postgres need-chromium build bin/versitygw ## Open a report in Chromium and look at what it shows (another: REPORT=.waybill/bench/quick)
	WAYBILL_BIN=$(CURDIR)/bin/waybill WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw WAYBILL_REPORT=$(abspath $(REPORT)) \
		go test -C $(BROWSER) -count=1 -timeout 15m $(TESTFLAGS) ./...

.PHONY: build
build: need-go ## Build ingest, forwarder, janitor and waybill into bin/
	go build -o bin/ ./cmd/...

bin/versitygw: $(TOOLS)/go.mod $(TOOLS)/go.sum | need-go
	@echo 'building the S3 server of development (once, about two minutes)'
	go build -C $(TOOLS) -buildvcs=false -o $(CURDIR)/$@ github.com/versity/versitygw/cmd/versitygw
	@touch $@

.PHONY: deps
deps: need-go need-postgres need-cc need-faketime need-curl need-chromium ## Install what is missing, where that is allowed, and download the modules
	go list -deps -test ./... >/dev/null
	go list -modfile=$(TOOLS)/go.mod -deps tool >/dev/null
	go list -C $(BROWSER) -deps -test ./... >/dev/null
	go list -C $(PROMQL) -deps -test ./... >/dev/null

.PHONY: need-go need-postgres need-cc need-faketime need-curl need-chromium
need-postgres need-cc need-faketime need-curl need-chromium: need-go
need-go need-postgres need-cc need-faketime need-curl need-chromium: need-%:
	@RACE='$(RACE)' ARGS='$(ARGS)' scripts/need $*

##@ Check

.PHONY: ci
ci: ## Run what CI runs
	.ci/run

.PHONY: lint
lint: fmt-check vet staticcheck script-check promql-check generate-check mod-check ## Run all checks that are not tests

.PHONY: vet
vet: need-go ## Look for mistakes with go vet
	go vet ./...
	go vet -C $(BROWSER) ./...
	go vet -C $(PROMQL) ./...

.PHONY: staticcheck
staticcheck: need-go ## Look for mistakes with staticcheck
	$(TOOL) staticcheck ./...
	cd $(BROWSER) && go tool -modfile=$(CURDIR)/$(TOOLS)/go.mod staticcheck ./...
	cd $(PROMQL) && go tool -modfile=$(CURDIR)/$(TOOLS)/go.mod staticcheck ./...

.PHONY: fmt
fmt: need-go ## Format the Go code
	$(TOOL) gofumpt -w $(GOFILES)

.PHONY: fmt-check
fmt-check: need-go ## Fail if a Go file is not formatted
	@unformatted=$$($(TOOL) gofumpt -l $(GOFILES)); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; fi

.PHONY: script-check
script-check: ## Fail if a shell script does not parse
	@for script in .ci/run scripts/*; do bash -n "$$script"; done

.PHONY: promql-check
promql-check: need-go ## Hold dashboards and alert rules against docs/metrics.md and the runbook
	go test -C $(PROMQL) -count=1 ./...
	@! command -v promtool >/dev/null || promtool check rules deploy/prometheus/alerts.yaml

.PHONY: mod-check
mod-check: need-go ## Fail if a module file is not tidy or a module's content has changed
	go mod tidy -diff
	go mod tidy -C $(BROWSER) -diff
	go mod verify

.PHONY: mutants
mutants: need-postgres bin/versitygw ## Break each invariant on purpose and see its test fail (one: ONLY=order)
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw go run ./test/mutants $(ONLY)

.PHONY: faults
faults: need-postgres need-faketime bin/versitygw ## Break the running system in 50 random ways and count what is lost (flags: ARGS='--seed 7 --runs 1')
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw go run ./test/faults --runs 50 --jobs 2 $(ARGS)

.PHONY: isolation
isolation: need-postgres bin/versitygw ## Measure what a sink that is down does to the other one (flags: ARGS='--pairs 1')
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw go run ./test/faults isolation --down ingress $(ARGS)
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw go run ./test/faults isolation --down archive $(ARGS)

.PHONY: cre
cre: need-postgres bin/versitygw ## Run workflows with an event a second each and watch the tables (flags: ARGS='--for 10m')
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw go run ./test/cre $(ARGS)

.PHONY: cre-load
cre-load: need-postgres bin/versitygw ## Find the highest rate that 20 workflows keep up (flags: ARGS='--for 1m')
	WAYBILL_VERSITYGW=$(CURDIR)/bin/versitygw go run ./test/cre load $(ARGS)

.PHONY: compose-test
compose-test: need-go ## Bring up compose.yaml for real, scale it, kill containers, check both sinks, take it down
	COMPOSE='$(COMPOSE)' go run ./test/compose $(ARGS)

.PHONY: bench
bench: need-postgres build bin/versitygw ## Measure: quick and targets, with reports in .waybill/bench (flags: ARGS='--keep-logs')
	bin/waybill bench quick --out .waybill/bench/quick $(ARGS)
	bin/waybill bench targets --out .waybill/bench/targets $(ARGS)

.PHONY: cover
cover: ## Show the statement coverage of the last make test, function by function
	@go tool cover -func=.cache/cover.out
	@scripts/coverage .cache/cover.out

##@ Change

.PHONY: generate
generate: need-go ## Generate the code of the protocols, and docs/cli.md
	$(TOOL) buf generate
	go generate ./cmd/waybill

.PHONY: generate-check
generate-check: need-go ## Fail if generated code is not what make generate makes
	@rm -rf .cache/generated
	@mkdir -p .cache/generated
	@$(TOOL) buf lint
	@$(TOOL) buf generate -o .cache/generated
	@mkdir -p .cache/generated/docs
	@go run ./cmd/waybill reference --out .cache/generated/docs/cli.md
	@cd .cache/generated && find . -type f | sort | while read -r file; do \
		cmp -s "$$file" "$(CURDIR)/$$file" || { echo "$$file is not what make generate makes"; exit 1; }; done

.PHONY: clean
clean: ## Remove what was built; the data of make run stays in .waybill
	rm -rf bin .cache

##@ Containers

.PHONY: image
image: ## Build the container image
	docker build -t waybill:dev .

.PHONY: up
up: ## Start everything in containers (flags: ARGS='--scale forwarder=3')
	$(COMPOSE) up --build $(ARGS)

.PHONY: down
down: ## Stop the containers; their volumes stay
	$(COMPOSE) down
