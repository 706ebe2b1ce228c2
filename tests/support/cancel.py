"""A user's Cancel, which the host raises wherever `check_interrupt` is asked."""


class CancelledError(Exception):
    """As ComfyUI's InterruptProcessingException is: a broad `except Exception` would swallow it."""


class Cancelled(BaseException):
    """What no `except Exception` sees, so that whatever has to be undone is undone some other way."""


class CancelAfter:
    """A `check_interrupt` that passes so many times, then raises once, as the host does for one Cancel."""

    def __init__(self, checks, error=Cancelled):
        self.calls = 0
        """Times that it was asked."""
        self._checks = checks
        self._error = error

    def __call__(self):
        self.calls += 1
        if self.calls == self._checks + 1:
            raise self._error


class After:
    """A `check_interrupt` that does something the so-manyth time it is asked."""

    def __init__(self, count, action):
        self._left, self._action = count, action

    def __call__(self):
        self._left -= 1
        if self._left == 0:
            self._action()


def press_cancel():
    """Raise what the host raises."""
    raise CancelledError
