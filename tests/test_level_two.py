"""Moving Shapes, level 2: two things with a motion each, exact backwards, evenly dealt."""

import re
import zlib
from collections import Counter, defaultdict
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from bt_adapter import moving_shapes as world
from bt_adapter import scenes, small_clip, twins
from bt_adapter.backbone import load_tokenizer
from bt_adapter.moving_shapes import MOTIONS, Scene, Thing, add_motion
from bt_adapter.variations import TEXTURES, Noise, Tempo

GALLERIES = {split: world.gallery(split, level=2) for split in ("train", "validation", "test")}


def drawn(n, seed=0, split="train", things=2):
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng, split, things, level=2) for _ in range(n)]


def quadrant(thing):
    return tuple(int(c > 0) for c in thing.center)


def groups(split):
    scenes = GALLERIES[split]
    return [scenes[i : i + 4] for i in range(0, len(scenes), 4)]


def oracle(texts):
    draws = [torch.Generator().manual_seed(zlib.crc32(t.encode())) for t in texts]
    vectors = torch.stack([torch.randn(512, generator=g) for g in draws])
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.mark.parametrize("things", [1, 2])
def test_the_opposite_is_the_clip_backwards_bit_for_bit(things):
    rng = np.random.default_rng(7)
    for i, scene in enumerate(drawn(60, seed=things, things=things)):
        other = world.opposite(scene)
        assert world.opposite(other) == scene
        frames, size = 1 + i % 17, int(rng.integers(16, 50))
        one, back = world.render(scene, frames, size), world.render(other, frames, size)
        assert torch.equal(one.flip(0), back), scene
        uneven = np.sort(rng.uniform(size=frames))
        one, back = world.render(scene, uneven, size), world.render(other, 1 - uneven, size)
        assert torch.equal(one, back), scene


def test_what_is_not_drawn_at_random_is_exact_backwards_too():
    thing = Thing("red", "star", "up-left", "blue", tempo=Tempo(0.3, 0.9, 0.2))
    for texture in TEXTURES:
        scene = Scene((thing,), "striped", texture=texture, noise=Noise(30, 5), pan=(0.3, -0.2))
        for frames in (3, 7, 12):
            clips = [world.render(s, frames, 33) for s in (scene, world.opposite(scene))]
            assert torch.equal(clips[0], clips[1].flip(0)), texture


def test_a_scene_is_decided_by_its_seed_and_does_not_name_what_it_lacks():
    assert drawn(5, seed=3) == drawn(5, seed=3) != drawn(5, seed=4)
    plain = Scene((Thing("red", "star", "left", "blue"),), "navy")
    assert plain.level == 1 and eval(repr(plain)) == plain and "tempo" not in repr(plain)
    lively = drawn(20)
    assert all(scene.level == 2 and eval(repr(scene)) == scene for scene in lively)
    assert len({repr(scene) for scene in lively}) == 20


def test_a_tempo_moves_late_early_and_rests():
    times = np.linspace(0, 1, 65)
    come = Tempo(0.25, 0.75, 0.25).progress(times)
    assert (come[:17] == 0).all() and (come[48:] == 1).all() and (np.diff(come) >= 0).all()
    assert (come[24:41] == 0.5).all() and come[20] == 0.25


def test_noise_is_another_in_each_frame_and_knows_no_direction():
    scene = Scene((Thing("red", "star", "left", "blue"),), "navy", noise=Noise(12, 3))
    bare = replace(scene, noise=None, texture="dots")
    grain = world.render(scene, 8).int() - world.render(replace(scene, noise=None), 8).int()
    corner = grain[:, :6, :6]
    assert torch.equal(corner, corner.flip(0)) and len(corner[:4].flatten(1).unique(dim=0)) == 4
    assert 0 < corner.abs().max() <= 12 and bare.level == 2
    assert not torch.equal(grain, world.render(replace(scene, noise=Noise(12, 4)), 8).int())


