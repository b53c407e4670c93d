#!/usr/bin/env python3
"""Runs one fixed set of fio jobs on files, block devices and NBD servers, and compares them.

  bench.py list                                  targets and jobs
  bench.py run [options] [TARGET ...]            measure; prints the report at the end
  bench.py report FILE ... [--base TARGET]       tables from earlier runs

Within one run the targets take turns: every repetition meets each of them once, in an order of its own, so that a drift of
the machine hits all alike. The report gives medians over the repetitions, and the median of the ratios to the base target
taken repetition by repetition. tools/bench/README.md describes jobs, data mixes and how to write a target.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
GIB = 1 << 30

# Name: fio options; what moves ("read", "write" or "both"); how it is bounded ("size": one pass over the target, "time").
JOBS = {
    "write128k": ("--rw=write --bs=128k --iodepth=16", "write", "size"),
    "read128k": ("--rw=read --bs=128k --iodepth=16", "read", "size"),
    "randread4k-q1": ("--rw=randread --bs=4k --iodepth=1 --norandommap", "read", "time"),
    "randread4k-q32": ("--rw=randread --bs=4k --iodepth=32 --norandommap", "read", "time"),
    "randwrite4k-q1": ("--rw=randwrite --bs=4k --iodepth=1 --norandommap", "write", "time"),
    "randwrite4k-q1-fsync": ("--rw=randwrite --bs=4k --iodepth=1 --norandommap --fsync=1", "write", "time"),
    "randwrite4k-q32": ("--rw=randwrite --bs=4k --iodepth=32 --norandommap", "write", "time"),
    "mixed8k-q16": ("--rw=randrw --rwmixread=70 --bs=8k --iodepth=16 --norandommap", "both", "time"),
    "rewrite128k": ("--rw=write --bs=128k --iodepth=16", "write", "size"),
}
BY_THROUGHPUT = {name for name in JOBS if name.endswith("128k")}

HALVES = "--buffer_compress_percentage=52 --buffer_compress_chunk=4k"
REPEATS = "--dedupe_percentage=50 --dedupe_mode=working_set --dedupe_working_set_percentage=10"
MIXES = {
    "U": "--refill_buffers",
    "C": f"--refill_buffers {HALVES}",
    "D": f"--refill_buffers {REPEATS}",
    "CD": f"--refill_buffers {HALVES} {REPEATS}",
}

DEFAULT_TARGETS = ["file", "nbdkit-null", "nbdkit-memory", "rawsync", "ashlar-nbd"]
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text):
    """Bytes of a size such as 512m or 1.5G."""
    text = text.strip().lower().removesuffix("ib").removesuffix("b")
    factor = UNITS.get(text[-1:], None)
    try:
        size = int(float(text[:-1]) * factor) if factor else int(text)
    except ValueError:
        size = 0
    if size < 1 << 20 or size % 4096:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size of at least 1m in whole blocks of 4 KiB")
    return size


def parse_mixes(text):
    """Names of mixes, comma-separated."""
    mixes = text.split(",")
    for mix in mixes:
        if mix not in MIXES:
            raise argparse.ArgumentTypeError(f"'{mix}' is none of {', '.join(MIXES)}")
    return mixes


def parse_keys(text):
    """Lines KEY=VALUE as a dictionary; other lines are left out."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs if key.strip().isidentifier()}


class TargetError(Exception):
    """A target did not do what it should."""


