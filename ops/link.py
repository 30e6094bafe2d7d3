"""Makes the repository importable in its virtual environment and writes the `evergreen` command; run by ``make setup``.

Nothing is built or copied: the code that runs is the code that you edit.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    (Path(sysconfig.get_path("purelib")) / "evergreen.pth").write_text(f"{ROOT}\n")
    command = Path(sys.executable).parent / "evergreen"
    command.write_text(f"#!{sys.executable}\nfrom ml.cli import main\n\nmain()\n")
    command.chmod(0o755)


if __name__ == "__main__":
    main()
