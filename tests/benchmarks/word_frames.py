"""Do the frames that a word is said to come from matter more to its answer than others do?

    python tests/benchmarks/word_frames.py [--clips 96] [--csv FILE]

The tuned chat model of Moving Shapes is asked in two wordings what the thing does in test clips.
For answers that are the same in both, `word_frames` and `frame_pair` name two frames that the last
word came from, in each wording. These are taken out together, and in the other wording, too: a pair
that is chosen and judged in one and the same question is ahead by construction. Taken out for
comparison: the two frames that rank first one by one; the pair of the clip before, which was chosen
in the same way, for another answer; and all pairs in turn, which is what random ones come to.
Prints for each wording to choose and to judge with by how much the logarithm of the word's
probability falls, on average, and ratios with an interval of 95 percent from drawing the clips
anew; also of the first frame alone to all frames in turn. --csv appends the rows to a file.
"""

import argparse
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter import moving_shapes as world
from bt_adapter.chat import VideoChat, frame_pair, load_chat, word_frames
from bt_adapter.chat.word_frames import falls, tokens_of_words
from bt_adapter.instruct import QUESTIONS
from bt_adapter.ledger import append_csv

WORDINGS = {"as trained": QUESTIONS["motion"], "in other words": "How does the thing move?"}
LOST = ("pair", "first two", "another clip's pair", "all pairs", "first frame", "all frames")
RATIOS = (("pair", "all pairs"), ("pair", "another clip's pair"), ("first frame", "all frames"))


class Reading:
    """What becomes of the last word of an answer without frames, in one wording."""

    def __init__(self, chat):
        self.answer, found = chat.turns[0].answer, word_frames(chat)
        word = len(found.words) - 1
        self.ranking, self.frames = found.ranking(word), found.effects[word]
        self.pair = frame_pair(chat, found, word).frames
        pairs = [*combinations(range(len(self.frames)), 2)]
        _, places = tokens_of_words(chat.prompt, chat.turns[0])
        self.pairs = dict(zip(pairs, falls(chat, 0, pairs)[:, places[-1]].sum(1), strict=True))

    def fall(self, pair):
        """Without two frames."""
        return self.pairs[tuple(sorted(pair))]


def measured(chosen, judged, before):
    """How far the word falls in one reading without what another chose, as in LOST."""
    every, first = [*judged.pairs.values()], chosen.ranking[:2]
    pairs = [judged.fall(pair) for pair in (chosen.pair, first, before.pair)]
    return *pairs, np.mean(every), judged.frames[first[0]], judged.frames.mean()


def readings(clips):
    """Both wordings of each test clip that is answered alike in both."""
    model, words = load_chat("moving-shapes")
    for scene in world.gallery("test", clips):
        chats = [VideoChat(model, words, world.render(scene)) for _ in WORDINGS]
        said = {chat.ask(question) for chat, question in zip(chats, WORDINGS.values())}
        if len(said) == 1 and said.pop().strip():
            yield dict(zip(WORDINGS, map(Reading, chats)))


def of_ratio(falls_of, others, draws=2000):
    """The ratio of two means over the clips, and its interval."""
    some = np.random.default_rng(0).integers(0, len(falls_of), (draws, len(falls_of)))
    drawn = falls_of[some].mean(1) / others[some].mean(1)
    return falls_of.mean() / others.mean(), *np.percentile(drawn, [2.5, 97.5])


def row_of(found, chosen, judged):
    """A row of the file: of pairs chosen in one wording and judged in another."""
    before = [found[-1], *found[:-1]]
    falls_of = [measured(r[chosen], r[judged], b[chosen]) for r, b in zip(found, before)]
    columns = dict(zip(LOST, np.array(falls_of).T, strict=True))
    row = dict(processor=processor(), torch=torch.__version__)
    row |= {"chosen": chosen, "judged": judged, "answers": len(found)}
    row |= {f"fall, {name}": f"{values.mean():.2f}" for name, values in columns.items()}
    for one, other in RATIOS:
        ratio, low, high = of_ratio(columns[one], columns[other])
        row[f"{one} / {other}"] = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--csv", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = [*readings(chosen.clips)]
    rows = [row_of(found, *names) for names in product(WORDINGS, repeat=2)]
    print(*rows, sep="\n")
    if chosen.csv:
        append_csv(chosen.csv, rows)


if __name__ == "__main__":
    main()
