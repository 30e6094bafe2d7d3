"""What people read about a DAG and its tasks: display names, documentation and the triage table, from ``docs/<dag>.md``.

One source: a task's section there is its own documentation, and its line *When it fails* is its row of the DAG's triage table. Of
the section's title the part before the colon is the task's id, the rest its display name; of the line, what stands before the
arrow says what a failure means, and what stands after it what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "docs"
FAILS = "- **When it fails:** "


@dataclass(frozen=True)
class Words:
    """Of one DAG."""

    title: str
    text: str
    """Markdown, the triage table included."""
    tasks: dict[str, tuple[str, str]]
    """By task id: display name, Markdown."""

    def dag(self) -> dict[str, str]:
        """What ``@dag`` is given."""
        return {"dag_display_name": self.title, "doc_md": self.text}

    def task(self, task_id: str) -> dict[str, Any]:
        """What ``@task``, or an operator, is given."""
        title, text = self.tasks[task_id]
        return {"task_id": task_id, "task_display_name": title, "doc_md": text}


def words(dag_id: str) -> Words:
    """Reads a DAG's words.

    Raises:
        ValueError: a task's section lacks the line *When it fails*, or the arrow in it.
    """
    head, *sections = re.split(r"^## ", (FOLDER / f"{dag_id}.md").read_text(), flags=re.MULTILINE)
    title, _, text = head.removeprefix("# ").partition("\n")
    tasks, rows = {}, []
    for section in sections:
        heading, _, body = section.partition("\n")
        task_id, _, name = heading.partition(": ")
        fails = next((line for line in body.splitlines() if line.startswith(FAILS)), "")
        means, arrow, cure = fails.removeprefix(FAILS).partition(" → ")
        if not arrow:
            raise ValueError(f"{dag_id}.md, task {task_id}: no line '{FAILS.strip()} means → do'")
        tasks[task_id] = (name, f"### {name}\n{body.strip()}\n")
        rows.append(f"| `{task_id}` | {means} | {cure} |")
    table = "\n".join(["| task failed | it means | do |", "|---|---|---|", *rows])
    return Words(title, f"### {title}\n\n{text.strip()}\n\n{table}\n", tasks)
