# The tasks of this project. `make` or `make help` lists them; each is a command that you can also
# run by hand.

.DEFAULT_GOAL := help
.PHONY: help demo dev build test lint format vuln ci fuzz chaos bench compare docs links \
	release-check release clean

# The linters have a go.mod of their own, so that programs which import this module don't get them.
TOOL := go tool -modfile=tools/go.mod

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## See a key rotate while clients keep signing
	go run ./cmd/omi demo

dev: ## Run broker, registry, Auth and Billing on this machine until Ctrl-C
	go run ./cmd/omi dev

build: ## Build the four programs into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/ ./cmd/...

test: ## Run the tests, the long ones in a short form (OMI_TEST_LONG=1: in full)
	go test ./...
	@[ -n "$$OMI_TEST_LONG" ] || echo 'Long tests ran in a short form or were skipped; OMI_TEST_LONG=1 runs them in full.'

lint: ## Run the linters
	$(TOOL) golangci-lint run

format: ## Format the Go files
	gofmt -w $$(git ls-files '*.go')

vuln: ## Look for known vulnerabilities in what is used
	$(TOOL) govulncheck ./...

ci: ## Check a change as CI does: all tests in full, -race, linters, other languages
	.ci/run

fuzz: ## Fuzz every target for TIME=30s; PATTERN='FuzzIDs' selects targets
	.ci/fuzz $(or $(TIME),30s) '$(or $(PATTERN),.)'

chaos: ## Break real processes for TIME=10m and count losses; ENGINES=sqlite,postgres,cockroach
	go test ./internal/e2e -run 'TestChaos$$' -chaos.duration=$(or $(TIME),10m) -timeout 0 -v \
		$(if $(ENGINES),-chaos.engines=$(ENGINES))

bench: ## Measure the whole path; ARGS='--store postgres' are flags of `omi bench`
	go run ./cmd/omi bench $(ARGS)

compare: ## Compare Go benchmarks with those of BASE=HEAD~1; PATTERN='Parse' selects some
	.ci/compare $(or $(BASE),HEAD~1) '$(or $(PATTERN),.)'

docs: ## Read the packages in a browser; `go doc ./client` shows one in the terminal
	go doc -http

links: ## Check that every link between the pages leads somewhere
	go run ./.ci/links.go

release-check: ## Build a release twice, in two folders, and compare
	.ci/release-check

release: ## Build the archives of the current tag into dist/ (docs/releasing.md)
	.ci/goreleaser release --clean

clean: ## Remove what was built
	rm -rf bin dist
