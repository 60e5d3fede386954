# SPDX-License-Identifier: GPL-2.0
"""Tests that need no virtual machine: the crates', and rules about sources and objects."""

import os
import re
import shutil
import subprocess
import tomllib
import unittest
from pathlib import Path

import kernel
import layers
import mutants
import overlay
import programs
import series
from common import CACHE, REPO, Failed, quiet, run
from report import Results

# The C files that CONFIG_LIVEUPDATE_C and CONFIG_LIVEUPDATE_MEMFD_C stand for.
C_CORE = {f"kernel/liveupdate/{name}.o"
          for name in ("kho_block", "luo_core", "luo_file", "luo_flb", "luo_session")}
C_MEMFD = {"mm/memfd_luo.o"}


def crates(results: Results) -> None:
    """`cargo test` of the workspace, each test counted."""
    group = "host"
    if not results.may_want(group):
        return
    command = programs.cargo("test", "--workspace", "--no-fail-fast")
    # Built first, as that can fail by itself and takes its time.
    try:
        run([*command, "--no-run"], "building the crates' tests", CACHE / "log/cargo-test.log",
            step=r"^ +(Compiling|Downloaded)", cwd=REPO)
    except Failed as why:
        results.verdict(f"{group}/build", str(why))
        return
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    crate, failed, details = "?", [], dict[str, list[str]]()
    current = None
    for line in process.stdout or ():
        line = line.rstrip()
        if match := re.match(r"\s+Running (?:unittests )?\S+ \(.*/([\w-]+)-[0-9a-f]+\)", line):
            crate = match[1]
        elif match := re.match(r"\s+Doc-tests (\S+)", line):
            crate = f"{match[1]}/doc"
        elif match := re.match(r"test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", line):
            name = f"{group}/{crate}/{match[1].replace(' ', '-')}"
            if match[2] == "ok":
                results.add(name, group=group)
            elif match[2] == "ignored":
                results.skip(name, "marked as to be ignored")
            else:
                failed.append((name, f"{crate}/{match[1]}"))
        elif match := re.match(r"---- (.+) stdout ----", line):
            current = details.setdefault(f"{crate}/{match[1]}", [])
        elif line.startswith(("failures:", "test result:")):
            current = None
        elif current is not None:
            current.append(line)
    process.wait()
    for name, key in failed:
        results.add(name, details.get(key) or ["failed"], group=group)
    if process.returncode and not failed:
        results.verdict(f"{group}/cargo-test", [f"cargo test ended with {process.returncode}"])


# ---- the scripts themselves ----

class Reported(unittest.TestResult):
    """Passes each result on."""

    def __init__(self, results: Results):
        super().__init__()
        self.results = results
        self.trouble: dict[str, str] = {}

    def addError(self, test, err):  # noqa: N802
        super().addError(test, err)
        self.trouble[test] = self.errors[-1][1]

    def addFailure(self, test, err):  # noqa: N802
        super().addFailure(test, err)
        self.trouble[test] = self.failures[-1][1]

    def addSubTest(self, test, subtest, err):  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err:
            self.trouble[test] = str(err[1])

    def stopTest(self, test):  # noqa: N802
        super().stopTest(test)
        name = test.id().split(".")[-1].removeprefix("test_").replace("_", "-")
        self.results.add(f"source/scripts/{name}", self.trouble.get(test), group="source/scripts")


def scripts(results: Results) -> None:
    """What the suite itself decides (test_scripts.py)."""
    if results.asks_for("source/scripts"):
        unittest.defaultTestLoader.loadTestsFromName("test_scripts").run(Reported(results))


# ---- unsafe ----

TOKEN = re.compile(
    r"""(?P<skip>//[^\n]*|b?r(?P<hashes>\#*)".*?"(?P=hashes)|[bc]?"(?:\\.|[^"\\])*"|"""
    r"""b?'(?:\\.[^']*|[^'\\])'|(?P<block>/\*))|(?P<word>[A-Za-z_]\w*)""", re.DOTALL)

