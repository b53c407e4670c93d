"""Tests of the benchmark tool: what it computes, and a tiny real run."""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import unittest
from pathlib import Path

import bench
import rawsync


def record(target, rep, job="randread4k-q1", iops=0.0, mb_s=0.0, run=1):
    return {"target": target, "rep": rep, "job": job, "iops": iops, "mb_s": mb_s, "run": run}


class Arithmetic(unittest.TestCase):
    def test_sizes(self):
        self.assertEqual(bench.parse_size("16m"), 16 << 20)
        self.assertEqual(bench.parse_size("1.5G"), 3 << 29)
        self.assertEqual(bench.parse_size("1048576"), 1 << 20)
        for bad in ["", "g", "12", "1048577", "-1g", "x1m"]:
            with self.assertRaises(argparse.ArgumentTypeError, msg=bad):
                bench.parse_size(bad)

    def test_keys(self):
        text = "noise\nuri=nbd+unix:///?socket=/a=b\npids= 1 2 \nnot a key=3\n"
        self.assertEqual(bench.parse_keys(text), {"uri": "nbd+unix:///?socket=/a=b", "pids": "1 2"})

    def test_ratios_pair_repetitions(self):
        base = [record("file", 0, iops=100), record("file", 1, iops=200), record("file", 0, iops=50, run=2)]
        mine = [record("x", 0, iops=50), record("x", 1, iops=300), record("x", 2, iops=9), record("x", 0, iops=5, run=2)]
        self.assertEqual(bench.ratios(mine, base), [0.5, 1.5, 0.1])

    def test_large_jobs_are_judged_by_throughput(self):
        self.assertEqual(bench.value(record("x", 0, job="write128k", iops=8, mb_s=1)), 1)
        self.assertEqual(bench.value(record("x", 0, iops=8, mb_s=1)), 8)

    def test_write_jobs_pay_for_their_flush(self):
        for job, (_, moves, _) in bench.JOBS.items():
            command = bench.fio_command(job, ["--filename=f"], 1 << 20, 1, "CD", 1, 10)
            self.assertEqual("--end_fsync=1" in command, moves != "read", job)
            self.assertEqual("--dedupe_percentage=50" in command, moves != "read", job)

    def test_fio_error_is_an_error(self):
        output = json.dumps({"jobs": [{"error": 5}]})
        with self.assertRaises(bench.TargetError):
            bench.fio_result("write128k", output)


class Tiny(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix=".ashlar-bench-", dir=bench.ROOT / "tools"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def test_every_target_names_itself_and_tells_whether_it_can_run(self):
        for file in sorted((bench.HERE / "targets").glob("*.sh")):
            self.assertTrue(file.read_text().startswith("# "), file)
            bench.Target(file.stem, self.dir, 1 << 20, {"TOLERANCE": "double", "DISKS": "6"}).unable()

    def test_raw_synchronous_writes(self):
        for method in ["dsync", "fdatasync"]:
            try:
                figures = rawsync.measure(self.dir, 2, 4096, 0.2, method, 1 << 20)
            except OSError as error:
                self.skipTest(f"no direct I/O here: {error}")
            self.assertGreater(figures["ios"], 0)
            self.assertEqual(figures["bytes"], figures["ios"] * 4096)
            self.assertEqual(list(self.dir.iterdir()), [])

    def test_failed_start_is_taken_down_and_reported(self):
        target = bench.Target("file", self.dir, 1 << 20, {})
        target.environment["SIZE"] = "nonsense"
        with contextlib.redirect_stderr(io.StringIO()):
            records = list(bench.run_target(target, ["write128k"], None, "C", 0))
        self.assertEqual([r["job"] for r in records], ["start"])
        self.assertIn("target_start failed", records[0]["error"])
        self.assertFalse(target.dir.exists())

    def test_an_unknown_mix_is_refused(self):
        with contextlib.redirect_stderr(io.StringIO()) as shown, self.assertRaises(SystemExit):
            bench.main(["run", "--mix", "C,X"])
        self.assertIn("'X' is none of U, C", shown.getvalue())

    def test_run_and_report(self):
        if bench.Target("file", self.dir, 1 << 20, {}).unable():
            self.skipTest("no fio")
        out, shown = self.dir / "results.jsonl", io.StringIO()
        words = ["run", "--dir", str(self.dir / "work"), "--out", str(out), "--size", "2m", "--secs", "1", "--reps", "1"]
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            status = bench.main([*words, "--mix", "C,CD", "--jobs", "write128k,randread4k-q1", "file", "nbdkit-memory"])
        records = [json.loads(line) for line in out.read_text().splitlines()]
        self.assertEqual(status, 0, shown.getvalue())
        self.assertEqual({r["job"] for r in records}, {"write128k", "randread4k-q1"})
        self.assertTrue(all(r["iops"] > 0 for r in records))
        written = next(r for r in records if r["target"] == "file" and r["job"] == "write128k")
        self.assertEqual(written["bytes"], 2 << 20)
        self.assertEqual({(r["mix"], r["target"]) for r in records if r["target"] == "file"}, {("C", "file"), ("CD", "file")})
        self.assertIn("## Mix C\n", shown.getvalue())
        self.assertIn("## Mix CD\n", shown.getvalue())
        self.assertEqual(list((self.dir / "work").iterdir()), [])


if __name__ == "__main__":
    unittest.main()
