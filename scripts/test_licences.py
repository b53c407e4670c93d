"""What scripts/licences.py makes of expressions and packages."""

import unittest

from licences import REGISTRY, allowed, findings

ALLOW = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}


def package(name, licence, source=REGISTRY, dependencies=()):
    return {"id": name, "name": name, "version": "1.0.0", "license": licence, "source": source, "dependencies": list(dependencies)}


class Licences(unittest.TestCase):
    def test_expressions(self):
        good = ["MIT", "MIT OR GPL-3.0", "(MIT OR X) AND Apache-2.0", "MIT/X", "X/MIT", "MIT+", "Apache-2.0 WITH LLVM-exception"]
        bad = ["X", "MIT AND X", "X AND (MIT OR Apache-2.0)", "Apache-2.0 WITH Other", "X OR Y AND MIT", "none"]
        for expression in good:
            self.assertTrue(allowed(expression, ALLOW), expression)
        for expression in bad:
            self.assertFalse(allowed(expression, ALLOW), expression)
        for expression in ["", "MIT MIT", "(MIT", "MIT OR", "MIT WITH", "OR MIT"]:
            with self.assertRaises(ValueError, msg=expression):
                allowed(expression, ALLOW)

    def test_packages(self):
        wild = {"name": "other", "req": "*", "path": None}
        packages = [
            package("own", None, None, [wild, {"name": "beside", "req": "*", "path": "/x"}]),
            package("good", "MIT"),
            package("copyleft", "GPL-3.0"),
            package("excepted", "MPL-2.0+"),
            package("elsewhere", "MIT", "git+https://example.org/x"),
            package("silent", None),
            package("unused", "GPL-3.0"),
        ]
        nodes = [{"id": p["id"]} for p in packages if p["name"] != "unused"]
        found = {"packages": packages, "resolve": {"nodes": nodes}, "workspace_members": ["own"]}
        rules = {"licenses": {"allow": list(ALLOW), "exceptions": [{"crate": "excepted", "allow": ["MPL-2.0"]}]}}
        self.assertEqual(
            list(findings(found, rules)),
            [
                "own 1.0.0: any version of other would do",
                "copyleft 1.0.0: licence GPL-3.0 is not in deny.toml",
                "elsewhere 1.0.0 comes from git+https://example.org/x",
                "silent 1.0.0: licence None is not in deny.toml",
            ],
        )


if __name__ == "__main__":
    unittest.main()
