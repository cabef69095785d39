# Targets for people; CI calls `make check`.
SHELL = /bin/sh
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
ABI = 0
RELEASE = target/release
CARGO ?= cargo
PHP ?= php
# What every server that we support must keep.
CONTRACTS = --test lock_contract --test lock_waiting --test lock_tracking --test lock_renewal --test lock_errors \
  --test faults --test sweep_contract --test sweep_races
MAN = $(PREFIX)/share/man/man1
BASH = $(PREFIX)/share/bash-completion/completions
ZSH = $(PREFIX)/share/zsh/site-functions
FISH = $(PREFIX)/share/fish/vendor_completions.d
PHP_EXTENSIONS = $(shell $(PHP) -r 'echo PHP_EXTENSION_DIR;')
PHP_MODS = /etc/php/$(shell $(PHP) -r 'echo PHP_MAJOR_VERSION, ".", PHP_MINOR_VERSION;')/mods-available
EXTENSION = $(CURDIR)/$(RELEASE)/libtagsweep_php.so
# What a shell starts in the background ignores INT and QUIT, and all that it starts; tests send them.
TEST = env --default-signal $(CARGO) test --locked
# contracts(SUITE): on the servers of a suite
contracts = for server in redis valkey; do \
	  TAGSWEEP_TEST_SERVER=$(CURDIR)/target/packages/$$server-$(1)/server \
	  $(TEST) $(CONTRACTS) || exit 1; \
	done
# Tests wait for leases and graces most of their time.
export RUST_TEST_THREADS ?= 6

.PHONY: help deps build demo test test-next check bench install put install-php put-php uninstall header fmt clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | column -t -s '|'

deps: ## install what is missing to build and test (Debian packages)
	@tools/deps.sh

build: deps ## build CLI, C library and PHP extension into target/release
	@$(CARGO) build --release --locked --quiet -p tagsweep-cli
	@$(CARGO) build --release --locked --quiet -p tagsweep-capi
	@$(CARGO) build --release --locked --quiet -p tagsweep-php

demo: build ## clean a tagged cache with the PHP command, on a private server or REDIS_URL
	@tools/demo.sh

test: build ## install what is missing, build, and run every test
	@tools/packages.sh
	@$(TEST) --workspace --exclude tagsweep-php
	@$(call contracts,trixie)
	@env --default-signal $(PHP) -d extension=$(EXTENSION) -d tagsweep.alias_namespace='YourFramework\Cache' \
	  /usr/bin/phpunit --configuration php/tests/phpunit.xml

test-next: build ## what every server must keep, on the newest ones: Debian's unstable, not part of `make test`
	@NEXT=1 tools/packages.sh
	@$(call contracts,sid)

check: deps ## what CI runs: format, lints, documentation, tests
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked --quiet -- -D warnings
	@RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --locked --quiet -p tagsweep
	@$(MAKE) --no-print-directory test

bench: build ## locks and sweeps side by side with their peers; SIZE=tags (default 20000)
	@tools/packages.sh
	@$(CARGO) bench --locked --quiet
	@$(PHP) -d extension=$(EXTENSION) benches/peers/locks.php
	@benches/peers/run.sh $(or $(SIZE),20000)

header: ## write include/tagsweep.h anew
	@UPDATE_HEADER=1 $(CARGO) test --locked --quiet -p tagsweep-capi --test header

install: ## install CLI, man pages, completions, C library and header into PREFIX (default /usr/local)
	@test -f $(RELEASE)/libtagsweep.so || { echo 'run `make build` first' >&2; exit 1; }
	@umask 022; $(MAKE) --no-print-directory put
	@test -n "$(DESTDIR)" || ldconfig 2>/dev/null || echo 'run `ldconfig` as root, or set LD_LIBRARY_PATH'

put:
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 755 $(RELEASE)/tagsweep $(DESTDIR)$(PREFIX)/bin/tagsweep
	$(RELEASE)/tagsweep generate man $(DESTDIR)$(MAN)
	$(RELEASE)/tagsweep generate bash $(DESTDIR)$(BASH)
	$(RELEASE)/tagsweep generate zsh $(DESTDIR)$(ZSH)
	$(RELEASE)/tagsweep generate fish $(DESTDIR)$(FISH)
	install -m 644 include/tagsweep.h $(DESTDIR)$(PREFIX)/include/tagsweep.h
	install -m 644 $(RELEASE)/libtagsweep.a $(DESTDIR)$(LIBDIR)/libtagsweep.a
	install -m 755 $(RELEASE)/libtagsweep.so $(DESTDIR)$(LIBDIR)/libtagsweep.so.$(VERSION)
	ln -sf libtagsweep.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libtagsweep.so.$(ABI)
	ln -sf libtagsweep.so.$(ABI) $(DESTDIR)$(LIBDIR)/libtagsweep.so
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@VERSION@|$(VERSION)|' capi/tagsweep.pc.in \
	  > $(DESTDIR)$(LIBDIR)/pkgconfig/tagsweep.pc

install-php: ## install the PHP extension where PHP=php looks for it, and its ini file where Debian has those
	@test -f $(EXTENSION) || { echo 'run `make build` first' >&2; exit 1; }
	@umask 022; $(MAKE) --no-print-directory put-php

put-php:
	install -d $(DESTDIR)$(PHP_EXTENSIONS)
	install -m 644 $(EXTENSION) $(DESTDIR)$(PHP_EXTENSIONS)/tagsweep.so
	@ini=$(DESTDIR)$(PHP_MODS)/tagsweep.ini; if [ -d $(PHP_MODS) ]; then \
	  install -d $(DESTDIR)$(PHP_MODS) && { test -e $$ini || echo 'extension=tagsweep.so' >$$ini; } && \
	  echo 'now run: phpenmod tagsweep'; \
	else echo 'now add to php.ini: extension=tagsweep.so'; fi

uninstall: ## remove what `make install` and `make install-php` put in place
	rm -f $(DESTDIR)$(PREFIX)/bin/tagsweep $(DESTDIR)$(PREFIX)/include/tagsweep.h \
	  $(DESTDIR)$(LIBDIR)/libtagsweep.* $(DESTDIR)$(LIBDIR)/pkgconfig/tagsweep.pc \
	  $(DESTDIR)$(MAN)/tagsweep.1 $(DESTDIR)$(MAN)/tagsweep-*.1 $(DESTDIR)$(BASH)/tagsweep.bash \
	  $(DESTDIR)$(ZSH)/_tagsweep $(DESTDIR)$(FISH)/tagsweep.fish
	@if command -v $(PHP) >/dev/null; then \
	  test -n "$(DESTDIR)" || ! command -v phpdismod >/dev/null || phpdismod tagsweep 2>/dev/null || true; \
	  rm -f $(DESTDIR)$(PHP_EXTENSIONS)/tagsweep.so $(DESTDIR)$(PHP_MODS)/tagsweep.ini; \
	fi

fmt: ## format the sources
	@$(CARGO) fmt --all

clean: ## remove what was built
	@$(CARGO) clean
