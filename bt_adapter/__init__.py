import sys
import warnings

__version__ = "0.1.0"
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
