# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by the shell scripts: where things are, how messages look, the lock.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LUO_CACHE=${LUO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/luo}
export REPO LUO_CACHE

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Lets one process at a time make things in the cache. The lock goes with the
# process (and the children that hold descriptor 9), so none is ever left over.
lock() {
	[ -z "${LUO_LOCKED:-}" ] || return 0	# by the process that called
	mkdir -p "$LUO_CACHE"
	exec 9>"$LUO_CACHE/lock"
	flock -n 9 || { say "another run is making things in $LUO_CACHE, waiting for it"; flock 9; }
}

unlock() { [ -n "${LUO_LOCKED:-}" ] || exec 9>&-; }

# Says that the cache is in use, as long as this process or a child of it lives:
# what runs without the lock must not have the cache cleared away under it.
use() {
	mkdir -p "$LUO_CACHE"
	exec 8>"$LUO_CACHE/use"
	flock -s 8
}

# The Debian mirror that apt uses here; empty if its lists do not tell.
debian_mirror() {
	local codename format=$'$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)\t$(REPO_URI)'
	command -v apt-get >/dev/null || return 0
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	apt-get indextargets --format "$format" 'Created-By: Packages' 2>/dev/null |
		awk -F '\t' -v codename="$codename" '
			$2 == "main" && ($1 == codename || $1 == "stable") &&
			($3 == "Debian" || $3 == "") { print $4; exit }'
}

# Options with which apt in the new root goes through the host's proxy.
host_proxy() {
	local scheme proxy
	command -v apt-config >/dev/null || return 0
	for scheme in http https; do
		eval "$(apt-config shell proxy "Acquire::$scheme::Proxy")"
		[ -z "${proxy:-}" ] || printf '%s\n' "--aptopt=Acquire::$scheme::Proxy \"$proxy\""
		proxy=
	done
}
