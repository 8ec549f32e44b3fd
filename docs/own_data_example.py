"""Writes clicks.csv and products.csv, a small shop: 400 users, ISO times, commas and quotes in titles."""

import csv
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path


def main(folder: str = ".") -> None:
    """Write both files into a folder."""
    rng = random.Random(1)
    kinds = ["lamp", "chair", "desk", "shelf", "rug", "vase", "clock", "mirror"]
    looks = ["oak", "steel", "linen", "glass", "walnut", "bamboo", "red", "blue", "grey", "white", "small", "tall", "round"]
    products = [(f"P{number:03}", f'The "{look}" {kind}, {10 + number} cm', look, 5 + number % 90)
                for number, (look, kind) in enumerate((look, kind) for look in looks for kind in kinds)]  # fmt: skip
    clicks = []
    for user in range(400):
        at = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=rng.randrange(100_000))
        for _ in range(rng.randint(2, 4)):  # visits, days apart
            at += timedelta(days=rng.randint(1, 5))
            item = rng.randrange(len(products))
            for _ in range(rng.randint(2, 8)):
                at += timedelta(seconds=rng.randint(10, 300))
                item = (item + rng.choice([1, 1, 8, 8, 16])) % len(products)
                clicks.append((f"C{user}", products[item][0], at.isoformat()))
    for name, head, rows in (
        ("clicks.csv", ("customer_id", "product_id", "event_time"), clicks),
        ("products.csv", ("product_id", "product_name", "look", "price"), products),
    ):
        with open(Path(folder) / name, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([head, *rows])


if __name__ == "__main__":
    main()
