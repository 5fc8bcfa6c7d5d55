"""Prepare the ranking data: python workloads/ranking/data.py --out data/ranking

Source: MovieLens-100k (research licence, see README.md), 100,000 ratings of films by 943 people, read out of the PyPI
wheel `recbole` 1.2.1, which `make setup` downloads and nobody installs; none of its code is run.

* An event is one rating. It counts as liked from four stars up; the stars themselves are no feature.
* The split is by time, each person's own: the first 80 % of their events are for training, the next 10 % for
  validation, the rest for the test. Events of one second stay on one side.
* The history of an event is what the person rated before it, in an earlier second, newest first; counted is all of it,
  however long ago. Of the other events of its own second it knows nothing: in what order they came cannot be known.
* The same command writes the same bytes.

Written to --out: `train.safetensors`, `validation.safetensors`, `test.safetensors` (a row for each event, in time
order) and `shape.json` (how many values each field has, and how many events each part).
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WHEEL = Path(__file__).resolve().parents[2] / "data" / "wheels" / "recbole-1.2.1-py3-none-any.whl"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k"
PARTS = ("train", "validation", "test")
SHARES = (0.8, 0.9)  # of a person's events: where validation begins, and where the test
HISTORY = 50  # events
LIKED = 4  # stars
KINDS = {"genres": np.uint8, "answers": np.uint8, "liked": np.uint8, "time": np.int64}  # the rest: int16
Rows = list[dict[str, str]]


def read(wheel: Path, name: str) -> Rows:
    """The table `name` of MovieLens in `wheel`, a dictionary for each row.

    Raises:
        SystemExit: there is no such wheel, or the table is not in it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            lines = io.TextIOWrapper(archive.open(f"{INSIDE}.{name}"), encoding="utf-8").read().splitlines()
    except (OSError, KeyError, zipfile.BadZipFile) as e:
        raise SystemExit(f"error: no MovieLens-100k in {wheel}: {e}\nhint: `make setup` downloads it") from e
    header = [column.partition(":")[0] for column in lines[0].split("\t")]
    return [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]


def numbered(values: Iterable[str]) -> np.ndarray:
    """A number from 1 for each of `values`, in the order of their sorted values."""
    return np.unique(np.array(list(values)), return_inverse=True)[1] + 1


def place(rows: Rows, key: str) -> np.ndarray:
    """At which place of `rows` an id is, by id."""
    places = np.zeros(max(int(row[key]) for row in rows) + 1, dtype=np.int64)
    places[[int(row[key]) for row in rows]] = np.arange(len(rows))
    return places


def people_fields(people: Rows) -> dict[str, np.ndarray]:
    """What is known of each person, as numbers: half decades of age, sex, occupation, region of the postal code."""
    return {
        "user": np.arange(1, len(people) + 1),
        "age": numbered(f"{int(p['age']) // 5:02}" for p in people),
        "gender": numbered(p["gender"] for p in people),
        "occupation": numbered(p["occupation"] for p in people),
        "region": numbered(p["zip_code"][:2] for p in people),
    }


def film_fields(films: Rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What is known of each film, as numbers, and its genres as columns of zeros and ones."""
    names = sorted({genre for film in films for genre in film["class"].split()})
    genres = np.array([[name in film["class"].split() for name in names] for film in films], dtype=np.uint8)
    return {"item": np.arange(1, len(films) + 1), "year": numbered(f["release_year"] for f in films)}, genres


def moment_fields(time: np.ndarray) -> dict[str, np.ndarray]:
    """Hour and weekday (UTC) of each second since 1970, as numbers; 1970 began on a Thursday."""
    return {"hour": time // 3600 % 24 + 1, "weekday": (time // 86400 + 3) % 7 + 1}


def earlier(person: np.ndarray, time: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each person the places of their events, in time order, and how many came in seconds before each."""
    for one in np.unique(person):
        own = np.flatnonzero(person == one)
        yield own, np.searchsorted(time[own], time[own], side="left")


def split(person: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The part (0, 1, 2) of each event."""
    part = np.zeros(len(time), dtype=np.int64)
    for own, before in earlier(person, time):
        part[own] = np.searchsorted(SHARES, before / len(own), side="right")
    return part


def histories(person: np.ndarray, film: np.ndarray, time: np.ndarray, liked: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each event: films rated in earlier seconds, newest first, and the answers (1: not liked, 2: liked).

    Both have the shape (events, HISTORY), and 0 where there is nothing.
    """
    films, answers = (np.zeros((len(time), HISTORY), dtype=np.int64) for _ in range(2))
    for own, counts in earlier(person, time):
        for event, before in zip(own, counts, strict=True):
            last = own[max(0, before - HISTORY) : before][::-1]
            films[event, : len(last)], answers[event, : len(last)] = film[last], liked[last] + 1
    return films, answers


def earlier_answers(person: np.ndarray, time: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """For each event, how many films its person had not liked, and liked, in earlier seconds: (events, 2)."""
    counts = np.zeros((len(time), 2), dtype=np.int64)
    for own, before in earlier(person, time):
        so_far = np.concatenate(([0], liked[own].cumsum()))[before]
        counts[own] = np.stack((before - so_far, so_far), axis=1)
    return counts


def prepare(wheel: Path) -> tuple[dict[str, np.ndarray], np.ndarray, list[tuple[str, int]]]:
    """The columns of all events, in time order; the part of each; how many values each field has, 0 included."""
    people, films, ratings = (read(wheel, name) for name in ("user", "item", "inter"))
    time, person, film, stars = np.array(
        sorted([int(float(r[key])) for key in ("timestamp", "user_id", "item_id", "rating")] for r in ratings)
    ).T
    person, film = place(people, "user_id")[person], place(films, "item_id")[film]
    liked = (stars >= LIKED).astype(np.int64)
    of_person, (of_film, genres), of_moment = people_fields(people), film_fields(films), moment_fields(time)
    fields = {name: column[person] for name, column in of_person.items()}
    fields |= {name: column[film] for name, column in of_film.items()} | of_moment
    seen, answers = histories(person, of_film["item"][film], time, liked)
    columns = {
        "fields": np.stack(list(fields.values()), axis=1),
        "genres": genres[film],
        "history": seen,
        "answers": answers,
        "past": earlier_answers(person, time, liked),
        "liked": liked,
        "time": time,
    }
    return columns, split(person, time), [(name, int(column.max()) + 1) for name, column in fields.items()]


def main() -> None:
    options = argparse.ArgumentParser(description="Prepare MovieLens-100k for ranking.")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--wheel", type=Path, default=WHEEL, help="the wheel of recbole 1.2.1")
    given = options.parse_args()
    columns, part, sizes = prepare(given.wheel)
    given.out.mkdir(parents=True, exist_ok=True)
    small = {name: column.astype(KINDS.get(name, np.int16)) for name, column in columns.items()}
    for number, name in enumerate(PARTS):
        save_file({key: column[part == number] for key, column in small.items()}, given.out / f"{name}.safetensors")
    counts = dict(zip(PARTS, np.bincount(part, minlength=len(PARTS)).tolist(), strict=True))
    shape = {"fields": sizes, "genres": columns["genres"].shape[1], "events": counts}
    (given.out / "shape.json").write_text(json.dumps(shape, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(shape, indent=1))


if __name__ == "__main__":
    main()
