"""The queue before the audit file: in order, bounded, and honest about what it had no room for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from egressd.control.records import MAX_BATCHES, Records
from egressd.link import Lines
from egressd.model import PolicyRecord
from egressd.settings import Audit, Settings


def test_records_without_room_are_counted_and_the_count_is_a_record(tmp_path: Path) -> None:
    """Our own records never wait for a slow disk; lines of the data path do, and come out in order."""
    file = tmp_path / "audit.jsonl"

    async def life() -> None:
        records = Records(Settings(node="n1", audit=Audit(file=str(file))))
        for number in range(MAX_BATCHES):
            await records.put(Lines(f'{{"n":{number}}}\n'.encode(), 1))
        waiting = asyncio.create_task(records.put(Lines(b'{"n":"late"}\n', 1)))
        await asyncio.sleep(0)
        assert not waiting.done()
        records.tell([PolicyRecord(0.0, "shop/web", "updated")] * 3)
        running = asyncio.create_task(records.run())
        await waiting
        await records.close()
        await running
        records.tell([PolicyRecord(0.0, "shop/web", "deleted")])
        await records.close()
        await records.run()

    asyncio.run(life())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["n"] for line in lines if "n" in line] == [*range(MAX_BATCHES), "late"]
    assert [line["dropped"] for line in lines if line.get("event") == "audit"] == [3]
    assert [line["change"] for line in lines if line.get("event") == "policy"] == ["deleted"]
