"""The judges' client against servers that are slow, failing, rate-limiting, talking rubbish."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bt_adapter import benchmark
from bt_adapter.benchmark import (
    PATIENCE,
    RUBRICS,
    Item,
    ModelJudge,
    OfflineJudge,
    Replies,
    Verdict,
    judge_all,
    official,
    predict,
    read_correct,
    read_items,
    read_score,
    summary,
)

KEY = "sk-very-secret-0123456789"
GOOD = '{"correct": "yes", "score": 4}'


class Server:
    """An OpenAI-compatible server; `plan(number, body)` says what it does with a request."""

    def __init__(self, plan, port=0):
        self.bodies, self.keys, self.busy, self.most = [], [], 0, 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.busy += 1
                    outer.most = max(outer.most, outer.busy)
                    number = len(outer.bodies)
                try:
                    plan(number, body, self)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with lock:
                        outer.busy -= 1

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def send(handler, status, text, kind="application/json", **headers):
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    data = text.encode()
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def reply(handler, text=GOOD, model="stub-2026-01"):
    send(handler, 200, json.dumps(dict(model=model, choices=[dict(message=dict(content=text))])))


def good(number, body, handler):
    reply(handler)


def make_items(n):
    return [Item(str(i), f"v{i}", f"What {i}?", "A cup.", f"cup {i}") for i in range(n)]


def make_judge(server, tmp_path, aspect="qa", **options):
    replies = Replies(tmp_path / "replies.jsonl")
    return ModelJudge("stub", aspect, replies, server.url, **(dict(retries=2, timeout=5) | options))


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


# --- the client ---


def test_what_is_asked(tmp_path):
    with Server(good) as server:
        judge = make_judge(server, tmp_path)
        verdicts = judge_all(judge, make_items(6), workers=2)
    assert all(v[:3] == (4.0, True, "stub-2026-01") for v in verdicts)
    assert len(server.bodies) == 6 and server.most <= 2
    assert all(b["temperature"] == 0 and b["model"] == "stub" for b in server.bodies)
    assert {*server.keys} == {f"Bearer {KEY}"}
    row = summary(judge, verdicts)
    assert row["version"] == "stub-2026-01" and row["date"] and row["judge"] == "stub, qa"
    assert (row["n"], row["unparsed"], row["failed"]) == (6, 0, 0)
    assert (row["accuracy"], row["score"]) == (100.0, 4.0)


def test_verdicts_come_in_the_items_order(tmp_path):
    def slower_first(number, body, handler):
        mark = json.loads(body["messages"][1]["content"])["question"].strip("What? ")
        time.sleep(0.2 if mark == "0" else 0)
        reply(handler, f'{{"score": {mark}}}')

    with Server(slower_first) as server:
        verdicts = judge_all(make_judge(server, tmp_path, "detail"), make_items(5), workers=5)
    assert [v.score for v in verdicts] == [0, 1, 2, 3, 4]
    assert all(v.correct is None for v in verdicts)


def test_a_slow_server_is_given_up_after_the_time_out(tmp_path):
    given_up = threading.Event()

    def slow(number, body, handler):
        if b"What 1?" not in json.dumps(body).encode():
            given_up.wait()
        reply(handler)

    with Server(slow) as server:
        judge = make_judge(server, tmp_path, timeout=0.3, retries=1)
        verdicts = judge_all(judge, make_items(2), workers=2)
        given_up.set()
    assert verdicts[0].error == "APITimeoutError" and verdicts[1].score == 4
    row = summary(judge, verdicts)
    assert (row["failed"], row["unparsed"], row["n"], row["score"]) == (1, 0, 2, 4.0)
    assert sum("What 0?" in json.dumps(b) for b in server.bodies) == 2  # once, and one retry


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503])
def test_a_failing_server_is_asked_again_and_no_more_than_allowed(status, tmp_path):
    def failing(number, body, handler):
        send(handler, status, "{}") if number <= 2 else reply(handler)

    with Server(failing) as server:
        assert make_judge(server, tmp_path).judge(make_items(1)[0]).score == 4
        assert len(server.bodies) == 3
    with Server(lambda n, b, handler: send(handler, status, "{}")) as server:
        verdict = make_judge(server, tmp_path / "b").judge(make_items(1)[0])
        assert verdict == Verdict(error=f"status {status}") and len(server.bodies) == 3


def test_a_rate_limit_is_waited_for(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def limited(number, body, handler):
        send(handler, 429, "{}", Retry_After="0.4") if number == 1 else reply(handler)

    with Server(limited) as server:
        assert make_judge(server, tmp_path).judge(make_items(1)[0]).score == 4
    assert waits == [0.4]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<html>busy</html>", "text/html"),
        ("{", "application/json"),
        ("[]", "application/json"),
        ("{}", "application/json"),
        ('{"choices": []}', "application/json"),
        ('{"choices": [{"message": null}]}', "application/json"),
        ('"a string"', "application/json"),
    ],
)
def test_what_is_no_completion_fails_one_item_and_is_not_kept(text, kind, tmp_path):
    with Server(lambda n, b, handler: send(handler, 200, text, kind)) as server:
        verdict = make_judge(server, tmp_path).judge(make_items(1)[0])
    assert verdict.error and verdict.score is None
    assert not Replies(tmp_path / "replies.jsonl").known


@pytest.mark.parametrize("text", ["", "I cannot say.", "score: 11", "\x00\ud83d", None])
def test_an_unreadable_reply_is_counted_and_not_paid_for_again(text, tmp_path):
    with Server(lambda n, b, handler: reply(handler, text)) as server:
        judge = make_judge(server, tmp_path)
        for _ in range(2):
            row = summary(judge, judge_all(judge, make_items(3)))
            assert (row["unparsed"], row["failed"], row["n"]) == (3, 0, 3)
            assert row["score"] == row["accuracy"] == ""
        assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_setup_ends_the_work_at_once(status, tmp_path):
    text = json.dumps(dict(error=dict(message=f"bad key {KEY}")))
    with Server(lambda n, b, handler: send(handler, status, text)) as server:
        with pytest.raises(ValueError, match=f"cannot be asked: .*status {status}") as caught:
            judge_all(make_judge(server, tmp_path), make_items(200), workers=2)
        assert len(server.bodies) <= 2 * 2
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


def test_a_dead_server_is_given_up(tmp_path):
    def dies(number, body, handler):
        reply(handler) if number <= 5 else send(handler, 500, "{}")

    with Server(dies) as server:
        judge = make_judge(server, tmp_path, retries=0)
        with pytest.raises(ValueError, match=f"failed {PATIENCE} times in a row.*status 500"):
            judge_all(judge, make_items(300), workers=2)
        assert len(server.bodies) < 40
    assert len(Replies(tmp_path / "replies.jsonl").known) == 5
    with Server(good, server.port) as server:
        verdicts = judge_all(make_judge(server, tmp_path), make_items(20))
        assert len(server.bodies) == 15 and all(v.score == 4 for v in verdicts)


def test_equal_questions_at_the_same_time_are_asked_once(tmp_path):
    def slow(number, body, handler):
        time.sleep(0.2)
        reply(handler)

    with Server(slow) as server:
        items = [Item(str(i), f"v{i}", "What?", "A cup.", "A cup.") for i in range(8)]
        verdicts = judge_all(make_judge(server, tmp_path), items, workers=8)
        assert len(server.bodies) == 1 and len({*verdicts}) == 1


def test_another_model_rubric_or_answer_is_another_question(tmp_path):
    with Server(good) as server:
        item, replies = make_items(1)[0], Replies(tmp_path / "r")
        ask = lambda model, aspect, item: ModelJudge(model, aspect, replies, server.url).judge(item)  # noqa: E731
        for aspect in RUBRICS:
            ask("a", aspect, item)
        ask("b", "qa", item)
        ask("a", "qa", make_items(2)[1])
        ask("a", "qa", item)
        assert len(server.bodies) == len(RUBRICS) + 2


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from bt_adapter.benchmark import ModelJudge, Replies, judge_all
from test_benchmark import make_items
judge = ModelJudge("stub", "qa", Replies(sys.argv[2]), sys.argv[1], retries=0)
print(len(judge_all(judge, make_items(12), workers=2)))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_resumed_without_asking_twice(how, tmp_path):
    def steady(number, body, handler):
        time.sleep(0.1)
        reply(handler)

    tests = Path(__file__).parent
    environment = os.environ | dict(PYTHONPATH=f"{tests.parent}{os.pathsep}{tests}")
    with Server(steady) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / "replies.jsonl")]
        first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        while len(server.bodies) < 5 and first.poll() is None:
            time.sleep(0.02)
        first.send_signal(how)
        first.communicate(timeout=30)
        assert first.returncode != 0
        kept = len(Replies(tmp_path / "replies.jsonl").known)
        assert 1 <= kept <= len(server.bodies) < 12
        before = len(server.bodies)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout == "12\n", done.stderr
        assert len(server.bodies) - before == 12 - kept
    times = Counter(json.dumps(body) for body in server.bodies)
    assert sum(n > 1 for n in times.values()) <= 2  # those in flight when the process ended


@pytest.mark.filterwarnings("ignore:.*what they held is asked again")
def test_a_line_cut_off_loses_itself_alone(tmp_path):
    path = tmp_path / "replies.jsonl"
    with Server(good) as server:
        judge = make_judge(server, tmp_path)
        judge_all(judge, make_items(4), workers=1)
        path.write_bytes(path.read_bytes()[:-9])
        judge_all(make_judge(server, tmp_path), make_items(6), workers=1)
        assert len(server.bodies) == 4 + 3
        path.write_bytes(b"\n[]\nnull\n7\n" + path.read_bytes())
        judge_all(make_judge(server, tmp_path), make_items(6))
        assert len(server.bodies) == 7


def test_nothing_of_the_key_is_written(tmp_path, capfd):
    with Server(good) as server:
        judge_all(make_judge(server, tmp_path), make_items(2))
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    out, err = capfd.readouterr()
    assert KEY not in written + out + err


def test_replaying_needs_no_key_and_no_server(tmp_path, monkeypatch):
    with Server(good) as server:
        verdicts = judge_all(make_judge(server, tmp_path), make_items(3))
    monkeypatch.delenv("OPENAI_API_KEY")
    again = ModelJudge("stub", "qa", Replies(tmp_path / "replies.jsonl"), server.url)
    assert judge_all(again, make_items(3)) == verdicts
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        judge_all(again, make_items(4))


def test_settings_of_no_judge(tmp_path):
    with pytest.raises(ValueError, match="An aspect is one of correctness"):
        ModelJudge("m", "beauty", Replies(tmp_path / "r"))
    with pytest.raises(ValueError, match="begins with http"):
        ModelJudge("m", "qa", Replies(tmp_path / "r"), "localhost:8000")


# --- reading ---

READABLE = {
    '{"correct": "yes", "score": 4}': (4, True),
    "{'pred': 'no', 'score': 0}": (0, False),
    "{''score': 4.8}": (4.8, None),
    '```json\n{"correct": "No",\n "score": 1}\n```': (1, False),
    "Yes, it does. Score: 5/5": (5, True),
    "no. 2 out of 5": (2, False),
    "**Score:** 3": (3, None),
    "3.": (3, None),
    '{"score": "4", "correct": "Yes"}': (4, True),
    '{"score": 4, "correct": true}': (4, True),
    "score: 4. The score is 4.": (4, None),
}
UNREADABLE = [
    "",
    "no idea: 7",
    "score: 6",
    "score: -1",
    "score: 45",
    "2 or 3",
    "score 2 or score 3",
]


@pytest.mark.parametrize("text", READABLE)
def test_readable_replies(text):
    assert (read_score(text), read_correct(text)) == READABLE[text]


@pytest.mark.parametrize("text", UNREADABLE)
def test_unreadable_marks(text):
    assert read_score(text) is None


@pytest.mark.parametrize(
    "text", ["", "Nobody knows.", "correct: yes. correct: no", "notably so", "maybe"]
)
def test_neither_yes_nor_no(text):
    assert read_correct(text) is None


def test_missing_marks_are_in_no_mean():
    verdicts = [
        Verdict(5.0, True),
        Verdict(),
        Verdict(error="x"),
        Verdict(2.0, False),
        Verdict(3.0),
    ]
    row = summary(OfflineJudge(), verdicts)
    assert (row["n"], row["unparsed"], row["failed"]) == (5, 1, 1)
    assert row["accuracy"] == 50.0 and row["score"] == round(10 / 3, 3)


# --- files ---


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_official_files(tmp_path):
    general = [
        dict(video_name="v_a", Q="q", A="a", pred="p"),
        dict(video_name="v_a", Q="q2", A="b"),
    ]
    items = read_items(write(tmp_path / "g.json", general))
    assert [i.id for i in items] == ["0", "1"] and items[0].prediction == "p"
    pair = [dict(video_name="v", Q1="one", Q2="two", A="a", pred1="x", pred2="y")]
    (item,) = read_items(write(tmp_path / "c.json", pair))
    assert (item.question, item.question2, item.prediction2) == ("one", "two", "y")
    assert "two" in json.dumps(benchmark.messages(item, "consistency"))
    qa = [dict(id=0, question="q", answer="a", pred="p")]
    assert read_items(write(tmp_path / "qa.json", qa))[0].id == "0"
    for one in (item, items[0]):
        again = read_items(write(tmp_path / "x.json", [official(one)]))
        assert again == [one]


BAD = {
    "": "cannot be read as JSON",
    "{}": "must hold a JSON list",
    "[]": "must hold a JSON list",
    "[1]": "must hold a JSON list",
    '[{"video_name": "v"}]': "row 0 has no answer and no question",
    '[{"Q": "q", "A": "a", "id": 1}, {"Q": "q", "A": "a", "id": 1}]': "1 more than once",
}


@pytest.mark.parametrize("content", BAD)
def test_files_of_something_else(content, tmp_path):
    with pytest.raises(ValueError, match=BAD[content]) as caught:
        read_items(write(tmp_path / "q.json", content))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_items(tmp_path / "missing.json")


def test_predictions_go_on_where_they_ended(tmp_path):
    items = [Item(str(i), f"v{i % 3}", "What?", "A cup.") for i in range(7)]
    clips, asked = {f"v{i}": Path(f"v{i}.mp4") for i in range(3)}, []

    def stops(clip, question):
        asked.append(clip)
        if len(asked) == 5:
            raise KeyboardInterrupt
        if clip.name == "v1.mp4":
            raise ValueError("cannot read v1.mp4")
        return f"cup {len(asked)}"

    with pytest.raises(KeyboardInterrupt):
        predict(items, clips, stops, tmp_path / "p.json", every=1)
    first = {item.id: item.prediction for item in read_items(tmp_path / "p.json")}
    assert first == {"0": "cup 1", "2": "cup 3", "3": "cup 4"}
    problems = predict(items, clips, stops, tmp_path / "p.json", every=3)
    assert problems == ["question 1: cannot read v1.mp4"] or len(problems) == 2
    again = {item.id: item.prediction for item in read_items(tmp_path / "p.json")}
    assert all(again[id] == text for id, text in first.items()) and "5" in again


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from bt_adapter.cli import judge

    rows = [dict(id=i, question="q", answer="a cup", pred=["a cup", "a mug"][i]) for i in range(2)]
    path = write(tmp_path / "p.json", rows)
    done = CliRunner().invoke(judge.app, [str(path), "--json"])
    assert json.loads(done.stdout)["verdict"][0]["accuracy"] == 50.0
    with Server(good) as server:
        options = ["--judge", "stub", "--base-url", server.url, "--replies", str(tmp_path / "r")]
        done = CliRunner().invoke(judge.app, [str(path), "--json", *options])
    assert json.loads(done.stdout)["verdict"][0]["version"] == "stub-2026-01"
    monkeypatch.setattr(sys, "argv", ["bta-judge", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as caught:
        judge.main()
    assert caught.value.code == 2