# An attribute that lifts the ban, unless for a module of the wrapper layer.
LIFTED = re.compile(r"\b(allow|expect|warn)\s*\(\s*$")
FOR_WRAPPER = re.compile(r"\s*\)\]\s*(pub(\(\w+\))?\s+)?mod ffi;")


def unsafe_lines(source: str) -> list[int]:
    """Lines on which the keyword `unsafe` is used, not written or talked about."""
    found, at = list[int](), 0
    while match := TOKEN.search(source, at):
        at = match.end()
        if match["block"]:
            depth = 1               # these nest
            while depth:
                mark = re.compile(r"/\*|\*/").search(source, at)
                if not mark:
                    return found
                depth += 1 if mark[0] == "/*" else -1
                at = mark.end()
        elif match["word"] == "unsafe":
            found.append(source.count("\n", 0, match.start()) + 1)
        elif match["word"] == "unsafe_code" and LIFTED.search(source[:match.start()]) \
                and not FOR_WRAPPER.match(source[match.end():]):
            found.append(source.count("\n", 0, match.start()) + 1)
    return found


# An argument that does not say what it stands on.
BARE = re.compile(r"^ *// (?:SAFETY|INVARIANT): (?:By the (?:type )?(?:requirement|invariant)s? of (?:this )?"
                  r"[\w`:]+|As (?:above|before)|See above)\.\n(?! *// (?!SAFETY|INVARIANT))", re.MULTILINE)


def bare_arguments(source: str) -> list[int]:
    """Lines on which an argument for `unsafe` names no requirement and no invariant."""
    return [source.count("\n", 0, match.start()) + 1 for match in BARE.finditer(source)]


def wrapper_layer(path: Path) -> bool:
    """The only home of `unsafe`."""
    return path.parts[:2] == ("rust", "kernel") or path.parts[0] == "ffi"


def unsafe_rule(results: Results) -> None:
    name = "source/unsafe-only-in-wrappers"
    if results.wants(name):
        # What runs in the kernel: the tests are programs.
        sources = [path for place, path in overlay.files().items()
                   if path.suffix == ".rs" and not place.is_relative_to(overlay.KSELFTEST)]
        sources += (REPO / "abi").rglob("*.rs")
        trouble = []
        for path in sorted(set(sources)):
            relative = path.relative_to(REPO)
            if wrapper_layer(relative) or "target" in relative.parts:
                continue
            trouble += [f"{relative}:{line}: unsafe" for line in unsafe_lines(path.read_text())]
        if not sources:
            trouble = ["there are no sources"]
        results.add(name, trouble)

    name = "source/unsafe-says-why"
    if results.wants(name):
        sources = [path for place, path in overlay.files().items()
                   if path.suffix == ".rs" and not place.is_relative_to(overlay.KSELFTEST)]
        trouble = [f"{path.relative_to(REPO)}:{line}: the argument names no requirement"
                   for path in sorted(set(sources)) for line in bare_arguments(path.read_text())]
        if bare_arguments("    // SAFETY: By the requirement of this function.\n    f()\n") != [1] \
                or bare_arguments("// SAFETY: By the type invariant `a` is `b`.\nf()\n"):
            trouble.append("bare arguments are not told from others")
        results.add(name, trouble)

    name = "source/unsafe-is-found"
    if results.wants(name):
        samples = {
            "fn f() { unsafe { g() } }": 1,
            "unsafe fn f() {}": 1,
            "// first\nunsafe impl Send for T {}": 1,
            "#[unsafe(no_mangle)] fn f() {}": 1,
            "#![allow(unsafe_code)]": 1,
            "#[allow(unsafe_code)] mod luo_file;": 1,
            "#[allow(unsafe_code)]\nmod ffi;": 0,
            "/* a /* b */ unsafe */ let c = 'u'; unsafe {}": 1,
            "let s = \"\\\"\"; unsafe {}": 1,
            "#![deny(unsafe_code)]\n#![forbid(unsafe_op_in_unsafe_fn)]": 0,
            "/// This is unsafe.\n/* unsafe */": 0,
            "pr_info!(\"unsafe\"); let r = r#\"\"unsafe\"\"#;": 0,
            "fn f<'a>(x: &'a str) { let q = '\"'; g(\"unsafe\") }": 0,
        }
        trouble = [f"{text!r}: {len(unsafe_lines(text))} found, not {count}"
                   for text, count in samples.items() if len(unsafe_lines(text)) != count]
        results.add(name, trouble)


