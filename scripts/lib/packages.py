# SPDX-License-Identifier: GPL-2.0
"""The tools as they are installed, and as Debian packages.

What belongs to which package is in stage(); what dpkg wants to know besides is in
packaging/debian/. Everything is built by the compiler of Debian 13 and linked with
that release's shared libraries, those of the architecture that it is for.
"""

import gzip
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import programs
from common import CACHE, REPO, Failed, quiet, run
from machine import X86, Machine

DEBIAN = REPO / "packaging/debian"
LUOD = REPO / "tools/luod"
QEMU = REPO / "tools/luo-qemu"
PACKAGES = ("luoctl", "libliveupdate1", "libliveupdate-dev", "luo-qemu", "luo-run",
            *(["luod"] if LUOD.exists() else []))
# Those that tell their manual pages and completions themselves.
GENERATING = ("luoctl", "luo-qemu", "luo-run")
# Apart from the static programs, as the flags differ.
FOLDER = programs.CARGO_FOLDER / "shared"
MAINTAINER = "The LUO project <root@localhost>"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def version(crate: str) -> str:
    """The version of one of our crates."""
    return tomllib.loads((REPO / f"tools/{crate}/Cargo.toml").read_text())["package"]["version"]


def version_of(package: str) -> str:
    return version(package if package in ("luod", *GENERATING) else "libliveupdate")


def cargo_build(names: list[str], machine: Machine) -> Path:
    """Builds crates, linked with shared libraries; returns the folder of the programs. Needs the lock."""
    link = [] if machine.is_host else [f"-Clink-arg=--target={machine.triplet}", "-Clink-arg=-fuse-ld=lld"]
    environment = {**os.environ, **machine.cargo, "CARGO_TARGET_DIR": str(FOLDER),
                   # Over .cargo/config.toml, which is for programs of an initramfs.
                   "RUSTFLAGS": " ".join(["-Ctarget-feature=-crt-static", *link])}
    for name in names:
        # One by one: together they would get each other's features.
        run(["cargo", "build", "--locked", "--release", "--package", name, "--target", machine.target],
            f"building {name}", CACHE / f"log/{name}-shared.log", step=r"^ +(Compiling|Downloaded)",
            cwd=REPO, env=environment)
    return FOLDER / machine.target / "release"


def build(machine: Machine) -> Path:
    """Builds everything; returns the folder of it. Needs the lock."""
    built = cargo_build([*GENERATING, "libliveupdate", *(["luod"] if LUOD.exists() else [])], machine)
    # Programs for another machine cannot tell their manual pages here.
    runs_here = built if machine.is_host else cargo_build(list(GENERATING), X86)
    for name in GENERATING:
        generated = built / f"{name}-generated"
        shutil.rmtree(generated, ignore_errors=True)
        verb = "--generate" if name == "luo-run" else "generate"
        quiet([str(runs_here / name), verb, str(generated)], "making manual pages and completions")
    return built


