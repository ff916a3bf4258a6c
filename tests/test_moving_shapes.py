"""Moving Shapes: what the notebook shows on examples, over all motions, sizes and seeds."""

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bt_adapter import moving_shapes as world
from bt_adapter import shapes
from bt_adapter.moving_shapes import MOTIONS, Scene, Thing
from bt_adapter.video import read_clip, write_clip


def scene_with(motion, seed=0, things=1):
    rng = np.random.default_rng(seed)
    scene = world.random_scene(rng, "train", things)
    return replace(scene, things=tuple(replace(t, motion=motion) for t in scene.things))


@pytest.mark.parametrize("frames, size, things", [(8, 64, 1), (24, 48, 1), (8, 63, 2)])
@pytest.mark.parametrize("motion", MOTIONS)
def test_only_time_tells_opposites_apart(motion, frames, size, things):
    scene = scene_with(motion, seed=len(motion), things=things)
    one = world.render(scene, frames, size)
    other = world.render(world.opposite(scene), frames, size)
    # Pixels may differ by rounding: s and 1 - s are not mirror images in fp32.
    means = [sorted(clip.float().mean((1, 2, 3)).tolist()) for clip in (one, other)]
    np.testing.assert_allclose(*means, atol=0.05)
    assert not torch.equal(one, other), "the order must tell"
    assert world.caption(scene) != world.caption(world.opposite(scene))
    assert world.opposite(world.opposite(scene)) == scene


@pytest.mark.parametrize("motion", ["left", "up-right", "clockwise", "orbit"])
@pytest.mark.parametrize("size", [32, 64, 101])
def test_things_are_where_their_pose_says(motion, size):
    thing = Thing("white", "circle", motion, "red", size=0.3, phase=0.3)
    clip = world.render(Scene((thing,), "black"), 8, size).float().mean(-1) - 8
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    pose = MOTIONS[motion].pose(world.segment_times(8), 0.3)
    for name, center in (("x", clip.sum(1) @ axis), ("y", clip.sum(2) @ axis)):
        found = center / clip.sum((1, 2))
        np.testing.assert_allclose(found, np.broadcast_to(pose[name], 8), atol=0.02)


def test_a_tenth_of_a_pixel_shows():
    thing = Thing("white", "square", "turn", "white")
    moved = replace(thing, center=(0.1 / 32, 0.0))
    clips = [world.render(Scene((t,), "black"), 1).float() for t in (thing, moved)]
    assert 0 < (clips[0] - clips[1]).abs().max() < 60


def test_seeds_decide_everything():
    def scenes(seed):
        return [world.random_scene(np.random.default_rng(seed), things=k) for k in (1, 2)]

    assert scenes(3) == scenes(3) != scenes(4)
    assert world.gallery("test", 10, seed=1) == world.gallery("test", 10, seed=1)


