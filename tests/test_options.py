"""Every option of every command: what it needs, and which values are refused, before any work."""

import json
import os
import subprocess
import sys

import pytest
from test_cli import WHAT_LOADS

BASE = {  # what a command line needs to be one
    "demo": "",
    "pretrain": "",
    "pretrain shards": "file out",
    "pretrain clip": "",
    "pretrain instruct": "",
    "pretrain tune": "--model m --dialogues file",
    "evaluate": "",
    "ablations": "",
    "chat": "file",
    "judge": "file",
    "gallery": "",
    "timecheck": "",
    "explore": "file",
}
INTEGER = "nan -1 " + 30 * "9"
COUNT = f"0 {INTEGER}"
FOLDER = "file /proc/made file/inside"
FILE = "/proc/made.csv gone/made.csv ."
DATA, SERVER = "--data file", "--judge m"
# Command, option, what it needs, a value that is good (or a - for none), values that are bad.
TABLE = f"""
demo            --captions         |                   | words      | nowhere.txt
demo            --adapter          |                   | .          | nowhere file
demo            --picture          |                   | a.png      | a.mp4 . gone/a.png /proc/a.png
demo            --json             |                   | -          |
demo            --write-samples    |                   | out        | {FOLDER}
demo            --overwrite        | --write-samples out | -        |
demo            --reader           |                   | pyav       | x
pretrain        --out              |                   | out        | {FOLDER}
pretrain        --preset           |                   | quick      | x 3
pretrain        --data             |                   | file       | nowhere.csv
pretrain        --format           | {DATA}            | table      | x
pretrain        --clips            | {DATA}            | .          |
pretrain        --video-column     | {DATA}            | film       | film
pretrain        --caption-column   | {DATA}            | words      | words
pretrain        --split            | {DATA}            | test       |
pretrain        --validation       | {DATA}            | file       | nowhere.csv
pretrain        --validation-split | --validation file | test       |
pretrain        --broken           | {DATA}            | 0.1        | nan inf 1.1
pretrain        --clip             |                   | x          | no/where
pretrain        --pretrained       | --clip x          | x          |
pretrain        --activation       | --clip x          | gelu       | x
pretrain        --set              |                   | layers=6   | x layer=6 layers=x layers=0
pretrain        --set              |                   | mask=.5    | mask=nan tau=1e999 frames=65
pretrain        --set              |                   | seed=1     | objectives=vtc,x tokens=9
pretrain        --steps            |                   | 3          | {COUNT}
pretrain        --epochs           | {DATA}            | 3          | {COUNT}
pretrain        --batch            |                   | 3          | {COUNT}
pretrain        --chunk            |                   | 3          | {COUNT}
pretrain        --precision        |                   | fp32       | x
pretrain        --ema              |                   | 0.5        | nan -1 2
pretrain        --store            |                   | out        | {FOLDER}
pretrain        --views            | {DATA}            | 3          | {COUNT}
pretrain        --workers          | {DATA}            | 0          | {INTEGER} 100000
pretrain        --reader           | {DATA}            | pyav       | x
pretrain        --resume           |                   | -          |
pretrain        --overwrite        |                   | -          |
pretrain        --wait             |                   | 1          | nan inf -1 0
pretrain        --level            |                   | 2          | 0 3 x
pretrain        --save-every       |                   | 3          | {COUNT}
pretrain        --strategy         | {DATA}            | joint-ST   | x
pretrain        --start            |                   | moving-shapes | nowhere
pretrain        --seed             |                   | 0          | {INTEGER}
pretrain        --track            |                   | tensorboard | x tensorbord
pretrain        --plan             |                   | -          |
pretrain        --gpu              | --plan            | T4         | T5 -3 0 nan inf
pretrain shards --format           |                   | table      | x
pretrain shards --clips            |                   | .          |
pretrain shards --split            |                   | test       |
pretrain shards --video-column     |                   | film       | film
pretrain shards --caption-column   |                   | words      | words
pretrain shards --per-shard        |                   | 3          | {COUNT}
pretrain shards --outside          |                   | -          |
pretrain clip   --out              |                   | out        | {FOLDER}
pretrain clip   --seed             |                   | 0          | {INTEGER}
pretrain clip   --steps            |                   | 3          | {COUNT}
pretrain clip   --level            |                   | 2          | 0 3 x
pretrain clip   --resume           |                   | -          |
pretrain clip   --overwrite        |                   | -          |
pretrain clip   --save-every       |                   | 3          | {COUNT}
pretrain instruct --out            |                   | out        | {FOLDER}
pretrain instruct --adapter        |                   | .          | nowhere
pretrain instruct --seed           |                   | 0          | {INTEGER}
pretrain instruct --scenes         |                   | 54         | {COUNT} 3
pretrain instruct --level          |                   | 2          | 0 3 x
pretrain instruct --resume         |                   | -          |
pretrain instruct --overwrite      |                   | -          |
pretrain tune   --model            |                   | m          |
pretrain tune   --dialogues        |                   | file       | nowhere.json
pretrain tune   --clips            |                   | .          |
pretrain tune   --adapter          |                   | .          | nowhere
pretrain tune   --preset           |                   | paper      | x quick
pretrain tune   --out              |                   | out        | {FOLDER}
pretrain tune   --store            |                   | out        | {FOLDER}
pretrain tune   --frames           |                   | 3          | {COUNT}
pretrain tune   --template         |                   | llava      | x
pretrain tune   --steps            |                   | 3          | {COUNT}
pretrain tune   --workers          |                   | 0          | {INTEGER} 100000
pretrain tune   --resume           |                   | -          |
pretrain tune   --overwrite        |                   | -          |
pretrain tune   --save-every       |                   | 3          | {COUNT}
pretrain tune   --seed             |                   | 0          | {INTEGER}
evaluate        --released         |                   | file       | nowhere.pth
evaluate        --gates            | --released file   | -          |
evaluate        --no-gates         | --released file   | -          |
evaluate        --heads            | --released file   | 3          | {COUNT}
evaluate        --clip             | --released file   | .          | no/where x
evaluate        --pretrained       | --clip x          | x          |
evaluate        --activation       | --clip .          | gelu       | x
evaluate        --data             |                   | file       | nowhere.csv
evaluate        --format           | {DATA}            | table      | x
evaluate        --clips            | {DATA}            | .          | 36
evaluate        --video-column     | {DATA}            | film       | film
evaluate        --caption-column   | {DATA}            | words      | words
evaluate        --split            |                   | test       |
evaluate        --level            |                   | 2          | 0 3 x
evaluate        --uneven           |                   | -          |
evaluate        --limit            |                   | 3          | {COUNT}
evaluate        --settings         | {DATA}            | paper      | x
evaluate        --frames           |                   | 3          | {COUNT}
evaluate        --tokens           | {DATA}            | 3          | 2 {COUNT}
evaluate        --classes          | {DATA}            | file       | nowhere.txt
evaluate        --prompt           | {DATA}            | {{}}       | x
evaluate        --ties             | {DATA}            | against    | x
evaluate        --csv              |                   | a.csv      | {FILE}
evaluate        --queries          | {DATA}            | a.csv      | {FILE} file
evaluate        --overwrite        | --queries a.csv   | -          |
evaluate        --faiss            | --queries a.csv   | -          |
evaluate        --keep             | {DATA}            | out        | {FOLDER}
evaluate        --skip             | {DATA}            | -          |
evaluate        --batch            | {DATA}            | 16         | {COUNT}
evaluate        --workers          | {DATA}            | 0          | {INTEGER} 100000
evaluate        --reader           | {DATA}            | pyav       | x
evaluate        --device           |                   | cpu        | x meta cuda:x
evaluate        --json             |                   | -          |
ablations       --csv              |                   | a.csv      | {FILE}
ablations       --quick            |                   | -          |
ablations       --seeds            |                   | 3          | {COUNT}
ablations       --full             |                   | -          |
ablations       --conversation     |                   | -          |
ablations       --seed             |                   | 1          | {INTEGER}
ablations       --table            |                   | frames     | x
ablations       --row              | --full            | addition   | x
ablations       --level            | --full            | 2          | 0 3 x
ablations       --store            | --full            | out        | {FOLDER}
ablations       --runs             | --full            | out        | {FOLDER}
ablations       --clip             |                   | .          | no/where
ablations       --pretrained       | --clip x          | x          |
ablations       --activation       | --clip .          | gelu       |
ablations       --data             |                   | file       | nowhere.csv
ablations       --format           | {DATA}            | table      | x
ablations       --clips            | {DATA}            | .          |
ablations       --split            | {DATA}            | test       |
ablations       --validation       | {DATA}            | file       | nowhere.csv
ablations       --validation-split | --validation file | test       |
ablations       --preset           | {DATA}            | paper      | x
ablations       --set              | {DATA}            | layers=6   | x layer=6 layers=x seed=1
ablations       --workers          | {DATA}            | 0          | {INTEGER} 100000
chat            --ask              |                   | What?      |
chat            --model            |                   | .          | m
chat            --video            |                   | .          | nowhere file
chat            --template         |                   | llava      | x
chat            --add-markers      | --template llava  | -          |
chat            --frames           |                   | 3          | {COUNT}
chat            --temperature      |                   | 0          | nan inf -1
chat            --max-tokens       |                   | 3          | {COUNT}
chat            --reader           |                   | pyav       | x
judge           --answers          |                   | file       | nowhere.json
judge           --judge            |                   | m          |
judge           --aspect           | {SERVER}          | qa         | x
judge           --base-url         | {SERVER}          | http://h   |
judge           --replies          | {SERVER}          | a.jsonl    | /proc/a.jsonl . file/a
judge           --ask-unread       | {SERVER}          | -          |
judge           --set              | {SERVER}          | seed=1     |
judge           --parallel         |                   | 3          | {COUNT}
judge           --timeout          | {SERVER}          | 30         | nan inf 0 1e9
judge           --json             |                   | -          |
gallery         --scenes           |                   | 3          | {COUNT}
gallery         --overwrite        |                   | -          |
gallery         --wordings         |                   | -          |
timecheck       --chat             |                   | -          |
timecheck       --form             | --chat            | words      | song
timecheck       --video            | --chat            | mean       | nowhere
timecheck       --text             |                   | a:b        | x
timecheck       --pretrained       |                   |            |
timecheck       --frames           |                   | 8          | 1 {COUNT}
timecheck       --size             |                   | 64         | 7 {COUNT}
timecheck       --pairs            |                   | 8          | 3 49 {COUNT}
timecheck       --batch            |                   | 16         | {COUNT}
timecheck       --device           |                   | cpu        | x meta cuda:x
timecheck       --seed             |                   | 0          | {INTEGER}
timecheck       --out              |                   | out        | {FOLDER}
timecheck       --pipeline         |                   | -          |
timecheck       --stride           | --pipeline        | 4          | {COUNT}
timecheck       --lmms-eval        |                   | out        | {FOLDER}
timecheck       --json             |                   | -          |
explore         --captions         |                   | words      | nowhere.txt
explore         --candidates       |                   | words      | nowhere.txt
explore         --adapter          |                   | .          | nowhere file
explore         --other            |                   | file       | nowhere .
explore         --frames           |                   | 8          | {COUNT}
explore         --page             |                   | a.html     | a.png . /proc/a.html
explore         -o                 |                   | a.html     | a.png
explore         --reader           |                   | pyav       | x
"""
TOGETHER = {  # what does not fit together, and the word that says so
    "pretrain --clip moving-shapes --pretrained x": "leave out --pretrained",
    "pretrain --clip . --pretrained x": "--pretrained",
    "evaluate --released file --clip . --pretrained x": "--pretrained",
    "demo file --write-samples out": "--write-samples",
    "pretrain --data . --split test": "--split",
    "judge two.json --aspect consistency --judge m": "two questions",
    "pretrain --data file --views 2": "--store",
    "pretrain --data file": "seen nothing of real clips",
    "evaluate --data file": "seen nothing of real clips",
    "pretrain tune --model m --dialogues file": "--adapter",
    "pretrain --steps 3 --set steps=4": "contradict each other",
    "pretrain --data file --epochs 3 --set steps=4": "contradict each other",
    "pretrain --seed 0 --set seed=1": "contradict each other",
    "pretrain --set weights=1,0,0 --set objectives=vtc": "one of them",
    "pretrain --set layers=1 --set layers=2": "twice",
    "pretrain --data file --set objects=3": "belongs to Moving Shapes",
    "pretrain --plan --resume": "leave --resume out",
    "pretrain --plan --overwrite": "trains nothing",
    "pretrain --plan --level 2": "leave --level out",
    "pretrain --plan --gpu T5": "the nearest are T4",
    "pretrain --plan --set objects=3": "belongs to Moving Shapes",
    "pretrain --level 2 --set frames=4": "leave the setting frames out",
    "pretrain --out=": "--out",
    "pretrain --data file --level 2": "--level",
    "evaluate --data file --level 2": "--level",
    "evaluate --data file --uneven": "--uneven",
    "evaluate --data file --video-column film": "of a saved dataset, and file is none",
    "ablations --full --conversation": "one at a time",
    "ablations --full --table frames": "choose them with --row",
    "ablations --conversation --table frames": "choose from Table 1, Table 10",
    "ablations --seeds 2 --seed 1": "--seed",
    "ablations --conversation --clip .": "--clip",
    "ablations --data file": "--data needs --validation",
    "ablations --data file --validation file": "seen nothing of real clips",
    "ablations --data file --validation file --full": "--full is a study of Moving Shapes",
    "ablations --data file --validation file --set seed=1": "leave --set seed out",
    "pretrain --data file --strategy joint-ST --set mask=.5": "masks are for a branch",
    "pretrain --data file --strategy STAN --set projection=none": "has no setting projection",
    "pretrain --data file --strategy joint-ST --set layers=2": "has no setting layers",
    "timecheck --pipeline": "MODULE:FUNCTION",
    "timecheck a:b --pipeline --out x": "leave out --out",
    "timecheck a:b --pipeline --chat": "leave out --chat",
    "timecheck a:b --pipeline --form words": "leave out --form",
    "timecheck --form words --lmms-eval out": "--form has no use",
    "timecheck a:b --chat --batch 3": "asked as a chat model",
    "timecheck a:b --chat --video mean": "leave out --video",
    "timecheck owner/name --chat": "has no --video",
    "timecheck nothing --chat": "There is no chat model",
    "timecheck --chat --lmms-eval out": "--chat has no use",
    "timecheck a:b --lmms-eval out": "a name has no use beside --lmms-eval",
    "timecheck --lmms-eval out --out x": "--out has no use beside --lmms-eval",
}