def put(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(0o644)


def manual(source: Path, directory: Path) -> None:
    """A manual page, compressed in a way that does not depend on the time."""
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / f"{source.name}.gz"
    page.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    page.chmod(0o644)


def below(prefix: str, unit: str) -> str:
    """The text of a unit whose programs are below a prefix."""
    return re.sub(r"^(Exec\w+=)/usr/", rf"\g<1>{prefix}/", unit, flags=re.MULTILINE)


def stage(package: str, built: Path, root: Path, prefix: str, machine: Machine) -> None:
    """Puts the files of a package under `root`."""
    usr = root / prefix.lstrip("/")
    library = usr / "lib" / machine.triplet
    soname = f"libliveupdate.so.{version('libliveupdate').split('.')[0]}"
    full = f"libliveupdate.so.{version('libliveupdate')}"
    source = REPO / "tools/libliveupdate"
    generated = built / f"{package}-generated"

    def link(path: Path, target: str) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    if package in GENERATING:
        put(built / package, usr / "bin" / package, 0o755)
        for page in sorted((generated / "man").iterdir()):
            manual(page, usr / "share/man/man1")
        completions = generated / "completions"
        put(completions / f"{package}.bash", usr / "share/bash-completion/completions" / package)
        put(completions / f"_{package}", usr / f"share/zsh/vendor-completions/_{package}")
        put(completions / f"{package}.fish", usr / f"share/fish/vendor_completions.d/{package}.fish")
    if package == "luo-qemu":
        for unit in sorted((QEMU / "systemd").iterdir()):
            write(usr / "lib/systemd/system" / unit.name, below(prefix, unit.read_text()))
    elif package == "libliveupdate1":
        put(built / "libliveupdate_c.so", library / full)
        link(library / soname, full)
    elif package == "libliveupdate-dev":
        library.mkdir(parents=True, exist_ok=True)
        link(library / "libliveupdate.so", soname)
        put(built / "libliveupdate_c.a", library / "libliveupdate.a")
        put(source / "include/liveupdate.h", usr / "include/liveupdate.h")
        put(source / "examples/hold.c", usr / "share/doc/libliveupdate-dev/examples/hold.c")
        text = (source / "liveupdate.pc.in").read_text()
        for name, value in (("PREFIX", prefix), ("LIBDIR", f"${{prefix}}/lib/{machine.triplet}"),
                            ("VERSION", version("libliveupdate"))):
            text = text.replace(f"@{name}@", value)
        write(library / "pkgconfig/liveupdate.pc", text)
    elif package == "luod":
        put(built / "luod", usr / "sbin/luod", 0o755)
        for unit in sorted((LUOD / "systemd").glob("luod*.s*")):
            write(usr / "lib/systemd/system" / unit.name, below(prefix, unit.read_text()))
        put(LUOD / "systemd/luod.tmpfiles", usr / "lib/tmpfiles.d/luod.conf")
        for page in sorted(LUOD.glob("man/*.[1-8]")):
            manual(page, usr / f"share/man/man{page.suffix[1:]}")
        for policy in LUOD.glob("luod.toml"):
            put(policy, root / "etc/luod.toml")
        for example in sorted(LUOD.glob("examples/*")):
            put(example, usr / "share/doc/luod/examples" / example.name)


def needed_libraries(staged: Path, machine: Machine) -> str:
    """The Debian packages of the shared libraries that the programs of a package need."""
    packages: set[str] = set()
    for path in staged.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.read_bytes()[:4] != b"\x7fELF":
            continue
        text = quiet(["llvm-readelf", "--dynamic", str(path)], "looking for shared libraries")
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", text):
            found = subprocess.run(["dpkg-query", "--search", f"*/{name}"], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)
            owners = {line.split(":")[0] for line in found.stdout.splitlines()
                      if not line.startswith("diversion by ")}
            if len(owners) != 1:
                raise Failed(f"{path.name} needs {name}, which is of "
                             f"{', '.join(sorted(owners)) or 'no package'}")
            packages |= owners

    def with_version(name: str) -> str:
        text = quiet(["dpkg-query", "--show", "--showformat=${Version}",
                      f"{name}:{ARCHITECTURES[machine.name]}"], "asking for a version")
        # Up to the upstream version: a Debian revision more or less does not matter.
        return f"{name} (>= {text.rsplit('-', 1)[0]})"
    return ", ".join(with_version(name) for name in sorted(packages))


def control(package: str, staged: Path, machine: Machine) -> str:
    """The text of DEBIAN/control."""
    text = (DEBIAN / f"{package}.control").read_text()
    text = text.replace("@VERSION@", version_of(package))
    if "@SHLIBS@" in text:
        text = text.replace("@SHLIBS@", needed_libraries(staged, machine))
    size = sum(path.lstat().st_size for path in staged.rglob("*") if path.is_file()) // 1024
    head = f"Version: {version_of(package)}\nArchitecture: {ARCHITECTURES[machine.name]}\n" \
           f"Maintainer: {MAINTAINER}\nPriority: optional\nInstalled-Size: {size}\n"
    first, rest = text.split("\n", 1)
    return f"{first}\n{head}{rest}"


def make(folder: Path, machine: Machine = X86) -> None:
    """Makes all packages, of a fresh build, in `folder`. Needs the lock."""
    built = build(machine)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in PACKAGES:
        with tempfile.TemporaryDirectory(dir=CACHE / "run", prefix="deb-") as temporary:
            staged = Path(temporary) / package
            staged.mkdir(mode=0o755)
            stage(package, built, staged, "/usr", machine)
            put(DEBIAN / "copyright", staged / f"usr/share/doc/{package}/copyright")
            text = control(package, staged, machine)
            write(staged / "DEBIAN/control", text)
            for name in ("conffiles", "triggers"):
                if (path := DEBIAN / f"{package}.{name}").exists():
                    listed = path.read_text().split()
                    if name == "triggers" or all((staged / one.lstrip("/")).exists() for one in listed):
                        put(path, staged / "DEBIAN" / name)
            for name in ("postinst", "prerm", "postrm"):
                if (path := DEBIAN / f"{package}.{name}").exists():
                    put(path, staged / "DEBIAN" / name, 0o755)
            for path in staged.rglob("*"):
                if path.is_dir():
                    path.chmod(0o755)
            quiet(["dpkg-deb", "--root-owner-group", "--build", str(staged), str(folder)],
                  f"making the package {package}")


class Root:
    """A folder that dpkg installs packages into, without those that they depend on."""

    def __init__(self, path: Path):
        self.path = path
        (path / "var/lib/dpkg/info").mkdir(parents=True)
        (path / "var/lib/dpkg/updates").mkdir()
        (path / "var/lib/dpkg/status").touch()
        (path / "run").mkdir()

    def dpkg(self, *words: str) -> str:
        return quiet(["dpkg", f"--root={self.path}", "--force-depends", "--force-not-root",
                      "--force-script-chrootless", *words], f"dpkg {words[0]}",
                     env={**os.environ, "DPKG_ROOT": str(self.path)})

    def installed(self) -> list[str]:
        text = quiet(["dpkg-query", f"--admindir={self.path}/var/lib/dpkg", "--show",
                      "--showformat=${Package} ${Version} ${db:Status-Status}\\n"], "dpkg-query")
        return [line for line in text.splitlines() if not line.endswith("not-installed")]

    def files(self) -> set[str]:
        """What is there beside dpkg's own files."""
        paths = (path.relative_to(self.path) for path in self.path.rglob("*") if not path.is_dir())
        return {str(path) for path in paths if path.parts[:3] != ("var", "lib", "dpkg")
                and path.parts[:2] != ("var", "log")}

    def trouble(self, machine: Machine) -> list[str]:
        """What is wrong after an installation."""
        missing = [f"{name} is missing" for name in sorted(expected(machine) - self.files())]
        return missing + [line for line in self.installed() if not line.endswith(" installed")]


def again(folder: Path, scratch: Path) -> Path:
    """The packages in `folder` once more, as a later version; returns the folder of these."""
    newer = scratch / "newer"
    if newer.exists():
        return newer
    newer.mkdir()
    for deb in sorted(folder.glob("*.deb")):
        unpacked = scratch / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        quiet(["dpkg-deb", "--raw-extract", str(deb), str(unpacked)], "unpacking a package")
        text = (unpacked / "DEBIAN/control").read_text()
        text = re.sub(r"^(Version: .*)$", r"\1+next", text, flags=re.MULTILINE)
        text = re.sub(r"\(= (.*?)\)", r"(= \1+next)", text)
        (unpacked / "DEBIAN/control").write_text(text)
        quiet(["dpkg-deb", "--root-owner-group", "--build", str(unpacked), str(newer)], "packing it again")
    return newer


def flags(file: Path, root: Path) -> list[str]:
    """What pkg-config reads in a file below `root`, which it takes as the root of the system."""
    text = file.read_text()
    variables = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    found = []
    for line in re.findall(r"^(?:Cflags|Libs): (.*)$", text, re.MULTILINE):
        while (whole := re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], line)) != line:
            line = whole
        found += line.split()
    return [re.sub(r"^-[IL]", rf"\g<0>{root}", flag) for flag in found]


