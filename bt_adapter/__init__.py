"""BT-Adapter, the branch that turns a frozen image CLIP into a video encoder.

>>> from bt_adapter import BTAdapter, read_clip
>>> model = BTAdapter.from_pretrained("moving-shapes")
>>> model.encode_video(model.clip.transform(read_clip("clip.mp4"))[None]).embedding

Names at the top are imported when they are first used, so `import bt_adapter` costs nothing.
The modules, in the order of a clip's way through them:

video, files        a file becomes eight exact frames; files are written whole or not at all
containers          which files hold clips, and what is wrong with the others
pictures            decoded frames, upright and in their shape
shapes              shapes, colours and backgrounds, drawn without jagged edges
variations          tempo, texture, noise and pan: what varies in their second level
moving_shapes       rendered clips that only time tells apart
twins               three wrong captions of a clip of two things
backbone            a frozen CLIP that hands out the states of its layers, by name
frozen_tower        what it is made of, and what may go in
weights             all of them read, none left over, and which are the same but for rounding
pixels, plain_clip  what CLIP sees, and a light way to the shipped one
shipped             what comes with the package, by name
masking, drop_path  tubes: which patches the branch sees, and updates that are left out
temporal_attention  one patch looks at itself through time
traffic             what operations read and write, in bytes, and what stays
kernels             the same in Triton
branch_layers       equations 1, 2 and 4: its layers in time and space, and the gate
branch_config       what distinguishes one branch from another
branch, pretrained  equations 1 to 5: BTAdapter, and how it is saved, loaded and published
folding             how a layer in time is fast: two matrices as one, and kernels
released            the authors' checkpoints
losses, loss_inputs equations 6 to 8, and what they make sure of before they compare
datasets            captions in ten formats, shards, columns of videos, loaders
store               frozen states, kept on disk
small_clip          the CLIP of Moving Shapes
precision, muon     number types, which one this machine is fast in, and an optimizer that obeys
recipes, settings   what a run is trained by, as one value, and what --set may change of it
fitting             the one training loop: steps, checks, checkpoints
folders             whose a folder of results is, and who is at work in it
stamps, processes   whether files are still the same, and whether other processes are still there
trainer, runs       an adapter's steps on any number of processes, and what a run leaves behind
memory_plan, gpus   how much memory and time that will take, counted before, and on which GPU
spent               what it has cost: hours, memory, clips, energy
tracking            its curves in TensorBoard, trackio or Weights & Biases
pretrain            from captioned clips to an adapter
metrics             ranks and recall
retrieval           which caption belongs to which clip, in any data set
scenes              the Moving Shapes half of both: batches, scores on a gallery
ledger              results as dated rows of a CSV file
recognition         names for what happens
score_figures       rankings, shares with their intervals and confusions as pictures
in_place            what strategies that change CLIP's last layers have in common
strategies, costs   nine ways to make a video encoder of CLIP, and what each costs
strategy_figures    where each mixes frames, which tokens notice a change, and bars
strategy_files      each by its name, beside any CLIP: built, saved, loaded
starts              weights that a training goes on from: theirs, or the authors'
ablations           the paper's tables on a small scale, in few steps
full_length         eight of their rows as long as the shipped adapter, with curves
data_study          the rows on clips of one's own
study_tables        what they have written, read: each model once, means over seeds
verdicts            whether two rows differ, and what chance alone would say
paper_order         whether rows stand in the paper's order
study_words         a study as sentences that are built from its numbers
study_figures       and as pictures, one a table; quality against hours
maps                where and when the branch looks
changes             a branch that is changed while it runs
interventions       heads, frames, patches and P^t taken out of it, and put back
circuit             what that does to margins, and the fewest heads that carry one
seeing_direction    the heads that direction rests on, by Moving Shapes
relevance           what in a clip makes it match a sentence
timecheck           whether an encoder of clips sees time, and whether a reader gives frames as they come
timecheck_plugin    the same in a test suite of one's own, by a fixture of pytest
map_figures         pictures of both
explorer            the same under the mouse
chat                an image chat model with the branch plugged in
instruct            tuning it on questions about clips
benchmark, gallery  questions, answers and judges
paraphrases         questions in other words, and how many of the answers are right
clip_names          which clip an annotation means
figures             clips, matrices, curves and bars as pictures
films               clips that move side by side, with words
drawings            the architecture, cubes of tokens and what losses compare, in SVG
token_pictures      tokens, states and heads of attention as pictures
playing             pictures with controls, for lessons
extras              what is not installed, and how it is
exercises           check(answer) of the lessons' exercises
front_page          what the first page says, from recorded results
course              the lessons in three paths, and the minutes of each
demo                what `bta-demo` shows
evaluation          what an evaluation is asked for
zero_shot           and what it finds: retrieval and recognition on Moving Shapes and on any data set
progress            a bar while something long runs, in a terminal or a notebook
terminal            texts of strangers, shown and not obeyed
hub                 asking the model hub only where it can be found
cli                 the commands, a module each
"""

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors: the same names as in _NAMES
    from .backbone import FrozenCLIP, load_clip
    from .branch import BranchConfig, BTAdapter
    from .chat import VideoChat, plug, unplug
    from .explorer import explore
    from .figures import contact_sheet
    from .maps import temporal_maps
    from .masking import tube_mask
    from .metrics import recall_at_k
    from .released import load_released
    from .temporal_attention import temporal_attention
    from .video import ClipError, read_clip

__all__ = [
    "BTAdapter",
    "BranchConfig",
    "ClipError",
    "FrozenCLIP",
    "VideoChat",
    "contact_sheet",
    "explore",
    "load_clip",
    "load_released",
    "plug",
    "read_clip",
    "recall_at_k",
    "temporal_attention",
    "temporal_maps",
    "tube_mask",
    "unplug",
]
_NAMES = {
    "backbone": ["FrozenCLIP", "load_clip"],
    "branch": ["BTAdapter", "BranchConfig"],
    "chat": ["VideoChat", "plug", "unplug"],
    "explorer": ["explore"],
    "figures": ["contact_sheet"],
    "maps": ["temporal_maps"],
    "masking": ["tube_mask"],
    "metrics": ["recall_at_k"],
    "released": ["load_released"],
    "temporal_attention": ["temporal_attention"],
    "video": ["ClipError", "read_clip"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


class _Package(ModuleType):
    def __setattr__(self, name, value):
        """Python binds a submodule once it is imported. Where a function above has its name, that is
        bound instead, with what else the module has as its attributes: both meanings work."""
        if name in _MODULES and isinstance(value, ModuleType):
            module, value = vars(value), getattr(value, name)
            vars(value).update({key: thing for key, thing in module.items() if key[:2] != "__"})
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})


_warned = False


def _check_import_order():
    "Warn, once, of the crash that comes when decord was imported before torch."
    global _warned
    loaded = [name for name in sys.modules if name in ("decord", "torch")]  # as first imported
    if loaded[:1] == ["decord"] and not _warned:
        _warned = True
        warnings.warn(
            "decord was imported before torch: with the BLAS library that it loads, torch's next "
            "matrix product may end the process in a segmentation fault. Import torch first.",
            RuntimeWarning,
        )


_check_import_order()
