"""Right and wrong answers to the exercises on attention through time."""

import torch

from bt_adapter.exercises.attention_through_time import backwards_maps, causal_attention
from bt_adapter.temporal_attention import reference_attention
from exercise_cases import Case


def turned_by_index(maps):
    order = torch.arange(maps.shape[-1] - 1, -1, -1)
    return maps[..., order, :][..., order]


def frame_by_frame(qkv):
    ends = range(1, qkv.shape[1] + 1)
    return torch.stack([reference_attention(qkv[:, :end])[0][:, -1] for end in ends], 1)


CASES = {
    "turned": Case(
        right=["moves left", "Moves left.", "moves l", "left"],
        wrong=[("right", "number 8"), ("cannot tell", "stamps"), ("jumps", "Choose one")],
    ),
    "backwards": Case(
        right=[backwards_maps, turned_by_index],
        wrong=[
            (lambda maps: maps, "Row 1"),
            (lambda maps: maps.flip(-1), "rows change"),
            (lambda maps: maps.mT, "two roles"),
            (torch.zeros(3), "function"),
        ],
    ),
    "causal": Case(
        right=[causal_attention, frame_by_frame],
        wrong=[
            (lambda qkv: reference_attention(qkv)[0], "sees all"),
            (lambda qkv: causal_attention(qkv.flip(1)).flip(1), "later"),
            (lambda qkv: qkv[:, :, :, 2] * 0, "differ"),
        ],
    ),
}
