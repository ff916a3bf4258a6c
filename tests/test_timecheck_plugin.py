"""The time check in tests of others: what the fixture `timecheck` lets pass, and what it says."""

from importlib.metadata import entry_points

import pytest
from test_packaging import settings

from bt_adapter import timecheck_plugin
from bt_adapter.timecheck import Report, Share, Verdict, rendered  # noqa: F401  inner runs find it
from bt_adapter.timecheck.chat_report import ChatReport
from bt_adapter.timecheck_plugin import DEGREES, TimeCheck

pytest_plugins = ["pytester"]

SUITE = """
import torch
from timecheck_faults import take


def pixels_of(clips):
    return clips[:, :, ::4, ::4].float().mean(-1).flatten(2)


def mean_color(clips):
    return clips.float().mean((1, 2, 3)) * torch.linspace(-1, 1, 3)


def last_minus_first(clips):
    return pixels_of(clips)[:, 1:].mean(1) - pixels_of(clips)[:, 0]


def broken(clips):
    return clips.no_such_thing


quick = dict(size=32, frames=4)
"""


def run(pytester, tests):
    """What pytest says of a suite of somebody's."""
    pytester.makepyfile(test_mine=SUITE + tests)
    return pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider")


def test_pytest_finds_it_and_starts_without_torch(pytester, monkeypatch):
    ((name, module),) = [
        [part.strip() for part in line.split("=")]
        for line in settings["pytest11"].strip().splitlines()
    ]
    (entry,) = entry_points(group="pytest11", name=name)
    assert entry.load() is timecheck_plugin and entry.value == module
    pytester.makepyfile("""
        import sys

        HEAVY = {"torch", "numpy", "bt_adapter.timecheck"}

        def test_start():
            assert "bt_adapter.timecheck_plugin" in sys.modules and not HEAVY & sys.modules.keys()

        def test_the_fixture(timecheck):
            assert callable(timecheck.encoder) and not HEAVY & sys.modules.keys()
    """)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins load what they like
    pytester.runpytest_subprocess("-p", name).assert_outcomes(passed=2)


def test_readers_in_a_suite(pytester):
    found = run(
        pytester,
        """
def test_healthy(timecheck):
    assert timecheck.reader(take).clips == 4

def test_all_at_once(timecheck):
    timecheck.reader(lambda paths: [take(path) for path in paths], together=True)

def test_backwards(timecheck):
    timecheck.reader(lambda path: take(path)[::-1])
""",
    )
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(
        ["*test_backwards*", "reversed (4 of 4 clips; *): give frames in the order of their times*"]
    )
    found.stdout.fnmatch_lines("FAILED test_mine.py::test_backwards - Failed: reversed*")
    found.stdout.no_fnmatch_line("*timecheck_plugin.py:*")


def test_encoders_in_a_suite(pytester):
    found = run(
        pytester,
        """
def test_readable(timecheck):
    report = timecheck.encoder(last_minus_first, at_least="readable", **quick)
    assert report.verdict.degree == 2 and report.settings["pairs"] == 8

def test_blind(timecheck):
    timecheck.encoder(mean_color, at_least="reacts", pairs=4, **quick)

def test_no_words(timecheck):
    timecheck.encoder(last_minus_first, at_least="found", pairs=4, **quick)

def test_no_degree(timecheck):
    timecheck.encoder(broken, at_least="sees")

def test_error(timecheck):
    timecheck.encoder(broken, **quick)
""",
    )
    found.assert_outcomes(passed=1, failed=4)
    said = found.stdout
    said.fnmatch_lines(
        [
            "mean_color: It does not see time: *",
            'This test asks for at least "reacts".*',
            "*% of 32 clips (*, line 50.0): the embedding moves when the clip is played backwards",
            "*% of 64 clips (*, line 50.0): a linear probe reads the direction, *",
            "last_minus_first: It carries the direction: *, but it has no words for it.",
            'This test asks for at least "found".*',
            '>   *at_least="sees")',
            "E   *at_least must be one of reacts, readable, found, not 'sees'.",
        ],
    )
    said.fnmatch_lines("FAILED test_mine.py::test_blind - Failed: mean_color: It does not see*")
    said.fnmatch_lines(">*return clips.no_such_thing")  # where the user's own mistake is
    said.fnmatch_lines("E *ValueError: embed_video fails on clips uint8 (16, 4, 32, 32, 3)*")
    said.no_fnmatch_line("*timecheck_plugin.py:*")


def report_of(degree):
    """A report of so many degrees."""
    none, all_of_them = Share(50, 100), Share(100, 100)
    reacts, readable, found = (all_of_them if degree > i else none for i in range(3))
    return Report(
        name="mine",
        frames=8,
        size=64,
        moved=dict(reversed=reacts, shuffled=reacts),
        distances={},
        unrest=0.0,
        readable=readable,
        axes={},
        found=dict(direction=found),
    )


@pytest.mark.parametrize("degree", range(4))
def test_a_degree_passes_up_to_itself(monkeypatch, degree):
    asked = []
    given = report_of(degree)

    def check(*args, **settings):
        asked.append((args, settings))
        return given

    monkeypatch.setattr("bt_adapter.timecheck.check", check)
    assert given.verdict.degree == degree and DEGREES == Verdict._fields[:3]
    for at_least in DEGREES[:degree]:
        assert TimeCheck().encoder("mine", len, at_least=at_least, seed=3) is given
    for at_least in DEGREES[degree:]:
        with pytest.raises(pytest.fail.Exception) as failed:
            TimeCheck().encoder("mine", len, at_least=at_least, seed=3)
        first, second, *rows = str(failed.value).splitlines()
        assert first == str(given) and f'at least "{at_least}"' in second
        assert len(rows) == len(given.rows()) == 4
    assert asked == [(("mine", len), dict(pairs=8, seed=3))] * 3


def chat_report_of(direction, unread=0):
    """A report of a chat model that is right about so many of 32 pairs."""
    shares = dict(motion=Share(32, 32, 0.25), direction=Share(direction, 32, 0.25))
    return ChatReport(
        name="mine",
        frames=8,
        size=64,
        form="letters",
        shares=shares | dict(binding=Share(0, 32, 0.25)),
        by_clip={},
        unread_by=dict(direction=Share(unread, 64, 0.0)),
        first=Share(32, 64),
        unsteady=Share(0, 8, 0.0),
    )


@pytest.mark.parametrize(
    "report, sees",
    [
        (chat_report_of(32), True),
        (chat_report_of(0), False),
        (chat_report_of(10), None),  # more than guessing, and too few to be sure
        (chat_report_of(32, unread=60), None),
    ],
    ids=["sees", "blind", "not shown", "not read"],
)
def test_a_chat_model_passes_that_sees_time_for_sure(monkeypatch, report, sees):
    asked = []

    def check_chat(*args, **settings):
        asked.append((args, settings))
        return report

    monkeypatch.setattr("bt_adapter.timecheck.check_chat", check_chat)
    assert report.verdict.sees is sees
    if sees:
        assert TimeCheck().chat("mine", form="words") is report
    else:
        with pytest.raises(pytest.fail.Exception) as failed:
            TimeCheck().chat("mine", form="words")
        first, *more = str(failed.value).splitlines()
        assert first == str(report) and "tells a clip from its reversal" in more[0]
        assert len(more) == 1 + len(report.rows()) and all(" of 32 pairs (" in m for m in more[1:])
    assert asked == [(("mine",), dict(pairs=4, form="words"))]
