# SPDX-License-Identifier: GPL-2.0
#
# Sourced by the tests of the tools in a virtual machine: what a test is.
#
# A test is a function test_NAME, of which every command must succeed. `expect`
# runs a command that is to end with a status; its output is in $out and $err.

number=0
out=/tmp/out err=/tmp/err why=/tmp/why

say() {
	echo "$*" >/dev/ttyS1
}

fail() {
	echo "$*" >$why
	return 1
}

expect() {
	local wanted=$1 status=0
	shift
	"$@" >$out 2>$err </dev/null || status=$?
	[ $status = $wanted ] ||
		fail "\`$*' ended with $status, not $wanted: $(head -c 300 $err | tr '\n' ';')"
}

# What the last command said, on either output.
said() {
	cat $out $err | grep -qF -- "$1" ||
		fail "\`$1' is missing in: $(cat $out $err | head -c 300 | tr '\n' ';')"
}

not_said() {
	! cat $out $err | grep -qF -- "$1" || fail "\`$1' is in the output"
}

# The host looks whether it is JSON.
json() {
	say "JSON $1 $(tr -d '\n' <$out)"
}

json_failure() {
	say "JSON $1 $(tr -d '\n' <$err)"
}

same() {
	cmp "$1" "$2" >/dev/null 2>&1 || fail "$1 and $2 differ"
}

run_tests() {
	local name
	for name; do
		number=$((number + 1))
		: >$why
		# Not in a condition, where the shell would ignore -e.
		(set -e; "test_$name")
		if [ $? = 0 ]; then
			say "ok $number $name"
		else
			say "not ok $number $name # $(head -c 500 $why | tr '\n' ' ')"
		fi
	done
}
