"""The public releases in their official layouts, written small."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.shards.conftest import picture

SEEDS = count()


class Layout(NamedTuple):
    """A release and how it is read."""

    source: str
    write: Callable[[Path], object]
    words: tuple[str, ...] = ()
    """Options of the source; ROOT stands for its folder."""
    make_words: tuple[str, ...] = ()
    """Options of `shards make` beside them."""


def write_images(root: Path, paths: Sequence[str]) -> None:
    """A different image at each path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(next(SEEDS)))


def write_list(path: Path, *lines: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_products10k(root: Path) -> None:
    """3 products in 2 groups."""
    train = [f"{place}.jpg,{place // 2},{100 + place // 4}" for place in range(6)]
    test = ["0.jpg,0,Public", "1.jpg,0,Public", "2.jpg,2,Private", "3.jpg,2,Private"]
    write_list(root / "train.csv", "name,class,group", *train)
    write_list(root / "test_kaggletest.csv", "name,class,Usage", *test)
    write_images(root, [f"train/{place}.jpg" for place in range(6)] + [f"test/{place}.jpg" for place in range(4)])


def gldv2(part: str, number: int) -> str:
    """Path of an image of Google Landmarks."""
    return f"{part}/{number}/a/0/{number}a0{number:013x}.jpg"


def gldv2_id(number: int) -> str:
    """Its id."""
    return Path(gldv2("train", number)).stem


def write_landmarks(root: Path) -> None:
    """Training: landmarks 1 and 2. Index: 1 (asked for by Public), 2 (by both), 3 (by nobody), and an image of none."""
    ids = [gldv2_id(number) for number in range(8)]
    write_list(root / "train/train_clean.csv", "landmark_id,images", f"1,{ids[0]} {ids[1]}", f"2,{ids[2]} {ids[3]}")
    write_list(
        root / "train/train.csv", "id,url,landmark_id", *(f"{ids[n]},http://a/{n},{1 + n // 2}" for n in range(4))
    )
    hierarchy = "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made"
    write_list(root / "train/train_label_to_hierarchical.csv", hierarchy, "1,http://c,church,religious,human-made")
    write_list(root / "index/index.csv", "id", *ids[:7])
    shown = ["1", "1", "2", "2", "3", "3"]
    write_list(
        root / "index/index_image_to_landmark.csv",
        "id,landmark_id",
        *(f"{image},{landmark}" for image, landmark in zip(ids, shown, strict=False)),
    )
    write_list(
        root / "test/retrieval_solution_v2.1.csv",
        "id,images,Usage",
        f"{ids[0]},{ids[0]} {ids[1]},Public",
        f"{ids[1]},{ids[2]},Public",
        f"{ids[2]},{ids[2]} {ids[3]},Private",
        f"{ids[3]},None,Ignored",
    )
    numbers = {"train": range(4), "index": range(7), "test": range(4)}
    write_images(root, [gldv2(part, number) for part, those in numbers.items() for number in those])


def write_deepfashion(root: Path, *, images: str = "img") -> None:
    """Items 1 and 2 to train, 3 and 4 in val, 5 in test; each with 2 photos of its owner and one of a shop."""
    pairs, boxes = [], []
    for item, status in enumerate(("train", "train", "val", "val", "test"), start=1):
        folder = f"img/DRESSES/Skirt/id_{item:08}"
        shop = f"{folder}/shop_01.jpg"
        boxes.append(f"{shop}  2 1  5 6 35 28")
        for view in (1, 2):
            owner = f"{folder}/comsumer_{view:02}.jpg"
            pairs.append(f"{owner}    {shop}    id_{item:08}   {status}")
            boxes.append(f"{owner} 2 2 {view} 2 30 28" if view == 1 else f"{owner} 2 2 0 0 0 0")
    header = "image_pair_name_1 image_pair_name_2 item_id evaluation_status"
    write_list(root / "Eval/list_eval_partition.txt", str(len(pairs)), header, *pairs)
    header = "image_name clothes_type source_type x_1 y_1 x_2 y_2"
    write_list(root / "Anno/list_bbox_consumer2shop.txt", str(len(boxes)), header, *boxes)
    write_images(root, [images + line.split()[0].removeprefix("img") for line in boxes])


def write_deepfashion_kaggle(root: Path) -> None:
    """6 items of 2 photos."""
    paths = {f"id_{item:08}": [f"train/Skirt/id_{item:08}/{view}.jpg" for view in (0, 1)] for item in range(6)}
    write_list(root / "deepfashion_train.json", json.dumps({"Skirt": paths}))
    write_images(root, [path for listed in paths.values() for path in listed])


def write_stanford_cars(root: Path) -> None:
    """Models 1, 2 and 99, each twice on either side."""
    from scipy.io import savemat  # type: ignore[import-untyped]

    corners = ("x1", "y1", "x2", "y2")
    fields = [(f"bbox_{corner}", object) for corner in corners] + [("class", object), ("fname", object)]
    rows = [(1, 2, 30, 28, number, f"{place:05}.jpg") for place, number in enumerate((1, 1, 2, 2, 99, 99), start=1)]
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": np.array(rows, fields)})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": np.array(rows, fields)})
    names = np.array([f"Make C/V Model {number}" for number in range(1, 197)], object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})
    write_images(root, [f"cars_{split}/{row[5]}" for split in ("train", "test") for row in rows])


