"""The log of a run: its own file, and nothing of the host's logging changed."""

import functools
import logging
import multiprocessing

import pytest

from recbole_llm4sbr.training.logs import run_log

CONFIG = {"model": "SRGNN", "dataset": "tiny", "state": "INFO"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The root logger, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return logging.getLogger()


def bare_root(test):
    """Run a test with a root logger as Python starts with; pytest adds its own handlers only after the fixtures."""

    @functools.wraps(test)
    def run(*arguments, **fixtures):
        logger = logging.getLogger()
        handlers, level = logger.handlers[:], logger.level
        logger.handlers[:] = []
        logger.setLevel(logging.WARNING)
        try:
            test(*arguments, **fixtures)
        finally:
            logger.handlers[:] = handlers
            logger.setLevel(level)

    return run


def log_files(tmp_path):
    return sorted((tmp_path / "log" / "SRGNN").glob("SRGNN-tiny-*.log"))


@bare_root
def test_the_file_holds_the_lines_of_the_run_without_colour_codes(root, tmp_path):
    root.error("before")
    with run_log(CONFIG) as path:
        root.info("\x1b[1;32mepoch 0 training\x1b[0m [loss: 1.5]")
        logging.getLogger("recbole_llm4sbr.training.fit").info("share %s", "\x1b[1;35m90 %\x1b[0m")
        root.debug("too fine")
    root.error("after")
    assert [path.resolve()] == log_files(tmp_path)
    lines = path.read_text().splitlines()
    assert [line.split("INFO  ")[1] for line in lines] == ["epoch 0 training [loss: 1.5]", "share 90 %"]


@bare_root
def test_colours_are_kept_for_the_other_handlers(root, tmp_path):
    seen = []
    other = logging.Handler()
    other.emit = lambda record: seen.append(record.getMessage())
    with run_log(CONFIG):
        root.addHandler(other)
        root.info("\x1b[1;32mgreen\x1b[0m")
    assert seen == ["\x1b[1;32mgreen\x1b[0m"]
    assert root.handlers == [other]  # what others add meanwhile stays


@bare_root
def test_a_hosts_own_file_handler_works_and_stays_open(root, tmp_path):
    host = logging.FileHandler(tmp_path / "host.log")
    root.addHandler(host)
    stream = host.stream
    with run_log(CONFIG):
        root.info("inside")
    root.warning("afterwards")
    assert host.stream is stream
    assert not stream.closed
    assert (tmp_path / "host.log").read_text().splitlines() == ["inside", "afterwards"]
    host.close()


@pytest.mark.parametrize("before", [logging.NOTSET, logging.DEBUG, logging.INFO, logging.ERROR])
@pytest.mark.parametrize("fails", [False, True])
@bare_root
def test_handlers_and_level_are_afterwards_as_they_were(root, before, fails):
    host = logging.StreamHandler()
    root.addHandler(host)
    root.setLevel(before)
    during = []
    try:
        with run_log(CONFIG):
            during = [root.level, len(root.handlers)]
            if fails:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert fails
    assert during == [min(before, logging.INFO), 2]  # the file, and no second handler for the screen
    assert (root.handlers, root.level) == ([host], before)


@bare_root
def test_the_screen_shows_the_run_only_where_nobody_else_does(root, capsys):
    with run_log(CONFIG):
        root.info("on the screen")
    assert "on the screen" in capsys.readouterr().err
    assert root.handlers == []


@pytest.mark.parametrize(
    ("state", "kept"),
    [("debug", "abcd"), ("INFO", "bcd"), (None, "bcd"), ("warning", "cd"), ("error", "d"), ("critical", ""), ("loud", "bcd")],
)
@bare_root
def test_the_key_state_says_what_is_kept_as_in_recbole(root, tmp_path, state, kept):
    with run_log(CONFIG | {"state": state}):
        root.debug("a")
        root.info("b")
        root.warning("c")
        root.error("d")
    text = "".join(line[-1] for path in log_files(tmp_path) for line in path.read_text().splitlines())
    assert text == kept


@bare_root
def test_a_run_that_logs_nothing_leaves_no_file(root, tmp_path):
    with run_log(CONFIG):
        pass
    assert log_files(tmp_path) == []


@bare_root
def test_two_runs_in_a_row_have_a_file_each(root, tmp_path):
    for number in range(2):
        with run_log(CONFIG):
            root.info("run %s", number)
    texts = [path.read_text() for path in log_files(tmp_path)]
    assert len(texts) == 2
    assert sorted(text[-2] for text in texts) == ["0", "1"]


def _log_a_run(number):
    with run_log(CONFIG):
        for _ in range(20):
            logging.getLogger().info("process %s", number)


@bare_root
def test_processes_at_once_have_a_file_each(root, tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(_log_a_run, range(8), chunksize=1)
    texts = [path.read_text().splitlines() for path in log_files(tmp_path)]
    assert len(texts) == 8
    assert sorted({line[-1] for line in lines} == {lines[0][-1]} and len(lines) for lines in texts) == [20] * 8
