"""Settings: each is on the list, read by its kind, told in one sentence, kept in the card."""

import json
import sys
from dataclasses import fields, replace

import pytest

from bt_adapter import settings
from bt_adapter.branch_config import BranchConfig
from bt_adapter.recipes import PRESETS, ParamGroup, PretrainConfig, Schedule
from bt_adapter.settings import SETTINGS, read_settings, value_in, with_settings, written


def test_every_field_of_a_recipe_is_on_the_list():
    known = {f.name for f in fields(PretrainConfig)} - {"branch", "schedule"}
    known |= {f"branch.{f.name}" for f in fields(BranchConfig)} - {"branch.align"}
    known |= {f"schedule.{f.name}" for f in fields(Schedule)}
    assert {setting.field for setting in SETTINGS.values()} == known
    assert all(s.what and s.kind.words for s in SETTINGS.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_read_as_the_same(preset):
    config = PRESETS[preset]
    for name, setting in SETTINGS.items():
        value = value_in(config, setting)
        assert read_settings([f"{name}={written(value)}"]) == {name: value}
        assert with_settings(config, {name: value}) == config
    values = {name: value_in(config, setting) for name, setting in SETTINGS.items()}
    del values["objectives"]
    assert with_settings(PretrainConfig(), values) == config  # all at once, from another preset


OTHER = dict(layers=6, projection="none", combination="addition", final="concatenation")
OTHER |= dict(max_frames=9, convention="released", mask=0.5, weights=(1.0, 0.5, 0.0), tau=0.3)
OTHER |= dict(token_loss="mse", teacher_norm=False, frames=5, tokens=7, steps=3, batch=4, chunk=2)
OTHER |= dict(rates=(ParamGroup(("gates.", "time"), 1e-3), ParamGroup(("",), 2e-5)), clip_norm=2.0)
OTHER |= dict(weight_decay=0.2, warmup=0.3, first=0.2, delay=0.1, period=2.0, precision="fp32")
OTHER |= dict(ema=0.9, objects=3, takes=2, seed=7, drop_path=0.2, compile="eager")


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_changes_its_field_and_nothing_else(name):
    config, setting = PretrainConfig(token_loss="cosine"), SETTINGS[name]
    changed = with_settings(config, read_settings([f"{name}={written(OTHER[name])}"]))
    assert value_in(changed, setting) == OTHER[name] != value_in(config, setting)
    assert with_settings(changed, {name: value_in(config, setting)}) == config


def test_the_list_of_others_is_whole():
    assert OTHER.keys() == SETTINGS.keys() - {"objectives"}


def test_objectives_keep_the_weights_of_the_recipe():
    released = PRESETS["released"]
    chosen = read_settings(["objectives=VTC, mbca"])
    assert with_settings(released, chosen).weights == (1.0, 0.0, 0.1)
    none = replace(released, weights=(1.0, 0.0, 0.0))
    assert with_settings(none, chosen).weights == (1.0, 0.0, 1.0)


WRONG = {
    "layer=6": "no setting is called 'layer': the nearest is layers",
    "Layers=6": "the nearest is layers",
    "mask_ratio=.5": "the nearest is mask",
    "xyzzy=1": "no setting is called 'xyzzy': --set help lists them all",
    "layers": "--set takes NAME=VALUE such as layers=6",
    "layers=": "layers takes a whole number",
    "layers=1.5": "layers takes a whole number, from 1 to 65536, not '1.5'",
    "layers=" + 5000 * "9": "layers takes a whole number",
    "layers=none": "layers takes a whole number",
    "mask=1": "mask takes a number from 0 to below 1, not '1'",
    "mask=-0.1": "mask takes a number",
    "tau=0": "tau takes a number above 0",
    "tau=inf": "tau takes a number above 0",
    "weights=1,1": "weights takes three numbers",
    "weights=0,0,0": "not all 0",
    "weights=1,nan,1": "weights takes three numbers",
    "objectives=": "objectives takes some of vtc,mbta,mbca",
    "objectives=vtc,vtc": "objectives takes some of",
    "projection=None": "projection takes one of zero, random, none",
    "teacher_norm=maybe": "teacher_norm takes yes or no",
    "tokens=2": "tokens takes a whole number, from 3 to 65536 or none",
    "ema=1": "ema takes a number above 0 and below 1 or none",
    "rates=temporal.:1e-3": "rates takes one rate, or groups",
    "rates=rest:1e-3,gates.:1e-3": "rates takes one rate",
    "rates=gates.:x,rest:1": "rates takes one rate",
    "rates=+:1,rest:1": "rates takes one rate",
    "rates=rest:1:sgd": "rates takes one rate",
    "rates=rest:1:muon": "rates takes one rate",
    "seed=-1": "seed takes a whole number",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_what_cannot_be_is_one_sentence(text):
    with pytest.raises(ValueError) as caught:
        with_settings(PretrainConfig(), read_settings([text]))
    said = str(caught.value)
    assert WRONG[text] in said and "\n" not in said and len(said) < 250


def test_recipes_refuse_what_is_of_another_kind():
    for wrong in (
        *(dict(batch=None), dict(steps=1.5), dict(frames=True), dict(weights=(1, 1))),
        *(dict(weights=(1, -1, 1)), dict(tau="x"), dict(ema="x"), dict(token_loss="l1")),
        *(dict(frames=65), dict(precision="fp8"), dict(weights=None)),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PretrainConfig(**wrong)


def test_the_list_has_the_defaults_of_its_preset(monkeypatch, capsys):
    from bt_adapter.cli.pretrain import main

    monkeypatch.setattr(sys, "argv", ["bta-pretrain", "--preset", "paper", "--set", "help"])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr().out
    assert not stop.value.code and "--preset paper" in printed
    assert all(name in printed for name in SETTINGS) and "rest:2e-06" in printed
    rows = settings.settings_help(PRESETS["paper"])
    assert [row["name"] for row in rows] == [*SETTINGS]


def test_settings_are_in_the_card_and_checked_when_a_run_goes_on(tmp_path):
    from tiny_runs import Source, tiny_adapter

    from bt_adapter.runs import load_checkpoint, save_checkpoint
    from bt_adapter.trainer import Run, run_signature

    config = PretrainConfig(steps=1, batch=12, precision="fp32", mask_ratio=0.5)
    model, about = tiny_adapter(), dict(preset="full", set=dict(mask="0.5"))
    same = run_signature(model, config, "noise")
    with Run(tmp_path) as run:
        run.go(model, Source(), config, same)
        run.finish(model, config, same, **about)
    card = json.loads((tmp_path / "training.json").read_text())
    assert card["set"] == {"mask": "0.5"} and card["settings"]["mask_ratio"] == 0.5
    save_checkpoint(tmp_path / "c.pt", same, {})
    for set_, told in (
        ("mask=0.6", "its mask_ratio is '0.5', here it is '0.6'"),
        ("layers=3", "its branch's layers is 4, here it is 3"),
        ("warmup=0.5", "its schedule's warmup is 0.05"),
    ):
        other = with_settings(config, read_settings([set_]))
        with pytest.raises(ValueError, match=told):
            load_checkpoint(tmp_path / "c.pt", run_signature(model, other, "noise"))
