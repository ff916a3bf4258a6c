"""The explorer without a browser: sizes, escaping, and what Python answers."""

import base64
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from contextlib import nullcontext
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from test_maps import adapter, noise, with_words
from tidy import ROOT
from tiny import tiny_clip

from bt_adapter import explorer as x
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.cli.explore import frames_trained, page_of_clip
from bt_adapter.explorer import recording
from bt_adapter.explorer.page import carried
from bt_adapter.explorer.recording import Recording, Words
from bt_adapter.interventions import block, freeze_time, knock_out, time_heads
from bt_adapter.maps import spatial_maps
from bt_adapter.recipes import PretrainConfig
from bt_adapter.scenes import BothLevels
from bt_adapter.shipped import LONGEST, samples_folder

ATTACK = "</script><img src=x onerror=alert(1)>&"
L14 = dict(layers=4, heads=16, frames=16, grid=(16, 16), size=(224, 224))


def noise_between(frames, patches):
    """Where patches look in their frames, and a rest for CLS: noise in every layer and head."""

    def between(layer, head):
        rng = np.random.default_rng((layer, head))
        rows = rng.dirichlet(np.ones(1 + patches), size=(frames, patches))
        return rows[..., 1:].astype(np.float32)

    return between


def made(layers=2, heads=3, frames=4, grid=(2, 4), size=(40, 80), captions=("one", ATTACK), **more):
    rng = np.random.default_rng(0)
    patches = grid[0] * grid[1]
    clip = rng.integers(256, size=(frames, *size, 3), dtype=np.uint8)
    maps = rng.dirichlet(np.ones(frames), size=(layers, patches, heads, frames))
    heat, taken = rng.random((frames, patches)), rng.random(1 + layers * heads + frames)
    more = {"spatial": rng.dirichlet(np.ones(patches), size=(layers, heads, frames))} | more
    more = {"between": noise_between(frames, patches)} | more
    more = {"cosines": lambda texts: np.repeat(taken[:, None], len(texts), 1)} | more
    return x.Explorer(
        clip, grid, maps.astype(np.float32), lambda text: (0.5, heat), captions, **more
    )


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_a_page_of_sixteen_frames_of_l14_fits():
    explorer = made(**L14, captions=[f"caption {i}" for i in range(8)])  # noise: nothing compresses
    page = explorer.html()
    assert 2_000_000 < len(page.encode()) <= x.LIMIT == 2_500_000
    held = data_of(page)["info"]["held"]
    assert held[:4] == ["0/0", "1/0", "2/0", "3/0"] and len(held) >= 6