def digest(parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


WORLD_OF_THE_SHIPPED_WEIGHTS = {  # scenes and captions, clips, trails
    ("train", 1): ("45befc58f4cbdc6d", "005f61df93685379", "166bd2add54e7708"),
    ("train", 2): ("c2866385931ff8bd", "1c42675666f9ff03", "0ae784c927b7789b"),
    ("validation", 1): ("baa6d25a391ccf26", "b510b7ec9ffaf028", "6253d3b4dd202b66"),
    ("validation", 2): ("b8cb0935c1b9f395", "dc59499b2e85a1ee", "cdfc28858affce8d"),
    ("test", 1): ("211ec64cfc2960bd", "07d3189f9680c0b2", "cf95bfbb79b09386"),
    ("test", 2): ("fad489841ee279de", "b819b48f0fbf4fa7", "6fc1c7e3418a708f"),
    ("gallery", 1): ("6f5b92d99fce485d", "367f182452fa1590", "2fd42263f7fa5ebc"),
}


def is_drawn_alike_everywhere(scene):
    """Without sines and arc tangents, whose last bit is not the same on every processor."""
    away = {"star", "clockwise", "counter-clockwise", "orbit", "bounce", "striped"}
    return not away & {scene.background, *(n for t in scene.things for n in (t.shape, t.motion))}


def test_level_1_is_what_the_shipped_weights_were_trained_on():
    rng, found = np.random.default_rng(0), {}
    splits = [(s, k) for s in ("train", "validation", "test") for k in (1, 2)]
    drawn = {(s, k): [world.random_scene(rng, s, k) for _ in range(60)] for s, k in splits}
    drawn["gallery", 1] = world.gallery("test")
    for name, scenes in drawn.items():
        told = digest(
            repr(s).encode() + world.caption(s, i % 3).encode() for i, s in enumerate(scenes)
        )
        some, times = (
            [*filter(is_drawn_alike_everywhere, scenes)][:15],
            [8, 5, [0.1, 0.33, 0.9]] * 5,
        )
        clips = digest(world.render(s, t, 48).numpy().tobytes() for s, t in zip(some, times))
        trails = digest(world.long_exposure(s).numpy().tobytes() for s in some)
        found[name] = told, clips, trails
    assert found == WORLD_OF_THE_SHIPPED_WEIGHTS


def test_galleries_have_distinct_captions_and_all_motions():
    for split in ("train", "validation", "test"):
        scenes = world.gallery(split)
        assert len({world.caption(s) for s in scenes}) == len(scenes) >= 400
        assert {s.things[0].motion for s in scenes} == set(MOTIONS)


def test_what_is_drawn_is_found_in_the_world_too():
    for name in ("SHAPES", "COLORS", "BACKGROUNDS"):
        assert getattr(world, name) is getattr(shapes, name), name


@pytest.mark.parametrize("things", [1, 2])
def test_no_test_pair_ever_moves_outside_the_test_split(things):
    rng = np.random.default_rng(0)
    held_out = set(world.pairs("test"))
    for split in ("train", "validation"):
        for _ in range(300):
            for thing in world.random_scene(rng, split, things).things:
                assert not {(thing.color, thing.shape), (thing.other, thing.shape)} & held_out


def test_captions_read_well():
    rng = np.random.default_rng(0)
    for template in range(len(world.CAPTION_TEMPLATES)):
        for _ in range(200):
            text = world.caption(world.random_scene(rng, things=2), template)
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |[{}]", text), text


@pytest.mark.parametrize("motion", ["left", "appear", "turn", "bounce"])
def test_mp4_gives_back_what_was_drawn(motion, tmp_path):
    drawn = world.render(scene_with(motion), 12, 128)
    write_clip(tmp_path / "clip.mp4", drawn)
    read = read_clip(tmp_path / "clip.mp4", frames=12)
    assert (read.float() - drawn.float()).abs().mean() < 3
    assert (read.float() - drawn.float()).abs().mean((1, 2, 3)).max() < 4


def test_motion_scores_need_more_than_one_frame():
    scenes = world.gallery("test", 200)

    def bag_of_frames(scene):  # the same for a scene and its opposite
        return scene if list(MOTIONS).index(scene.things[0].motion) % 2 else world.opposite(scene)

    def encode(texts):
        draws = [torch.Generator().manual_seed(sum(map(ord, t)) * len(t)) for t in texts]
        vectors = torch.stack([torch.randn(512, generator=g) for g in draws])
        return torch.nn.functional.normalize(vectors, dim=-1)

    scores = world.motion_scores(
        encode([world.caption(bag_of_frames(s)) for s in scenes]), scenes, encode
    )
    assert 0.35 < scores["direction"] < 0.65


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: world.render(scene_with("left"), 0), "number of frames of 1 or more"),
        (lambda: world.render(scene_with("left"), size=4), "8 or more"),
        (lambda: world.gallery("testing"), "use 'train', 'validation' or 'test'"),
        (lambda: world.gallery("test", 10_000), "distinct captions"),
        (lambda: world.random_scene(np.random.default_rng(0), things=3), "one or two things"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
