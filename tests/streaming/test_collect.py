"""The prediction log through Kafka: what was answered is in the files once, whoever is killed, and what is lost is counted."""

from __future__ import annotations

import random
import time
from datetime import datetime
from pathlib import Path

import pytest

from ml import brokers
from ml.features.online import open_store
from ml.serving import log_topic
from ml.serving.log import PredictionLog, read_online
from ml.serving.log_topic import LogTopic
from ml.serving.segment_files import folder
from ml.settings import settings
from ml.streaming.collect import Collector, Part
from ops import kafka_mock
from ops.stream_scene import MemberProcess, eventually
from tests.conftest import forget
from tests.sample_bundle import ENTITY_ID, REQUEST, fresh_features
from tests.serving.conftest import serve_process
from tests.serving.log_entries import END, START, entry
from tests.streaming.conftest import deploy

pytestmark = pytest.mark.e2e


class CollectorProcess(MemberProcess):
    """``evergreen stream collect``, which writes files of a fifth of a second."""

    program = "from ml.streaming import collect; collect.FILE_SECONDS = 0.2; from ml.cli import main; main()"
    words = ("stream", "collect")


@pytest.fixture
def topic(kafka: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The log goes to a topic of the test's own."""
    name = settings().kafka_requests.replace("requests", "log")
    monkeypatch.setenv("EVERGREEN_KAFKA_LOG", name)
    forget()
    brokers.partitions(brokers.producer(), name)
    return name


def collected() -> list[str]:
    found: list[str] = read_online(START, END, folder())["entity_id"].to_pylist()
    return found


def send(topic: str, first: int, end: int) -> None:
    log = PredictionLog(LogTopic(topic))
    log.append([entry(minute) for minute in range(first, end)])
    log.close()


def test_service__answers__are_in_the_files_as_they_were_given(kafka: Path, topic: str) -> None:
    fresh_features(open_store(settings().online))
    deploy()
    member = CollectorProcess(kafka, "collector")
    try:
        with serve_process() as (process, client):
            answers = client.post("/predict", json=[REQUEST] * 5, headers={"x-request-id": "mine"}).json()
            assert eventually(lambda: len(_day()) == 5, "five entries")
            metrics = client.get("/metrics").text
            process.terminate()
            process.wait(30)
        assert "evergreen_predictions_logged_total 5.0" in metrics
        assert not list(folder().glob("*.jsonl"))
        for found, answer in zip(_day(), answers, strict=True):
            assert (found["entity_id"], found["request_id"], found["probability"]) == (ENTITY_ID, "mine", answer["probability"])
        eventually(lambda: member.metric("evergreen_collect_entries_total") == 5, "five are counted")
        eventually(lambda: member.metric("evergreen_collect_lag") == 0, "none is left")
        assert member.terminate() == 0
    finally:
        member.kill()
        print(member.log.read_text())


def _day() -> list[dict[str, object]]:
    found: list[dict[str, object]] = read_online(datetime(2013, 4, 18), datetime(2013, 4, 20), folder()).to_pylist()
    return found


def test_collectors__killed_again_and_again__each_entry_is_in_the_files_once(kafka: Path, topic: str) -> None:
    chance, members = random.Random(8), [CollectorProcess(kafka, name) for name in ("a", "b")]
    try:
        for kill in range(8):
            send(topic, 40 * kill, 40 * (kill + 1))
            time.sleep(chance.uniform(0, 1.5))
            victim = chance.choice(members)
            victim.kill()
            victim.start()
        eventually(lambda: len(collected()) >= 320, "all are collected")
        for member in members:
            assert member.terminate() == 0
        assert sorted(collected()) == sorted(f"row-{minute}" for minute in range(320))
    finally:
        for member in members:
            member.kill()
            print(member.log.read_text()[-3000:])


def test_collector__stopped__has_written_and_committed_what_it_read(kafka: Path, topic: str) -> None:
    send(topic, 0, 10)
    member = CollectorProcess(kafka, "slow")
    member.kill()
    member.program = CollectorProcess.program.replace("0.2", "3600")
    member.start()
    try:
        eventually(lambda: member.metric("evergreen_collect_waiting") == 10, "it has read them")
        eventually(lambda: member.metric("evergreen_collect_lag") == 10, "none is in a file")
        assert collected() == []
        assert member.terminate() == 0
        assert len(collected()) == 10
        for path in folder().iterdir():  # only the commit says how far it is
            path.unlink()
        send(topic, 10, 12)
        member.program = CollectorProcess.program
        member.start()
        eventually(lambda: len(collected()) == 2, "the new ones")
    finally:
        member.kill()
        print(member.log.read_text()[-3000:])


def test_collector__folder_cannot_be_written__says_so_and_loses_nothing(kafka: Path, topic: str) -> None:
    folder().parent.mkdir(parents=True)
    folder().write_text("a file where the folder should be")
    send(topic, 0, 10)
    member = CollectorProcess(kafka, "collector")
    try:
        assert member.process.wait(60) == 1
        assert "no entry is lost" in member.log.read_text()
        folder().unlink()
        member.start()
        eventually(lambda: len(collected()) == 10, "all are collected")
    finally:
        member.kill()
        print(member.log.read_text()[-3000:])


def test_collector__another_member_was_there_meanwhile__leaves_it_to_its_file(topic: str) -> None:
    collector = Collector()
    folder().mkdir(parents=True)
    there = folder() / f"kafka-{topic}-1-{0:020d}-{7:020d}.parquet"
    there.write_bytes(b"")
    (folder() / f"kafka-{topic}-1-1-{0:020d}-{9:020d}.parquet").write_bytes(b"")  # of a topic whose name begins so
    collector._parts = {1: Part(0, 5, [b"{}"], 2), 2: Part(0, 0)}
    assert collector._collected_to(1) == 7
    assert [collector._write_one(partition) for partition in (1, 2, 3)] == [True, False, False]
    assert len(list(folder().iterdir())) == 2


def test_collect__no_topic__names_the_variable(kafka: Path) -> None:
    member = CollectorProcess(kafka, "collector")
    assert member.process.wait(60) == 1
    assert "EVERGREEN_KAFKA_LOG is not set" in member.log.read_text()


def test_log__brokers_gone__entries_wait_then_are_counted(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_topic, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(log_topic, "MOST", 30)
    written, dropped = [], []
    with kafka_mock.running(tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()
        log = PredictionLog(LogTopic("log"), 100, written.append, dropped.append)
        log.append([entry(minute) for minute in range(10)])
        eventually(lambda: sum(written) == 10, "the brokers have ten")
    log.append([entry(minute) for minute in range(100)])
    eventually(lambda: "entries wait in memory" in caplog.text, "it says that they wait")
    log.append([entry(minute) for minute in range(100)])
    assert sum(dropped) == 36  # 64 are on their way, 100 wait
    log.close()
    assert (sum(written), sum(written) + sum(dropped)) == (10, 210)
