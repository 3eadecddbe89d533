"""The log: what is written is read again, from any place, and damage is never taken for data."""

import errno
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from made_journals import driver_started, experiment_events, make_folder, write_journal

from raytuner.errors import JournalError
from raytuner.journal import Cursor, DriverEnded, JournalReader, JournalWriter, TrialAsked, events_beyond, log


def asked(k: int) -> TrialAsked:
    return TrialAsked(trial=f"{k:06d}", config={"x": k, "text": "ä|\n"}, at=float(k + 1))


def write(folder: Path, events: list) -> Path:
    writer = JournalWriter(folder)
    for event in events:
        writer.append(event)
    writer.close()
    return writer.path


def line(payload: dict) -> bytes:
    body = json.dumps(payload).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    events = [asked(k) for k in range(20)]
    write(tmp_path, events)
    assert list(JournalReader(tmp_path).read()) == events


def test_a_segment_a_driver(tmp_path: Path) -> None:
    first = write(tmp_path, [asked(0), asked(1)])
    second = write(tmp_path, [asked(2)])
    assert (first.name, second.name) == ("000001.jsonl", "000002.jsonl")
    assert list(JournalReader(tmp_path).read()) == [asked(0), asked(1), asked(2)]


def test_the_time_is_set_where_there_is_none(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    written = writer.append(TrialAsked(trial="000001", config={}))
    writer.close()
    assert time.time() - 60 < written.at <= time.time()
    assert list(JournalReader(tmp_path).read()) == [written]


def test_no_journal_yet(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "journal")
    assert list(reader.read()) == []
    assert reader.unread() == []


def test_a_torn_tail_at_every_byte_is_tolerated_and_reported(tmp_path: Path) -> None:
    path = write(tmp_path, [asked(0), asked(1)])
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        reader = JournalReader(tmp_path)
        assert list(reader.read()) == [asked(0)], cut
        assert len(reader.unread()) == (cut > start)
        if cut > start:
            assert f"the last {cut - start} bytes are torn" in reader.unread()[0]
        # Written to the end, as when the line was only on its way:
        path.write_bytes(whole)
        assert list(reader.read()) == [asked(1)]
        assert reader.unread() == []


def test_a_torn_tail_before_a_later_segment(tmp_path: Path) -> None:
    path = write(tmp_path, [asked(0), asked(1)])
    path.write_bytes(path.read_bytes()[:-5])
    write(tmp_path, [asked(2)])
    reader = JournalReader(tmp_path)
    assert list(reader.read()) == [asked(0), asked(2)]
    assert len(reader.torn) == 1
    assert str(path) in reader.torn[0]
    assert list(reader.read()) == []
    assert len(reader.torn) == 1


def test_zeros_that_a_crashed_machine_left_are_a_torn_tail(tmp_path: Path) -> None:
    path = write(tmp_path, [asked(0)])
    with path.open("ab") as file:
        file.write(b"\0" * 4096)
    assert list(JournalReader(tmp_path).read()) == [asked(0)]


def test_damage_in_the_middle_raises_at_every_byte(tmp_path: Path) -> None:
    path = write(tmp_path, [asked(0), asked(1)])
    whole = path.read_bytes()
    end = whole.rstrip(b"\n").rfind(b"\n")  # all but the last line
    for place in range(end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        with pytest.raises(JournalError, match=r"line at byte \d+ is damaged"):
            list(JournalReader(tmp_path).read())


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("000001.jsonl").write_bytes(line({"schema": "raytuner.journal/2"}))
    with pytest.raises(JournalError, match=r"raytuner\.journal/1 or older, got raytuner\.journal/2; upgrade"):
        list(JournalReader(tmp_path).read())
    tmp_path.joinpath("000001.jsonl").write_bytes(line({"schema": "another/1"}))
    with pytest.raises(JournalError, match="another/1"):
        list(JournalReader(tmp_path).read())


def test_a_cursor_resumes_anywhere_with_exactly_the_rest(tmp_path: Path) -> None:
    events = [asked(k) for k in range(6)]
    write(tmp_path, events[:4])
    write(tmp_path, events[4:])
    for taken in range(7):
        reader = JournalReader(tmp_path)
        source = reader.read()
        head = [next(source) for _ in range(taken)]
        reader.cursor.save(tmp_path / "cursors" / "me.json")
        cursor = Cursor.load(tmp_path / "cursors" / "me.json")
        assert head + list(JournalReader(tmp_path, cursor).read()) == events
        assert events_beyond(tmp_path, cursor) == 6 - taken


def test_a_cursor_that_is_missing_or_broken_is_the_beginning(tmp_path: Path) -> None:
    assert Cursor.load(tmp_path / "none.json") == Cursor()
    tmp_path.joinpath("broken.json").write_text('{"segment"')
    assert Cursor.load(tmp_path / "broken.json") == Cursor()


def test_tailing_while_another_process_writes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from raytuner.journal import JournalWriter, TrialAsked\n"
        "writer = JournalWriter(Path(sys.argv[1]))\n"
        "for k in range(3000): writer.append(TrialAsked(trial=f'{k:06d}', config={'text': 'x' * (k % 700)}))\n"
        "writer.close()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    reader, seen, rounds = JournalReader(tmp_path), [], 0
    deadline = time.monotonic() + 60
    while len(seen) < 3000 and time.monotonic() < deadline:
        new = [event.trial for event in reader.read()]
        rounds += bool(new)
        seen += new
    assert process.wait() == 0
    assert seen == [f"{k:06d}" for k in range(3000)]
    assert rounds > 1
    assert reader.torn == []


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from raytuner.journal import JournalWriter, TrialAsked\n"
        "writer = JournalWriter(Path(sys.argv[1]), sync_every=1000)\n"
        "for k in range(50): writer.append(TrialAsked(trial=f'{k:06d}', config={}))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert len(list(JournalReader(tmp_path).read())) == 50


def no_room(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fits", [0, 10])
def test_a_full_disk_is_waited_for_as_long_as_one_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    real, asks = os.write, []

    def on_full(path: Path) -> bool:
        assert path == writer.path
        asks.append(path)
        if len(asks) == 4:
            monkeypatch.setattr(os, "write", real)  # there is room again
        return len(asks) != 2

    monkeypatch.setattr(log, "ROOM_SECONDS", 0.01)
    writer = JournalWriter(tmp_path, on_full=on_full)
    writer.append(asked(0))
    monkeypatch.setattr(os, "write", (lambda fd, data: real(fd, data[:fits])) if fits else no_room)
    with pytest.raises(JournalError, match="the disk is full; what is on record is whole"):
        writer.append(asked(1))
    assert len(asks) == 2
    writer.append(asked(2))
    assert len(asks) == 4
    writer.append(asked(3))
    writer.close()
    assert list(JournalReader(tmp_path).read()) == [asked(0), asked(2), asked(3)]


def test_a_disk_that_fails_otherwise_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    writer = JournalWriter(tmp_path, on_full=lambda path: True)
    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(JournalError, match=r"the journal must be writable: .Errno 5. Input/output"):
        writer.append(asked(0))


def test_made_journals_are_whole(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    events = experiment_events(folder, 5)
    write_journal(folder, events)
    read = list(JournalReader(folder.journal).read())
    assert read == events
    assert (read[0], type(read[-1])) == (driver_started(), DriverEnded)
