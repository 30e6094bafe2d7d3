"""Exit code 0 when each address given answers 200 within two seconds: the health check of images that hold no curl.

    python deploy/healthy.py http://127.0.0.1:3000/livez

Standard library only, and quick to start: it runs every few seconds.
"""

from __future__ import annotations

import sys
import urllib.request


def main(addresses: list[str]) -> int:
    for address in addresses:
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                if answer.status != 200:
                    raise OSError(f"status {answer.status}")
        except (OSError, ValueError) as error:
            print(f"{address}: {error}", file=sys.stderr)
            return 1
    return 0 if addresses else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
