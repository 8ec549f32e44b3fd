"""The progress of questions to an LLM on the screen: no rate and no time left before there is something to tell them from."""

import time
from typing import Any

from tqdm import tqdm

from recbole_llm4sbr.base.wording import duration

# What must have come behind the first batch before anything is predicted of the rest: batches, and seconds of them.
_BATCHES, _SECONDS = 3, 2.0
_COUNTED = "{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
_PREDICTED = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """A bar over questions.

    The clock of the rate starts when the first batch is answered: before that the model is loaded, and the first batch of a local engine
    is a small one, so that the bar moves early.

    Args:
        total: questions to ask.
    """

    def __init__(self, total: int) -> None:
        self._bar: Any = tqdm(total=total, unit="prompt", desc="LLM", mininterval=0.5, miniters=1, bar_format=_COUNTED)
        self._left, self._unshown = total, 0
        self._since: float | None = None  # when the first batch was answered
        self._last = 0.0  # when the newest one was
        self._batches = self._answers = self._tokens = 0  # behind the first one

    def came(self, tokens: int, more: bool, text: str = "") -> None:
        """Count an answer, or a call that failed.

        Args:
            tokens: of the prompt and the answer.
            more: whether further answers of the same batch follow at once.
            text: what else the bar shall say.
        """
        self._left, self._unshown = self._left - 1, self._unshown + 1
        self._last = time.perf_counter()
        if self._since is not None:
            self._answers, self._tokens = self._answers + 1, self._tokens + tokens
            self._batches += not more
        elif not more:
            self._since = self._last
        if more:  # the bar moves when the batch is complete
            return
        rates = self._rates()
        if rates:
            self._bar.bar_format = _PREDICTED
        self._bar.set_postfix_str(", ".join(filter(None, (rates, text))), refresh=False)
        self._bar.update(self._unshown)
        self._unshown = 0

    def answered_elsewhere(self) -> None:
        """Count a question that another process has answered."""
        self._left -= 1
        self._bar.update()

    def wait(self, text: str) -> None:
        """Say what is waited for."""
        self._bar.set_postfix_str(text)

    def per_second(self) -> float | None:
        """Answers per second behind the first batch, up to the newest answer; None before enough has come to tell it."""
        if self._since is None or self._batches < _BATCHES or self._last - self._since < _SECONDS:
            return None
        return self._answers / (self._last - self._since)

    def _rates(self) -> str:
        rate = self.per_second()
        if not rate:
            return ""
        tokens = rate * self._tokens / self._answers
        return f"{rate:,.1f} prompts/s, {tokens:,.0f} tokens/s, {duration(self._left / rate)} left"

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.update(self._unshown)
        self._bar.close()


class BatchProgress:
    """A bar over questions in batches of an endpoint.

    Args:
        total: questions.
        shown: whether there is a bar at all.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self._bar: Any = tqdm(total=total, unit="prompt", desc="LLM batches", bar_format=_COUNTED, disable=not shown)

    def show(self, done: int, text: str) -> None:
        """So many are done; what else the bar shall say."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.n = max(0, min(done, self._bar.total or 0))
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