def unpacked(text, clips, frames, patches):
    """From the bytes of a page: the shares (clips, t, l, l), and what CLS and patches get."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    count, shape = clips * frames * patches, (clips, frames, patches)
    scales, rest = data[:12].view("<f4"), data[12 + 2 * count :]
    tops = (data[12 : 12 + 2 * count].view("<u2") / 65535 * scales[0]).reshape(*shape, 1)
    cls, got = (rest[i * count :][:count].reshape(shape) / 255 * scales[1 + i] for i in (0, 1))
    return rest[2 * count :].reshape(*shape, patches) / 255 * tops, tops, cls, got


def only_strongest(rows, most):
    """All but the largest numbers of each row are 0."""
    return np.where(rows >= np.sort(rows)[..., -most, None], rows, 0)


def check_shares(found, rows):
    """Shares of rows (clips, t, l, l) are those that were sent, but for rounding."""
    shares, tops, cls, got = found
    assert (np.abs(shares - rows) <= tops / 510 + 2e-5).all()
    np.testing.assert_allclose(cls, 1 - rows.sum(-1), atol=cls.max() / 500)
    np.testing.assert_allclose(got, rows.sum(-2), atol=got.max() / 500)


def test_where_patches_look_in_a_page():
    explorer = made(other=made(name="another"))
    explorer.other.between = lambda layer, head: explorer.between(layer + 5, head)
    data = data_of(explorer.html())
    assert data["info"]["most"] == 8 and set(data["patches"]) == set(data["maps"])
    for key, text in data["patches"].items():
        layer, head = map(int, key.split("/"))
        both = np.stack([one.between(layer, head) for one in explorer.both()])
        check_shares(unpacked(text, 2, 4, 8), both)


def test_where_patches_look_is_the_models_own_attention():
    model = with_words(adapter(tiny_clip(image_size=(16, 32))))
    clip = torch.randint(256, (3, 48, 64, 3), dtype=torch.uint8)
    explorer = x.explore(model, clip, other=clip.flip(0))
    data = data_of(explorer.html())
    frames = torch.stack([model.clip.transform(one) for one in (clip, clip.flip(0))])
    for layer in range(len(model.branch.spatial)):
        own = spatial_maps(model, frames, layer)[..., 1:, 1:].numpy()  # (clips, t, h, l, l)
        wanted = {0: own.mean(2)} | {1 + head: own[:, :, head] for head in range(own.shape[2])}
        for head, rows in wanted.items():
            found = unpacked(data["patches"][f"{layer}/{head}"], 2, 3, rows.shape[-1])
            assert (np.abs(found[0] - rows) <= found[1] / 510 + 2e-5).all(), (layer, head)
            assert np.abs(found[0] - rows[:, ::-1]).max() > 1e-3  # frames are in their order


@pytest.mark.parametrize("clips", [1, 2])
def test_large_grids_have_the_strongest(clips):
    """Of 16 frames of L/14, where the means of all layers fit, each patch has as many others."""
    quiet = made(**L14, captions=["one"])
    quiet.clip = np.zeros_like(quiet.clip)  # noise as a film takes the space of many patches
    quiet.other = quiet if clips == 2 else None
    page = quiet.html()
    data = data_of(page)
    most = data["info"]["most"]
    assert len(page.encode()) <= x.LIMIT and most >= {1: 16, 2: 5}[clips]
    assert {"0/0", "1/0", "2/0", "3/0"} <= set(data["patches"]) and len(data["maps"]) >= 6
    for layer in (0, 3):
        rows = quiet.between(layer, 0)
        shares, tops, cls, got = unpacked(data["patches"][f"{layer}/0"], clips, 16, 256)
        assert (np.abs(shares - only_strongest(rows, most)) <= tops / 510 + 2e-5).all()
        np.testing.assert_allclose(cls, [1 - rows.sum(-1)] * clips, atol=cls.max() / 500)
        np.testing.assert_allclose(got, [rows.sum(-2)] * clips, atol=got.max() / 500)


def test_no_space_is_no_patches(monkeypatch):
    explorer = made(layers=2, heads=1, frames=4, grid=(8, 8))
    between, explorer.between = explorer.between, None
    bare = explorer.html()
    explorer.between = between
    assert data_of(bare)["info"]["most"] == 0 < data_of(explorer.html())["info"]["most"]
    monkeypatch.setattr("bt_adapter.explorer.page.LIMIT", len(bare))
    data = data_of(explorer.html())
    assert data["info"]["most"] == 0 and data["patches"] == {} and len(data["maps"]) >= 2


def test_two_clips_of_sixteen_frames_of_l14_fit():
    other = made(**L14, name="another")
    other.clip = other.clip[::-1].copy()
    page = made(**L14, captions=["one", "two"], other=other).html()
    data = data_of(page)
    assert len(page.encode()) <= x.LIMIT and len(data["maps"]) >= 4
    assert data["info"]["pairs"] == [*range(16)][::-1]  # one film serves both


def test_the_widget_sends_little():
    live = x.live_widget(made(**L14))
    sent = [value for value in live.get_state().values() if isinstance(value, bytes | memoryview)]
    assert sum(map(len, sent)) + len(json.dumps(live.info)) + len(x.explorer_script()) < x.LIMIT
    assert len(live.weights) == 256 * 16 * 16  # one map, not all


def test_too_much_is_refused():
    explorer = made(frames=64, grid=(16, 16), size=(224, 224), layers=12, heads=1)
    with pytest.raises(ValueError, match=r"larger than 2\.5 MB"):
        explorer.html()


def test_the_page_carries_the_maps():
    explorer = made()
    data = data_of(explorer.html())
    assert set(data["maps"]) == {f"{k}/{h}" for k in range(2) for h in range(4)}
    for key, (text, top, *_) in data["maps"].items():
        layer, head = map(int, key.split("/"))
        bytes_there = np.frombuffer(base64.b64decode(text), np.uint8).reshape(8, 4, 4)
        wanted = explorer.maps[layer].mean(1) if head == 0 else explorer.maps[layer, :, head - 1]
        assert np.abs(bytes_there / 255 * top - wanted).max() <= top / 500
    one = data["answers"]["one"]
    heat = np.frombuffer(base64.b64decode(one["heat"]), np.uint8)
    assert heat.size == 4 * 8 and heat.max() == 255
    assert len(one["effects"][0]) == 1 + 2 * 3 + 4
    means = np.frombuffer(base64.b64decode(data["overview"]), np.uint8).reshape(2, 4, 4, 4)
    wanted = explorer.maps.mean(1)
    assert np.abs(means[:, 1:] / 255 * data["info"]["overview_top"] - wanted).max() < 0.01


def test_decided_heads_come_first():
    explorer = made(layers=2, heads=3, frames=4, grid=(1, 1))
    explorer.maps[1, :, 2] = np.eye(4)  # as decided as can be
    explorer.maps[0, :, 0] = 1 / 4
    order = list(carried(explorer, 10**6))
    assert order[:3] == ["0/0", "1/0", "1/3"] and order[-1] == "0/1"


def test_nothing_in_the_page_is_markup_of_others():
    page = made().html(title=ATTACK)
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page
    assert ATTACK in data_of(page)["answers"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "https:" not in page and "http:" not in page and "import(" not in page
    assert "default-src 'none'" in page


def test_the_page_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("before")
    explorer = made()
    explorer.relevance = lambda text: 1 / 0
    with pytest.raises(ZeroDivisionError):
        explorer.to_html(path)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    made().to_html(path)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")


@pytest.mark.parametrize("frames", [1, 8, 9, 40])
def test_the_film_has_every_frame_in_its_place(frames):
    clip = np.zeros((frames, 30, 50, 3), np.uint8)
    clip[:] = np.linspace(0, 240, frames)[:, None, None, None]
    data, width, height = x.film_strip(clip)
    sheet = np.asarray(Image.open(BytesIO(data)))
    assert (width, height) == (50, 30)
    for i in range(frames):
        tile = sheet[i // 8 * height :, i % 8 * width :][:height, :width]
        assert abs(tile.mean() - clip[i].mean()) < 4


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 16)])
def test_any_model(size):
    model = with_words(adapter(tiny_clip(image_size=size)))
    explorer = x.explore(model, torch.randint(256, (5, 48, 64, 3), dtype=torch.uint8), ["a"])
    assert explorer.grid == (size[0] // 8, size[1] // 8) and explorer.maps.shape[-2:] == (5, 5)
    assert len(explorer.html()) < x.LIMIT and len(explorer.figure().png()) > 1000
    live = explorer.widget()
    assert len(live.weights) == explorer.grid[0] * explorer.grid[1] * 25
    live.question = dict(slot=0, caption="b")
    assert len(live.heat) == 5 * explorer.grid[0] * explorer.grid[1]
    layers, _, heads, *_ = explorer.maps.shape
    assert "cosine" in live.answer["note"]
    assert len(live.answer["effects"][0]) == 1 + layers * heads + 5


def test_the_widget_answers():
    explorer = made()
    live, messages = x.live_widget(explorer), []
    live.observe(lambda change: messages.append(change.name))
    live.layer = 1
    assert live.weights == x.quantize(explorer.weights(1, 0))[0]
    live.head = 2
    assert live.weights == x.quantize(explorer.maps[1, :, 1])[0]
    assert live.spatial == x.quantize(explorer.spatial[1, 1])[0]
    assert live.weights_top == pytest.approx(explorer.maps[1, :, 1].max())
    explorer.relevance = lambda text: (_ for _ in ()).throw(ValueError("No such words."))
    live.question = dict(slot=1, caption="?")
    assert live.answer["note"] == "No such words." and live.heat == b""
    assert live.answer["slot"] == 1 and live.answer["effects"] is None


def test_the_widget_sends_patches_when_they_are_wanted():
    explorer = made()
    between, asked = explorer.between, []
    explorer.between = lambda *place: asked.append(place) or between(*place)
    live = x.live_widget(explorer)
    live.layer = 1
    assert not asked and not live.patches and live.info["most"] == 8
    live.wanted = "1/2"
    assert asked == [(1, 2)] and live.patches_of == dict(asked="1/2", head=2)
    found = unpacked(base64.b64encode(live.patches), 1, 4, 8)
    check_shares(found, between(1, 2)[None])


def test_plain_widgets_where_anywidget_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    plain = made().widget()
    monkeypatch.undo()
    heads, places, words = plain.children[:3]
    note, image = plain.children[3:]
    for control in (*heads.children, *places.children):
        before = image.value
        control.value = 1 if control.value == 0 else 2
        assert image.value != before, control
    before = image.value
    words.children[0].value = ATTACK
    assert image.value == before  # typing sends nothing
    words.children[1].click()
    assert image.value != before and "&lt;img" in note.value and "<img" not in note.value


# --- what does not fit, and maps of other models ---


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(grid=(3, 4)), "12 patches"),
        (dict(maps=np.full((2, 8, 3, 4, 4), np.nan)), "NaN"),
        (dict(maps=np.ones((2, 8, 3, 4, 4))), "at most 1"),
        (dict(maps=np.zeros((2, 8, 0, 4, 4))), "at least one layer"),
        (dict(clip=np.zeros((4, 40, 80, 3))), "uint8"),
        (dict(other=made(frames=5)), "one shape"),
    ],
)
def test_what_does_not_fit_is_told(change, told):
    good = made()
    with pytest.raises(ValueError, match=told):
        x.Explorer(**(dict(clip=good.clip, grid=good.grid, maps=good.maps) | change))


def test_more_heads_than_there_are():
    with pytest.raises(ValueError, match="no head 4"):
        made().weights(0, 4)
    with pytest.raises(ValueError, match="no part 'films'"):
        made().html(parts=["films"])


def test_relevance_without_numbers_is_told():
    explorer = made()
    explorer.relevance = lambda text: (0.5, np.full((4, 8), np.nan))
    assert "NaN" in explorer.ask("one")[0] and data_of(explorer.html())["info"]["known"] == {}


def test_maps_without_a_model():
    clip = torch.randint(256, (4, 40, 40, 3), dtype=torch.uint8)
    maps = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3, 9, 4))
    maps = maps.transpose(0, 1, 3, 4, 2)  # layers, heads, t, t, patches
    explorer = x.explore(maps=maps, clip=clip)
    assert explorer.grid == (3, 3) and np.allclose(explorer.weights(1, 2)[5], maps[1, 1, :, :, 5])
    info = data_of(explorer.html())["info"]
    assert not info["asks"] and not info["effects"] and "without a model" in explorer.ask("a")[0]
    for wrong, told in (
        (dict(maps=maps[0], clip=clip), "layers, heads, t, t, patches"),
        (dict(maps=maps[..., :8], clip=clip), "no square"),
        (dict(maps=maps, clip=clip[:3]), "frames"),
        (dict(maps=maps, clip=clip, captions=["a"]), "reads captions"),
        (dict(maps=maps), "Give a clip"),
        (dict(clip=clip), "Give a clip"),
        (dict(maps=maps, clip=clip, other=clip), "belongs to one clip"),
        (dict(maps=torch.nn.Linear(2, 2), clip=clip), "known here"),
    ):
        with pytest.raises(ValueError, match=told):
            x.explore(**wrong)


TIMES = {"TimeSformer": 6, "ViViT": 3, "VideoMAE": 3, "VideoPrism": 6}  # of six frames


def tiny_video_model(name, **more):
    t = pytest.importorskip("transformers")
    size = dict(image_size=16, num_frames=6, hidden_size=16, num_attention_heads=2)
    size |= dict(num_hidden_layers=2, intermediate_size=16)
    if name == "TimeSformer":
        model = t.TimesformerModel(t.TimesformerConfig(patch_size=8, **size))
    elif name == "ViViT":
        model = t.VivitModel(t.VivitConfig(tubelet_size=[2, 8, 8], **size))
    elif name == "VideoMAE":
        model = t.VideoMAEModel(t.VideoMAEConfig(patch_size=8, tubelet_size=2, **size))
    else:
        size |= dict(num_spatial_layers=1, num_temporal_layers=2) | more
        config = t.VideoPrismVisionConfig(tubelet_size=[1, 8, 8], **size)
        model = t.VideoPrismVisionModel(config)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


def noise_clip(frames, size):
    noise = torch.Generator().manual_seed(0)
    return torch.randint(256, (frames, *size, 3), dtype=torch.uint8, generator=noise)


@pytest.mark.parametrize("name", TIMES)
def test_video_models_of_transformers(name):
    clip, model = noise_clip(6, (20, 24)), tiny_video_model(name)
    before, times = model.config._attn_implementation, TIMES[name]
    explorer = x.explore(maps=model, clip=clip)
    assert explorer.maps.shape == (2, 4, 2, times, times) and explorer.grid == (2, 2)
    assert np.allclose(explorer.maps.sum(-1), 1, atol=1e-5) and explorer.maps.std() > 0.01
    assert model.config._attn_implementation == before
    with pytest.raises(ValueError, match="takes 6 frames"):
        x.explore(maps=model, clip=clip[:2])


def handed_to(model, modules, clip):
    """What each of these modules was given in one run, and the run's own arguments."""
    given, runs = [], []
    hooks = [m.register_forward_pre_hook(lambda _, args: given.append(args[0])) for m in modules]
    hooks.append(model.register_forward_pre_hook(lambda *a: runs.append(a[2]), with_kwargs=True))
    x.explore(maps=model, clip=clip)
    for hook in hooks:
        hook.remove()
    return given, runs[-1]


