# SPDX-License-Identifier: GPL-2.0
#
# For people: `make help` says what there is. (The kernel's build reads Kbuild,
# which it prefers to a Makefile.)
#
# Everything runs inside the project's own toolchain by scripts/enter, which
# makes it when it is not there.

ENTER := scripts/enter
export ARCH KSRC KSRC_72 LUO_DEBIAN LUO_IMPL LUO_MEMFD FRAGMENT FILE FROM GUEST LAST T LUO_TOOLCHAIN LUO_JOBS LUO_KEEP LUO_SEEDS LUO_LONG B C M DESTDIR PREFIX

empty :=
space := $(empty) $(empty)
# Paths of the user's are made whole here, and bound into the toolchain's root.
ifneq ($(KSRC),)
override KSRC := $(abspath $(KSRC))
endif
ifneq ($(KSRC_72),)
override KSRC_72 := $(abspath $(KSRC_72))
endif
ifneq ($(FRAGMENT),)
override FRAGMENT := $(abspath $(FRAGMENT))
endif
# One a line.
define LUO_BIND
$(subst $(space),
,$(wildcard $(KSRC) $(KSRC_72) $(FRAGMENT)))
endef
export LUO_BIND

.DEFAULT_GOAL := help
.PHONY: help run test test-long mutants miri bench docs image ksrc check patches deb install install-tree uninstall-tree clean \
	distclean

help:
	@sed -n 's/^#: \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

#: make run [FILE=path]         one live update in QEMU, step by step, with a
#:                              file's bytes carried through it
#: make run FROM=7.2            the same from a stock Linux 7.2, and back to it
#: make run GUEST=1             two virtual machines run on while the kernel of their host
#:                              changes; with FROM=7.2 from that one, and back
#: make test [T=patterns]       the whole test suite, or the tests whose names
#:                              match; the last line is `N passed, N failed,
#:                              N skipped'
#: make test-long               the same, also on debug kernels,
#:                              all of it on one with what real machines have,
#:                              and with 200 corruption seeds
#: make bench [B=pattern]       what live updates cost, in instructions, beside the
#:                              C implementation; all rows of the table, or those
#:                              whose names match
#: make miri                    the tests of abi/ under Miri, if the host's rustup has
#:                              a nightly toolchain with it; takes an hour
#: make mutants [M=name]        shows that the tests can fail: on code that is broken
#:                              on purpose, as selftests/mutants/ says
#: make check [C=part]          format, lints, documentation and patches, all without a
#:                              warning; the steps whose names have the part in them
#: make docs                    the documentation as HTML; the last line is its folder
#: make image [LUO_IMPL=c] [FRAGMENT='file...']
#:                              a kernel; the last line is its bzImage. With the
#:                              stock C implementation; with more options
#: make deb                     Debian packages of the tools; the last line is their folder
#: make install DESTDIR=dir     installs the tools there, under PREFIX (/usr)
#: make patches                 the overlay as a series of patches, signed by who git says you
#:                              are; the last line is their folder
#: make ksrc                    the unpatched kernel source; the last line is its path
#: make install-tree KSRC=dir   puts the overlay into a Linux 7.3 tree
#: make uninstall-tree KSRC=dir takes it out again
#: make clean                   removes what was built (not toolchain and sources)
#: make distclean               removes the whole cache
#:
#: ARCH=arm64 is for `run', `test' and `image', kernels and virtual machines of that architecture;
#: and for `deb' and `install', programs for it.
#: KSRC=dir builds from that Linux 7.3 tree, KSRC_72=dir takes that Linux 7.2.
#: LUO_DEBIAN=address fetches the kernel source from that Debian archive.
#: LUO_TOOLCHAIN=host uses the host's compilers and QEMU. LUO_JOBS=n limits the
#: processors in use. LUO_SEEDS=n has the corruption tests try n seeds (24 if not
#: said). LAST=commit is what the tests take for the last release, else the newest tag.
#: The cache is $XDG_CACHE_HOME/luo, by default ~/.cache/luo.

run patches:
	@scripts/$@

test:
	@scripts/test

test-long:
	@LUO_LONG=1 LUO_SEEDS=$(or $(LUO_SEEDS),200) scripts/test

# No stable toolchain has it.
miri:
	@cd abi && MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test \
		--target-dir "$${XDG_CACHE_HOME:-$$HOME/.cache}/luo/cargo-target/miri$(subst /,-,$(CURDIR))"

check deb docs image ksrc mutants:
	@$(ENTER) scripts/$@

# Guests run in a host of Debian's, which is made outside.
bench:
	@case "$(B)" in pause*) scripts/debian sid+guests >/dev/null ;; esac
	@$(ENTER) scripts/bench

install:
	@[ -n "$(DESTDIR)" ] || { echo "say where to: make install DESTDIR=dir" >&2; exit 2; }
	@mkdir -p "$(DESTDIR)"
	@LUO_BIND_RW="$(abspath $(DESTDIR))" DESTDIR="$(abspath $(DESTDIR))" $(ENTER) scripts/install

# These two need nothing but Python, so the host's will do.
install-tree uninstall-tree:
	@[ -n "$(KSRC)" ] || { echo "say which tree: make $@ KSRC=dir" >&2; exit 2; }
	@if command -v python3 >/dev/null; then run=; else run=$(ENTER); fi; \
		LUO_BIND_RW="$(KSRC)" $$run scripts/overlay $(@:-tree=) "$(KSRC)"

clean:
	@scripts/clean build tree run log cargo-target last mutants

distclean:
	@scripts/clean all
