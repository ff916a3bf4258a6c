"""Do the frames that a word is said to come from matter more to its answer than others do?

    python tests/benchmarks/word_frames.py [--clips 12] [--random 4] [--csv FILE]

The tuned chat model of Moving Shapes is asked what the thing does in test clips. `word_frames`
ranks the frames for the last word of each answer. The two that rank first are taken out together,
and so are --random other pairs, drawn at random from all frames. Prints by how much the logarithm
of the word's probability falls, on average, and the ratio of the two falls.
--csv appends a row to a file.
"""

import argparse
from datetime import date
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter import moving_shapes as world
from bt_adapter.chat import VideoChat, load_chat, word_frames
from bt_adapter.chat.word_frames import log_likelihood, tokens_of_frames, tokens_of_words
from bt_adapter.instruct import QUESTIONS


def falls(chat, rng, count):
    """Of the last word without its two first frames, and without two at random."""
    words, places = tokens_of_words(chat.prompt, chat.turns[0])
    first = word_frames(chat).ranking(len(words) - 1)[:2]
    every = range(len(chat.prompt.clip))
    pairs = rng.permutation([*combinations(every, 2)])[:count].tolist()
    kept = [[i for i in every if i not in pair] for pair in ([], first, *pairs)]
    whole, *less = (
        log_likelihood(chat, 0, [tokens])[0, places[-1]].sum()
        for tokens in tokens_of_frames(chat.prompt, kept)
    )
    return whole - less[0], float(whole - np.mean(less[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--random", type=int, default=4, help="pairs of frames a clip")
    parser.add_argument("--csv", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, words = load_chat("moving-shapes")
    rng, found = np.random.default_rng(0), []
    for scene in world.gallery("test", chosen.clips):
        chat = VideoChat(model, words, world.render(scene))
        if chat.ask(QUESTIONS["motion"]).strip():
            found.append(falls(chat, rng, chosen.random))
    first, other = np.mean(found, 0)
    row = f"{processor()},{torch.__version__},{date.today()},{len(found)},{chosen.random}"
    row += f",{first:.2f},{other:.2f},{first / other:.2f}"
    print(row)
    if chosen.csv:
        head = "processor,torch,date,answers,random pairs,fall first two,fall random two,ratio\n"
        text = chosen.csv.read_text() if chosen.csv.exists() else head
        chosen.csv.write_text(f"{text}{row}\n")


if __name__ == "__main__":
    main()