def layers_rule(results: Results) -> None:
    """The orchestrator's modules import as the picture of its layers has it."""
    name = "source/layers"
    if results.wants(name):
        results.add(name, layers.trouble())


# ---- licences ----

# Texts that have no place for a comment, or that others have written.
NO_LICENCE = re.compile(r"(Cargo\.lock|\.svg|\.json|\.gitignore|\.pc\.in)$|/corpus/|/ABI/|"
                        r"/golden/.*\.bin$|/proptest-regressions/|"
                        r"^packaging/debian/|^LICENSES/|^target/|^\.git")

# The protocol of the agent, which clients under any licence are written after.
PROTOCOL = ("Documentation/userspace-api/liveupdate-agent.rst", "tools/luod/examples/plain_client.py")


def licence_of_crate(folder: Path) -> str:
    """What the manifest says of the crate that a folder is in."""
    while folder != REPO and not (folder / "Cargo.toml").exists():
        folder = folder.parent
    package = tomllib.loads((folder / "Cargo.toml").read_text()).get("package", {})
    return package.get("license", "GPL-2.0").replace("-only", "")


def licences(results: Results) -> None:
    """Each file names its licence near its top: that of its crate, else GPL-2.0. LICENSES/ has the text."""
    name = "source/licences"
    if not results.wants(name):
        return
    trouble = []
    named = set()
    for path in sorted(REPO.rglob("*")):
        relative = path.relative_to(REPO).as_posix()
        if not path.is_file() or NO_LICENCE.search(relative) or "/target/" in relative:
            continue
        with open(path, "rb") as file:
            head = file.read(400).decode(errors="replace")
        line = re.search(r"SPDX-License-Identifier: (.*?)(?: \*/| -->)?$", head, re.MULTILINE)
        wanted = "MIT OR Apache-2.0" if relative in PROTOCOL else licence_of_crate(path.parent)
        if not line:
            trouble.append(f"{relative} names no licence")
        elif line[1].replace("-only", "") != wanted and path.name != "Cargo.toml":
            trouble.append(f"{relative} has {line[1]}, not {wanted}")
        named |= set(re.split(r" (?:OR|WITH) ", wanted))
    trouble += [f"LICENSES/{one} is missing" for one in sorted(named)
                if not (REPO / "LICENSES" / one).is_file()]
    results.add(name, trouble)


# ---- what the library brings ----

def library(results: Results) -> None:
    """What a program gets with the crate `liveupdate`, unless it asks for more."""
    name = "source/library"
    if results.wants(name):
        tree = quiet(["cargo", "tree", "--locked", "--package", "liveupdate", "--edges", "normal",
                      "--prefix", "none", "--format", "{lib}"], "asking for the library's crates", cwd=REPO)
        crates = set(tree.split()) - {"(*)"}
        heavy = {"clap", "serde", "serde_json", "tokio", "zstd"}
        results.add(name, [f"it needs {crate}" for crate in sorted(crates & heavy)]
                    or ([] if "nix" in crates else [f"cargo tree says {tree}"]))


# ---- what documents say ----

