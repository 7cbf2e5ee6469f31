"""Cut the two small CIFAR-10 subsets that the repository ships out of the full JPEG zips.

    python models/make_data.py --data ../shared/data

Writes `models/cifar10/test` (1,000 test images, 100 per class) and `models/cifar10/calibration`
(256 training images), each with a `labels.txt` of `file label` lines. The JPEG bytes are the
zips' own, untouched, and the choice is seeded, so running it again writes the same files.
Needs nothing beyond the standard library.
"""

from __future__ import annotations

import argparse
import random
import shutil
import zipfile
from pathlib import Path

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def choose(names: list[str], count: int, seed: int) -> list[tuple[str, int]]:
    """`count` (member, label) pairs, every class as often as every other (the first ones once more)."""
    rng = random.Random(seed)
    chosen: list[tuple[str, int]] = []
    for label, name in enumerate(CLASSES):
        members = sorted(n for n in names if n.endswith(".jpg") and n.split("/")[-2] == name)
        wanted = count // len(CLASSES) + (label < count % len(CLASSES))
        chosen += [(member, label) for member in sorted(rng.sample(members, wanted))]
    # Mixed classes, so that any prefix (`--limit 200`) is a fair sample too.
    rng.shuffle(chosen)
    return chosen


def write(archive_path: Path, folder: Path, count: int, seed: int) -> None:
    """Fill `folder` with `count` images of the archive and their labels.txt."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    lines = []
    with zipfile.ZipFile(archive_path) as archive:
        for position, (member, label) in enumerate(choose(archive.namelist(), count, seed)):
            name = f"{position:04d}-{CLASSES[label]}-{Path(member).stem}.jpg"
            (folder / name).write_bytes(archive.read(member))
            lines.append(f"{name} {label}\n")
    (folder / "labels.txt").write_text("".join(lines), encoding="ascii", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the two zips")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    target = Path(__file__).parent / "cifar10"
    write(args.data / "cifar10-test.zip", target / "test", 1000, args.seed)
    write(args.data / "cifar10-train.zip", target / "calibration", 256, args.seed)


if __name__ == "__main__":
    main()