@torch.no_grad()
def slow_maps(name, model, clip):
    """Attention of every patch through time, as transformers itself tells it, number by number."""
    if name == "TimeSformer":
        layers = [layer.temporal_attention.attention for layer in model.encoder.layer]
        given, _ = handed_to(model, layers, clip)
        return np.stack(
            [layer(one, output_attentions=True)[1] for layer, one in zip(layers, given)]
        )
    _, pixels = handed_to(model, [], clip)
    model.set_attn_implementation("eager")
    found = model(**pixels, output_attentions=True).attentions
    if name == "VideoPrism":
        return np.stack(found[1:])  # behind the one layer of space
    times, places = TIMES[name], 4
    shares = np.zeros((2, places, 2, times, times))
    cls = found[0].shape[-1] - times * places
    for layer, place, head, i, j in np.ndindex(*shares.shape):
        row = found[layer][0, head, cls + i * places + place, cls:].double()
        shares[layer, place, head, i, j] = (
            sum(row[j * places + m] for m in range(places)) / row.sum()
        )
    return shares


@pytest.mark.parametrize("name", TIMES)
def test_maps_are_those_of_the_model(name):
    clip, model = noise_clip(6, (16, 16)), tiny_video_model(name)
    maps, wanted = x.explore(maps=model, clip=clip).maps, slow_maps(name, model, clip)
    np.testing.assert_allclose(maps, wanted, atol=1e-5)
    for axis in range(5):  # each layer, patch, head and frame is told from the others
        assert np.abs(maps - np.flip(maps, axis)).max() > 0.01, axis


