"""Human responses that travel with a stimulus set: `responses.csv`, one row per response, or per response and its count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm_probe.stimuli import plain_csv
from vlm_probe.stimuli.ranges import Range, whole

RESPONSES = "responses.csv"
SECONDS, COUNT = Range(0), whole(1, 10**9)
COLUMNS = ("item_id", "participant", "response", "rt", "count")


@dataclass(frozen=True, slots=True)
class Response:
    """What somebody answered to an item, or how many did.

    Attributes:
        item_id: The item.
        participant: Who answered; empty where only counts are known.
        response: The answer as its meaning (an option's value, or whole numbers as the grammar writes them), not the word.
        rt: Reaction time in seconds; None if it was not recorded.
        count: How often it was given; 1 for a single response.
    """

    item_id: str
    participant: str
    response: str
    rt: float | None = None
    count: int = 1


def to_csv(responses: Iterable[Response]) -> str:
    """The responses as the text of `responses.csv`."""
    return plain_csv.write_csv(COLUMNS, ([r.item_id, r.participant, r.response, r.rt, r.count] for r in responses))


def read_csv(path: Path, sha256: str) -> Iterator[Response]:
    """Responses as `to_csv` wrote them.

    Args:
        path: The file.
        sha256: Its hash, as the card states it.

    Raises:
        ValueError: If the file is missing or not the one with that hash.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(
            f"{path} is not the file that the card describes (edited by hand?): restore it, or import anew"
        )
    header, rows = plain_csv.read_csv(data.decode())
    for line, cells in rows:
        row = dict(zip(header, cells, strict=True))
        rt, count = float(row["rt"]) if row["rt"] else None, int(row["count"])
        if not (rt is None or SECONDS.holds(rt)) or not COUNT.holds(count):
            raise ValueError(f"{path}, line {line}: rt must be {SECONDS}, and count {COUNT}")
        yield Response(row["item_id"], row["participant"], row["response"], rt, count)