def rows():
    for line in TABLE.strip().splitlines():
        first, needs, good, bad = map(str.strip, line.split("|"))
        *command, option = first.split()
        yield " ".join(command), option, needs, "" if good == "-" else good, bad.split()


def given(command, *words):
    name, *sub = command.split()
    return [name, [*sub, *BASE[command].split(), *" ".join(words).split()]]


def without(command, option, *words):
    "The same with the option's own value in the place of that of the basis."
    name, found = given(command, *words)
    if option in BASE[command].split():
        at = found.index(option)
        del found[at : at + 2]
    return [name, found]


def test_the_table_knows_every_option():
    from bt_adapter.cli.console import command_lines, spellings

    known = {}
    for command, option, *_ in rows():
        known.setdefault(f"bta-{command}", set()).add(option)
    for line, program in command_lines().items():
        assert spellings(program) == known.get(line, set()), line


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What each line says: {(command, words): (status, heavy modules, what was told)}."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "file").write_text("")
    (folder / "two.json").write_text(json.dumps([dict(question="q", answer="a", pred="p")]))
    lines = []
    for command, option, needs, good, bad in rows():
        lines += [without(command, option, option, good)] * bool(needs)
        more = f"{needs} {DATA if needs.split()[:1] in (['--validation'], ['--queries']) else ''}"
        more += " --store out" * (option == "--views")
        more += " --released file" * (needs.startswith("--clip") and command == "evaluate")
        lines += [without(command, option, more, option, value) for value in bad]
        if good:
            name, words = without(command, option, more, option)
            lines.append([name, [*words, ""]])
    lines += [[line.split()[0], line.split()[1:]] for line in TOGETHER]
    code = f"import pydantic\nLINES = {lines!r}\n{WHAT_LOADS}"
    env = os.environ | {"COLUMNS": "200"}
    run = dict(cwd=folder, capture_output=True, text=True, env=env, timeout=300)
    done = subprocess.run([sys.executable, "-c", code], **run)
    assert done.stdout, done.stderr
    assert sorted(os.listdir(folder)) == ["file", "two.json"]  # nothing was made
    return [(*line, *found) for line, found in zip(lines, json.loads(done.stdout), strict=True)]


def test_what_cannot_be_is_refused_before_any_work(refused):
    wrong = []
    for name, words, status, heavy, told in refused:
        sentence = [line for line in told.splitlines() if "rror: " in line]
        if status != 2 or heavy or len(sentence) != 1 or "Traceback" in told:
            wrong.append(f"bta-{name} {' '.join(words)}: {status} {heavy} {told[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert len(refused) > 250


def test_an_option_names_the_one_that_it_needs(refused):
    told = {(name, *words): said for name, words, *_, said in refused}
    for command, option, needs, good, _ in rows():
        if needs:
            name, words = without(command, option, option, good)
            said = told[(name, *words)]
            assert "belongs to" in said and needs.split()[0] in said, (command, option, said)


def test_what_does_not_fit_together_is_told(refused):
    told = {(name, *words): said for name, words, *_, said in refused}
    for line, word in TOGETHER.items():
        assert word in told[tuple(line.split())], line