@pytest.mark.parametrize("name", ["TimeSformer", "VideoPrism"])
def test_a_patch_is_at_its_place(name):
    """Where a patch sees nothing but itself through time, another picture changes its map alone."""
    clip, model = noise_clip(6, (16, 16)), tiny_video_model(name, num_spatial_layers=0)
    changed = clip.clone()
    changed[2, :8, 8:] = 255 - clip[2, :8, 8:]  # row 1, column 2: patch 1
    before, after = (x.explore(maps=model, clip=one).maps[0] for one in (clip, changed))
    assert (np.abs(after - before).max((1, 2, 3)) > 1e-4).tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", ["ViViT", "VideoMAE"])
def test_a_token_is_at_its_time_and_place(name):
    clip, model = noise_clip(6, (16, 16)), tiny_video_model(name)
    changed, tokens = clip.clone(), []
    changed[5, :8, 8:] = 255 - clip[5, :8, 8:]  # of the third time patch 1
    hook = model.embeddings.register_forward_hook(lambda *a: tokens.append(a[2][0]))
    maps = [x.explore(maps=model, clip=one).maps for one in (clip, changed)]
    hook.remove()
    cls = tokens[0].shape[0] - 3 * 4
    assert (tokens[0] != tokens[-1]).any(-1).nonzero().flatten().tolist() == [cls + 2 * 4 + 1]
    assert np.abs(maps[0] - maps[1]).max() > 1e-4


