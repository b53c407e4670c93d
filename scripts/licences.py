#!/usr/bin/env python3
"""Checks licences and origins of all dependencies against deny.toml, where cargo-deny is not installed.

What cargo-deny finds beyond this: texts of licences that differ from what a package declares, known weaknesses, yanked versions, duplicates.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def allowed(expression, allow):
    """Whether an SPDX expression can be satisfied by licences of a set; older packages write OR as a slash."""
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression)

    def take(wanted):
        if tokens and tokens[0].upper() in wanted:
            tokens.pop(0)
            return True
        return False

    def one():
        if take("("):
            inside = any_of()
            if not take(")"):
                raise ValueError(expression)
            return inside
        if not tokens or tokens[0].upper() in {")", "/", "OR", "AND", "WITH"}:
            raise ValueError(expression)
        # A version "or later" is that version, too.
        name = tokens.pop(0).removesuffix("+")
        if take({"WITH"}):
            if not tokens:
                raise ValueError(expression)
            name = f"{name} WITH {tokens.pop(0)}"
        return name in allow

    def all_of():
        every = one()
        while take({"AND"}):
            every = one() and every
        return every

    def any_of():
        some = all_of()
        while take({"OR", "/"}):
            some = all_of() or some
        return some

    result = any_of()
    if tokens:
        raise ValueError(expression)
    return result


def metadata(target):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--all-features", "--filter-platform", target]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        # What another target needs may never have been downloaded.
        print(f"licences: {target} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def findings(found, rules):
    """What is wrong with the packages of one target, a line each."""
    allow = set(rules["licenses"]["allow"])
    exceptions = {e["crate"]: set(e["allow"]) for e in rules["licenses"].get("exceptions", [])}
    used = {node["id"] for node in found["resolve"]["nodes"]}
    members = set(found["workspace_members"])
    for package in (p for p in found["packages"] if p["id"] in used):
        name = f"{package['name']} {package['version']}"
        if package["id"] in members:
            wild = [d["name"] for d in package["dependencies"] if d["req"] == "*" and not d.get("path")]
            yield from (f"{name}: any version of {other} would do" for other in wild)
            continue
        if package["source"] != REGISTRY:
            yield f"{name} comes from {package['source']}"
        try:
            if not allowed(package["license"] or "none", allow | exceptions.get(package["name"], set())):
                yield f"{name}: licence {package['license']} is not in deny.toml"
        except ValueError:
            yield f"{name}: licence {package['license']!r} is not understood"


def main():
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    wrong, count = set(), 0
    for target in rules["graph"]["targets"]:
        found = metadata(target)
        if found is None:
            continue
        count = max(count, len(found["resolve"]["nodes"]))
        wrong.update(findings(found, rules))
    for line in sorted(wrong):
        print(f"licences: {line}", file=sys.stderr)
    if wrong or count == 0:
        return 1
    print(f"licences: {count} packages, all from the registry and with licences that deny.toml allows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
