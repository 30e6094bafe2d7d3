"""``make api-cases``: thousands of requests, right and wrong ones, made by Schemathesis from the service's OpenAPI document.

No answer may be a server error, and each must be what the document says: status, content type, schema. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ml.errors import EvergreenError
from ops import environment
from ops.fault_scene import scene

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.api_cases", description=__doc__)
    parser.add_argument("--each", type=int, default=400, help="at most so many for each route (default 400)")
    parser.add_argument("--cases", type=int, default=5000, help="at least so many in all (default 5,000)")
    parser.add_argument("--seed", type=int, default=1, help="of what is made up")
    asked = parser.parse_args(arguments)
    with scene() as at:
        count, failed = cases(f"{at.service.url}/openapi.json", at.home / "cases.json", asked.each, asked.seed)
        if not at.service.ready() or not at.ask():
            raise EvergreenError("the service does not answer after the cases", "see what was sent last, above")
    print(f"{count:,} cases, {'with failures: see above' if failed else '0 server errors, 0 answers against the schema'}")
    if count < asked.cases:
        raise EvergreenError(f"{count:,} cases are fewer than {asked.cases:,}", "ask for more with --each")
    return failed


def cases(document: str, report: Path, each: int, seed: int) -> tuple[int, int]:
    """Runs the cases against the service that serves `document`; returns how many they were, and Schemathesis' exit code.

    Raises:
        EvergreenError: Schemathesis could not begin.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", document, "--checks", CHECKS, "--phases",
               "examples,coverage,fuzzing", "--max-examples", str(each), "--seed", str(seed), "--generation-database", "none",
               "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--report", "json",
               "--report-json-path", str(report)]  # fmt: skip
    done = subprocess.run(command, env=environment.common(), cwd=report.parent, check=False)
    if done.returncode not in (0, 1) or not report.exists():
        raise EvergreenError(f"schemathesis ended with {done.returncode}", "make setup installs it; see its words above")
    return int(json.loads(report.read_text())["test_cases"]["generated"]), done.returncode


if __name__ == "__main__":
    sys.exit(main())