@pytest.mark.parametrize("name", TIMES)
def test_what_a_share_is_of(name):
    """Two of these models look at all places of two frames together, and the explorer says so."""
    model, clip = tiny_video_model(name), noise_clip(6, (16, 16))
    explorer = x.explore(maps=model, clip=clip, trained=4)
    joint = TIMES[name] == 3
    info = data_of(explorer.html())["info"]
    assert (info["joint"], info["step"]) == ((True, 2) if joint else (False, 1))
    assert "6 frames" in info["about"] and "sees 6 here" in info["notices"][0]
    assert ("at its own place" in info["about"]) == (not joint)
    assert ("what a whole time gets" in info["about"]) == joint
    assert ("2 frames make one time, and" in info["about"]) == joint
    assert np.array_equal(explorer.clip, np.asarray(clip)[:: 2 if joint else 1])
    words = [text.get_text() for text in explorer.figure().texts]
    assert ("given" in words, "received" in words) == (joint, not joint)


def test_frames_that_were_trained():
    clip = noise_clip(17, (64, 64))
    for name, most in {"moving-shapes": 8, "moving-shapes-2": 16}.items():
        model = BTAdapter.from_pretrained(name)
        assert x.explore(model, clip[:most]).notices() == []
        (told,) = x.explore(model, clip[: most + 1]).notices()
        assert f"trained with {most} frames and sees {most + 1}" in told
        (other,) = x.explore(model, clip[:5], trained=4).notices()
        assert "trained with 4 frames and sees 5" in other
    assert {1: PretrainConfig().frames, 2: BothLevels.most} == LONGEST


