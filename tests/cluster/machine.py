"""A machine of a cluster: a process in its own working folder that runs steps. One line of JSON asks, one answers.

python -m tests.cluster.machine
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any, get_type_hints

from ml import steps
from ml.refs import Ref


def run(step: str, arguments: dict[str, Any]) -> Any:
    """Calls a step as a DAG does: plain JSON becomes the references that its signature names, and back."""
    function = getattr(steps, step)
    hints = get_type_hints(function, vars(steps))
    given = {name: parsed(hints[name], value) for name, value in arguments.items()}
    outcome = function(**given)
    return outcome.to_xcom() if isinstance(outcome, Ref) else outcome


def parsed(hint: Any, value: Any) -> Any:
    from datetime import date, datetime

    if hint in (date, datetime) and value is not None:
        return hint.fromisoformat(value)
    return hint.model_validate(value) if isinstance(hint, type) and issubclass(hint, Ref) and value is not None else value


def main() -> None:
    answers = sys.stdout
    for line in sys.stdin:
        asked = json.loads(line)
        with redirect_stdout(sys.stderr):
            try:
                answer: dict[str, Any] = {"outcome": run(asked["step"], asked["arguments"])}
            except Exception as error:  # the other side says what it thinks of it
                answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), file=answers, flush=True)


if __name__ == "__main__":
    main()
