"""The time check: verdicts on encoders, and faults of readers by their names."""

import json
import re

import numpy as np
import pytest
import torch
from test_architecture import WORLD
from test_packaging import python
from tidy import ROOT
from timecheck_faults import FAULTS, HEALTHY
from tiny import tiny_clip
from tiny_video import tiny_encoders, tiny_models

from bt_adapter import timecheck
from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import read_csv
from bt_adapter.retrieval import wrong_orders
from bt_adapter.timecheck import degrees, numbered, rendered
from bt_adapter.timecheck.encoders import (
    encoder_named,
    encoder_of,
    of_adapter,
    of_open_clip,
    of_transformers,
)

# Encoders.


@pytest.fixture(scope="module", autouse=True)
def few():
    """Fewer clips than a check of yours asks about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendered, "BINDING", 6)
        patch.setattr(rendered, "STILLS", 32)
        patch.setattr(rendered, "SHUFFLED", 24)
        yield


@pytest.fixture(scope="module")
def adapter():
    return BTAdapter.from_pretrained("moving-shapes")


def check(*given, **settings):
    return timecheck.check(*given, **(dict(pairs=4, frames=4) | settings))


@pytest.fixture(scope="module")
def shipped(adapter):
    return check(adapter, name="a <b>|$x$")


def test_the_shipped_adapter_has_all_three_degrees(shipped):
    found = shipped.verdict
    assert found[:3] == (True, True, True) and found.degree == 3
    assert found.sentence.startswith("It sees time: text finds the direction in ")
    assert shipped.unrest < 1e-3 and not shipped.notes and shipped.alone is None
    assert shipped.found["motion"].line == 1 / 18 and shipped.found["motion"].above


def test_frozen_clip_has_none(adapter):
    blind = check(adapter.clip)
    assert blind.verdict.degree == 0 and "does not see time" in blind.verdict.sentence
    assert blind.readable.value == blind.found["direction"].value == 0.5
    assert blind.moved["reversed"].right == 0 and blind.moved["first frame alone"].right > 0
    assert "no time axis" in blind.notes[0]


def test_the_adapter_on_shuffled_frames_has_none(adapter):
    rng, own = np.random.default_rng(0), of_adapter(adapter)

    def mixed(clips):
        orders = wrong_orders(*clips.shape[:2], rng)
        return own.embed(clips[torch.arange(len(clips))[:, None], orders])

    found = check(mixed, adapter.encode_text)
    assert found.verdict.degree == 0 and not any(found.verdict[:3])
    assert found.unrest > 0.1 and "Asked twice" in found.notes[0]


def test_random_video_models_are_not_found_by_text_and_the_probe_is_told():
    words = []
    for encoder in tiny_encoders():
        found = check(encoder)
        assert found.frames == 4 and found.size == 32
        assert 0.3 < found.readable.value < 0.9
        assert not found.verdict.found and found.verdict.degree in (0, 1, 2) and not found.note
        if encoder.name == "TimesformerModel":  # its time embeddings begin at zero
            assert found.verdict.degree == 0
        if found.found:
            words.append(encoder.name)
            low, high = found.found["direction"].interval
            assert low < 0.5 < high and "text is right in" in found.verdict.sentence
    assert words == ["XCLIPModel"]


def test_video_models_are_taken_as_they_are():
    for kind, config in tiny_models():
        encoder = encoder_of(kind(config).eval())
        shape = encoder.frames, encoder.size, encoder.name, encoder.note
        assert shape == (4, 32, kind.__name__, "") and encoder.encode_text is None


def test_rows_of_verdicts():
    """What `tests/benchmarks/verdicts.py` wrote, at the size that the check has by itself."""
    rows = read_csv(ROOT / "tests/benchmarks/verdicts.csv")
    assert {row["pairs"] for row in rows} == {"24"}
    names = {row["encoder"] for row in rows}
    by_name = {name: [row for row in rows if row["encoder"] == name] for name in names}
    random = {kind.__name__ for kind, _ in tiny_models()}
    assert by_name.keys() >= random | {"frozen CLIP", "the adapter, frames shuffled"}
    for name, some in by_name.items():
        assert [row["seed"] for row in some] == ["0", "1", "2"]
        assert all(row["probe"] for row in some)
        degrees = {int(row["degree"]) for row in some}
        if name not in random:
            assert degrees == {3 if name == "the adapter" else 0}
        elif name == "XCLIPModel":
            assert all(float(r["direction low"]) < 50 < float(r["direction high"]) for r in some)
        else:
            assert 3 not in degrees and not any(row["direction"] for row in some)
    drawn = [r for r in rows if r["encoder"] in random - {"TimesformerModel"}]
    told = (ROOT / "nbs/32_does_it_see_time.ipynb").read_text(encoding="utf-8")
    probes = [float(row["probe"]) for row in drawn]
    some = sum(row["degree"] == "2" for row in drawn)
    assert f"in {some} of {len(drawn)} runs at the standard size" in told
    assert f"right in {min(probes):.0f} to {max(probes):.0f}%" in told


def color(clips):
    return clips.float().mean((1, 2, 3))


def pixels_of(clips):
    return clips[:, :, ::4, ::4].float().mean(-1).flatten(2)


def test_what_an_encoder_without_words_can_reach():
    weighted = lambda clips: pixels_of(clips)[:, 1:].mean(1) - pixels_of(clips)[:, 0]  # noqa: E731
    assert check(weighted, size=32, pairs=12).verdict.degree == 2
    sizes = [check(lambda clips, k=k: pixels_of(clips)[:, k], size=32) for k in (0, 3)]
    assert [found.alone for found in sizes] == [0, 3]
    assert all(found.verdict.degree == 0 for found in sizes)
    assert "frame 4 alone" in sizes[1].verdict.sentence

    def speed(clips):  # the same backwards
        seen = pixels_of(clips)
        return torch.cat([seen.diff(dim=1).abs().mean(1), seen.mean(1)], dim=1)

    noticed = check(speed, size=32, frames=8)
    assert abs(noticed.readable.value - 0.5) < 0.1  # alike: one of each pair is right
    assert noticed.verdict[:3] == (True, False, False)
    assert "notices that a clip was shuffled, but" in noticed.verdict.sentence


def test_more_noise_than_time(adapter):
    rng = np.random.default_rng(0)
    noisy = lambda clips: color(clips) + torch.from_numpy(rng.normal(0, 9, (len(clips), 3)))  # noqa: E731
    found = check(noisy, size=16)
    assert not found.verdict.reacts and "evaluation mode" in found.notes[0]
    moved = found.moved["reversed"]
    said = f"further than the same clip again in {moved} of cases, and clearly most are needed"
    if not moved.right:
        said = "no further than the same clip again"
    assert said in found.verdict.sentence


def test_a_verdict_says_how_many_moved():
    few, none = degrees.Share(15, 32), degrees.Share(0, 32)
    for moved, said in (few, f"again in {few} of cases"), (none, "moves its embedding no further"):
        told = degrees.verdict(dict(reversed=moved, shuffled=none), few, {})
        assert told.degree == 0 and said in told.sentence


def test_mean_over_frames_in_half_precision_is_blind():
    torch.manual_seed(0)
    weight = torch.randn(64, 32).bfloat16()
    found = check(lambda clips: (pixels_of(clips).bfloat16() / 255 @ weight).mean(1), size=32)
    assert found.verdict.degree == 0


def numbers(n):
    return lambda clips: torch.ones(n(clips), 3)


WRONG = {
    "fails on clips uint8 .16, 4, 64, 64, 3.": lambda clips: clips.reshape(-1, 16, 3) @ color,
    "no time axis": lambda clips: clips.flatten(0, 1).float().mean((1, 2)),
    "make one row of them": lambda clips: clips.float().mean((2, 3)),
    "one row each": numbers(lambda clips: 1),
    "NaN or infinity, first in row 0 of 16": lambda clips: color(clips) / 0 * 0,
    "gives NoneType": lambda clips: None,
    "gives list": lambda clips: color(clips).tolist(),
    "complex": lambda clips: color(clips) + 1j,
    "gives object numbers: it must": lambda clips: color(clips).numpy().astype(object),
    "gives torch.float32 numbers: it must": lambda clips: color(clips).to_sparse(),
    "a plain tensor": lambda clips: color(clips).to("meta"),
    "single numbers says nothing": lambda clips: color(clips)[:, :1],
    r"lambda clips: model.clips.permute.0, 1, 4, 2, 3..float": lambda clips: torch.conv2d(
        clips.flatten(0, 1), torch.ones(4, 3, 2, 2)
    ),
    "the same embedding for every clip": numbers(len),
    "they must be alike": lambda clips: torch.rand(len(clips), int(clips.sum()) % 7 + 1),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_no_embedding_is_told(said):
    with pytest.raises(ValueError, match=said):
        check(WRONG[said])


def backwards_in_memory(array):
    """The same numbers, read-only and with their columns stored from the last to the first."""
    array = array[:, ::-1].copy()[:, ::-1]
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
def test_any_array_of_numbers_will_do():
    embed = lambda clips: color(clips) * torch.linspace(-1, 1, 3)  # noqa: E731
    for given in (
        lambda clips: backwards_in_memory(embed(clips).numpy()),
        lambda clips: embed(clips).numpy().astype(np.float16),
        lambda clips: embed(clips).requires_grad_(),
    ):
        assert check(given, size=16).verdict.degree == 0


def test_settings_and_words_that_cannot_be():
    for settings, said in [
        (dict(pairs=3), "pairs must be a whole number from 4 to 48"),
        (dict(pairs=4.5), "pairs must be"),
        (dict(batch=0), "batch must be"),
        (dict(seed=-1), "seed must be"),
        (dict(seed=2**80), "seed must be"),
        (dict(frames=1), "one frame has no order"),
        (dict(size=2), "size must be 8 to 4096"),
        (dict(encode_text=3), "must be a function"),
        (dict(encode_text=lambda texts: torch.ones(len(texts), 4)), "no cosine can be taken"),
        (dict(encode_text=lambda texts: torch.ones(1, 3)), "encode_text gives the shape"),
        (dict(encode_text=lambda texts: torch.zeros(len(texts), 3)), "same for every caption"),
        (dict(encode_text=lambda texts: 1 / 0), "encode_text fails on a list of captions"),
    ]:
        with pytest.raises(ValueError, match=said):
            check(color, **(dict(size=16) | settings))
    for given in (3, None, {}):
        with pytest.raises(ValueError, match="is no encoder"):
            check(given)


def test_another_number_of_frames_is_asked_for():
    from transformers import VideoMAEConfig, VideoMAEModel

    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    model = VideoMAEModel(VideoMAEConfig(num_frames=4, intermediate_size=16, **sizes)).eval()
    assert of_transformers(model).frames == 4
    with pytest.raises(ValueError, match=r"\(16, 8, 32, 32, 3\).*give frames= or size="):
        check(model, frames=8)


def test_towers_of_open_clip_and_models_of_pictures():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    clip = tiny_clip().model
    clip.visual.preprocess_cfg = dict(size=16, mean=(0.5,) * 3, std=(0.3,) * 3)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    still = CLIPVisionModel(CLIPVisionConfig(patch_size=16, intermediate_size=16, **sizes)).eval()
    for model in (clip, still):
        found = check(model)
        assert found.verdict.degree == 0 and "no time axis" in found.notes[0]
    assert of_open_clip(clip).size == 16


def test_folders_and_functions_by_name(tmp_path, monkeypatch):
    from transformers import VivitConfig, VivitModel

    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    config = VivitConfig(num_frames=4, tubelet_size=[2, 16, 16], intermediate_size=16, **sizes)
    VivitModel(config).save_pretrained(tmp_path / "vivit")
    assert encoder_named(str(tmp_path / "vivit")).frames == 4
    (tmp_path / "my_encoder.py").write_text("def embed(clips):\n    return clips[:, 0, 0, 0]\n")
    (tmp_path / "broken_one.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    assert encoder_named("my_encoder:embed").name == "my_encoder:embed"
    assert encoder_named("my_encoder.py:embed").frames == 8
    assert check("my_encoder:embed", size=16).verdict.degree == 0
    for name, said in [
        (".", "holds no encoder"),
        ("broken_one:embed", "cannot be imported: ZeroDivisionError"),
        ("my_encoder:nothing", "has no 'nothing'"),
        ("nothing_such", "No CLIP is called"),
    ]:
        with pytest.raises(ValueError, match=said):
            encoder_named(name)
    with pytest.raises(ValueError, match="there is no device 'cuda'"):
        encoder_named("moving-shapes", device="cuda")


def test_the_card(shipped, tmp_path):
    shipped.save(tmp_path / "new")
    files = {file.name: file for file in (tmp_path / "new").iterdir()}
    assert files.keys() == {"timecheck.json", "timecheck.md", "timecheck.png"}
    card = json.loads(files["timecheck.json"].read_text())
    assert card["verdict"]["degree"] == 3 and len(card["measures"]) == 7
    for row in card["measures"]:
        assert 0 <= row["low"] <= row["percent"] <= row["high"] <= 100
        assert row["above"] == (row["low"] > row["line"])
    text = files["timecheck.md"].read_text()
    assert "<b>" not in text and "a \\&lt;b" not in text and "&lt;b&gt;\\|" in text
    assert str(shipped).startswith("a <b>|$x$: It sees time")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}


def test_a_picture_is_drawn_when_it_is_asked_for_and_the_world_when_it_is_needed():
    modules = ("degrees", "asking", "numbered", "readers", "report", "encoders")
    modules += ("chats", "chat_report")
    code = "".join(f"import bt_adapter.timecheck.{module}\n" for module in modules)
    loaded = json.loads(python(f"{code}import sys, json; print(json.dumps([*sys.modules]))"))
    assert not WORLD.intersection(loaded)


def test_an_interval_lies_above_its_line_or_not():
    assert not degrees.Share(3, 4).above and degrees.Share(300, 400).above
    low, high = degrees.Share(10, 10).interval
    assert 0.5 < low < 1 == round(high, 9)


def test_orders_of_frames():
    generator = torch.Generator().manual_seed(0)
    assert degrees.shuffled(2, generator).tolist() == degrees.backwards(2).tolist() == [1, 0]
    for frames in (3, 8):
        for _ in range(30):
            order = degrees.shuffled(frames, generator)
            assert sorted(order.tolist()) == [*range(frames)]
            assert order.tolist() not in ([*range(frames)], [*range(frames)][::-1])


# Readers.


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Files whose frames know their number, of two sizes."""
    kinds = [((144, 112), (16, 61, 33, 25, 40), 5), ((96, 160), (40, 29, 27), 9)]
    return [
        timecheck.write_numbered(tmp_path_factory.mktemp("numbered"), lengths, size, seed=seed)
        for size, lengths, seed in kinds
    ]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_reader_is_not_accused(name, clips):
    read, how = HEALTHY[name]
    for some in clips:
        found = timecheck.pipeline(read, clips=some, **how)
        said = "it has no order" if name == "one" else "healthy"
        assert found.ok and said in str(found), found


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name, clips):
    assert len(FAULTS) == 8 and len(HEALTHY) >= 20
    for some in clips:
        assert len(FAULTS[name]) >= 2
        for variant in FAULTS[name]:
            read, how = variant()
            found = timecheck.pipeline(read, clips=some, **how)
            assert found.names == (name,), found
            assert str(found).count("\n") == 0 and str(found).endswith(".")