def test_frames_that_a_card_tells(tmp_path):
    card = tmp_path / "training.json"
    for told, most in (
        ({}, None),
        (dict(settings=dict(frames=12)), 12),
        (dict(settings=dict(frames=8), run=dict(data=BothLevels.data)), 16),
        (dict(settings=dict(frames=8), run=dict(data="moving shapes")), 8),
    ):
        card.write_text(json.dumps(told))
        assert frames_trained(tmp_path) == most
    assert frames_trained(tmp_path / "nowhere") is None


def test_the_command_with_candidates(tmp_path):
    """Any CLIP is shown the captions that fit best, and the second small one knows 16 frames."""
    BTAdapter(load_clip(samples_folder() / "clip")).save_pretrained(tmp_path)  # none of SHIPPED
    path, others = samples_folder() / "clips/left.mp4", [f"a star {i}" for i in range(7)]
    found, told = page_of_clip([path], tmp_path, ["a star moves left"], others, 4, "pyav")
    assert found.captions[0] == "a star moves left" and len(found.fits()) == 6 and not told
    cosines = found.cosines(others)[0]
    assert found.captions[1:] == tuple(others[i] for i in (-cosines).argsort()[:5])
    said = ["a star moves left", others[cosines.argmax()]]
    found, _ = page_of_clip([path], tmp_path, said, others * 2, 4, "pyav")
    assert found.captions == (*said, *(others[i] for i in (-cosines).argsort()[1:6]))
    found, _ = page_of_clip([path], "moving-shapes-2", [], [], 16, "pyav")
    assert len(found.clip) == 16 and not found.notices() and len(found.fits()) == 5
    found, _ = page_of_clip([path], "moving-shapes", [], others[:2], 9, "pyav")
    assert "of frame 9 were" in found.notices()[0] and {*found.captions} == {*others[:2]}