def test_what_stands_still_is_no_motion_and_its_own_opposite():
    still = Thing("red", "square", "still", "blue", tempo=Tempo())
    scene = Scene((still,), "navy")
    assert world.caption(scene) == "a red square stands still on a navy background"
    assert world.opposite(scene) == scene and len(world.render(scene).unique(dim=0)) == 1
    assert "still" not in MOTIONS and "still" not in world.motions_of(2)
    trained = [t.motion for scene in drawn(200) for t in scene.things]
    assert 10 < trained.count("still") < 45
    assert not any("still" in (t.motion for t in s.things) for s in drawn(50, split="test"))


def test_a_motion_of_ones_own_comes_to_level_2_at_once():
    before = {split: world.motion_pairs(split) for split in GALLERIES}
    add_motion("swing-right", "swings right", "swing-left", "swings left",
        lambda s, phase: dict(x=-0.45 * np.cos(np.pi * s), y=0.3 - 0.6 * np.sin(np.pi * s)),
        room=(0.05, 0.05))  # fmt: skip
    try:
        assert {"swing-right", "swing-left"} < set(world.motions_of(2))
        assert all(set(old) < set(world.motion_pairs(split)) for split, old in before.items())
        found = [s for s in drawn(60) if "swing-left" in (t.motion for t in s.things)]
        assert found
        for scene in found:
            one, back = world.render(scene, 5), world.render(world.opposite(scene), 5)
            assert torch.equal(one, back.flip(0)) and "swings left" in world.caption(scene)
            assert twins.wrong_twins(scene)
    finally:
        del MOTIONS["swing-right"], MOTIONS["swing-left"]
    assert before == {split: world.motion_pairs(split) for split in GALLERIES}


@pytest.mark.parametrize("split", GALLERIES)
def test_a_gallery_has_distinct_captions_and_two_things_that_move(split):
    scenes = GALLERIES[split]
    meant = [frozenset(map(world.thing_phrase, s.things)) | {s.background} for s in scenes]
    assert len({*meant}) == len({*map(world.caption, scenes)}) == len(scenes) >= 400
    for scene in scenes:
        assert len({t.color for t in scene.things}) == len({t.motion for t in scene.things}) == 2
        assert all(t.motion in world.motions_of(2) for t in scene.things)


def test_splits_share_neither_looks_nor_meetings_of_motions():
    looks, met = defaultdict(set), defaultdict(set)
    for split, some in GALLERIES.items():
        for scene in some + drawn(100, seed=1, split=split):
            looks[split] |= {(t.color, t.shape) for t in scene.things}
            looks[split] |= {(t.other, t.shape) for t in scene.things if split == "test"}
            met[split] |= {frozenset(t.motion for t in scene.things)}
        assert looks[split] >= set(world.pairs(split))
    for one, two in (("train", "test"), ("validation", "test"), ("train", "validation")):
        assert not met[one] & met[two]
        assert not looks[one] & looks[two]
    for split in GALLERIES:  # every motion is in every split
        assert set().union(*met[split]) >= set(world.motions_of(2))


@pytest.mark.parametrize("split", GALLERIES)
def test_in_a_group_everything_but_the_motions_is_the_same(split):
    for group in groups(split):
        first, second = ([s.named[k].motion for s in group] for k in (0, 1))
        opposites = [MOTIONS[m].opposite for m in first]
        assert sorted(first) == sorted(second) == sorted(opposites) and len({*first}) == 4
        bare = [[replace(t, motion="still", tempo=None) for t in scene.things] for scene in group]
        assert all(b == bare[0] for b in bare)
        assert len({(s.background, s.texture, s.noise, s.front_first) for s in group}) == 1


def test_neither_look_nor_place_nor_depth_tells_the_motion_of_the_test():
    def table(of):
        found = defaultdict(Counter)
        for scene in GALLERIES["test"]:
            for k, thing in enumerate(scene.named):
                found[thing.motion][(k, of(scene, thing))] += 1
        return found

    facts = dict(
        color=lambda scene, thing: thing.color,
        shape=lambda scene, thing: thing.shape,
        quadrant=lambda scene, thing: quadrant(thing),
        background=lambda scene, thing: scene.background,
        front=lambda scene, thing: thing is scene.things[-1],
    )
    for name, of in facts.items():
        rows = list(table(of).values())
        assert all(row == rows[0] for row in rows), name
    for name, of in dict(size=lambda t: t.size, reach=lambda t: t.reach).items():
        means = [
            np.mean([of(t) for s in GALLERIES["test"] for t in s.things if t.motion == motion])
            for motion in world.motions_of(2)
        ]
        assert np.ptp(means) < 0.1 * np.mean(means), name