def test_two_faults_are_both_named(clips):
    from timecheck_faults import take

    found = timecheck.pipeline(lambda path: take(path)[::-1, ..., ::-1], clips=clips[0])
    assert found.names == ("reversed", "channels swapped")


def test_files_that_were_compressed_hard_are_read(tmp_path, clips):
    import av
    from timecheck_faults import decoded

    def again(path):
        frames, _ = decoded(path)
        place = tmp_path / "again.mp4"
        with av.open(str(place), "w") as out:
            stream = out.add_stream("libx264", 10, options={"crf": "40"})
            stream.height, stream.width = frames.shape[1:3]
            for frame in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        decoded.cache_clear()
        return decoded(place)[0]

    assert timecheck.pipeline(again, clips=clips[0][:2]).ok


def test_what_is_no_reader_is_told(clips):
    from timecheck_faults import take

    for read, how, said in [
        (3, {}, "a function of a path, not int"),
        (lambda path: 1 / 0, {}, "fails on clip0.mp4: ZeroDivisionError"),
        (lambda path: None, {}, "fails on clip0.mp4"),
        (lambda path: [], {}, "it gives"),
        (lambda path: np.zeros((8, 9, 9)), {}, "frames are numbers"),
        (lambda path: take(path) / np.nan, {}, "NaN or infinity"),
        (lambda path: take(path).astype(str), {}, "frames are numbers"),
        (take, dict(stride=0), "stride must be a whole number of frames, 1 or more, not 0"),
        (take, dict(stride=2.0), "stride must be"),
        (take, dict(clips=[]), "clips must be what write_numbered gives"),
        (take, dict(clips=["clip0.mp4"]), "clips must be what write_numbered gives"),
        (lambda paths: [], dict(together=True), "gives 0 clips for 5 paths"),
        (lambda paths: 1, dict(together=True), "the reader fails on the clips together"),
    ]:
        with pytest.raises(ValueError, match=said):
            timecheck.pipeline(read, **(dict(clips=clips[0]) | how))
    for read in (lambda path: take(path)[:, :50], lambda path: take(path) * 0):
        assert timecheck.pipeline(read, clips=clips[0]).names == ("unreadable",)


