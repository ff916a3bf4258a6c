"""Tables 1 and 10 as conversations: what each strategy hands on, and that a study goes on."""

from dataclasses import replace

import pytest
import torch
from tiny_hosts import byte_tokenizer, one_thread, tiny_llama  # noqa: F401 one_thread is used by all

from bt_adapter import moving_shapes as world
from bt_adapter.ablations import QUICK_STUDY
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.chat import image_chat_model, plug, tower_path
from bt_adapter.chat.load import MERGE
from bt_adapter.instruct import InstructConfig, table_one, table_ten
from bt_adapter.instruct.laptop import save_projector
from bt_adapter.instruct.table_one import (
    CHAT_COLUMNS,
    TABLE_ONE,
    conversation_rows,
    eyes_of,
    half_time,
    up_to,
)
from bt_adapter.ledger import read_csv
from bt_adapter.strategies import JointST, SeparateST

SHORT = dict(config=InstructConfig(steps=2, batch=2, lr=3e-4, branch_lr=5e-4), clips=4, scenes=6)


@pytest.fixture(scope="module")
def clip():
    return load_clip("moving-shapes")


@pytest.fixture
def host(clip):
    language = tiny_llama()
    return image_chat_model(clip, language, merge=MERGE), byte_tokenizer()


@pytest.fixture
def folder(clip, host, tmp_path):
    """What `bta-pretrain instruct` makes, as far as it is read here."""
    made = tmp_path / "chat"
    BTAdapter(clip).save_pretrained(made / "adapter")
    for name in ("projector", "image_projector"):
        save_projector(host[0].model.multi_modal_projector, made / f"{name}.safetensors")
    (made / "lora").mkdir()
    (made / "lora/adapter_model.safetensors").write_bytes(b"of a language model")
    return made


@pytest.mark.parametrize("row", TABLE_ONE, ids=lambda row: row.name)
def test_the_same_tokens_are_handed_on_and_only_the_eyes_change(row, clip, host):
    """Untrained, strategies that extend CLIP hand on what CLIP's layer says of the mean frame."""
    torch.manual_seed(0)
    clips = torch.stack([world.render(scene) for scene in world.gallery("validation", 2)])
    with plug(host[0], eyes_of(clip, row)), torch.no_grad():
        tower = host[0].get_submodule(tower_path(host[0]))
        frames = torch.stack([tower.transform(some) for some in clips])
        tokens, frozen = tower.encode(frames), tower.states(frames, 1)[0].mean(1)
    assert tokens.shape == frozen.shape == (2, 65, 96)
    same = torch.allclose(tokens, frozen, atol=1e-3)
    assert same is (row.strategy in ("mean pooling", "separate-ST", "separate-ST, frozen"))


def test_a_strategy_reads_the_layer_that_the_host_reads(clip):
    short = up_to(clip, 11)
    assert len(short.blocks) == 11 and len(clip.blocks) == 12
    assert all(a is b for a, b in zip(short.blocks, clip.blocks))
    for model in (SeparateST(short, 3), JointST(short, 10)):
        assert model.config.states == model.config.layers + 1
        frames = torch.randn(1, 1, 3, 64, 64)
        states = clip.layer_outputs(frames, 13)
        entry = states[1] if isinstance(model, JointST) else states[8]
        with torch.no_grad():
            ours = model.change(entry)
        torch.testing.assert_close(ours, states[11], atol=1e-4, rtol=1e-4)  # one frame: as CLIP


