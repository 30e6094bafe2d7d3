"""Files that machines share: two working folders, one PostgreSQL, one store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from ml import ledger, shared, store
from ml.errors import ConfigError, StaleWriteError
from ml.settings import settings
from tests.conftest import forget

Machine = Callable[[str], Path]


@pytest.fixture
def machine(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this process a machine, by name; returns its folder ``data/raw``. All share one database and one store."""
    monkeypatch.setenv("EVERGREEN_SHARED", "true")
    monkeypatch.setenv("EVERGREEN_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("EVERGREEN_LEDGER", postgres_url)

    def be(name: str) -> Path:
        for root in ("data", "var"):
            monkeypatch.setenv(f"EVERGREEN_{root.upper()}", str(tmp_path / name / root))
        forget()
        folder = settings().data / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    be("a")
    with ledger.engine().begin() as connection:
        connection.execute(sa.text("DELETE FROM shared_files"))
    return be


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def there(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_push__brings_new_changed_and_removed_files_to_the_other(machine: Machine) -> None:
    a = machine("a")
    before = shared.pull(a)
    put(a, one="1", two="2")
    shared.push(before, a)
    b = machine("b")
    before = shared.pull(b)
    assert there(b) == {"one": "1", "two": "2"}
    put(b, one="changed")
    (b / "two").unlink()
    shared.push(before, b)
    machine("a")
    shared.pull(a)
    assert there(a) == {"one": "changed"}


def test_pull__takes_away_what_was_not_shared__add_does_not(machine: Machine) -> None:
    a = machine("a")
    put(a, half="a killed task left this", **{".hidden": "being written"})
    shared.add(a)
    assert set(there(a)) == {"half", ".hidden"}
    shared.pull(a)
    assert set(there(a)) == {".hidden"}


def test_push__refuses_a_stale_writer_and_changes_nothing(machine: Machine) -> None:
    a = machine("a")
    before = shared.pull(a)
    b = machine("b")
    put(b, one="b")
    shared.push({}, b)
    machine("a")
    put(a, one="a", two="a")
    with pytest.raises(StaleWriteError, match="data/raw/one"):
        shared.push(before, a)
    shared.pull(a)
    assert there(a) == {"one": "b"}


def test_share__reaches_the_other_at_any_depth_and_keeps_its_own(machine: Machine) -> None:
    a = machine("a")
    put(a, own="a")
    shared.share({a / "deep" / "file": b"content", settings().var / "page": b"page"})
    b = machine("b")
    shared.add(b, settings().var / "page")
    assert (b / "deep" / "file").read_text() == "content"
    assert (settings().var / "page").read_text() == "page"
    assert not (b / "own").exists()


def test_offer__shares_each_file_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    a = machine("a")
    put(a, first="1")
    shared.offer(a, "*")
    put(a, second="2")
    sent: list[bytes] = []
    monkeypatch.setattr(store, "put", lambda data: sent.append(data) or store.sha256(data))
    shared.offer(a, "*")
    assert sent == [b"2"]


def test_lock__lets_one_in_at_a_time(machine: Machine) -> None:
    machine("a")
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        with shared.lock("test"):
            inside.append(number)
            most.append(len(inside))
            with ledger.engine().connect() as connection:
                connection.execute(sa.text("SELECT pg_sleep(0.05)"))
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == [1] * 4


def test_wanted__needs_a_store_and_a_ledger_that_others_reach(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_STORE", "/tmp/store")
    machine("a")
    with pytest.raises(ConfigError, match="EVERGREEN_STORE or EVERGREEN_LEDGER is a file of this machine"):
        shared.wanted()
    monkeypatch.delenv("EVERGREEN_SHARED")
    machine("a")
    assert not shared.wanted()