def test_gray_pictures_have_lost_their_colors(clips):
    from timecheck_faults import take

    found = timecheck.pipeline(
        lambda path: take(path).mean(-1, keepdims=True).repeat(3, -1), clips=clips[0]
    )
    assert found.names == ("colors lost",) and "look alike" in str(found)


def test_frames_one_by_one(clips):
    from timecheck_faults import take

    assert timecheck.pipeline(lambda path: iter(take(path)), clips=clips[0]).ok
    one = timecheck.pipeline(lambda path: take(path, t=1), clips=clips[0])
    assert one.ok and "has no order" in str(one) and "in order" not in str(one)


def test_times(clips):
    from timecheck_faults import take, timed

    for times, said in [
        (lambda path: None, "no times come"),
        (lambda path: ["a"] * 8, "no numbers"),
        (lambda path: np.full(8, np.nan), "NaN"),
        (lambda path: [1.0], "1 times come with 8 frames"),
        (lambda path: timed(path)[1] + 1, "is said to be at"),
    ]:
        found = timecheck.pipeline(lambda p, t=times: (take(p), t(p)), timed=True, clips=clips[0])
        assert found.names == ("timestamps lost",) and said in str(found), found
    assert timecheck.pipeline(take, timed=True, clips=clips[0]).names == ("timestamps lost",)