def elsewhere(root: Path) -> list[str]:
    """What is wrong with what `make install` puts below another prefix."""
    quiet([str(REPO / "scripts/install")], "make install",
          env={**os.environ, "DESTDIR": str(root), "PREFIX": "/usr/local"})
    found = []
    for unit in (root / "usr/local/lib/systemd/system").iterdir():
        programs_of = re.findall(r"^Exec\w+=(/\S+)", unit.read_text(), re.MULTILINE)
        found += [f"{unit.name} runs {program}, which is not there" for program in programs_of
                  if not os.access(root / program.lstrip("/"), os.X_OK)]
    example(root / "usr/local", root, root / "hold", X86)
    outside = {path.parts[0] for path in (path.relative_to(root) for path in root.rglob("*"))
               if path.parts[:2] != ("usr", "local")} - {"usr", "etc", "hold"}
    return found + [f"{name} is no place for what has the prefix /usr/local" for name in sorted(outside)]


def example(usr: Path, root: Path, program: Path, machine: Machine) -> None:
    """Builds the example in C with what is installed below `usr`; `root` is the root of the system."""
    quiet([*machine.compiler, "-Wall", "-Werror", str(usr / "share/doc/libliveupdate-dev/examples/hold.c"),
           *flags(usr / "lib" / machine.triplet / "pkgconfig/liveupdate.pc", root), "-o", str(program)],
          "building the example")