def test_moments_and_places_share_the_tokens():
    state = torch.randn(1, 8, 65, 4)
    found = half_time(state)[0, 1:].view(8, 8, 4)
    moments = state[0, :, 1:].mean(1)
    for moment in range(8):
        row, column = 2 * (moment // 4), 2 * (moment % 4)
        square = found[row : row + 2, column : column + 2]
        torch.testing.assert_close(square, moments[moment].expand(2, 2, -1))
    mean = state[0, :, 1:].mean(0).view(8, 8, 4)
    torch.testing.assert_close(found[4:], (mean[0::2] + mean[1::2]) / 2)
    with pytest.raises(ValueError, match="9 patches are none: take another strategy"):
        half_time(torch.randn(1, 8, 10, 4))


def test_a_study_goes_on_where_its_file_ends(folder, host, tmp_path, monkeypatch):
    loaded, tuned, tune = [], [], table_one.tuned_on_clips

    def load(place, clip):
        loaded.append(place)
        return host

    def counted(model, eyes, *rest, **more):
        tuned.append(eyes)
        return tune(model, eyes, *rest, **more)

    monkeypatch.setattr(table_one, "tuned_on_clips", counted)
    path, runs = tmp_path / "a.csv", tmp_path / "runs"
    some = [row for row in TABLE_ONE if row.name in ("baseline, frozen", "separate-ST")]
    how = dict(rows=some, load=load, **SHORT)
    going = conversation_rows(folder, path, runs, **how)
    assert next(going) == some[0]
    going.close()
    first = read_csv(path)
    assert tuple(first[0]) == CHAT_COLUMNS and {line["row"] for line in first} == {some[0].name}
    assert [*conversation_rows(folder, path, runs, **how)] == some[1:]
    assert len(tuned) == 2 and len(loaded) == 2
    assert not [*conversation_rows(folder, path, runs, **how)] and len(loaded) == 2
    lines = read_csv(path)
    kinds = [line["kind"] for line in first]
    assert [line["kind"] for line in lines] == 2 * kinds and {"colour", "motion"} <= {*kinds}
    assert all(0 <= float(line["percent"]) <= 100 for line in lines)
    other = SHORT | dict(config=replace(SHORT["config"], seed=1))
    assert next(conversation_rows(folder, path, runs, rows=some, load=load, **other)) == some[0]
    assert not list(runs.glob("*/checkpoint.pt")) and len(list(runs.glob("*/log.csv"))) == 3


def test_eyes_that_saw_captions_are_asked_without_tuning(folder, host, tmp_path, monkeypatch):
    trained, asked, loaded = {}, [], []
    train, ask = table_ten.train_row, table_ten.asked_about_clips

    def training(study, row):
        made = train(study, row)
        trained[row.name] = made[0]
        return made

    def asking(model, tokenizer, eyes, scenes):
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        said = ask(model, tokenizer, eyes, scenes)
        assert all(torch.equal(weights[n], w) for n, w in model.state_dict().items())
        asked.append((eyes, len(scenes)))
        return said

    def load(place, clip):
        loaded.append(place)
        return host

    monkeypatch.setattr(table_ten, "train_row", training)
    monkeypatch.setattr(table_ten, "asked_about_clips", asking)
    path, names = tmp_path / "a.csv", ["CLIP", "ST-Adapter", "STAN, open", "STAN, frozen"]
    how = dict(config=QUICK_STUDY, scenes=6, load=load)
    rows = table_ten.zero_shot_rows(folder, path, **how)
    assert [row.name for row in rows] == [*names, "BT-Adapter"]
    assert asked == [(eyes, 6) for eyes in trained.values()] and len(loaded) == 1
    assert not any(eyes.training for eyes, _ in asked)
    lines = read_csv(path)
    same = dict(table="Table 10", steps="2", batch="18", clips="18", scenes="6", seed="0")
    assert all(same.items() <= line.items() and line["paper"].count("/") == 2 for line in lines)
    assert {line["kind"] for line in lines} == {"colour", "shape", "motion", "direction"}
    assert not [*table_ten.zero_shot_rows(folder, path, **how)] and len(loaded) == 1
    other = how | dict(config=replace(QUICK_STUDY, seed=1), rows=table_ten.TABLE_TEN[:1])
    assert [row.name for row in table_ten.zero_shot_rows(folder, path, **other)] == ["CLIP"]


@pytest.mark.parametrize("table", ("one", "ten"))
def test_a_file_of_other_columns_is_refused(table, folder, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("date,row\n")
    how = dict(config=QUICK_STUDY, scenes=6)
    rows = {
        "one": lambda: conversation_rows(folder, path, tmp_path / "runs", **SHORT),
        "ten": lambda: table_ten.zero_shot_rows(folder, path, **how),
    }
    with pytest.raises(ValueError, match="has other columns than these rows"):
        next(rows[table]())