def known_tests() -> set[str]:
    """Names by which documents may call a test, without the kernel that it runs on."""
    def found(pattern: str, *paths: Path) -> list[str]:
        return [name for path in paths for name in re.findall(pattern, path.read_text())]

    names = {f"self/{name}" for name in
             found(r'\b(?:Test::new|test)\(\s*"([\w-]+)"', *(REPO / "selftests/src/tests/table").glob("*.rs"))}
    names |= {f"corrupt/{name}" for name in
              found(r'Place\("([\w-]+)"', REPO / "scripts/lib/corrupt.py")}
    names |= {f"host/{name}" for name in
              found(r"(?m)^ *fn (\w+)\(", *(REPO / "abi/tests").glob("*.rs"))}
    names |= {f"source/{name}" for name in
              found(r'"source/([\w-]+)"', Path(__file__))}
    return names


def named_tests(results: Results) -> None:
    """Every test that a document names exists, and every fault has one."""
    name = "source/named-tests"
    if not results.wants(name):
        return
    known, trouble = known_tests(), []
    for document in ("Documentation/admin-guide/liveupdate-failures.rst",
                     "selftests/faults-of-c.md"):
        text = (REPO / document).read_text()
        named = re.findall(r"`((?:self|corrupt|host|source)/[\w-]+)`", text)
        trouble += [f"{document}: there is no test {test}" for test in named if test not in known]
        if not named:
            trouble.append(f"{document} names no test")
    for line in (REPO / "selftests/faults-of-c.md").read_text().splitlines():
        row = line.startswith("| ") and not line.endswith("| tests |")
        if row and "`" not in line.split("|")[2]:
            trouble.append(f"a fault without a test: {line}")
    results.add(name, trouble)


def proven_tests(results: Results) -> None:
    """For every test there is a mutant that it catches, and all mutants fit the code."""
    name = "source/mutants"
    if results.wants(name):
        tests = {test.removeprefix("self/") for test in known_tests() if test.startswith("self/")}
        results.add(name, mutants.trouble(tests))


def kexec_jump(results: Results, source: Path) -> None:
    """The kernel does not ask LUO for a kexec that comes back."""
    name = "source/kexec-jump"
    if results.wants(name):
        text = (source / "kernel/kexec_core.c").read_text()
        guarded = re.search(r"if \(!kexec_image->preserve_context\) \{\s*"
                            r"error = liveupdate_reboot\(\);", text)
        once = text.count("liveupdate_reboot(") == 1
        results.add(name, [] if guarded and once else ["kernel_kexec() has changed"])


# ---- what is linked ----

def linked(built: kernel.Kernel) -> set[str]:
    """The object files of which vmlinux is made."""
    # Of a thin archive the names are as the archive is named: relative here.
    return set(quiet(["llvm-ar", "t", "vmlinux.a"], "listing vmlinux.a",
                     cwd=built.folder).splitlines())


def links(results: Results, name: str, built: kernel.Kernel) -> None:
    """The implementation that was not chosen must not be in the kernel."""
    name = f"{name}/link"
    if not results.wants(name):
        return
    objects = linked(built)
    ours = {"core": {f"{overlay.HOME}/luo_core.o"}, "memfd": {f"{overlay.HOME}/memfd_luo.o"}}
    stock = {"core": C_CORE, "memfd": C_MEMFD}
    trouble = []
    for part, chosen in (("core", built.variant.core), ("memfd", built.variant.memfd_impl)):
        wanted, unwanted = (ours, stock) if chosen == "rust" else (stock, ours)
        trouble += [f"{path} is linked, but {chosen} was chosen"
                    for path in sorted(unwanted[part] & objects)]
        trouble += [f"{path} is not linked" for path in sorted(wanted[part] - objects)]
    results.add(name, trouble)


# ---- the header ----