def test_a_frame_says_its_number_or_nothing():
    for number in (0, 1, 511, 1023):
        seen = numbered.read_number(numbered.draw_number(63, number, 48, 48))
        assert seen == (63, number, (0, 1, 2))
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3)) for _ in range(50)]
    assert not any(map(numbered.read_number, noise))
    frame = numbered.draw_number(1, 2, 64, 64)
    assert not any(map(numbered.read_number, [frame[::-1], frame[:, ::-1], frame.swapaxes(0, 1)]))
    for lengths, size, said in [
        ((8,), (64, 64), "two or more clips"),
        ((8, 7), (64, 64), "two or more clips"),
        ((8, 1024), (64, 64), "two or more clips"),
        ((8, 8), (64, 63), "even sides"),
        ((8,) * 65, (64, 64), "64 clips at most"),
    ]:
        with pytest.raises(ValueError, match=said):
            timecheck.write_numbered("nowhere", lengths, size)


# The command.


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from bt_adapter.cli import timecheck as command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_encoder.py").write_text(
        "def embed(clips):\n    return clips[:, :, ::8, ::8].float().mean(-1).flatten(2)[:, 0]\n"
        "def words(texts):\n    import torch\n"
        "    return torch.eye(4)[[len(text) % 4 for text in texts]]\n"
    )
    (tmp_path / "some_reader.py").write_text(
        "from bt_adapter.video import read_clip\n"
        "def good(path):\n    return read_clip(path)\n"
        "def bad(path):\n    return read_clip(path).flip(0)\n"
    )
    run = lambda *words: CliRunner().invoke(command.app, list(words))  # noqa: E731
    small = ["--pairs", "4", "--size", "16", "--frames", "4"]
    done = run("some_encoder:embed", *small, "--out", "card")
    assert done.exit_code == 0 and "frame 1 alone gives" in done.stdout, done.output
    assert (tmp_path / "card/timecheck.json").is_file()
    told = json.loads(
        run("some_encoder:embed", *small, "--text", "some_encoder:words", "--json").stdout
    )
    assert told["encoder"] == "some_encoder:embed" and "binding" in str(told["measures"])
    done = run("some_reader:good", "--pipeline")
    assert done.exit_code == 0 and "healthy" in done.stdout
    done = run("some_reader:bad", "--pipeline", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["faults"][0]["name"] == "reversed"
