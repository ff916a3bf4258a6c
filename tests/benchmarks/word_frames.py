"""Do the frames that a word is said to come from matter more to its answer than others do?

    python tests/benchmarks/word_frames.py [--clips 48] [--random 4] [--csv FILE]

The tuned chat model of Moving Shapes is asked what the thing does in test clips. `word_frames`
and `frame_pair` name two frames that the last word of each answer came from. These are taken out
together. So are the two that rank first one by one; the pair of the clip before, which was chosen
in the same way, for another answer; and --random pairs, drawn from all. Prints by how much the
logarithm of the word's probability falls, on average, and the ratio of the first to the random
ones, with an interval of 95 percent from drawing the clips anew.
--csv appends a row to a file.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter import moving_shapes as world
from bt_adapter.chat import VideoChat, frame_pair, load_chat, word_frames
from bt_adapter.chat.word_frames import falls, tokens_of_words
from bt_adapter.instruct import QUESTIONS
from bt_adapter.ledger import append_csv


def pairs_of(chat):
    """The pair of the last word, and the two frames that rank first."""
    found = word_frames(chat)
    word = len(found.words) - 1
    return frame_pair(chat, found, word).frames, tuple(found.ranking(word)[:2])


def fall_of_word(chat, pairs):
    """Of the last word, without each pair."""
    _, places = tokens_of_words(chat.prompt, chat.turns[0])
    return falls(chat, 0, pairs)[:, places[-1]].sum(1)


def of_ratio(falls_of, others, draws=2000):
    """The ratio of two means over the clips, and its interval."""
    some = np.random.default_rng(0).integers(0, len(falls_of), (draws, len(falls_of)))
    drawn = falls_of[some].mean(1) / others[some].mean(1)
    return falls_of.mean() / others.mean(), *np.percentile(drawn, [2.5, 97.5])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--random", type=int, default=4, help="pairs of frames a clip")
    parser.add_argument("--csv", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, words = load_chat("moving-shapes")
    rng, found, before = np.random.default_rng(0), [], (0, 1)
    for scene in world.gallery("test", chosen.clips):
        chat = VideoChat(model, words, world.render(scene))
        if not chat.ask(QUESTIONS["motion"]).strip():
            continue
        pair, first = pairs_of(chat)
        every = [*combinations(range(len(chat.prompt.clip)), 2)]
        drawn = [every[i] for i in rng.permutation(len(every))[: chosen.random]]
        own, alone, other, *rest = fall_of_word(chat, [pair, first, before, *drawn])
        found.append((own, alone, other, np.mean(rest)))
        before = pair
    columns = np.array(found).T
    named = zip(("pair", "first two", "another clip's pair", "random pairs"), columns, strict=True)
    row = dict(processor=processor(), torch=torch.__version__, answers=len(found))
    row |= {"pairs drawn": chosen.random}
    row |= {f"fall, {name}": f"{values.mean():.2f}" for name, values in named}
    ratio = of_ratio(columns[0], columns[-1])
    row |= dict(zip(("ratio", "low", "high"), (f"{value:.2f}" for value in ratio), strict=True))
    print(row)
    if chosen.csv:
        append_csv(chosen.csv, [row])


if __name__ == "__main__":
    main()
