"""Who answers whom: shares are met, who was in the canary stays in it, salts are independent, arms are even."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import pytest

from ml.serving import router
from ml.serving.manifest import Deployed, Experiment, Manifest

IDS = [f"UA-{number}-EWR-20130418T1015" for number in range(20_000)]
ONE, TWO, THREE = (Deployed(version=v, bundle=v * 64, model=v * 64) for v in "123")


def manifest_of(**changes: object) -> Manifest:
    fields = {"version": 1, "name": "m", "key": "k", "champion": ONE, "previous": None, "changed_at": datetime(2013, 4, 1)}
    return Manifest.model_validate(fields | {"by": "test", "reason": ""} | changes)


def experiment(name: str, share: float, arms: tuple[str, ...] = ("control", "treatment")) -> Manifest:
    models = dict(zip(arms, (ONE, TWO, THREE), strict=False))
    return manifest_of(experiment=Experiment(name=name, share=share, arms=models, started_at=datetime(2013, 4, 1)))


def cohorts(manifest: Manifest) -> dict[str, str]:
    return {name: router.cohort_of(manifest, name) for name in IDS}


def test_bucket__of_a_known_entity_never_moves() -> None:
    assert router.bucket("UA-1545-EWR-20130101T1015", "canary") == pytest.approx(0.449405, abs=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_canary__and_baseline_get_their_share(share: float) -> None:
    counts = Counter(cohorts(manifest_of(canary=TWO, canary_share=share)).values())
    tolerance = 4 * (share * (1 - share) / len(IDS)) ** 0.5  # four standard deviations of a binomial share
    assert counts[router.CANARY] / len(IDS) == pytest.approx(share, abs=tolerance)
    assert counts[router.BASELINE] / len(IDS) == pytest.approx(share, abs=tolerance)
    assert counts[router.CHAMPION] == len(IDS) - counts[router.CANARY] - counts[router.BASELINE]


def test_canary__who_was_in_stays_in_when_the_share_grows() -> None:
    before, after = (cohorts(manifest_of(canary=TWO, canary_share=share)) for share in (0.05, 0.25))
    for cohort in (router.CANARY, router.BASELINE):
        assert {name for name in IDS if before[name] == cohort} < {name for name in IDS if after[name] == cohort}


def test_canary__without_a_share_answers_nobody() -> None:
    assert set(cohorts(manifest_of(canary=TWO)).values()) == {router.CHAMPION}


def test_salts__are_independent() -> None:
    both = Counter((router.bucket(name, "one") < 0.5, router.bucket(name, "two") < 0.5) for name in IDS)
    assert all(count / len(IDS) == pytest.approx(0.25, abs=0.015) for count in both.values())
    first, second = cohorts(experiment("first", 0.2)), cohorts(experiment("second", 0.2))
    inside = [name for name in IDS if first[name] != router.CHAMPION]
    again = sum(second[name] != router.CHAMPION for name in inside) / len(inside)
    assert again == pytest.approx(0.2, abs=0.03), "who was in the first experiment is in the second no more often than others"


@pytest.mark.parametrize("arms", [("control", "treatment"), ("control", "a", "b")])
def test_experiment__is_split_evenly_between_its_arms(arms: tuple[str, ...]) -> None:
    counts = Counter(cohorts(experiment("first", 0.3, arms)).values())
    assert set(counts) == {router.CHAMPION, *(router.EXPERIMENT + arm for arm in arms)}
    for arm in arms:
        assert counts[router.EXPERIMENT + arm] / len(IDS) == pytest.approx(0.3 / len(arms), abs=0.01)


def test_deployed_for__each_cohort() -> None:
    canary, trial = manifest_of(canary=TWO, canary_share=0.1), experiment("first", 0.5)
    assert router.deployed_for(canary, router.CANARY) == TWO
    assert router.deployed_for(canary, router.BASELINE) == router.deployed_for(canary, router.CHAMPION) == ONE
    assert router.deployed_for(trial, "experiment:treatment") == TWO
    assert router.deployed_for(trial, "experiment:gone") == ONE, "an arm that is no more is answered by the champion"
    assert router.deployed_for(manifest_of(), router.CANARY) == ONE


def test_shadows_of__canary_and_baseline_see_each_others_rows() -> None:
    document = manifest_of(canary=TWO, canary_share=0.1, shadow=THREE)
    assert router.shadows_of(document, router.CANARY) == [ONE, THREE]
    assert router.shadows_of(document, router.BASELINE) == [TWO, THREE]
    assert router.shadows_of(document, router.CHAMPION) == [THREE]


def test_shadows_of__a_model_does_not_shadow_itself_nor_twice() -> None:
    assert router.shadows_of(manifest_of(shadow=ONE), router.CHAMPION) == []
    assert router.shadows_of(manifest_of(canary=TWO, canary_share=0.1, shadow=TWO), router.BASELINE) == [TWO]