def header_names(text: str) -> list[str]:
    """C expressions for every size, offset and number that a header defines."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", " ", text)
    expressions = []
    for struct in re.finditer(r"struct\s+(\w+)\s*\{(.*?)\}\s*[^;]*;", text, re.DOTALL):
        name = f"struct {struct[1]}"
        expressions.append(f"sizeof({name})")
        expressions.append(f"_Alignof({name})")
        for field in re.findall(r"(\w+)\s*(?:\[[^\]]*\])?\s*;", struct[2]):
            expressions.append(f"offsetof({name}, {field})")
            expressions.append(f"sizeof((({name} *)0)->{field})")
    for enum in re.finditer(r"enum\s*\w*\s*\{(.*?)\}", text, re.DOTALL):
        expressions += re.findall(r"^\s*(\w+)", enum[1].replace(",", "\n"), re.MULTILINE)
    for macro in re.finditer(r"^#\s*define\s+(\w+)(\(?)\s*(.*)$", text, re.MULTILINE):
        if macro[3].strip() and not macro[2]:
            expressions.append(macro[1])
    return sorted(set(expressions))


def measure(header: Path, include: Path, expressions: list[str], folder: Path) -> dict[str, str]:
    source = folder / "layout.c"
    # A macro that only one of the two knows shows as undefined.
    lines = []
    for text in expressions:
        line = f'\tprintf("%s=%llu\\n", "{text}", (unsigned long long)({text}));'
        known = re.fullmatch(r"\w+", text) and re.search(
            rf"^#\s*define\s+{text}\b", header.read_text(), re.MULTILINE)
        lines.append(f"#ifdef {text}\n{line}\n#endif" if known else line)
    source.write_text(f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\n'
                      "int main(void)\n{\n" + "\n".join(lines) + "\n}\n")
    quiet(["gcc", "-w", f"-I{include}", str(source), "-o", str(folder / "layout")],
          f"compiling {header}")
    return dict(line.rsplit("=", 1)
                for line in quiet([str(folder / "layout")], "layout").splitlines())


def header(results: Results, stock: programs.Stock, folder: Path) -> None:
    """Our header has the layouts and numbers of the stock one; structures that go on behind it are longer."""
    name = "source/uapi-header"
    if not results.wants(name):
        return
    ours, theirs = REPO / "uapi/liveupdate.h", stock.headers / "linux/liveupdate.h"
    names = [header_names(path.read_text()) for path in (ours, theirs)]
    guards = {n for n in names[0] + names[1] if n.startswith("_") and n.endswith("_H")}
    only = (set(names[1]) - set(names[0])) - guards
    trouble = [f"only the stock header has {text}" for text in sorted(only)]
    more = {re.sub(r"offsetof\((struct \w+),.*", r"sizeof(\1)", text)
            for text in set(names[0]) - set(names[1]) if text.startswith("offsetof")}
    common = sorted((set(names[0]) & set(names[1])) - guards - more)
    try:
        values = [measure(path, stock.headers, common, folder) for path in (ours, theirs)]
        trouble += [f"{text} is {values[0].get(text)}, in the stock header {values[1].get(text)}"
                    for text in common if values[0].get(text) != values[1].get(text)]
        if not any("offsetof" in text for text in values[1]):
            trouble.append("nothing was compared")
    except Failed as why:
        trouble += str(why).splitlines()
    results.add(name, trouble)


# ---- putting it into a tree ----

def snapshot(tree: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(tree)): path.read_bytes() if path.is_file() else None
            for path in tree.rglob("*")}


def skeleton(source: Path, tree: Path) -> None:
    """A tree with the few files that the overlay looks at."""
    shutil.rmtree(tree, ignore_errors=True)
    changed = [name for name, hunks in overlay.parse(overlay.EDITS.read_text()).items() if hunks]
    for name in ("Makefile", "scripts/Kbuild.include", *changed):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, tree / name)


def install_tree(results: Results, source: Path, folder: Path) -> None:
    """install-tree and uninstall-tree, and what they refuse."""
    tree = folder / "tree"

    def replace(name: str, old: str, new: str) -> None:
        text = (tree / name).read_text()
        assert old in text, (name, old)
        (tree / name).write_text(text.replace(old, new))

    def command(action: str) -> tuple[int, str]:
        done = subprocess.run([REPO / "scripts/overlay", action, tree], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def refused(action: str, word: str) -> str | None:
        before = snapshot(tree)
        status, words = command(action)
        if snapshot(tree) != before:
            return f"the tree was changed: {words}"
        if status == 0:
            return "it was not refused"
        return None if word in words else f"the reason is not `{word}' but: {words}"

    def no_trace() -> str | None:
        before = snapshot(tree)
        for action in ("install", "uninstall"):
            status, words = command(action)
            if status:
                return words
            if action == "install" and snapshot(tree).keys() == before.keys():
                return "nothing was installed"
            # What a build in the tree leaves in our folder.
            if action == "install":
                (tree / overlay.HOME / "built-in.a").write_text("x")
                (tree / overlay.HOME / ".luo_core.o.cmd").write_text("x")
        after = snapshot(tree)
        changed = sorted(name for name in before.keys() | after.keys()
                         if before.get(name, "-") != after.get(name, "-"))
        return f"left behind: {changed}" if changed else None

    def interrupted() -> str | None:
        before = snapshot(tree)
        command("install")
        # As if it had stopped before the edits: these are the old files again.
        for name in list(before)[::2]:
            if (data := before[name]) is not None:
                (tree / name).write_bytes(data)
        status, words = command("uninstall")
        return words if status else None if snapshot(tree) == before else "traces are left"

    def case(what: str, prepare, check) -> None:
        name = f"source/tree-{what}"
        if results.wants(name):
            skeleton(source, tree)
            prepare()
            results.add(name, check())

    case("no-trace", lambda: None, no_trace)
    case("interrupted", lambda: None, interrupted)
    case("not-a-kernel", lambda: (tree / "Makefile").unlink(),
         lambda: refused("install", "not a Linux source tree"))
    case("other-version", lambda: replace("Makefile", "PATCHLEVEL = 3", "PATCHLEVEL = 2"),
         lambda: refused("install", "wrong version: this is Linux 7.2"))
    case("patched-already", lambda: command("install"),
         lambda: refused("install", "already patched"))
    case("patched-by-hand", lambda: replace("rust/helpers/helpers.c", '#include "list.c"\n',
                                            '#include "list.c"\n#include "liveupdate.c"\n'),
         lambda: refused("install", "already patched"))
    case("line-changed", lambda: replace("mm/Makefile", "memfd_luo.o", "memfd_luo.o x.o"),
         lambda: refused("install", "local changes"))
    case("line-missing", lambda: replace("rust/kernel/lib.rs", "pub mod list;\n", ""),
         lambda: refused("install", "local changes"))
    case("file-in-the-way", lambda: (tree / "rust/kernel/kho.rs").write_text("//"),
         lambda: refused("install", "is there already"))
    case("not-installed", lambda: None, lambda: refused("uninstall", "not installed"))

    def and_change(change):
        def prepare():
            command("install")
            change()
        return prepare

    case("own-work-in-file", and_change(lambda: replace(f"{overlay.HOME}/Kbuild", "+=", ":=")),
         lambda: refused("uninstall", "local changes"))
    case("own-work-in-line",
         and_change(lambda: replace("kernel/liveupdate/Makefile", "+= rust/", "+= rust/ x/")),
         lambda: refused("uninstall", "local changes"))
    case("own-file", and_change(lambda: (tree / overlay.HOME / "mine.rs").write_text("//")),
         lambda: refused("uninstall", "mine.rs is not part of the overlay"))


# ---- the series of patches ----

def patches(results: Results, source: Path, folder: Path) -> None:
    """What `make patches` writes is the overlay, and git takes it."""
    name = "source/patches-are-the-overlay"
    if results.wants(name):
        try:
            results.add(name, series.difference(source, folder / "series"))
        except (Failed, overlay.Refused) as why:
            results.add(name, str(why))


def patches_build(results: Results, source: Path) -> None:
    """A kernel builds after each of them. Needs the lock."""
    for number, patch in enumerate(series.Series.read().patches, 1):
        name = f"patches/{number:02}"
        if not results.wants(name):
            continue
        try:
            kernel.build_step(source, number)
            results.add(name)
        except (Failed, overlay.Refused) as why:
            results.add(name, [patch.subject, *str(why).splitlines()])


# ---- the commands themselves ----

def commands(results: Results, source: Path, folder: Path) -> None:
    """What `make run` and `make image` refuse, and how."""
    def run_file(what: str, path: Path, word: str) -> None:
        name = f"source/run-file-{what}"
        if not results.wants(name):
            return
        done = subprocess.run([REPO / "scripts/run"], env={**os.environ, "FILE": str(path)},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        words = done.stdout.strip()
        clear = done.returncode and words.startswith("error:") and "\n" not in words \
            and word in words and str(path) in words
        results.add(name, None if clear else words or "it was accepted")

    run_file("missing", folder / "no-such-file", "no such file")
    run_file("folder", folder, "not a regular file")

    for what, variables, word in (("from-unknown", {"FROM": "6.12"}, "FROM=6.12"),
                                  ("arch-unknown", {"ARCH": "riscv"}, "ARCH=riscv"),
                                  ("guest-on-arm64", {"ARCH": "arm64", "GUEST": "1"}, "GUEST=1")):
        name = f"source/run-{what}"
        if not results.wants(name):
            continue
        done = subprocess.run([REPO / "scripts/run"], env={**os.environ, **variables},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        words = done.stdout.strip()
        clear = done.returncode and words.startswith(f"error: {word}") and "\n" not in words
        results.add(name, None if clear else words or "it was accepted")

    name = "source/ksrc-other-content"
    if results.wants(name):
        archive, cache = folder / "archive", folder / "ksrc-cache"
        pinned = kernel.pinned_package(kernel.RELEASE)
        (archive / "pool/main/l/linux").mkdir(parents=True)
        (archive / "pool/main/l/linux" / pinned).write_text("not what was pinned\n")
        environment = {**os.environ, "LUO_CACHE": str(cache), "LUO_DEBIAN": archive.as_uri()}
        environment.pop("KSRC", None)
        done = subprocess.run([REPO / "scripts/ksrc"], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        words = done.stdout.strip()
        clear = done.returncode and words.splitlines()[-1].startswith(f"error: no archive has {pinned}")
        left = sorted(cache.glob("ksrc/linux-*"))
        results.add(name, words if not clear else [f"{left} is left"] if left else None)

    def fragment(what: str, text: str, named: str | None) -> None:
        name = f"source/fragment-{what}"
        if not results.wants(name):
            return
        path, built = folder / "fragment", folder / "config"
        path.write_text(text)
        built.mkdir(exist_ok=True)
        try:
            kernel.configure(kernel.overlaid(source), built,
                             kernel.Variant(fragments=(path,)))
            results.add(name, named and "it was accepted")
        except Failed as why:
            results.add(name, None if named and named in str(why) else str(why))

    fragment("taken", "CONFIG_LOCALVERSION=\"-test\"\nCONFIG_LOG_BUF_SHIFT=18\n", None)
    fragment("no-option", "CONFIG_NO_SUCH_OPTION=y\n", "CONFIG_NO_SUCH_OPTION")
    fragment("no-effect", "CONFIG_PREEMPT_RT=y\nCONFIG_LIVEUPDATE=n\n", "CONFIG_PREEMPT_RT=y")
    fragment("no-fragment", "LIVEUPDATE\n", "LIVEUPDATE")