class Target:
    """One target file, and what runs while it is up."""

    def __init__(self, name, directory, size, environment):
        self.name = name
        self.file = HERE / "targets" / f"{name}.sh"
        self.dir = directory / name
        self.environment = {**os.environ, **environment, "DIR": str(self.dir), "SIZE": str(size), "HERE": str(HERE)}
        self.keys = {}

    def call(self, function, *arguments, limit=300):
        script = 'set -euo pipefail; . "$HERE/targets/lib.inc"; . "$1"; shift; "$@"'
        command = ["bash", "-c", script, self.name, str(self.file), function, *arguments]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as late:
            raise TargetError(f"{self.name}: {function} took more than {limit} s") from late
        if done.returncode:
            raise TargetError(f"{self.name}: {function} failed: {(done.stderr or done.stdout).strip()[-600:]}")
        return done.stdout

    def unable(self):
        """Why this machine cannot run the target, or an empty string."""
        return self.call("target_unable").strip()

    def start(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.keys = parse_keys(self.call("target_start"))
        if not any(key in self.keys for key in ("device", "uri", "own_jobs")):
            raise TargetError(f"{self.name}: target_start named neither device nor uri nor own_jobs")

    def drop(self):
        """Makes the next reads cold, as far as the target can."""
        self.keys.update(parse_keys(self.call("target_drop")))

    def usage(self):
        return {key: int(value) for key, value in parse_keys(self.call("target_usage")).items() if value.isdigit()}

    def stop(self):
        self.call("target_stop")
        shutil.rmtree(self.dir, ignore_errors=True)

    def pids(self):
        return [int(pid) for pid in self.keys.get("pids", "").split()]

    def own_jobs(self):
        return self.keys.get("own_jobs", "").split()

    def fio_options(self):
        if "uri" in self.keys:
            return ["--ioengine=nbd", f"--uri={self.keys['uri']}"]
        device = self.keys["device"].replace(":", "\\:")
        return ["--ioengine=io_uring", "--direct=1", f"--filename={device}"]


class Watch:
    """CPU time and peak resident memory of the servers, and the machine's busy time, between enter and exit."""

    def __init__(self, pids):
        self.pids, self.rss_peak, self.done = pids, 0, threading.Event()

    def __enter__(self):
        self.cpu, self.busy = self._cpu(), self._busy()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.cpu, self.busy = self._cpu() - self.cpu, self._busy() - self.busy

    def _sample(self):
        while True:
            self.rss_peak = max(self.rss_peak, sum(self._rss(pid) for pid in self.pids))
            if self.done.wait(0.25):
                return

    @staticmethod
    def _rss(pid):
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _cpu(self):
        ticks = 0
        for pid in self.pids:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    @staticmethod
    def _busy():
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return (sum(fields[:3]) + sum(fields[5:7])) / TICKS


def fio_command(job, target_options, size, seconds, mix, seed, cap):
    options, moves, bound = JOBS[job]
    command = ["fio", f"--name={job}", "--output-format=json", "--thread", f"--randseed={seed}", f"--size={size}"]
    command += options.split() + target_options
    if moves != "read":
        # What a target merely holds in a cache is paid for inside the measured time.
        command += [*MIXES[mix].split(), "--end_fsync=1"]
    command += ["--time_based", f"--runtime={seconds}"] if bound == "time" else [f"--runtime={cap}"]
    return command


def fio_result(job, output):
    """The figures of one job from fio's JSON."""
    job_json = json.loads(output[output.index("{"):])["jobs"][0]
    if job_json["error"]:
        raise TargetError(f"{job}: fio error {job_json['error']}")
    result = {"fio_cpu_s": (job_json["usr_cpu"] + job_json["sys_cpu"]) / 100 * job_json["job_runtime"] / 1000}
    moved = {way: job_json[way] for way in ("read", "write") if job_json[way]["total_ios"]}
    if not moved:
        raise TargetError(f"{job}: fio moved nothing")
    seconds = job_json["job_runtime"] / 1000
    result["bytes"] = sum(way["io_bytes"] for way in moved.values())
    result["ios"] = sum(way["total_ios"] for way in moved.values())
    result["seconds"] = seconds
    result["mb_s"] = result["bytes"] / 1e6 / seconds
    result["iops"] = result["ios"] / seconds
    for way, figures in moved.items():
        at = figures["clat_ns"].get("percentile", {})
        result[f"{way}_p50_us"] = at.get("50.000000", 0) / 1e3
        result[f"{way}_p99_us"] = at.get("99.000000", 0) / 1e3
    sync = job_json.get("sync", {})
    if "fsync" in job and sync.get("total_ios"):
        at = sync["lat_ns"].get("percentile", {})
        result["sync_p50_us"] = at.get("50.000000", 0) / 1e3
        result["sync_p99_us"] = at.get("99.000000", 0) / 1e3
    return result


def run_job(target, job, arguments, mix, seed):
    """Runs one job on a target that is up; the record of its figures, or of the error."""
    try:
        if JOBS[job][1] == "read":
            target.drop()
            drop_page_cache()
        else:
            os.sync()
        with Watch(target.pids()) as watch:
            if job in target.own_jobs():
                result = json.loads(target.call("target_job", job, str(arguments.secs), limit=arguments.cap + 120))
            else:
                size = arguments.size
                command = fio_command(
                    job, target.fio_options(), size, arguments.secs, mix, seed, arguments.cap
                )
                done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.cap + 120)
                if done.returncode:
                    raise TargetError(f"{job}: fio: {(done.stderr or done.stdout).strip()[-600:]}")
                result = fio_result(job, done.stdout)
    except (TargetError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        return {"error": str(error)}
    result.update(server_cpu_s=watch.cpu, busy_cpu_s=watch.busy, server_rss=watch.rss_peak, load1=os.getloadavg()[0])
    return result


def drop_page_cache():
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        pass  # Not root: direct I/O passes the cache by anyway.


def machine():
    """What must stand beside absolute figures."""
    def output(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
        except OSError:
            return ""

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cpus": os.cpu_count(), "kernel": os.uname().release, "fio": output("fio", "--version"),
            "revision": output("git", "rev-parse", "--short", "HEAD"), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def run(arguments):
    environment = {"TOLERANCE": arguments.tolerance, "DISKS": str(arguments.disks)}
    targets = [Target(name, arguments.dir, arguments.size, environment) for name in arguments.targets]
    jobs = arguments.jobs.split(",") if arguments.jobs else list(JOBS)
    for target in targets:
        if not target.file.is_file():
            sys.exit(f"bench: no target '{target.name}'; 'bench.py list' names them")
    for job in jobs:
        if job not in JOBS:
            sys.exit(f"bench: no job '{job}'; 'bench.py list' names them")
    for target in list(targets):
        reason = target.unable()
        if reason:
            print(f"bench: {target.name} left out: {reason}", file=sys.stderr)
            targets.remove(target)
    if not targets:
        sys.exit("bench: no target can run here")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    common = {"size": arguments.size, "secs": arguments.secs, "run": int(time.time()), **machine()}
    with arguments.out.open("a") as out:
        for rep, mix in itertools.product(range(arguments.reps), arguments.mix):
            order = list(targets)
            random.Random(f"{rep} {mix}").shuffle(order)
            for target in order:
                for record in run_target(target, jobs, arguments, mix, rep):
                    failed |= bool(record.get("error"))
                    out.write(json.dumps({"mix": mix, **common, "rep": rep, "target": target.name, **record}) + "\n")
                    out.flush()
    print()
    report([arguments.out], arguments.base, common["run"])
    print(f"\nfigures: {arguments.out}")
    return 1 if failed else 0


def run_target(target, jobs, arguments, mix, rep):
    """Brings a target up, runs the jobs, takes it down whatever happens; yields a record a job."""
    try:
        target.start()
        writes = [job for job in jobs if JOBS[job][1] == "write"]
        for number, job in enumerate(jobs):
            if "own_jobs" in target.keys and job not in target.own_jobs():
                continue
            record = run_job(target, job, arguments, mix, seed=1 + 1000 * rep + number)
            if not record.get("error") and (job == jobs[-1] or writes and job == writes[0]):
                record["usage"] = target.usage()
            print(f"{rep} {mix:2} {target.name:20} {job:22} {summary(job, record)}", flush=True)
            yield {"job": job, "note": target.keys.get("note", ""), **record}
    except TargetError as error:
        print(f"{rep} {error}", file=sys.stderr, flush=True)
        yield {"job": "start", "error": str(error)}
    finally:
        try:
            target.stop()
        except TargetError as error:
            print(f"{rep} {error}", file=sys.stderr, flush=True)


def summary(job, record):
    if record.get("error"):
        return f"FAILED {record['error']}"
    return f"{record['iops']:10.0f} IOPS {record.get('mb_s', 0):9.1f} MB/s  load {record['load1']:.1f}"


# ---------------------------------------------------------------- report


def value(record):
    """What a job is judged by: MB/s for the large ones, IOPS for the rest."""
    return record["mb_s"] if record["job"] in BY_THROUGHPUT else record["iops"]


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def table(title, targets, jobs, cell):
    print(f"\n{title}\n\n| target | {' | '.join(jobs)} |\n|---|{'---|' * len(jobs)}")
    for target in targets:
        print(f"| {target} | {' | '.join(cell(target, job) or '–' for job in jobs)} |")


def report(files, base, only_run=None):
    records = [json.loads(line) for file in files for line in Path(file).read_text().splitlines() if line.strip()]
    records = [r for r in records if not r.get("error") and only_run in (None, r["run"])]
    if not records:
        print("no figures")
        return
    for mix in dict.fromkeys(r["mix"] for r in records):
        report_mix([r for r in records if r["mix"] == mix], mix, base)


def ratios(mine, base):
    """Ratios to the base by run and repetition; only pairs that were measured together count."""
    of_base = {(r["run"], r["rep"]): value(r) for r in base}
    pairs = ((value(r), of_base.get((r["run"], r["rep"]))) for r in mine)
    return [own / other for own, other in pairs if other]


def report_mix(records, mix, base):
    targets = list(dict.fromkeys(r["target"] for r in records))
    jobs = [job for job in JOBS if any(r["job"] == job for r in records)]
    first = records[0]
    print(f"## Mix {mix}\n\n{first['cpu']}, {first['cpus']} CPUs, kernel {first['kernel']}, {first['fio']}, revision "
          f"{first['revision']}; working set {first['size'] / GIB:.3g} GiB, {first['secs']} s a timed job")

    def of(target, job):
        return [r for r in records if r["target"] == target and r["job"] == job]

    def speed(target, job):
        mine = of(target, job)
        if not mine:
            return None
        values = sorted(value(r) for r in mine)
        text = number(statistics.median(values))
        if len(values) > 1:
            text += f" ({number(values[0])}–{number(values[-1])})"
        against = ratios(mine, of(base, job)) if target != base else []
        return text + (f" **×{statistics.median(against):.2f}**" if against else "")

    def latency(target, job):
        mine = of(target, job)
        parts = []
        for way in ("read", "write", "sync"):
            have = [r for r in mine if f"{way}_p50_us" in r]
            if have:
                p50, p99 = (number(statistics.median(r[f"{way}_{p}_us"] for r in have)) for p in ("p50", "p99"))
                parts.append(f"{way} {p50}/{p99}")
        return ", ".join(parts)

    def cpu(target, job):
        mine = [r for r in of(target, job) if r["bytes"]]
        if not mine:
            return None
        server = statistics.median(r["server_cpu_s"] / (r["bytes"] / GIB) for r in mine)
        rest = statistics.median(max(0, r["busy_cpu_s"] - r["fio_cpu_s"]) / (r["bytes"] / GIB) for r in mine)
        return f"{server:.2f} / {rest:.2f}"

    table(f"Speed: MB/s for 128K jobs, IOPS for the others; median (least–most), × = ratio to {base}", targets, jobs, speed)
    table("Latency, µs: p50/p99", targets, [j for j in jobs if "-q1" in j and "q16" not in j], latency)
    table("CPU seconds a GiB: the server's own / the whole machine's without fio", targets, jobs, cpu)
    print("\nSpace and memory, MiB\n\n| target | after | " + "used | server RSS, peak | note |\n|---|---|---|---|---|")
    for target in targets:
        for job in jobs:
            mine = [r for r in of(target, job) if "usage" in r]
            if mine:
                keys = dict.fromkeys(key for r in mine for key in r["usage"])
                used = ", ".join(f"{key} {statistics.median(r['usage'].get(key, 0) for r in mine) / 2**20:,.0f}" for key in keys)
                print(f"| {target} | {job} | {used} | {max(r['server_rss'] for r in mine) / 2**20:,.0f} | {mine[-1]['note']} |")
    print()


def list_all():
    print("targets:")
    for file in sorted((HERE / "targets").glob("*.sh")):
        print(f"  {file.stem:22} {file.read_text().splitlines()[0].lstrip('# ')}")
    print("jobs:")
    for name, (options, _, bound) in JOBS.items():
        print(f"  {name:22} {options} ({'one pass' if bound == 'size' else 'timed'})")
    print("mixes: U unique, incompressible; C unique, each block halves; D half of the blocks repeat; CD both")


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="targets and jobs")
    measure = commands.add_parser("run", help="measure")
    measure.add_argument("targets", nargs="*", default=DEFAULT_TARGETS)
    measure.add_argument("--dir", type=Path, default=ROOT / "target/bench/work", help="scratch, on the file system to measure")
    measure.add_argument("--out", type=Path, default=ROOT / "target/bench/results.jsonl", help="figures are appended here")
    measure.add_argument("--size", type=parse_size, default=512 << 20, help="bytes of each target (512m)")
    measure.add_argument("--secs", type=int, default=4, help="length of a timed job")
    measure.add_argument("--cap", type=int, default=180, help="most seconds of an untimed job")
    measure.add_argument("--reps", type=int, default=3)
    measure.add_argument("--mix", type=parse_mixes, default="C", help="what data is like, see `list`; several: C,CD")
    measure.add_argument("--jobs", help="comma-separated; default all")
    measure.add_argument("--base", default="file", help="target the ratios are taken to")
    measure.add_argument("--tolerance", choices=["none", "single", "double"], default="double")
    measure.add_argument("--disks", type=int, default=6)
    show = commands.add_parser("report", help="tables from earlier runs")
    show.add_argument("files", nargs="+", type=Path)
    show.add_argument("--base", default="file")
    arguments = parser.parse_args(words)
    if arguments.command == "list":
        return list_all()
    if arguments.command == "report":
        return report(arguments.files, arguments.base)
    arguments.dir = arguments.dir.resolve()
    # Being ended must still take the targets down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