def test_frames_without_their_order_tell_no_direction():
    for scene in GALLERIES["test"][::40]:
        clips = [world.render(s, 8, 32) for s in (scene, world.opposite(scene))]
        bags = [sorted(frame.numpy().tobytes() for frame in clip) for clip in clips]
        assert bags[0] == bags[1] and not torch.equal(*clips)


def test_each_thing_is_seen_well_enough():
    overlap = 0
    for scene in GALLERIES["test"] + drawn(60):
        shares = world.seen(scene)
        assert (shares >= 0.2).all() and ((shares >= 0.5).mean(1) >= 0.75).all()
        overlap += shares[0].min() < 0.95
    assert overlap > 100, "things may hide each other"


def test_the_thing_in_front_is_drawn_last_and_not_always_named_last():
    back, front = (Thing(c, "square", "left", "white", tempo=Tempo()) for c in ("red", "green"))
    scene = Scene((back, front), "navy")
    assert world.render(scene, 2)[0, 32, 40].tolist() == [40, 190, 70]
    turned = replace(scene, front_first=True)
    assert torch.equal(world.render(scene), world.render(turned))
    assert world.caption(turned).startswith("a green square moves left and a red square")
    assert world.static_caption(turned).startswith("a green square and a red square")
    counts = Counter(scene.front_first for scene in GALLERIES["test"])
    assert counts[True] == counts[False]


def test_twins_are_scenes_that_say_something_else():
    for scene in drawn(40, seed=5) + GALLERIES["test"][::50]:
        family = [scene, *twins.wrong_twins(scene).values()]
        assert len({world.caption(s) for s in family}) == 4
        assert len({world.render(s, 8, 24).numpy().tobytes() for s in family}) == 4
        looks = [[(t.color, t.shape, t.center) for t in s.things] for s in family]
        assert all(look == looks[0] for look in looks)
        new = [
            (a.motion, b.motion)
            for a, b in zip(scene.things, family[3].things)
            if a.motion != b.motion
        ]
        ((old, other),) = new
        assert other not in (old, world.motion_named(old).opposite)
        assert world.swapped(world.swapped(scene)) == scene
        assert twins.replaced(scene) == family[3], "the same each time"


def test_wrong_twins_of_the_test_meet_in_the_test():
    for scene in GALLERIES["test"][::7]:
        for twin in twins.wrong_twins(scene).values():
            assert world.motion_split(*(t.motion for t in twin.things)) == "test"


def test_scores_know_the_right_caption_and_each_wrong_one():
    scenes = GALLERIES["test"][:60]
    right = twins.twin_scores(oracle([*map(world.caption, scenes)]), scenes, oracle)
    assert right == dict(reversed=1.0, swapped=1.0, replaced=1.0, motion=1.0)
    for name in twins.TWINS:
        wrong = oracle([world.caption(twins.wrong_twins(scene)[name]) for scene in scenes])
        assert twins.twin_scores(wrong, scenes, oracle)[name] == 0.0
    same = oracle(["nothing"]).expand(len(scenes), -1)
    shares = twins.twin_scores(same, scenes, lambda texts: oracle(["x"]).expand(len(texts), -1))
    assert set(shares.values()) == {0.0}, "a draw is no right answer"


def test_scores_of_a_bag_of_frames_are_at_chance():
    scenes = GALLERIES["test"]

    def bag_of_frames(scene):  # the same for a scene and its opposite, for swapped ones as well
        return min((scene, world.opposite(scene)), key=world.caption)

    shares = twins.twin_scores(
        oracle([*map(world.caption, map(bag_of_frames, scenes))]), scenes, oracle
    )
    assert shares["reversed"] == 0.5


@pytest.mark.parametrize("things", [1, 2])
def test_trails_of_level_2_tell_the_direction(things):
    for scene in drawn(8, seed=2, things=things):
        trails = [world.long_exposure(s) for s in (scene, world.opposite(scene))]
        assert trails[0].shape == (64, 64, 3) and not torch.equal(*trails)