def write_refined_cars(root: Path, *, has_meta: bool = True) -> None:
    """Kaggle's nested folder and a CSV of 5 classes of car × colour beside it."""
    write_stanford_cars(root)
    if not has_meta:
        (root / "devkit/cars_meta.mat").unlink()
    classes = [name for name in ("1_0", "1_8", "2_3", "99_6", "2_9") for _ in range(2)]
    rows = [f"1,2,30,28,{name},{place:05}.jpg,0.9350605" for place, name in enumerate(classes, start=1)]
    write_list(root / "refined_train.csv", "x1,y1,x2,y2,Class,image,Probability", *rows)
    write_images(root, [f"cars_train/cars_train/{place:05}.jpg" for place in range(1, 11)])


def write_m4d35k(root: Path) -> None:
    """4 classes of 2 images in each of the 4 parts."""
    paths = {
        "products-10k/train/{}.jpg": 0,
        "google_landmark_recognition_2021/train/a/b/c/abc{}.jpg": 100,
        "deepfashion/train/Skirt/id/{}.jpg": 200,
        "stanford_cars/cars_train/cars_train/{}.jpg": 300,
    }
    rows = [(path.format(place), first + place // 2) for path, first in paths.items() for place in range(8)]
    write_list(root / "m4d-35k_train.csv", "img_path,label", *(f"{path},{label}" for path, label in rows))
    write_images(root, [path for path, _ in rows])


def write_sop(root: Path) -> None:
    """Classes 1 and 2 to train, 3 and 4 to test."""
    header = "image_id class_id super_class_id path"
    for name, first in (("train", 1), ("test", 3)):
        rows = [
            (first * 2 + place, first + place // 2, 1, f"bicycle_final/11108512287{first}_{place}.JPG")
            for place in range(4)
        ]
        write_list(root / f"Ebay_{name}.txt", header, *(" ".join(map(str, row)) for row in rows))
        write_images(root, [row[3] for row in rows])


DESCRIPTIONS = {
    "info": {},
    "categories": [
        {"id": 0, "name": "shirt, blouse", "supercategory": "upperbody", "level": 2},
        {"id": 6, "name": "pants", "supercategory": "lowerbody", "level": 2},
    ],
    "attributes": [
        {"id": 115, "name": "symmetrical", "supercategory": "silhouette", "level": 1},
        {"id": 136, "name": "wrapping", "supercategory": "textile", "level": 1},
        {"id": 137, "name": "wrapping", "supercategory": "textile", "level": 1},
    ],
}


def write_imaterialist(root: Path) -> None:
    """80 photos of 2020; the first has three segments, not all in a row."""
    rows = [f'{place:032x},1 2 7 3,30,40,{6 * (place % 2)},"115,136"' for place in range(80)]
    rows += [f"{0:032x},5 2,30,40,6,", f"{0:032x},9 2,30,40,6,137"]
    write_list(root / "train.csv", "ImageId,EncodedPixels,Height,Width,ClassId,AttributesIds", *rows)
    write_list(root / "label_descriptions.json", json.dumps(DESCRIPTIONS))
    write_images(root, [f"train/{place:032x}.jpg" for place in range(80)] + ["test/0a.jpg"])


def write_humpback(root: Path) -> None:
    """5 whales of 2 images, 2 images of new whales, one test image, and boxes of the first two."""
    whales = [f"w_{place // 2:07x}" for place in range(10)] + ["new_whale"] * 2
    write_list(root / "train.csv", "Image,Id", *(f"{place:08x}.jpg,{whale}" for place, whale in enumerate(whales)))
    write_images(root, [f"train/{place:08x}.jpg" for place in range(12)] + ["test/ffffffff.jpg"])
    rows = [f"{place:08x}.jpg,{place},1,30,20" for place in range(2)]
    write_list(root / "bounding_boxes.csv", "Image,x0,y0,x1,y1", *rows)


def write_gdsc(root: Path) -> None:
    """Whales 1 to 5 with 2 images each, an unknown one, one test image, and boxes that name a path elsewhere."""
    paths = [f"train/{whale}/PM-{place}.{'jpg' if place else 'JPG'}" for whale in range(1, 6) for place in range(2)]
    write_images(root, [*paths, "train/-1/PM-0.JPG", "test_val/PM-9.jpg"])
    write_list(root / "train_bbox.csv", "new_path,x,y,w,h", *(f"/data_science/{path},3,4,30,20" for path in paths[:1]))


def write_ucu(root: Path) -> None:
    """6 classes of 2 images, 3 test images."""
    write_list(root / "train.csv", "file_id,class", *(f"{place},{place // 2}" for place in range(12)))
    write_list(root / "test.csv", "file_id", *map(str, range(12, 15)))
    write_images(root, [f"{'train' if place < 12 else 'test'}/{place}.jpg" for place in range(15)])


LAYOUTS = {
    "products10k": Layout("products10k", write_products10k),
    "landmarks": Layout("landmarks", write_landmarks),
    "deepfashion": Layout("deepfashion", write_deepfashion),
    "deepfashion of kaggle": Layout("deepfashion", write_deepfashion_kaggle),
    "stanford_cars": Layout("stanford_cars", write_stanford_cars),
    "stanford_cars refined": Layout("stanford_cars", write_refined_cars, ("--annotations", "ROOT/refined_train.csv")),
    "m4d35k": Layout("m4d35k", write_m4d35k),
    "sop": Layout("sop", write_sop),
    "imaterialist": Layout("imaterialist", write_imaterialist, ("--with-test",), ("--dev-fraction", "50%")),
    "humpback": Layout("whales", write_humpback, ("--keep-unknown", "--boxes", "ROOT/bounding_boxes.csv")),
    "gdsc": Layout("whales", write_gdsc, ("--keep-unknown",)),
    "ucu": Layout("ucu", write_ucu),
}