def expected(machine: Machine) -> set[str]:
    """Files that the packages install, below the root."""
    library = f"usr/lib/{machine.triplet}"
    files = {"usr/bin/luoctl", "usr/share/man/man1/luoctl.1.gz", "usr/include/liveupdate.h",
             "usr/share/bash-completion/completions/luoctl",
             "usr/bin/luo-qemu", "usr/share/man/man1/luo-qemu-run.1.gz",
             "usr/bin/luo-run", "usr/share/man/man1/luo-run.1.gz",
             "usr/lib/systemd/system/luo-qemu@.service",
             f"{library}/libliveupdate.so.1", f"{library}/pkgconfig/liveupdate.pc"}
    if LUOD.exists():
        files |= {"usr/sbin/luod", "usr/lib/systemd/system/luod.service",
                  "usr/lib/systemd/system/luod.socket", "usr/lib/tmpfiles.d/luod.conf"}
    return files


def trouble(folder: Path, scratch: Path) -> dict[str, list[str]]:
    """Installs, upgrades and purges the packages in `folder`; what is wrong, by test."""
    found: dict[str, list[str]] = {"install": [], "link": [], "upgrade": [], "purge": [],
                                   "prefix": elsewhere(scratch / "elsewhere")}
    root = Root(scratch / "root")
    debs = sorted(str(path) for path in folder.glob("*.deb"))
    root.dpkg("--install", *debs)
    files = root.files()
    found["install"] += root.trouble(X86)

    # A program is built with what is installed, and runs with it.
    program = scratch / "hold"
    library = root.path / "usr/lib" / X86.triplet
    example(root.path / "usr", root.path, program, X86)
    # And so is what README shows.
    shown = (REPO / "README.md").read_text().split("```c\n")[1].split("```")[0]
    (scratch / "agent.c").write_text(shown)
    quiet(["gcc", "-c", "-Wall", "-Werror", f"-I{root.path}/usr/include", str(scratch / "agent.c"),
           "-o", str(scratch / "agent.o")], "building README's example")
    done = subprocess.run([program, "retrieve", "nobody"], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, env={"LD_LIBRARY_PATH": str(library)})
    if done.returncode != 1 or "/dev/liveupdate" not in done.stdout:
        found["link"].append(f"the example ended with {done.returncode}: {done.stdout}")
    needed = quiet(["llvm-readelf", "--dynamic", str(program)], "looking for shared libraries")
    if "[libliveupdate.so.1]" not in needed:
        found["link"].append("the example does not need libliveupdate.so.1")

    newer = again(folder, scratch)
    root.dpkg("--install", *sorted(str(path) for path in newer.glob("*.deb")))
    found["upgrade"] += [line for line in root.installed()
                         if "+next" not in line or not line.endswith(" installed")]
    if root.files() != files:
        found["upgrade"].append(f"other files: {sorted(root.files() ^ files)}")

    root.dpkg("--purge", *PACKAGES)
    found["purge"] += [f"{name} is left" for name in sorted(root.files())]
    found["purge"] += root.installed()
    return found