def test_one_thing_of_level_2():
    scenes = world.gallery("test", level=2, things=1)
    assert len({*map(world.caption, scenes)}) == len(scenes) >= 400
    assert {s.things[0].motion for s in scenes} == set(world.motions_of(2))
    assert all(s.level == 2 for s in scenes)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: drawn(1, things=3), "one or two things, not 3"),
        (lambda: world.random_scene(np.random.default_rng(0), level=3), "levels 1 and 2, not 3"),
        (lambda: world.gallery("test", level=0), "levels 1 and 2, not 0"),
        (lambda: world.gallery("test", level=1, things=2), "ask for level=2"),
        (lambda: world.gallery("test", 10_000, level=2), "distinct captions"),
        (lambda: world.gallery("testing", level=2), "use 'train', 'validation' or 'test'"),
        (lambda: world.motion_pairs("testing"), "use 'train', 'validation' or 'test'"),
        (lambda: world.swapped(drawn(1, things=1)[0]), "between two things"),
        (lambda: twins.replaced(drawn(1)[0], 0, drawn(1)[0].things[0].motion), "another one"),
        (lambda: twins.wrong_twins(drawn(1, things=1)[0]), "between two things"),
        (lambda: Tempo(0.5, 0.2), "begins before it ends"),
        (lambda: Tempo(0, 1, 1), "pause is shorter"),
        (lambda: Tempo("soon"), "three numbers"),
        (lambda: Noise(-1, 0), "at most 64"),
        (lambda: Noise(3, 0.5), "whole number"),
        (lambda: Scene((), "navy", texture="wool"), "no texture is called 'wool'"),
        (lambda: Scene((), "navy", pan=(3, 0)), "at most 0.5"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Words:
    """Stands in for a CLIP of which only the text side is asked."""

    encode_text = staticmethod(oracle)


def both(objects=2, batch=72, seed=0):
    groups = scenes.scenes_of_both(np.random.default_rng(seed), objects)
    frames = scenes.BothLevels.stored
    store = {  # pictures instead of states
        scenes.scene_key(scene): world.render(scene, frames, 8).flatten(2)[None]
        for scene in scenes.BothLevels.rendered(groups)
    }
    return groups, scenes.BothLevels(Words, groups, store, batch=batch, seed=seed)


def test_batches_of_both_levels_show_what_their_captions_say():
    groups, source = both()
    every = [scene for group in groups for scene in group]
    templates = range(len(world.CAPTION_TEMPLATES))
    table = oracle([world.caption(scene, k) for scene in every for k in templates])
    levels = set()
    for step, batch in zip(range(3), source(0, 1)):
        moments = source.frames(step)
        for shown, text in zip(batch.states[:, 0], batch.text):
            scene = every[int((table @ text).argmax()) // len(templates)]
            levels.add(scene.level)
            if scene.level == 2:
                told = world.render(scene, source.stored, 8).flatten(2)
                assert torch.equal(shown, told[moments]), scene
    assert levels == {1, 2}
    two = [2] * 2 * scenes.TWO_FOR_ONE
    assert [group[0].level for group in groups] == [1] * 2 + two + [1] * 2


def test_seldom_motions_get_as_many_groups_again():
    groups = scenes.scenes_of_both(np.random.default_rng(1), 6)
    ones, more = groups[:6], groups[-6:]
    assert all(len(group) == len(world.MOTIONS) for group in more)
    drawn = Counter(scene for group in more for scene in group)
    known = [s for group in ones for s in group if s.things[0].motion in scenes.SELDOM]
    assert drawn == dict.fromkeys(known, 3)
    needed = scenes.BothLevels.rendered(groups)
    assert len(needed) == len(set(needed)) == 6 * 18 + 6 * 9 * scenes.TWO_FOR_ONE


def test_every_batch_has_its_own_number_of_frames_and_a_run_that_goes_on_the_same():
    _, source = both(objects=1, batch=36)
    counts = [len(source.frames(step)) for step in range(300)]
    assert set(counts) == set(range(4, 17))
    gaps = [source.frames(step).diff() for step in range(300)]
    assert all((gap > 0).all() for gap in gaps)
    uneven = sum(int(gap.max() - gap.min() > 1) for gap in gaps)
    assert 90 < uneven < 210
    first, again = [[b.states for b, _ in zip(source(s, 1), range(2))] for s in (0, 1)]
    assert torch.equal(first[1], again[0])


def test_a_group_of_two_things_is_of_the_training_split():
    rng, meetings = np.random.default_rng(3), world.meetings_of("train")
    for _ in range(5):
        group = twins.two_things_group(rng, meetings, "brown")
        assert len({*map(world.caption, group)}) == 18
        for scene in group:
            motions = [t.motion for t in scene.things]
            assert "still" in motions or world.motion_split(*motions) == "train"
            assert all((t.color, t.shape) in world.pairs("train") for t in scene.things)
        assert sum("still" in (t.motion for t in scene.things) for scene in group) == 2


def test_the_small_clip_of_level_2_has_a_word_for_standing_still(tmp_path):
    assert set(small_clip.vocabulary(2)) - set(small_clip.vocabulary()) == {"stands", "still"}
    model = small_clip.new_clip(tmp_path, level=2)
    tokenize, rng = load_tokenizer(tmp_path), np.random.default_rng(0)
    pictures = small_clip.two_stills(rng, 1), small_clip.two_trails(rng, 1)
    sum(small_clip.two_loss(model, tokenize, *pictures).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.visual.parameters())
    longest = max(
        (world.caption(s, k) for s in GALLERIES["train"] for k in range(3)), key=len
    ).replace("purple", "striped")
    assert len(tokenize.encode("a red star stands still")) == 5
    assert (
        len(tokenize.encode(longest)) + 2
        <= small_clip.CONFIG["model_cfg"]["text_cfg"]["context_length"]
    )


def test_two_wordings_differ_in_template_and_order_and_in_nothing_else():
    how = dict(backgrounds=("black", "navy"), groups=3, meetings=2)
    said, again = small_clip.two_wordings(np.random.default_rng(0), **how)
    assert len(said) == len(again) == len({*said}) == len({*again}) == 48
    for pair in zip(said, again):
        stages = [re.search(r"\w+ background", text).group() for text in pair]
        things = [re.sub(r"on an? \w+ background|\w+ background with", "", t).strip() for t in pair]
        first, second = (re.split(" and (?=an? )", text) for text in things)
        assert stages[0] == stages[1] and first == second[::-1] and len({*first}) == 2
        before = [text.partition(stage)[0][:4] for text, stage in zip(pair, stages)]
        assert before[0] != before[1]  # two templates


def test_one_thing_is_read_with_all_its_motions_on_each_background():
    said, again = small_clip.one_wordings(np.random.default_rng(0), ("black", "navy"), looks=2)
    assert len(said) == len(again) == len({*said}) == len({*again}) == 2 * 2 * len(world.MOTIONS)
    for pair in zip(said, again):
        cores = [re.sub(r"on an? \w+ background|\w+ background with", "", t) for t in pair]
        assert len({re.sub(r"^\W*an? |\W", "", core.strip()) for core in cores}) == 1, pair
        assert pair[0] != pair[1]


@pytest.mark.parametrize("level", [1, 2])
def test_a_step_of_level_2_has_two_backgrounds(level, monkeypatch):
    monkeypatch.setattr(small_clip, "GROUPS", {1: (9, 3), 2: (4, 2)})
    monkeypatch.setattr(small_clip, "READING", 0)
    seen, names = set(), ("clip_loss", "two_loss", "wordings_loss")

    def heard(*given):
        texts = [text for part in given[2:] for texts in part for text in texts]
        seen.update(re.findall(r"(\w+) background", " ".join(map(str, texts))))
        return dict(some=torch.zeros(()))

    for name in names:
        monkeypatch.setattr(small_clip, name, heard)
    training = small_clip.ClipTraining(10, level=level)
    counts = []
    for step in range(6):
        seen.clear()
        training.loss_of(step)
        counts.append(len(seen))
    assert counts == [2] * 6 if level == 2 else max(counts) > 2


def test_the_clip_of_level_2_reads_before_it_sees(monkeypatch):
    monkeypatch.setattr(small_clip, "GROUPS", {2: (1, 1)})
    monkeypatch.setattr(small_clip, "READING", 2)
    training, parts = small_clip.ClipTraining(10, level=2), []
    assert [training.pictures(step) for step in (1, 2)] == [0, 48]
    for step in (0, 2):
        training.loss_of(step).backward()
        parts.append(training.parts)
        moved = {n for n, p in training.model.named_parameters() if p.grad is not None}
        assert ("visual.conv1.weight" in moved) == (step == 2)
    assert [[n for n, part in some.items() if part == part] for some in parts] == [
        ["two wordings"],
        [*small_clip.CLIP_PARTS[2]],
    ]


def test_pictures_of_two_things_for_the_small_clip():
    rng = np.random.default_rng(0)
    pictures, captions = small_clip.two_stills(rng, 2)
    assert len(pictures) == len(captions) == 12
    words = [sorted(re.sub("|".join(world.BACKGROUNDS), "", c).split()) for c in captions[:6]]
    assert len({*captions}) == 12 and sum(words.count(w) > 1 for w in words) >= 2
    trails, told, phrases = small_clip.two_trails(rng, 1)
    assert len(trails) == len({*told}) == 18
    assert all(phrase in text for text, pair in zip(told, phrases) for phrase in pair)


@pytest.mark.parametrize(("frames", "uneven"), [(4, False), (12, True)])
def test_clips_are_judged_with_as_many_frames_and_at_the_moments_asked_for(
    frames, uneven, monkeypatch
):
    clips, seen = GALLERIES["test"][:4], []
    encoded = torch.nn.functional.one_hot(torch.arange(4)).float()
    monkeypatch.setattr(scenes, "encode_clips", lambda _, c, *__: seen.extend(c) or dict(m=encoded))
    monkeypatch.setattr(scenes, "scores", lambda video, *_: dict(motion=len(video)))
    found = scenes.method_scores(None, {}, 1, clips, frames, uneven)
    assert found == dict(m=dict(motion=4)) and all(len(clip) == frames for clip in seen)
    for scene, clip in zip(clips, seen):
        times = scenes.uneven_times(scene, frames)
        assert (times[1:] > times[:-1]).all() and (0 < times).all() and (times < 1).all()
        assert torch.equal(clip, world.render(scene, times)) == uneven
    assert not np.array_equal(*(scenes.uneven_times(scene, frames) for scene in clips[:2]))


def test_scores_of_both_levels_come_from_one_function(monkeypatch):
    clips = GALLERIES["test"][:8]
    found = scenes.scores(oracle([*map(world.caption, clips)]), clips, oracle)
    assert found == dict.fromkeys(scenes.TWO_FIGURES, 100.0)
    with pytest.raises(ValueError, match="one thing in each scene, or two and of level 2"):
        scenes.method_scores(None, {}, 1, clips + world.gallery("test", 4))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--level", "3"], "--level is 1 or 2, not 3"),
        (["--level", "2", "--data", "x.csv"], "belongs to Moving Shapes"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "pretrain"])
def test_commands_tell_of_levels_that_are_not_there(
    command, arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("clip,caption\n")
    monkeypatch.setattr("sys.argv", [f"bta-{command}", *arguments])
    with pytest.raises(SystemExit) as stop:
        import_module(f"bt_adapter.cli.{command}").main()
    assert stop.value.code and message in " ".join(capsys.readouterr().err.split())


def test_the_level_reaches_the_work(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from bt_adapter import zero_shot
    from bt_adapter.cli import evaluate, pretrain

    found = {}
    stop = lambda name: lambda asked: found.update({name: asked.level}) or 1 / 0  # noqa: E731
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "train_on_shapes", stop("pretrain"))
    monkeypatch.setattr(zero_shot, "evaluate", stop("evaluate"))
    stop_clip = lambda *_, level, **others: found.update(clip=level) or 1 / 0  # noqa: E731
    monkeypatch.setattr(scenes, "pretrain_small_clip", stop_clip)
    for app, words in (pretrain.app, []), (evaluate.app, []), (pretrain.app, ["clip"]):
        CliRunner().invoke(app, [*words, "--level", "2"])
    assert found == dict(pretrain=2, evaluate=2, clip=2)
