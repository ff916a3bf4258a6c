"""The feature store: what it gives back, what it notices, and what a full disk does to it."""

import resource
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_clip

from bt_adapter.stamps import file_stamp
from bt_adapter.store import (
    FeatureStore,
    Key,
    StoreSettings,
    choose_kept,
    entry_bytes,
    frozen_states,
    kept_in,
    later_states,
    read_states,
    store_settings,
)

LAST = 3


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture
def states(clip):
    frames = torch.randn(4, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return frozen_states(clip, frames, LAST)


@pytest.fixture
def store(clip, tmp_path):
    return FeatureStore(tmp_path / "states", store_settings(clip, LAST, 2))


def key(number, stamp="1-1"):
    return Key(f"clip {number}", 0, stamp)


def test_what_is_kept_comes_back_bit_by_bit(clip, store, states):
    for number, entry in enumerate(states):
        store[key(number)] = entry
    back = read_states(store, [key(2), key(0)], clip, LAST)
    assert torch.equal(back, states[[2, 0]]) and back.dtype == torch.bfloat16
    memory = {key(number): entry for number, entry in enumerate(states)}
    assert torch.equal(read_states(memory, [key(2), key(0)], clip, LAST), back)
    assert len(store) == 4 and key(3) in store and key(4) not in store and not store.noticed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_states_stay_in_half_precision(dtype):
    clip = tiny_clip().to(dtype)
    states = frozen_states(clip, torch.randn(1, 2, 3, 16, 16), LAST)
    assert states.dtype == (torch.float16 if dtype == torch.float16 else torch.bfloat16)


def test_later_states_follow_from_the_first(clip):
    exact = torch.stack(clip.layer_outputs(torch.randn(3, 2, 3, 16, 16), LAST), 1)
    torch.testing.assert_close(later_states(clip, exact[:, 0], LAST), exact)
    assert torch.equal(later_states(clip, exact[:, 0], 1), exact[:, :1])


def test_a_store_of_first_states(clip, tmp_path, states):
    store = FeatureStore(tmp_path, store_settings(clip, LAST, 2, kept="first"))
    store[key(0)] = states[0]
    assert torch.equal(store[key(0)], states[0, :1])
    back = read_states(store, [key(0)], clip, LAST)
    torch.testing.assert_close(back.float(), states[:1].float(), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 500, -1])
def test_an_entry_cut_off_anywhere_is_noticed(store, states, left):
    store[key(0)] = states[0]
    path = store.path(key(0))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(KeyError):
        store[key(0)]
    assert store.noticed["damaged"] == 1
    store[key(0)] = states[0]
    assert torch.equal(store[key(0)], states[0])


@pytest.mark.parametrize("junk", [b"\0" * 4096, b"text" * 100, b"\xff" * 8], ids=repr)
def test_junk_is_noticed(store, states, junk):
    store[key(0)] = states[0]
    store.path(key(0)).write_bytes(junk)
    assert key(0) not in store and store.noticed["damaged"] == 1


def test_a_changed_file_is_noticed(store, states, tmp_path):
    clip_file = tmp_path / "clip.mp4"
    clip_file.write_bytes(b"first")
    store[key(0, file_stamp(clip_file))] = states[0]
    clip_file.write_bytes(b"other, and longer")
    assert key(0, file_stamp(clip_file)) not in store
    assert store.noticed["of a file that has changed"] == 1


def test_the_stamp_of_a_clip_in_a_shard_is_the_shards(tmp_path):
    shard = tmp_path / "000000.tar"
    shard.write_bytes(b"shard")
    assert file_stamp(shard / "00000001.mp4") == file_stamp(shard) != ""


@pytest.mark.parametrize(
    "change",
    [
        dict(fingerprint="0123456789ab"),
        dict(precision="float16"),
        dict(last=2),
        dict(frames=4),
        dict(transform="another crop"),
        dict(kept="first"),
        dict(activation="quickgelu"),
    ],
    ids=str,
)
def test_a_store_of_other_states_is_refused(store, change):
    with pytest.raises(ValueError, match="is a store of other states"):
        FeatureStore(store.folder, replace(store.settings, **change))
    assert FeatureStore(store.folder, store.settings).settings == store.settings


def test_an_entry_brought_from_another_store_is_noticed(store, states, tmp_path):
    other = FeatureStore(tmp_path / "other", replace(store.settings, transform="another crop"))
    other[key(0)] = states[0]
    store.path(key(0)).parent.mkdir()
    shutil.copy(other.path(key(0)), store.path(key(0)))
    assert key(0) not in store


def test_a_damaged_card_is_one_sentence(store):
    (store.folder / "store.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged: delete the folder"):
        FeatureStore(store.folder, store.settings)
    with pytest.raises(ValueError, match=r"store\.json"):
        kept_in(store.folder)


def test_a_file_in_the_folders_place_is_one_sentence(clip, tmp_path):
    (tmp_path / "states").write_text("")
    with pytest.raises(ValueError, match="cannot be made a folder"):
        FeatureStore(tmp_path / "states", store_settings(clip, LAST))


def test_a_full_disk_leaves_what_is_there(store, states):
    store[key(0)] = states[0]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # of bytes in a file
    try:
        with pytest.raises(OSError, match="cannot be written: File too large"):
            store[key(1)] = states[1]
        with pytest.raises(OSError, match="the file of that name is still what it was"):
            store[key(0)] = states[1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(store[key(0)], states[0]) and key(1) not in store
    assert not list(store.folder.rglob("*.part"))


def test_room_decides_what_is_kept(clip, states):
    assert entry_bytes(clip, LAST, 2) == states[0].numel() * 2
    small = entry_bytes(clip, LAST, 2, "first")
    assert choose_kept(clip, LAST, 2, 10, 30 * small) == "all"
    assert choose_kept(clip, LAST, 2, 10, 30 * small - 1) == "first"
    with pytest.raises(ValueError, match=r"needs .* GB and .* GB are free"):
        choose_kept(clip, LAST, 2, 10, 10 * small - 1)


@pytest.mark.parametrize("card", ["[]", "5", "null", "[" * 20_000, '{"kept": ', '{"kept": 5}'])
def test_a_card_of_a_store_that_is_none_is_one_sentence(card, tmp_path):
    (tmp_path / "store.json").write_text(card)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        FeatureStore(tmp_path, StoreSettings("f", "float32", 5, 8, "centre"))
    assert "\n" not in str(caught.value)
    if card != '{"kept": 5}':  # which the settings of a store refuse
        with pytest.raises(ValueError, match=r"store\.json"):
            kept_in(tmp_path)