def test_the_figure_tells_what_the_page_tells():
    explorer = made()
    assert not any(text.get_text() for text in explorer.figure().texts[2:])
    explorer.trained, explorer.warning = 3, lambda text: f"never saw {text}"
    words = explorer.figure(caption="one").texts[-1].get_text()
    assert words.replace("\n", " ") == f"{explorer.notices()[0]} never saw one"
    assert "never saw" not in explorer.figure().texts[-1].get_text()
    assert len(explorer.figure(caption="one").png()) > len(made().figure(caption="one").png())


def test_heat_is_scaled():
    """Heat says where; how much of it there is, is the caption's cosine, and was set."""
    explorer, heat = made(), np.random.default_rng(1).random((4, 8))
    for size in (1e-3, 1, 50):
        explorer.relevance = lambda text, size=size: (0.5, size * heat)
        np.testing.assert_allclose(explorer.score("one")[1], 0.5 * heat / heat.sum())
    texts = [bar.get_ylabel() for bar in explorer.figure(caption="one").axes]
    assert "scaled to the cosine" in texts


# --- what is asked of a model, and how often ---


def recording_of(model, frames):
    states = model.clip.layer_outputs(noise(model, 1, frames), model.config.states)
    return Recording(model, states, Words(model))


@pytest.mark.parametrize("head_width", [8, 24])
@pytest.mark.parametrize("rules", ["paper", "released"])
@pytest.mark.parametrize("at_once", [1, 2**26])
def test_parts_taken_out_side_by_side(head_width, rules, at_once, monkeypatch):
    monkeypatch.setattr(recording, "AT_ONCE", at_once)
    model = with_words(adapter(tiny_clip(head_width=head_width), layers=3, convention=rules))
    of = recording_of(model, frames=4)
    changes = [nullcontext()] + [knock_out(model, [head]) for head in time_heads(model)]
    changes += [block(model, None, None, frame) for frame in range(4)]
    with torch.no_grad():
        for change, found in zip(changes, of.without, strict=True):
            with change:
                wanted = model.encode_states(of.states).embedding[0]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert torch.pdist(of.without).min() > 1e-3  # each part does something


def test_parts_taken_out_under_another_change():
    model = with_words(adapter(tiny_clip()))
    with torch.no_grad(), freeze_time(model), block(model, 1, 0, 2):
        found = recording_of(model, 3).without
        of = recording_of(model, 3)
        with knock_out(model, [(1, 2)]):
            wanted = model.encode_states(of.states).embedding[0]
    torch.testing.assert_close(found[1 + 3 + 2], wanted, atol=1e-5, rtol=0)


def test_a_single_frame_has_nothing_to_block():
    of = recording_of(with_words(adapter(tiny_clip())), 1)
    torch.testing.assert_close(of.without[-1], of.without[0])


def test_nothing_is_computed_twice(monkeypatch):
    model = with_words(adapter(tiny_clip()))
    counts = Counter()

    def counted(owner, name):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: counts.update([name]) or method(*a, **k))

    counted(model.clip, "layer_outputs")
    counted(model, "encode_text")
    counted(recording, "relevance_of")
    clip = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    explorer = x.explore(model, clip, ["a", "bb"], other=clip.flip(0), others=["ccc", "dddd"])
    explorer.html()
    assert counts == {"layer_outputs": 1, "encode_text": 1, "relevance_of": 2}  # one a clip
    alone = x.explore(model, clip.flip(0), ["a", "bb"])
    for caption in ("a", "bb"):
        torch.testing.assert_close(alone.score(caption), explorer.other.score(caption))
    with pytest.raises(ValueError, match="encode_text"):
        model.encode_text = model.clip.encode_text
        x.explore(model, clip, [" "])


# --- what is loaded ---


def test_importing_the_explorer_needs_no_widgets():
    code = "import sys, bt_adapter.explorer; print({'ipywidgets', 'anywidget'} & set(sys.modules))"
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr
