"""The ranking workload's scripts, and a MovieLens of a dozen people in the form of the real one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

RANKING = Path(__file__).resolve().parents[2] / "workloads" / "ranking"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k"
PEOPLE, FILMS, EACH = 12, 30, 25
Rating = tuple[int, int, int, int]  # person, film, stars, second


def ratings() -> list[Rating]:
    """What everybody rated: several films in some seconds, as people do."""
    draw = np.random.default_rng(7)
    rows = []
    for person in range(1, PEOPLE + 1):
        films = draw.permutation(FILMS)[:EACH] + 1
        seconds = 880_000_000 + 1000 * person + np.sort(draw.integers(0, 40, EACH))
        stars = draw.integers(1, 6, EACH)
        rows += [(person, *row) for row in zip(films.tolist(), stars.tolist(), seconds.tolist(), strict=True)]
    return [rows[i] for i in draw.permutation(len(rows))]


def write_wheel(path: Path, rated: list[Rating]) -> Path:
    """A wheel with these ratings, with their people and films, where recbole's has MovieLens."""
    tables = {
        "inter": [("user_id:token", "item_id:token", "rating:float", "timestamp:float"), *rated],
        "user": [
            ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"),
            *(
                (p, 15 + 5 * (p % 4), "FM"[p % 2], ("writer", "nurse")[p % 3 == 0], f"{p % 3}5711")
                for p in _ids(PEOPLE)
            ),
        ],
        "item": [
            ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
            *(
                (f, f"Film {f}", "" if f == 3 else 1990 + f % 5, ("Drama", "Comedy Drama", "")[f % 3])
                for f in _ids(FILMS)
            ),
        ],
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, rows in tables.items():
            wheel.writestr(f"{INSIDE}.{name}", "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def _ids(count: int) -> range:
    return range(1, count + 1)
