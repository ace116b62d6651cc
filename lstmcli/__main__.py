import _signal  # type: ignore[import-not-found]  # not signal, whose enums take time in which Ctrl-C is not handled
import gc
import os


def leave(*_: object) -> None:
    """Ends the process at once: while modules are loaded nothing can be lost, and an exception may be swallowed there."""
    try:
        os.write(2, b"lstmcli: interrupted by SIGINT\n")
    finally:
        os._exit(130)


if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, leave)  # the commands have handlers of their own

# A start makes tens of thousands of objects and no garbage; to look for it again and again takes a tenth of a short run.
gc.set_threshold(500_000)
# Likewise what a run needs has its records as NamedTuples: Python takes a millisecond to make a frozen dataclass.

from lstmcli.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
