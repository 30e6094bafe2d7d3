"""The tables and the picture of ``make bench-tuning``. Losses are sums and numbers of rows, by day of the holdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ops.bench_features import say, show

SHARE, CONFIDENCE, RESAMPLES = 0.15, 0.95, 4000
OURS = ("ours cold", "ours warm")


def mean(days: dict[str, list[float]]) -> float:
    return sum(total for total, _ in days.values()) / sum(n for _, n in days.values())


def against(first: dict[str, list[float]], second: dict[str, list[float]]) -> Any:
    """Paired day-block interval of mean loss, first − second; negative: the first is better."""
    from ml.significance import paired_sums

    names = sorted(second)
    sums = np.array([first[day][0] - second[day][0] for day in names])
    return paired_sums(sums, np.array([second[day][1] for day in names]), CONFIDENCE, RESAMPLES, 0)


def compare(found: dict[str, Any]) -> None:
    """One month's table."""
    cold, recipe_, rows = found["ours cold"], found["recipe"], dict[str, Any]()
    mine: list[str] = [name for name in OURS if name in found]
    for name in mine:
        rows[f"{name}: chosen"] = found[name]
        rows[f"{name}: best trees"] = found[name] | {"days": found[name]["way"][-1]["days"]}
    rows["linear model alone"] = {"cpu": 0.0, "days": cold["linear"]}
    rows |= {name: one for name, one in found.items() if name not in mine}
    table = []
    for name, one in rows.items():
        gap = against(one["days"], cold["days"])
        verdict = "same" if gap.low <= 0 <= gap.high else ("better" if gap.high < 0 else "worse")
        table.append([name, f"{one['cpu']:,.1f}", f"{one['cpu'] / recipe_['cpu']:.1%}", f"{mean(one['days']):.5f}",
                      f"{gap.mean:+.5f} [{gap.low:+.5f}, {gap.high:+.5f}]", verdict])  # fmt: skip
    show(["contender", "search, CPU s", "of the recipe's", "holdout log-loss", "less that of ours cold", "so it is"], table)
    for name in mine:
        say(f"\n{name}: {found[name]['trials']} trials, {found[name]['pruned']} pruned; {found[name]['reason']}")


def summarise(found: dict[str, dict[str, Any]]) -> None:
    """The targets, met or missed."""
    say("\n## summary\n")
    table, missed = [], []
    for month, one in found.items():
        goal, whole = mean(one["recipe"]["days"]), one["recipe"]["cpu"]
        for name in (mine for mine in OURS if mine in one):
            mean_at = next((w["cpu"] for w in one[name]["way"] if mean(w["days"]) <= goal), None)
            noise_at = next((w["cpu"] for w in one[name]["way"] if against(w["days"], one["recipe"]["days"]).low <= 0), None)
            said = [f"{at / whole:.1%}" if at is not None else "never" for at in (mean_at, noise_at)]
            gap = against(one[name]["days"], one["FLAML"]["days"])
            figures = f"{gap.mean:+.5f} [{gap.low:+.5f}, {gap.high:+.5f}]"
            table.append([month, name, f"{one[name]['cpu'] / whole:.1%}", *said, figures])
            if mean_at is None or mean_at > SHARE * whole:
                missed.append(f"{month}, {name}: the recipe's holdout score in {SHARE:.0%} of its CPU time")
            if gap.low > 0:
                missed.append(f"{month}, {name}: not worse than FLAML beyond noise")
    heads = ["search, of the recipe's CPU", "reached its holdout score at", "not worse beyond noise at", "less FLAML's loss"]
    show(["month", "", *heads], table)
    say("\n" + ("\n".join(f"MISSED: {line}" for line in missed) or "all targets met"))


def draw(found: dict[str, dict[str, Any]], picture: Path) -> None:
    """Holdout loss of the best trees so far against CPU seconds."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4.6 * len(found), 4), squeeze=False, layout="constrained")
    for panel, (month, one) in zip(panels[0], found.items(), strict=True):
        for name, colour in (("recipe", "tab:gray"), ("ours cold", "tab:blue"), ("ours warm", "tab:orange")):
            if name not in one:
                continue
            cpu = [w["cpu"] for w in one[name]["way"]] + [one[name]["cpu"]]
            losses = [mean(w["days"]) for w in one[name]["way"]]
            panel.step(cpu, [*losses, losses[-1]], where="post", label=name, color=colour, marker=".")
        panel.plot(one["FLAML"]["cpu"], mean(one["FLAML"]["days"]), "^", color="tab:green", label="FLAML")
        for name, line in (("XGBoost defaults", ":"), ("LightGBM defaults", "--")):
            panel.axhline(mean(one[name]["days"]), linestyle=line, color="0.6", linewidth=1, label=name)
        panel.set(xscale="log", title=f"holdout of {month}", xlabel="CPU seconds of the search")
    panels[0][0].set_ylabel("holdout log-loss of the best so far")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    say(f"\ndrawn: {picture}")
