"""Which learning rates should the ablations have? Trains a few strategies and judges them on the
validation gallery. Run `python tests/benchmarks/rates.py`; rows are appended to rates.csv.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bt_adapter.ablations import FRESH, FULL_STUDY, ROWS, States, Study, test_row, train_row
from bt_adapter.backbone import load_clip
from bt_adapter.ledger import append_csv
from bt_adapter.moving_shapes import gallery
from bt_adapter.trainer import ParamGroup

TRIED = [  # row of Table 1, factor of all rates of 0.02 and 4e-3, share of opened layers
    ("BT-Adapter, frozen", 2, 1),
    ("BT-Adapter, frozen", 4, 1),
    ("BT-Adapter, frozen", 8, 1),
    ("separate-ST, frozen", 2, 1),
    ("separate-ST, frozen", 4, 1),
    ("separate-ST", 4, 1),
    ("separate-ST", 4, 0.1),
]
CLIPS = 216


def rates(factor: float, share: float) -> tuple[ParamGroup, ...]:
    "Muon for opened layers and for fresh ones, AdamW for the rest."
    opened = ParamGroup(("blocks.",), 0.02 * factor * share, "muon")
    return opened, ParamGroup(FRESH, 0.02 * factor, "muon"), ParamGroup(("",), 4e-3 * factor)


def main():
    torch.set_num_threads(1)
    clip, held = load_clip("moving-shapes"), gallery("validation", CLIPS)
    rows = {row.name: row for row in ROWS if row.table == "Table 1"}
    study = Study.make(clip, FULL_STUDY, 1, [])
    study = replace(study, test=held, unseen={8: States(clip, held, 8)})
    for name, factor, share in TRIED:
        config = replace(FULL_STUDY, rates=rates(factor, share))
        one = replace(study, config=config)
        found = test_row(one, rows[name], train_row(one, rows[name])[0])
        figures = {figure: f"{found[figure]:.1f}" for figure in ("T2V R@1", "motion", "direction")}
        made = dict(row=name, factor=factor, opened=share, steps=FULL_STUDY.steps) | figures
        append_csv(Path(__file__).with_suffix(".csv"), [made])
        print(name, factor, share, *figures.values(), file=sys.stderr)


if __name__ == "__main__":
    main()
